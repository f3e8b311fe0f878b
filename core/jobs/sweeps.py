"""Sweeps in Redis: what was asked for and which jobs it became. The moves are in `moves.lua`, because they move jobs."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from core.errors import JobInUse, JobNotTerminal, NotFound
from core.jobs.database import Database, reaching_redis
from core.jobs.job import JobSummary, Status, from_ms, new_job_id, new_sweep_id
from core.jobs.owners import UNLESS_TOLD, Limits, Owned, seen_by_caller
from core.jobs.record import to_json
from core.jobs.store import MOVES, READS, Doorbell
from core.jobs.submission import checked_outcome, digests_of, facts_of
from core.sweep import SweepSpec

_PREFIX = "descent:sweep:"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep as it was asked for; how it stands is in its jobs (some may have been deleted since)."""

    id: str
    spec: SweepSpec
    created_at: datetime
    cancelled_at: datetime | None
    job_ids: list[str]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the jobs of a sweep stand."""

    counts: dict[Status, int]
    steps: int
    done: int  # steps; a job that has ended counts whole
    begun: int  # jobs

    @classmethod
    def of(cls, jobs: Sequence[JobSummary]) -> "Standing":
        return cls(
            counts=dict(Counter(job.status for job in jobs)),
            steps=sum(job.progress.total_steps for job in jobs),
            done=sum(job.progress.total_steps if job.terminal else job.progress.step for job in jobs),
            begun=sum(job.status is not Status.QUEUED or job.progress.step > 0 for job in jobs),
        )


class SweepStore(Owned):
    """Every method raises Unavailable when Redis cannot be reached or refuses the write."""

    noun = "sweep"

    def __init__(self, database: Database, limits: Limits = UNLESS_TOLD) -> None:
        super().__init__(database, limits)
        self._moves = database.script(MOVES)
        self._reads = database.script(READS)

    async def _move(self, *args: str | int | float) -> Any:
        return await self._moves(args=list(args))

    @reaching_redis
    async def submit(
        self, spec: SweepSpec, idempotency_key: str | None, *, doorbell: Doorbell | None = None
    ) -> tuple[Sweep, bool]:
        """Store a sweep and queue its jobs, all or none; with a key that was used for the same within a day, it is that one.

        The messages of the jobs that may run at once are queued in the same move.

        Returns the sweep, and whether it is new. Raises as `JobStore.submit_once`: QueueFull when not all jobs would fit.
        """
        asha, text, jobs = spec.early_stopping, spec.model_dump_json(), spec.jobs()
        rungs = asha.rungs(spec.epochs) if asha else []
        facts = [text, spec.max_concurrent or "", to_json(rungs), asha.reduction_factor if asha else ""]
        ids, sweep_id = sorted(new_job_id() for _ in jobs), new_sweep_id()
        bells = [doorbell(job_id) for job_id in ids[: spec.max_concurrent]] if doorbell else []
        messages = bells + [""] * (len(ids) - len(bells))
        parts = [
            part
            for message, job_id, job in zip(messages, ids, jobs, strict=True)
            for part in (message, job_id, *facts_of(job, sweep_id))
        ]
        named = digests_of(idempotency_key, f"sweep {text}", self._caller.owner)
        sweep_id, is_new = checked_outcome(await self._move("sweep", sweep_id, *facts, *named, self._by, *parts))
        return await self._get(sweep_id), is_new

    @reaching_redis
    @seen_by_caller
    async def get(self, sweep_id: str) -> Sweep:
        """Raises NotFound."""
        return await self._get(sweep_id)

    async def _get(self, sweep_id: str) -> Sweep:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(_PREFIX + sweep_id)
            pipe.lrange(f"{_PREFIX}{sweep_id}:jobs", 0, -1)
            record, ids = await pipe.execute()
        if not record:
            raise NotFound("no such sweep")
        return Sweep(
            id=sweep_id,
            spec=SweepSpec.model_validate_json(record["spec"]),
            created_at=cast(datetime, from_ms(record["created_ms"])),
            cancelled_at=from_ms(record.get("cancelled_ms")),
            job_ids=ids,
        )

    @reaching_redis
    async def page(self, *, after: str | None, limit: int) -> tuple[list[Sweep], str | None]:
        """Sweeps, newest first, older than the id `after`; and the id to go on from, when there are more."""
        upper = f"({after}" if after else "+"
        ids = await self._redis.zrange(
            self._own("descent:sweeps"), upper, "-", desc=True, bylex=True, offset=0, num=limit + 1
        )
        found = []
        for sweep_id in ids[:limit]:
            try:
                found.append(await self._get(sweep_id))
            except NotFound:
                continue  # it was deleted meanwhile
        return found, ids[limit - 1] if len(ids) > limit else None

    @reaching_redis
    @seen_by_caller
    async def standing(self, sweep_id: str) -> Standing:
        """How the sweep's jobs stand, without reading them whole."""
        counts, steps, done, begun = await self._reads(args=["standing", sweep_id])
        known = {Status(status): count for status, count in json.loads(counts).items()}
        return Standing(counts=known, steps=steps, done=done, begun=begun)

    @reaching_redis
    @seen_by_caller
    async def cancel(self, sweep_id: str) -> bool:
        """Cancel those of its jobs that have not ended. Returns whether there were any. Raises NotFound."""
        return self._found(await self._move("cancel_sweep", sweep_id, self._by)) > 0

    @reaching_redis
    @seen_by_caller
    async def delete(self, sweep_id: str) -> None:
        """Forget a sweep and its jobs; their files go with the trash. Raises NotFound, JobNotTerminal, JobInUse."""
        answer = await self._move("delete_sweep", sweep_id)
        if answer == -2:
            raise JobInUse("an alias names the model of one of its jobs: GET /models tells which")
        if busy := self._found(answer):
            raise JobNotTerminal(f"{busy} of its jobs have not ended; cancel it first")

    @staticmethod
    def _found(answer: int) -> int:
        if answer < 0:
            raise NotFound("no such sweep")
        return answer

    # --- files -------------------------------------------------------------------------------------------------------

    @reaching_redis
    @seen_by_caller
    async def raw(self, sweep_id: str) -> dict[str, Any] | None:
        """The sweep as it is stored, for its file. None when there is no such sweep."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(_PREFIX + sweep_id)
            pipe.lrange(f"{_PREFIX}{sweep_id}:jobs", 0, -1)
            record, ids = await pipe.execute()
        return {"record": record | {"spec": json.loads(record["spec"])}, "jobs": ids} if record else None

    @reaching_redis
    async def filed(self, sweep_id: str, cancelled_ms: str) -> None:
        """The sweep's file is as its record was when that was the time it was cancelled ('' for not)."""
        await self._move("filed_sweep", sweep_id, cancelled_ms)

    @reaching_redis
    async def restore(self, sweep_id: str, record: dict[str, Any], jobs: list[str]) -> str:
        """Store a sweep anew from its file, before its jobs. Returns `restored`, `exists` or `deleted`."""
        texts = record | {"spec": to_json(record["spec"])}
        return cast(str, await self._move("restore_sweep", sweep_id, to_json(texts), to_json(jobs)))
