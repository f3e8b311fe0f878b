"""The job store: every key of a job. Moves are atomic scripts in `moves.lua`; reads are here."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self, cast

from core.errors import (
    FieldProblem,
    InvalidRequest,
    JobInUse,
    JobNotTerminal,
    ModelDeleted,
    ModelNotReady,
    NotFound,
)
from core.jobs import names
from core.jobs.database import Database, connect, reaching_redis, script_of
from core.jobs.job import Job, JobSummary, LossPage, Status, from_ms, new_job_id
from core.jobs.owners import UNLESS_TOLD, Limits, Owned, seen_by_caller
from core.jobs.record import hash_of, job_of, summary_of
from core.jobs.submission import checked_outcome, digests_of, facts_of, optimizer_label, refuse, sweep_label, tag_label
from core.spec import JobSpec

MAX_PAGE_POINTS = 10_000
MOVES = script_of("moves.lua")
READS = script_of("reads.lua")
_PREFIX = "descent:job:"
LOOK = 500  # jobs that one read looks at for those that bear several labels: about a millisecond of the server's time
_NEWS_POINTS = 1000
_NO_MODEL_YET = "no job on that data set has finished with a model yet: POST /jobs first"
_LIST_CHUNK = 200

Doorbell = Callable[[str], str]  # of a job's id: its message, for any queue


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """Where a finished job's weights are: file names below the jobs folder, and the digests they must have."""

    job_id: str
    dataset: str
    files: dict[str, dict[str, Any]]  # format -> {"path", "sha256", "size_bytes"}
    test_accuracy: float | None
    partial: bool = False  # of a job that was stopped on its way


@dataclass(frozen=True, kw_only=True)
class Seen:
    """How much of what a job told somebody has: the number of its loss points, epochs and transitions."""

    points: int = 0
    epochs: int = 0
    transitions: int = 0

    def plus(self, *, points: int = 0, epochs: int = 0, transitions: int = 0) -> "Seen":
        return Seen(
            points=self.points + points, epochs=self.epochs + epochs, transitions=self.transitions + transitions
        )

    def is_within(self, all: "Seen") -> bool:
        return self.points <= all.points and self.epochs <= all.epochs and self.transitions <= all.transitions


@dataclass(frozen=True, kw_only=True)
class News:
    """What a job has told since then, as the JSON texts that are stored."""

    status: Status
    points: list[str]
    epochs: list[str]
    transitions: list[str]
    has_more: bool


