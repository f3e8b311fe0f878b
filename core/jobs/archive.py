"""A job's own files, `job.json` and `history.jsonl`: written from the record, and the record made from them again.

A sweep has one file beside the folders of its jobs.
Redis is the truth while it lives; with the files an empty one can be filled again (`descent reindex`).
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from core.errors import ArtifactCorrupt, InvalidRequest, NotFound, StorageAway
from core.jobs import artifacts, names, spool
from core.jobs.job import Status
from core.jobs.record import summary_of, to_json
from core.jobs.store import JobStore, RawJob
from core.jobs.sweeps import SweepStore
from core.jobs.work import WorkStore
from core.storage import Storage
from core.sweep import SweepSpec

FORMAT = 1
_DECODED = (
    "spec",
    "backend",
    "result",
    "model",
    "partial",
    "error",
    "stopped_early",
    "aliases",
    "request",
)  # fields of the record that are JSON themselves

log = logging.getLogger(__name__)


async def file_job(store: WorkStore, files: Storage, job_id: str) -> None:
    """Bring a job's files up to date; those of one that is deleted go. A storage that refuses is tried again at the next scan.

    Raises Unavailable.
    """
    job = await store.raw(job_id)
    if job is None:
        await remove_job(store, files, job_id)
        return
    try:
        points = await _all_points(store, job_id) if job.status.terminal else None
        await asyncio.to_thread(_write, files, job, points)
    except (NotFound, InvalidRequest):  # it was deleted meanwhile
        await remove_job(store, files, job_id)
        return
    except OSError as error:
        log.warning("the job's files cannot be written", extra={"job_id": job_id, "reason": str(error)})
        return
    await store.filed(job)


async def file_sweep(store: WorkStore, files: Storage, sweep_id: str) -> None:
    """Write a sweep's file, or remove it when the sweep was deleted. Raises Unavailable."""
    sweeps = SweepStore(store.database)
    sweep = await sweeps.raw(sweep_id)
    if sweep is None:
        await remove_job(store, files, sweep_id)
        return
    content = json.dumps({"format": FORMAT, "id": sweep_id, **sweep}, indent=1, ensure_ascii=False).encode()
    try:
        await asyncio.to_thread(files.put, artifacts.sweep_file(sweep_id), content)
    except OSError as error:
        log.warning("the sweep's file cannot be written", extra={"sweep_id": sweep_id, "reason": str(error)})
        return
    await sweeps.filed(sweep_id, sweep["record"].get("cancelled_ms", ""))


async def remove_job(
    store: JobStore, files: Storage, job_id: str, *, in_thread: Callable[..., Awaitable[Any]] = asyncio.to_thread
) -> None:
    """Remove the files of a deleted job. A storage that refuses is tried again at the next scan. Raises Unavailable.

    `in_thread(do, *given)` runs what waits for the storage.
    """
    try:
        await in_thread(artifacts.remove, files, job_id)
    except OSError as error:
        log.warning("the job's files cannot be removed", extra={"job_id": job_id, "reason": str(error)})
        return
    await store.emptied(job_id)


async def _all_points(store: WorkStore, job_id: str) -> list[str]:
    points: list[str] = []
    while True:
        page = await store.loss(job_id, after=str(len(points)))
        points += page.points
        if not page.has_more:
            return points


def _write(files: Storage, job: RawJob, points: list[str] | None) -> None:
    folder = artifacts.job_folder(job.job_id)
    record: dict[str, Any] = {name: json.loads(text) if name in _DECODED else text for name, text in job.record.items()}
    content: dict[str, Any] = {"format": FORMAT, "id": job.job_id, "record": record}
    content |= {name: [json.loads(text) for text in getattr(job, name)] for name in ("transitions", "epochs")}
    if points is not None:
        history = "".join(f"{point}\n" for point in points).encode()
        content["history"] = {"points": len(points), "sha256": hashlib.sha256(history).hexdigest()}
        artifacts.publish(files, folder, artifacts.HISTORY, history)
    artifacts.publish(files, folder, artifacts.RECORD, json.dumps(content, indent=1, ensure_ascii=False).encode())
    if job.status.terminal:
        published = [file for name in ("model", "partial") if name in record for file in record[name].values()]
        artifacts.sweep(files, job.job_id, {file["path"] for file in published}, upto=int(record["token"]))


