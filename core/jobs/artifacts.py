"""The files of jobs: how each is called, which are kept, and that a damaged one is noticed.

    <job>/job.json, history.jsonl      the record and the loss history, for `descent reindex`
    <job>/<token>/model.*              the weights that one claim published
    <job>/<token>/model-<sha256>.*     the same in another format, made from them when it was asked for
    <job>/<token>/checkpoint-<step>-<sha256>.safetensors
    <job>/<token>/spool.jsonl          what the claim's trainer told, from step 0 on (in pieces on an object store)
    <sweep>.json

They are in the home's folder `jobs`, in a shared folder or in a bucket: a `Storage` publishes each so that nobody ever sees a
part of one. A claim writes only below its own token, so a stale one never touches what a newer one published. What is made
from weights lies beside them and goes with them.
"""

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterable
from typing import Any

from core.errors import ArtifactCorrupt, StackError, StorageAway, StorageRefused
from core.settings import Settings
from core.storage import Storage, storage_at

FORMATS = {"pdparams": "model.pdparams", "safetensors": "model.safetensors"}
EXPORTS = {"inference": "inference.zip", "onnx": "onnx"}  # the end of the name
JOB_ID = re.compile(r"job_[0-9a-f]{32}")
SWEEP_ID = re.compile(r"sweep_[0-9a-f]{32}")
SPOOL, RECORD, HISTORY = "spool.jsonl", "job.json", "history.jsonl"
CHECKPOINTS_KEPT = 2
_EXPORT = re.compile(r"model-([0-9a-f]{64})\.(?:inference\.zip|onnx)")
_CHECKPOINT = re.compile(r"job_[0-9a-f]{32}/([0-9]+)/checkpoint-([0-9]{9})-([0-9a-f]{64})\.safetensors")
_CLAIMED = re.compile(r"job_[0-9a-f]{32}/([0-9]+)/.+")
_TEMPORARY = re.compile(r"job_[0-9a-f]{32}/\..+\.tmp")

log = logging.getLogger(__name__)


def storage(settings: Settings, *, limit_s: float = 20) -> Storage:
    """Where the files of jobs are; `limit_s` for each operation far away. Raises StackError when what it takes is missing."""
    copies = settings.cache_dir / "artifacts"
    return storage_at(settings.artifacts_at, setting="DESCENT_ARTIFACTS", copies=copies, limit_s=limit_s)


def require_storage(settings: Settings, *, must_answer: bool = True) -> None:
    """Look whether the storage that is set can be used. Raises StackError, which says what a person must do.

    One that merely does not answer may be let pass: those who need it wait for it. The home is not looked at: everything
    stands on it.
    """
    if settings.artifacts is None:
        return
    try:
        storage(settings).probe()
    except StorageAway as error:
        if must_answer or isinstance(error, StorageRefused):
            raise StackError(f"{error}: {error.reason}") from None
        log.warning("started without the storage of files", extra={"reason": error.reason})
    except OSError as error:
        raise StackError(f"DESCENT_ARTIFACTS cannot be written to: {error}") from None


def job_folder(job_id: str) -> str:
    if not JOB_ID.fullmatch(job_id):
        raise ValueError("not a job id")
    return job_id


def claim_folder(job_id: str, token: str) -> str:
    """Folder that one claim alone writes to."""
    if not token.isdecimal():
        raise ValueError("not a token")
    return f"{job_folder(job_id)}/{token}"