@dataclass(frozen=True, kw_only=True)
class RawJob:
    """A job exactly as it is stored, for its files: the record's fields, and the lists of JSON texts beside it."""

    job_id: str
    record: dict[str, str]
    transitions: list[str]
    epochs: list[str]

    @property
    def status(self) -> Status:
        return Status(self.record["status"])


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A job as it is stored, of one moment, with its last point alone; `points` is how many there are."""

    job_id: str
    record: dict[str, str]
    epochs: list[str]
    last: list[str]
    points: int


class JobStore(Owned):
    """Jobs in Redis, as clients ask for them; what only workers do is in `work.py`.

    Every method raises Unavailable when Redis cannot be reached or refuses the write.
    """

    noun = "job"

    def __init__(self, database: Database, limits: Limits = UNLESS_TOLD) -> None:
        super().__init__(database, limits)
        self._moves = database.script(MOVES)
        self._reads = database.script(READS)

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Self]:
        """A store with a connection of its own."""
        async with connect(url) as database:
            yield cls(database)

    async def _move(self, *args: str | int | float) -> Any:
        return await self._moves(args=list(args))

    async def _read(self, *args: str | int) -> Any:
        return await self._reads(args=list(args))

    async def submit(self, spec: JobSpec) -> Job:
        """Store a new queued job. Once this returns, the job will run, whatever becomes of its message.

        Raises Unavailable also when the server's memory is nearly full, QueueFull when as many jobs wait as may.
        """
        return (await self.submit_once(spec, None))[0]

    @reaching_redis
    async def submit_once(
        self, spec: JobSpec, idempotency_key: str | None, *, doorbell: Doorbell | None = None
    ) -> tuple[Job, bool]:
        """As `submit`; with a key that was used for the same spec within a day, it is the job made then.

        A new job's message, as `doorbell` makes it, is queued in the same move. Returns the job, and whether it is new.
        Raises KeyReused when the key came with another spec.
        """
        facts, job_id = facts_of(spec), new_job_id()
        named = digests_of(idempotency_key, facts[0], self._caller.owner)
        message = [doorbell(job_id)] if doorbell else []
        outcome, found, *job = await self._move("submit", job_id, *facts, *named, self._by, *message)
        job_id, is_new = checked_outcome((outcome, found))
        return _job(job_id, *job) if job else await self._get(job_id), is_new

    @reaching_redis
    @seen_by_caller
    async def ring(
        self, job_id: str, *, doorbell: Doorbell | None = None, queue: str = "", min_age_s: float = 0
    ) -> bool:
        """Queue a job's message (again), if the job waits and that was not done so recently. Only one caller does it.

        Into `queue`, or where a worker is the likeliest to train it. Returns whether this call was the one.
        """
        message = doorbell(job_id) if doorbell else ""
        return bool(await self._move("ring", job_id, round(min_age_s * 1000), queue, message))

    @reaching_redis
    @seen_by_caller
    async def get(self, job_id: str) -> Job:
        """The whole record. Raises NotFound."""
        return await self._get(job_id)

    @reaching_redis
    @seen_by_caller
    async def status(self, job_id: str) -> Status:
        """Raises NotFound."""
        return Status(await self._field(job_id, "status"))

    @reaching_redis
    @seen_by_caller
    async def spec(self, job_id: str) -> JobSpec:
        """Raises NotFound."""
        return JobSpec.model_validate_json(await self._field(job_id, "spec"))

    @reaching_redis
    @seen_by_caller
    async def changed_at(self, job_id: str) -> datetime | None:
        """When the job last changed. Raises NotFound."""
        return from_ms(await self._field(job_id, "updated_ms"))

    def _is_seen(self, record: dict[str, str]) -> bool:
        return bool(record) and self._caller.may_see(record.get("owner", ""))

    async def _field(self, job_id: str, name: str) -> str:
        value = await self._redis.hget(_PREFIX + job_id, name)
        if value is None:
            raise NotFound("no such job")
        return cast(str, value)

    async def _get(self, job_id: str) -> Job:
        found = await self._read("job", job_id)
        if not found:
            raise NotFound("no such job")
        return _job(job_id, *found)

    @reaching_redis
    async def page(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        status: Status | None = None,
        optimizer: str | None = None,
        tag: tuple[str, str | None] | None = None,
        sweep: str | None = None,
    ) -> tuple[list[JobSummary], str | None]:
        """Jobs, newest first, older than the id `after`; and the id to go on from, when there are more."""
        wanted = [f"status:{status}"] if status else []
        wanted += [optimizer_label(optimizer)] if optimizer else []
        wanted += [tag_label(*tag)] if tag else []
        wanted += [sweep_label(sweep)] if sweep else []
        look = LOOK if len(wanted) > 1 or (wanted and not self._caller.sees_all) else limit + 1
        found: list[JobSummary] = []
        seen = after
        while True:
            upper = f"({seen}" if seen else "+"
            seen, *parts = await self._read(
                "page", self._own("descent:jobs"), upper, look, limit + 1 - len(found), *wanted
            )
            found += map(_summary, parts[::3], parts[1::3], parts[2::3])
            if len(found) > limit:
                return found[:limit], found[limit - 1].id
            if not seen:
                return found, None

    @reaching_redis
    async def outlines(self, job_ids: Sequence[str]) -> list[Outline]:
        """These jobs, in this order; those that are gone are left out."""
        found: list[Outline] = []
        for start in range(0, len(job_ids), _LIST_CHUNK):
            ids = job_ids[start : start + _LIST_CHUNK]
            async with self._redis.pipeline(transaction=True) as pipe:
                for key in (_PREFIX + job_id for job_id in ids):
                    pipe.hgetall(key)
                    pipe.lrange(f"{key}:epochs", 0, -1)
                    pipe.lrange(f"{key}:loss", -1, -1)
                    pipe.llen(f"{key}:loss")
                replies = await pipe.execute()
            for job_id, record, epochs, last, points in zip(ids, *(replies[n::4] for n in range(4)), strict=True):
                if self._is_seen(record):
                    found.append(Outline(job_id=job_id, record=record, epochs=epochs, last=last, points=points))
        return found

    @reaching_redis
    @seen_by_caller
    async def loss(
        self,
        job_id: str,
        *,
        after: str | None = None,
        limit: int = MAX_PAGE_POINTS,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> LossPage:
        """Points behind the cursor `after`, in order. Raises NotFound, or InvalidRequest for a cursor never given out.

        All of it is of one moment: when the status is terminal, the points are all there are. The cursor is the number of
        points before it.
        """
        told = await self._read("loss", job_id, after or 0, limit, from_step or "")
        if not told:
            raise NotFound("no such job")
        status, count, start, points, first, last, lowest = told
        if int(after or 0) > count:
            raise InvalidRequest(FieldProblem("?after", "not a cursor of this history"))
        end = min(start + len(points), count)
        first_wanted = bisect_left(points, from_step, key=_step) if from_step else 0
        end_wanted = len(points) if to_step is None else bisect_right(points, to_step, key=_step)
        return LossPage(
            status=Status(status),
            count=count,
            points=points[first_wanted:end_wanted],
            next=str(end),
            has_more=end < count and end_wanted == len(points),
            summary={"first": _loss(first), "last": _loss(last), "min": _loss(lowest)},
        )

    @reaching_redis
    @seen_by_caller
    async def news(self, job_id: str, seen: Seen) -> News:
        """What the job has told beyond `seen`, up to some points at a time. All of it is of one moment. Raises NotFound."""
        key, most = _PREFIX + job_id, seen.points + _NEWS_POINTS
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hget(key, "status")
            pipe.llen(f"{key}:loss")
            pipe.lrange(f"{key}:loss", seen.points, most - 1)
            pipe.lrange(f"{key}:epochs", seen.epochs, -1)
            pipe.lrange(f"{key}:transitions", seen.transitions, -1)
            status, count, points, epochs, transitions = await pipe.execute()
        if status is None:
            raise NotFound("no such job")
        if count > most:  # the rest comes after the points before it
            return News(status=Status(status), points=points, epochs=[], transitions=[], has_more=True)
        return News(status=Status(status), points=points, epochs=epochs, transitions=transitions, has_more=False)

    @reaching_redis
    @seen_by_caller
    async def told(self, job_id: str) -> tuple[Status, Seen]:
        """How much the job has told so far. Raises NotFound."""
        told = await self._read("told", job_id)
        if not told:
            raise NotFound("no such job")
        status, points, epochs, transitions = told
        return Status(status), Seen(points=points, epochs=epochs, transitions=transitions)

    @reaching_redis
    @seen_by_caller
    async def epochs(self, job_id: str) -> list[dict[str, Any]]:
        """Metrics of each epoch that has ended."""
        return [json.loads(text) for text in await self._redis.lrange(f"{_PREFIX}{job_id}:epochs", 0, -1)]

    @reaching_redis
    @seen_by_caller
    async def cancel(self, job_id: str) -> tuple[Job, bool]:
        """Ask for the end of a job: at once when it is queued, with its worker's next beat when it runs.

        Returns the job, and whether this call changed anything.
        """
        before = await self._move("cancel", job_id, self._by)
        if not before:
            raise NotFound("no such job")
        return await self._get(job_id), not Status(before).terminal and before != Status.CANCELLING

    @reaching_redis
    @seen_by_caller
    async def pause(self, job_id: str) -> tuple[Job, bool]:
        """Ask a job to stop for now: at once when it is queued, with its worker's next beat when it runs.

        Returns the job, and whether this call changed anything. Raises NotFound.
        """
        before = await self._move("pause", job_id, self._by)
        if not before:
            raise NotFound("no such job")
        return await self._get(job_id), before in (Status.QUEUED, Status.RUNNING)

    @reaching_redis
    @seen_by_caller
    async def resume(self, job_id: str) -> tuple[Job, bool]:
        """Queue a paused, failed or cancelled job again; it goes on from its last checkpoint.

        Returns the job, and whether this call changed anything. Raises NotFound, JobNotTerminal while it is being cancelled,
        or QueueFull.
        """
        before = await self._move("resume", job_id, self._by)
        if not before:
            raise NotFound("no such job")
        refuse(before)
        if before == Status.CANCELLING:
            raise JobNotTerminal("the job is being cancelled; it can be resumed when it is cancelled", retry_after_s=2)
        resumed = (Status.PAUSED, Status.PAUSING, Status.FAILED, Status.CANCELLED)
        return await self._get(job_id), before in resumed

    @reaching_redis
    @seen_by_caller
    async def extend(self, job_id: str, epochs: int) -> tuple[Job, bool]:
        """Queue a job that has ended again, for `epochs` more. Asked again while it goes on, it changes nothing.

        Returns the job, and whether this call changed anything. Raises NotFound, JobNotTerminal, QueueFull, or
        InvalidRequest when the longer job would break a limit.
        """
        while True:
            seen = await self._field(job_id, "spec")
            spec = JobSpec.model_validate_json(seen)
            longer = spec.extended(epochs)
            text, digest, steps = longer.model_dump_json(), longer.hash(), longer.total_steps
            before = await self._move("extend", job_id, epochs, seen, text, digest, steps, self._by)
            if before == "changed":
                continue
            refuse(before)
            if before and before != "known" and not Status(before).terminal:
                raise JobNotTerminal(f"the job is {before}; only one that has ended can be extended")
            return await self._get(job_id), before != "known"

    @reaching_redis
    @seen_by_caller
    async def delete(self, job_id: str) -> None:
        """Forget a job that has ended; its files are the caller's to remove (`emptied`).

        Raises NotFound, JobNotTerminal, or JobInUse when an alias names its model.
        """
        before = await self._move("delete", job_id)
        if not before:
            raise NotFound("no such job")
        if before == "named":
            given = names.own_aliases(await self._redis.hget(_PREFIX + job_id, "aliases"), self._caller.owner)
            raise JobInUse(f"aliases name the job's model: {', '.join(given[:5]) or 'of another owner'}")
        if not Status(before).terminal:
            raise JobNotTerminal(f"the job is {before}; cancel it first")

    @reaching_redis
    async def model(self, name: str) -> StoredModel:
        """The weights of a job id, an alias, or a name that the server keeps.

        Raises NotFound, ModelNotReady, or ModelDeleted for the id of a job with a model that was deleted within a month, the
        caller's own.
        """
        found = await self._read("named", *names.found_by(name, owner=self._caller.owner, own=self._own))
        job_id, fields, deleted_by = found or ("", [], None)
        record = hash_of(fields)
        if not self._is_seen(record):
            if deleted_by is not None and self._caller.may_see(deleted_by):
                raise ModelDeleted("the job was deleted, and its model with it")
            raise NotFound(_NO_MODEL_YET if name in names.KEPT else "no such job or model")
        status, model, partial = record["status"], record.get("model"), record.get("partial")
        dataset = json.loads(record["spec"])["dataset"]
        if partial is not None and name == job_id:
            files = json.loads(partial)
            return StoredModel(job_id=job_id, dataset=dataset, files=files, test_accuracy=None, partial=True)
        if model is None:
            if Status(status).terminal:
                raise ModelNotReady(f"the job ended as {status} and left no model")
            raise ModelNotReady(f"the job is {status}; its model comes when it has succeeded", retry_after_s=2)
        accuracy = json.loads(record.get("result", "{}")).get("test_accuracy")
        return StoredModel(job_id=job_id, dataset=dataset, files=json.loads(model), test_accuracy=accuracy)

    @reaching_redis
    @seen_by_caller
    async def raw(self, job_id: str) -> RawJob | None:
        """The job as it is stored, without its points. None when there is no such job."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(_PREFIX + job_id)
            pipe.lrange(f"{_PREFIX}{job_id}:transitions", 0, -1)
            pipe.lrange(f"{_PREFIX}{job_id}:epochs", 0, -1)
            record, transitions, epochs = await pipe.execute()
        return RawJob(job_id=job_id, record=record, transitions=transitions, epochs=epochs) if record else None

    @reaching_redis
    async def emptied(self, job_id: str) -> None:
        """The files of a deleted job are gone."""
        await self._redis.srem("descent:trash", job_id)

    @reaching_redis
    async def count_queued(self) -> int:
        return int(await self._redis.zcard("descent:queued"))

    @reaching_redis
    async def workers(self, *, host: str = "") -> int:
        """How many workers are alive; with a host name, those that announced themselves from there (`host:pid`)."""
        return int(await self._move("workers", host))

    @reaching_redis
    async def announced(self) -> dict[str, dict[str, Any]]:
        """What each worker that is alive said of itself, by its name."""
        found = await self._read("workers")
        return {name: json.loads(info) for name, info in zip(found[::2], found[1::2], strict=True)}


def _step(point: str) -> int:
    return int(json.loads(point)["step"])


def _loss(point: str | None) -> float | None:
    return json.loads(point)["loss"] if point else None


def _job(
    job_id: str, record: list[str], last: str | None, transitions: list[str], rank: int | None, is_served: int
) -> Job:
    return job_of(job_id, hash_of(record), last, transitions, rank, is_served=bool(is_served))


def _summary(job_id: str, record: list[str], last: str | None) -> JobSummary:
    return summary_of(job_id, hash_of(record), last)
