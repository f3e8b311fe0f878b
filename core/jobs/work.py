"""What only workers do to jobs: claim and train them, file them, and look for those that were lost.

The moves are atomic scripts in `moves.lua`. A write names the claim it is made for, and answers `lost` when that is void.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

from core.errors import Unavailable
from core.jobs.database import reaching_redis
from core.jobs.job import JobError, Status
from core.jobs.record import to_json, transition_of
from core.jobs.store import JobStore, RawJob
from core.origin import Origin
from core.spec import JobSpec

MAX_ATTEMPTS = 3
_PREFIX = "descent:job:"
_RELEASED_AT_A_TIME = 200
_READ_AT_A_TIME = 1000
_RESTORING_S = 3600  # then what an interrupted restore has left goes
_APPEND_CHUNK = 1000  # Lua's unpack takes some thousand arguments


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to train a job: every write carries `token`, and a newer claim makes it void."""

    job_id: str
    token: str
    attempt: int
    spec: JobSpec
    last_step: int = -1  # of the last loss point that is stored
    ran_s: float = 0.0  # how long earlier attempts trained; counts for the job's time limit
    origin: Origin | None = None  # the request that queued it


class WorkStore(JobStore):
    """The job store as workers have it. Every method raises Unavailable when Redis cannot be reached or refuses the write."""

    @reaching_redis
    async def claim(
        self, job_id: str, *, worker: str, lease_s: float, queues: Sequence[str] | None = None
    ) -> Claim | None:
        """Take a queued job for `worker` (a name no other claim uses), which listens to `queues` (None: can do any job).

        None when there is nothing to do, or the job asks for what such a worker does not have.
        """
        served = "" if queues is None else to_json(list(queues))
        reply = await self._move("claim", job_id, worker, _ms(lease_s), served)
        if not reply:
            return None
        token, attempt, spec, last_step, ran_ms, request = reply
        return Claim(
            job_id=job_id,
            token=token,
            attempt=int(attempt),
            spec=JobSpec.model_validate_json(spec),
            last_step=int(last_step),
            ran_s=int(ran_ms) / 1000,
            origin=Origin(**json.loads(request)) if request else None,
        )

    @reaching_redis
    async def begin(self, claim: Claim, backend: dict[str, Any], *, resumed_from: int | None) -> str:
        """The trainer has begun, on this backend, after that step. Returns as `beat` does."""
        where = "" if resumed_from is None else resumed_from
        spec_hash = claim.spec.hash(backend)
        return cast(str, await self._move("begin", claim.job_id, claim.token, to_json(backend), spec_hash, where))

    @reaching_redis
    async def beat(self, claim: Claim, *, lease_s: float) -> str:
        """Renew the lease. Returns `go_on`, `cancel`, `pause`, or `lost` when the job is not the caller's any more."""
        return cast(str, await self._move("beat", claim.job_id, claim.token, _ms(lease_s)))

    @reaching_redis
    async def asked_by(self, claim: Claim) -> str | None:
        """The id of the request that asked for what the job was told last (to cancel, to pause); None when none did."""
        told = await self._redis.lindex(f"{_PREFIX}{claim.job_id}:transitions", -1)
        return transition_of(told).request_id if told else None

    @reaching_redis
    async def append(
        self,
        claim: Claim,
        points: Sequence[dict[str, Any]],
        *,
        steps_done: int,
        images_per_s: float,
    ) -> str:
        """Add loss points in the order of their steps; those already there are left alone. Returns as `beat` does."""
        answer = "go_on"
        for start in range(0, len(points) or 1, _APPEND_CHUNK):
            chunk = points[start : start + _APPEND_CHUNK]
            items = [item for point in chunk for item in (point["step"], to_json(point))]
            answer = await self._move("append", claim.job_id, claim.token, steps_done, images_per_s, *items)
        return answer

    @reaching_redis
    async def end_epoch(self, claim: Claim, metrics: dict[str, Any]) -> str:
        """Add the metrics of an epoch, once. Returns as `beat` does."""
        return cast(str, await self._move("epoch", claim.job_id, claim.token, metrics["epoch"], to_json(metrics)))

    @reaching_redis
    async def finish(
        self,
        claim: Claim,
        status: Status,
        *,
        result: dict[str, Any] | None = None,
        files: dict[str, dict[str, Any]] | None = None,
        error: JobError | None = None,
        partial: dict[str, dict[str, Any]] | None = None,
    ) -> str:
        """End the job. `files` are the trained weights, `partial` those of a run that was stopped on its way.

        Returns the status it has now (an accepted cancel wins), or `lost`.
        """
        return cast(
            str,
            await self._move(
                "finish",
                claim.job_id,
                claim.token,
                status,
                to_json(result) if result else "",
                to_json(files) if files else "",
                error.model_dump_json() if error else "",
                (result or {}).get("test_accuracy") or 0,
                to_json(partial) if partial else "",
            ),
        )

    @reaching_redis
    async def stop(self, claim: Claim, *, partial: dict[str, dict[str, Any]] | None = None) -> str:
        """Give the job back unharmed: cancelled or paused if the client wants that, else queued; no attempt is used up."""
        return cast(str, await self._move("stop", claim.job_id, claim.token, to_json(partial) if partial else ""))

    @reaching_redis
    async def retry(self, job_id: str, claim: Claim | None, error: JobError) -> str:
        """Queue a job whose trainer died (or, without a claim, whose lease ran out) again, or fail it with `error`."""
        token = claim.token if claim else ""
        return cast(str, await self._move("retry", job_id, token, MAX_ATTEMPTS, error.model_dump_json()))

    # --- files -------------------------------------------------------------------------------------------------------

    @reaching_redis
    async def unfiled(self, most: int = 0) -> list[str]:
        """Ids of the jobs whose `job.json` is older than their record: all of them, or some, others each time."""
        some = await (
            self._redis.srandmember("descent:unfiled", most) if most else self._redis.smembers("descent:unfiled")
        )
        return cast(list[str], sorted(some))

    @reaching_redis
    async def filed(self, job: RawJob) -> None:
        """The files of a job are as its record was in `job`."""
        await self._move("filed", job.job_id, len(job.transitions), job.record.get("aliases", ""))

    @reaching_redis
    async def restore(self, job: RawJob, points: Sequence[str]) -> str:
        """Store a job anew from its files; one that was running is queued. Returns `restored`, `exists` or `deleted`."""
        restoring = f"{_PREFIX}{job.job_id}:restoring:{uuid4().hex}"
        for start in range(0, len(points), _APPEND_CHUNK):
            await self._redis.rpush(restoring, *points[start : start + _APPEND_CHUNK])
            await self._redis.expire(restoring, _RESTORING_S)
        texts = (to_json(job.record), to_json(job.transitions), to_json(job.epochs))
        outcome = cast(str, await self._move("restore", job.job_id, restoring, len(points), *texts))
        if outcome == "torn":
            raise Unavailable(f"Redis: the points of {job.job_id} did not arrive as they were sent; try again")
        return outcome

    @reaching_redis
    async def trash(self) -> list[str]:
        """Ids of deleted jobs whose files may still be there."""
        return cast(list[str], sorted(await self._redis.smembers("descent:trash")))

    # --- the reconciler ----------------------------------------------------------------------------------------------

    @reaching_redis
    async def take_turn(self, name: str, *, every_s: float) -> bool:
        """Whether the caller, of all workers, is to do what is done once in so long."""
        return bool(await self._move("turn", name, _ms(every_s)))

    @reaching_redis
    async def overdue(self) -> list[str]:
        """Ids of jobs whose lease has run out."""
        return cast(list[str], await self._move("overdue"))

    @reaching_redis
    async def queued(self, queue: str = "", *, most: int = 0) -> list[str]:
        """Ids of the jobs that wait for a worker, or for one that listens to `queue`; the oldest, `most` of them (0: all)."""
        return cast(list[str], await self._redis.zrange(f"descent:queued:{queue}".rstrip(":"), 0, most - 1))

    @reaching_redis
    async def short_queues(self) -> list[str]:
        """The queues that live workers listen to and that have fewer messages than jobs wait there."""
        return cast(list[str], await self._move("short"))

    @reaching_redis
    async def messages(self, queue: str) -> list[str]:
        """All that lies in a queue; twice what moves meanwhile, as it is read from its newer end, a part at a time."""
        found: list[str] = []
        while part := await self._redis.lrange(queue, len(found), len(found) + _READ_AT_A_TIME - 1):
            found += part
        return found

    @reaching_redis
    async def released(self) -> list[str]:
        """Take the ids of jobs whose turn in their sweep has come: the caller sends their messages."""
        return cast(list[str], await self._redis.spop("descent:released", _RELEASED_AT_A_TIME) or [])

    @reaching_redis
    async def announce(self, worker: str, *, alive_s: float, info: dict[str, Any]) -> None:
        await self._move("announce", worker, _ms(alive_s), to_json(info))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
