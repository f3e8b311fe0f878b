"""The files of a job: every path, and how a file is published so that nobody ever sees a part of one."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from core.errors import ArtifactCorrupt

FORMATS = {"pdparams": "model.pdparams", "safetensors": "model.safetensors"}
JOB_ID = re.compile(r"job_[0-9a-f]{32}")


def attempt_dir(jobs_dir: Path, job_id: str, token: str) -> Path:
    """Folder that one claim alone writes to, so that a stale one never touches what a newer one published."""
    if not JOB_ID.fullmatch(job_id) or not token.isdecimal():
        raise ValueError("not a job id and a token")
    return jobs_dir / job_id / token


def publish(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    """Write a file so that it is absent or complete, also after a power cut: temp, fsync, rename, fsync of the folder.

    Returns its description for the record: `path` (below the jobs folder), `sha256`, `size_bytes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / name)
    for changed in (folder, folder.parent, folder.parent.parent):
        _fsync_folder(changed)
    path = f"{folder.parent.name}/{folder.name}/{name}"
    return {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def read_verified(jobs_dir: Path, file: dict[str, Any]) -> bytes:
    """The bytes of a published file. Raises ArtifactCorrupt when it is missing or differs from its digest."""
    try:
        content = jobs_dir.joinpath(file["path"]).read_bytes()
    except OSError as error:
        raise ArtifactCorrupt(f"the model's file cannot be read ({type(error).__name__})") from error
    if hashlib.sha256(content).hexdigest() != file["sha256"]:
        raise ArtifactCorrupt("the model's file does not match its digest")
    return content


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