async def reindex(store: WorkStore, files: Storage) -> dict[str, str]:
    """Store every sweep and job anew that has files and no record. Returns what became of each: restored, exists, deleted,
    or why not.

    A job that had not ended is queued again, with the history its last trainer told. Raises Unavailable, StorageAway.
    """
    tops = {path.partition("/")[0] for path in await asyncio.to_thread(files.find)}
    outcome = await _reindex_sweeps(store, files, [name for name in sorted(tops) if name.endswith(".json")])
    for job_id in sorted(name for name in tops if artifacts.JOB_ID.fullmatch(name)):
        try:
            job, points = await asyncio.to_thread(_read, files, job_id)
        except StorageAway:
            raise
        except (OSError, ValueError, KeyError, TypeError, ArtifactCorrupt) as error:
            outcome[job_id] = f"not restored: {error or type(error).__name__}"
            continue
        outcome[job_id] = await store.restore(job, points)
    return outcome


async def _reindex_sweeps(store: WorkStore, files: Storage, names: Sequence[str]) -> dict[str, str]:
    sweeps, outcome = SweepStore(store.database), {}
    for name in names:
        sweep_id = name.removesuffix(".json")
        if not artifacts.SWEEP_ID.fullmatch(sweep_id):
            continue
        try:
            content = json.loads(await asyncio.to_thread(files.get, name))
            if (content["format"], content["id"]) != (FORMAT, sweep_id):
                raise ValueError("it is of another format or another sweep")
            SweepSpec.model_validate(content["record"]["spec"])  # raises for what could not be shown
            outcome[sweep_id] = await sweeps.restore(sweep_id, content["record"], content["jobs"])
        except StorageAway:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            outcome[sweep_id] = f"not restored: {error or type(error).__name__}"
    return outcome


def _read(files: Storage, job_id: str) -> tuple[RawJob, list[str]]:
    """A job and its points from its files. Raises OSError, ValueError, KeyError, TypeError or ArtifactCorrupt."""
    content = json.loads(files.get(f"{job_id}/{artifacts.RECORD}"))
    if (content["format"], content["id"]) != (FORMAT, job_id):
        raise ValueError(f"{artifacts.RECORD} is of another format or another job")
    record = {name: to_json(value) if name in _DECODED else value for name, value in content["record"].items()}
    summary_of(job_id, record, None)  # raises for what could not be shown
    if not all(names.STORED.fullmatch(alias) for alias in content["record"].get("aliases", {})):
        raise ValueError("it has an alias that is none")
    newest = artifacts.newest_token(files, job_id)
    record["token"] = str(max(int(record["token"]), newest))
    if "history" in content and Status(record["status"]).terminal:
        history = files.get(f"{job_id}/{artifacts.HISTORY}")
        if hashlib.sha256(history).hexdigest() != content["history"]["sha256"]:
            raise ArtifactCorrupt(f"{artifacts.HISTORY} does not match its digest")
        points, epochs = history.decode().splitlines(), content["epochs"]
    else:
        points, epochs = _told(files, artifacts.claim_folder(job_id, str(newest)))
        record |= _summary_of(points)
    texts = [to_json(entry) for entry in content["transitions"]], [to_json(entry) for entry in epochs]
    return RawJob(job_id=job_id, record=record, transitions=texts[0], epochs=texts[1]), points


def _told(files: Storage, folder: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The points and epochs in the spool of a job's newest claim, or in none; a later trainer adds what is not there."""
    messages = spool.read(files, folder)
    points = [to_json(point) for m in messages if m["type"] == "block" for point in m["points"]]
    return points, [m["metrics"] for m in messages if m["type"] == "epoch"]


def _summary_of(points: Sequence[str]) -> dict[str, str]:
    """What the record says about points: the last step, and the least loss with its place."""
    decoded = [json.loads(point) for point in points]
    losses = [(point["loss"], index) for index, point in enumerate(decoded) if point["loss"] is not None]
    last = decoded[-1]["step"] if decoded else -1
    summary = {"last_step": str(last), "steps_done": str(last + 1)}
    if losses:
        loss, index = min(losses)
        summary |= {"least_loss": repr(loss), "least_index": str(index)}
    return summary
