"""Where a job can go on: the checkpoints that its earlier claims left, with what was told before them."""

import logging
from dataclasses import dataclass

from core.errors import ArtifactCorrupt
from core.jobs import artifacts, spool
from core.jobs.spool import Message
from core.spec import JobSpec
from core.storage import Storage
from core.training.checkpoint import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """A checkpoint, and all that was told before it."""

    checkpoint: Checkpoint
    told: list[Message]


def resumptions(files: Storage, job_id: str, spec: JobSpec) -> list[Resumption]:
    """Where the job can go on, the best first; empty when it must begin anew. Damaged checkpoints are passed over.

    Raises StorageAway.
    """
    found = []
    for path in artifacts.checkpoints(files, job_id):
        try:
            checkpoint = Checkpoint.from_bytes(artifacts.read_checkpoint(files, path))
            told = _told_before(checkpoint, spool.read(files, path.rpartition("/")[0]), spec)
        except (ArtifactCorrupt, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint passed over", extra={"job_id": job_id, "file": path, "reason": repr(error)})
            continue
        found.append(Resumption(checkpoint=checkpoint, told=told))
    return found


def _told_before(checkpoint: Checkpoint, messages: list[Message], spec: JobSpec) -> list[Message]:
    """The messages up to a checkpoint. Raises ValueError when a loss point or an epoch is missing."""
    points = [p for m in messages if m["type"] == "block" for p in m["points"] if p["step"] < checkpoint.step]
    epochs = [m for m in messages if m["type"] == "epoch" and m["metrics"]["epoch"] < checkpoint.state["epoch"]]
    if not set(range(0, checkpoint.step, spec.log_every)) <= {point["step"] for point in points}:
        raise ValueError("the history before it is not complete")
    if [m["metrics"]["epoch"] for m in epochs] != list(range(checkpoint.state["epoch"])):
        raise ValueError("the epochs before it are not complete")
    speed = next((m["images_per_s"] for m in reversed(messages) if m["type"] == "block"), 0.0)
    return [{"type": "block", "points": points, "steps_done": checkpoint.step, "images_per_s": speed}, *epochs]