def publish(files: Storage, folder: str, name: str, content: bytes) -> dict[str, Any]:
    """Publish a file. Returns its description for the record: `path`, `sha256`, `size_bytes`. Raises OSError."""
    path = f"{folder}/{name}"
    files.put(path, content)
    return {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def read_verified(files: Storage, file: dict[str, Any]) -> bytes:
    """The bytes of a published file. Raises ArtifactCorrupt when it is missing or differs from its digest, StorageAway."""
    return _read(files, file["path"], file["sha256"])


def _read(files: Storage, name: str, sha256: str) -> bytes:
    try:
        content = files.get(name, sha256)
    except StorageAway:
        raise
    except OSError as error:
        raise ArtifactCorrupt(f"a stored file cannot be read ({type(error).__name__})") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactCorrupt("a stored file does not match its digest")
    return content


# --- other formats -----------------------------------------------------------------------------------------------------


def publish_export(files: Storage, weights: dict[str, Any], format: str, content: bytes) -> None:
    """Keep what was made from published weights, beside them; its digest is in its name.

    Raises OSError when that cannot be done, also when the weights were removed meanwhile: their folder is not made again.
    """
    name = f"model-{hashlib.sha256(content).hexdigest()}.{EXPORTS[format]}"
    files.put(f"{_folder_of(weights['path'])}/{name}", content, anew=False)


def read_export(files: Storage, weights: dict[str, Any], format: str) -> bytes | None:
    """What was made from these weights in a format; None when it was not yet, or is damaged, and then it is removed.

    Raises StorageAway.
    """
    for path in sorted(files.find(_folder_of(weights["path"]))):
        named = _EXPORT.fullmatch(_end_of(path))
        if named and path.endswith(f".{EXPORTS[format]}"):
            try:
                return _read(files, path, named[1])
            except ArtifactCorrupt:
                with contextlib.suppress(OSError):
                    files.remove([path])
    return None


# --- checkpoints -------------------------------------------------------------------------------------------------------


def publish_checkpoint(files: Storage, folder: str, step: int, content: bytes) -> None:
    """Publish a checkpoint of the claim that `folder` belongs to; its digest is in its name. Raises OSError.

    Of the job's checkpoints, this claim's and older ones', the newest two stay. What a newer claim has is not touched.
    """
    publish(files, folder, f"checkpoint-{step:09d}-{hashlib.sha256(content).hexdigest()}.safetensors", content)
    there = files.find(_folder_of(folder))
    own = int(_end_of(folder))
    gone = [path for path in _checkpoints_in(there) if (_token_of(path) or 0) <= own][CHECKPOINTS_KEPT:]
    for claim in {_folder_of(path) for path in gone} - {folder}:
        left = [path for path in there if _folder_of(path) == claim and path not in gone]
        if all(_end_of(path).startswith(SPOOL) for path in left):  # of no use without a checkpoint
            gone += left
    files.remove(gone)


def checkpoints(files: Storage, job_id: str) -> list[str]:
    """The paths of a job's checkpoints, those of the newest claim first, and of each claim the furthest.

    A newer claim knew of the older ones' when it began. If it is not as far, it could not use theirs. Raises StorageAway.
    """
    return _checkpoints_in(files.find(job_folder(job_id)))


def _checkpoints_in(paths: Iterable[str]) -> list[str]:
    named = [named for path in paths if (named := _CHECKPOINT.fullmatch(path))]
    return [it[0] for it in sorted(named, key=lambda it: (int(it[1]), int(it[2])), reverse=True)]


def kept_checkpoints(files: Storage, job_id: str) -> list[dict[str, Any]]:
    """What there is of them, the best first: `step`, `sha256`, `size_bytes`. Raises StorageAway."""
    sizes = files.find(job_folder(job_id))
    kept = [_CHECKPOINT.fullmatch(path) for path in _checkpoints_in(sizes)[:CHECKPOINTS_KEPT]]
    return [{"step": int(it[2]), "sha256": it[3], "size_bytes": sizes[it[0]]} for it in kept if it]


def read_checkpoint(files: Storage, path: str) -> bytes:
    """The bytes of a checkpoint. Raises ArtifactCorrupt when it is gone or differs from its name's digest, StorageAway."""
    named = _CHECKPOINT.fullmatch(path)
    assert named
    return _read(files, path, named[3])


# --- the end of a job --------------------------------------------------------------------------------------------------


def sweep(files: Storage, job_id: str, kept: set[str], *, upto: int) -> None:
    """Remove what the claims up to the token `upto` left behind. Raises OSError.

    All but the published files in `kept` with what was made from them, the newest checkpoints and their spools.
    """
    there = files.find(job_folder(job_id))
    newest = set(_checkpoints_in(there)[:CHECKPOINTS_KEPT])
    with_weights, with_checkpoints = ({_folder_of(path) for path in paths} for paths in (kept, newest))

    def stays(path: str) -> bool:
        folder, end = _folder_of(path), _end_of(path)
        is_export = folder in with_weights and _EXPORT.fullmatch(end)
        is_spool = folder in with_checkpoints and end.startswith(SPOOL)
        return bool(path in kept or path in newest or is_export or is_spool)

    def is_old(path: str) -> bool:
        token = _token_of(path)
        return bool(_TEMPORARY.fullmatch(path)) if token is None else token <= upto

    files.remove([path for path in there if is_old(path) and not stays(path)])


def sweep_file(sweep_id: str) -> str:
    if not SWEEP_ID.fullmatch(sweep_id):
        raise ValueError("not a sweep id")
    return f"{sweep_id}.json"


def remove(files: Storage, name: str) -> None:
    """Remove all files of a job, or the file of a sweep. Raises OSError when that cannot be done."""
    if SWEEP_ID.fullmatch(name):
        files.remove([sweep_file(name)])
    else:
        files.clear(job_folder(name))


def newest_token(files: Storage, job_id: str) -> int:
    """The highest token that any claim of the job wrote under; 0 for none. Raises StorageAway."""
    return max((_token_of(path) or 0 for path in files.find(job_folder(job_id))), default=0)


def _token_of(path: str) -> int | None:
    """The token of the claim that a file is of; None for the job's own."""
    claimed = _CLAIMED.fullmatch(path)
    return int(claimed[1]) if claimed else None


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _end_of(path: str) -> str:
    return path.rpartition("/")[2]
