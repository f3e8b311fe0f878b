"""The files of a job: every path, and how a file is published so that nobody ever sees a part of one.

    jobs/<id>/job.json, history.jsonl      the record and the loss history, for `descent reindex`
    jobs/<id>/<token>/model.*              the weights that one claim published
    jobs/<id>/<token>/model-<sha256>.*     the same in another format, made from them when it was asked for
    jobs/<id>/<token>/checkpoint-<step>-<sha256>.safetensors
    jobs/<id>/<token>/spool.jsonl          what the claim's trainer told, from step 0 on

A claim writes only below its own token, so a stale one never touches what a newer one published. What is made from weights
lies beside them and goes with them.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import ArtifactCorrupt

FORMATS = {"pdparams": "model.pdparams", "safetensors": "model.safetensors"}
EXPORTS = {"inference": "inference.zip", "onnx": "onnx"}  # the end of the name
JOB_ID = re.compile(r"job_[0-9a-f]{32}")
SWEEP_ID = re.compile(r"sweep_[0-9a-f]{32}")
SPOOL, RECORD, HISTORY = "spool.jsonl", "job.json", "history.jsonl"
CHECKPOINTS_KEPT = 2
_EXPORT = re.compile(r"model-([0-9a-f]{64})\.(?:inference\.zip|onnx)")
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{9})-([0-9a-f]{64})\.safetensors")


def job_dir(jobs_dir: Path, job_id: str) -> Path:
    if not JOB_ID.fullmatch(job_id):
        raise ValueError("not a job id")
    return jobs_dir / job_id


def attempt_dir(jobs_dir: Path, job_id: str, token: str) -> Path:
    """Folder that one claim alone writes to."""
    if not token.isdecimal():
        raise ValueError("not a token")
    return job_dir(jobs_dir, job_id) / token


def publish(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    """Write a file so that it is absent or complete, also after a power cut: temp, fsync, rename, fsync of the folders.

    Returns its description for the record: `path` (below the folder two levels up), `sha256`, `size_bytes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return _put(folder, name, content)


def _put(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    temporary = folder / f".{name}.{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise
    for changed in (folder, folder.parent, folder.parent.parent):
        _fsync_folder(changed)
    path = f"{folder.parent.name}/{folder.name}/{name}"
    return {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def read_verified(jobs_dir: Path, file: dict[str, Any]) -> bytes:
    """The bytes of a published file. Raises ArtifactCorrupt when it is missing or differs from its digest."""
    return _read(jobs_dir / file["path"], file["sha256"])


def _read(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactCorrupt(f"a stored file cannot be read ({type(error).__name__})") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactCorrupt("a stored file does not match its digest")
    return content


# --- other formats -----------------------------------------------------------------------------------------------------


def publish_export(jobs_dir: Path, weights: dict[str, Any], format: str, content: bytes) -> None:
    """Keep what was made from published weights, beside them; its digest is in its name.

    Raises OSError when that cannot be done, also when the weights were removed meanwhile: their folder is not made again.
    """
    _put((jobs_dir / weights["path"]).parent, f"model-{hashlib.sha256(content).hexdigest()}.{EXPORTS[format]}", content)


def read_export(jobs_dir: Path, weights: dict[str, Any], format: str) -> bytes | None:
    """What was made from these weights in a format; None when it was not yet, or is damaged, and then it is removed."""
    for path in sorted((jobs_dir / weights["path"]).parent.glob(f"model-*.{EXPORTS[format]}")):
        if named := _EXPORT.fullmatch(path.name):
            try:
                return _read(path, named[1])
            except ArtifactCorrupt:
                with contextlib.suppress(OSError):
                    path.unlink()
    return None


# --- checkpoints -------------------------------------------------------------------------------------------------------


def publish_checkpoint(folder: Path, step: int, content: bytes) -> None:
    """Publish a checkpoint of the claim that `folder` belongs to; its digest is in its name.

    Of the job's checkpoints, this claim's and older ones', the newest two stay. What a newer claim has is not touched.
    """
    publish(folder, f"checkpoint-{step:09d}-{hashlib.sha256(content).hexdigest()}.safetensors", content)
    own = int(folder.name)
    for path in [path for path in checkpoints(folder.parent) if int(path.parent.name) <= own][CHECKPOINTS_KEPT:]:
        path.unlink(missing_ok=True)
        if path.parent != folder and {file.name for file in path.parent.iterdir()} <= {SPOOL}:
            shutil.rmtree(path.parent, ignore_errors=True)


def checkpoints(job: Path) -> list[Path]:
    """A job's checkpoints, those of the newest claim first, and of each claim the furthest.

    A newer claim knew of the older ones' when it began. If it is not as far, it could not use theirs.
    """
    found = [path for path in job.glob("[0-9]*/checkpoint-*.safetensors") if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: (int(path.parent.name), path.name[:20]), reverse=True)


def kept_checkpoints(jobs_dir: Path, job_id: str) -> list[dict[str, Any]]:
    """What there is of them, the best first: `step`, `sha256`, `size_bytes`."""
    found = []
    for path in checkpoints(job_dir(jobs_dir, job_id))[:CHECKPOINTS_KEPT]:
        named = _CHECKPOINT.fullmatch(path.name)
        with contextlib.suppress(FileNotFoundError):  # a newer one has taken its place
            size = path.stat().st_size
            assert named
            found.append({"step": int(named[1]), "sha256": named[2], "size_bytes": size})
    return found


def read_checkpoint(path: Path) -> bytes:
    """The bytes of a checkpoint. Raises ArtifactCorrupt when it is gone or differs from the digest in its name."""
    named = _CHECKPOINT.fullmatch(path.name)
    assert named
    return _read(path, named[2])


# --- the end of a job --------------------------------------------------------------------------------------------------


def sweep(job: Path, kept: set[str], *, upto: int) -> None:
    """Remove what the claims up to the token `upto` left behind.

    All but the published files in `kept` with what was made from them, the newest checkpoints and their spools.
    """
    newest = checkpoints(job)[:CHECKPOINTS_KEPT]
    published = {job.parent / path for path in kept}
    exports = {path for path in job.glob("[0-9]*/model-*") if _EXPORT.fullmatch(path.name)}
    keep = published | {path for path in exports if path.parent in {file.parent for file in published}} | set(newest)
    keep |= {path.parent / SPOOL for path in newest}
    for temporary in job.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)
    for folder in [folder for folder in _folders(job) if int(folder.name) <= upto]:
        for path in [path for path in folder.iterdir() if path not in keep]:
            path.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def sweep_file(jobs_dir: Path, sweep_id: str) -> Path:
    if not SWEEP_ID.fullmatch(sweep_id):
        raise ValueError("not a sweep id")
    return jobs_dir / f"{sweep_id}.json"


def remove(jobs_dir: Path, name: str) -> None:
    """Remove all files of a job, or the file of a sweep. Raises OSError when that cannot be done."""
    if SWEEP_ID.fullmatch(name):
        sweep_file(jobs_dir, name).unlink(missing_ok=True)
        return
    folder = job_dir(jobs_dir, name)
    if folder.exists():
        shutil.rmtree(folder)
        _fsync_folder(jobs_dir)


def newest_token(job: Path) -> int:
    """The highest token that any claim of the job wrote under; 0 for none."""
    return max((int(folder.name) for folder in _folders(job)), default=0)


def _folders(job: Path) -> Iterator[Path]:
    return (folder for folder in job.glob("[0-9]*") if folder.name.isdecimal() and folder.is_dir())


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
