"""The store beside a model of it: hypothesis makes up long stories of clients, workers that die, and a server that is killed.

The server is real, and so is every line of `moves.lua` but one: the clock is driven by hand, so that leases run out when the
story wants it. After each move the whole database is read. It must be what the model says (`Modelled`, which knows what a
move should do), and it must keep the promises (`check_promises`, which knows nothing of moves). A write of a claim that does
not hold the job must answer `lost` and change no key at all.
"""

import asyncio
import dataclasses
import itertools
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from client.redis_server import RedisServer
from core.errors import JobDeleted, JobInUse, JobNotTerminal, KeyReused, ModelDeleted, ModelNotReady, NotFound
from core.jobs import database
from core.jobs.job import WORKER_LOST, JobError, Status, new_job_id
from core.jobs.models import ModelStore
from core.jobs.owners import Caller
from core.jobs.record import to_json
from core.jobs.store import MOVES, RawJob
from core.jobs.work import MAX_ATTEMPTS, Claim, WorkStore
from core.settings import Settings
from core.spec import JobSpec
from tests.conftest import WithStore

CLOCK = "descent:test:clock"
SERVERS_CLOCK = "local time = redis.call('TIME')\nlocal now = time[1] * 1000 + math.floor(time[2] / 1000)\n"
OUR_CLOCK = f"local now = tonumber(redis.call('GET', '{CLOCK}'))\n"
READ_ALL = """
local read = {hash = 'HGETALL %', list = 'LRANGE % 0 -1', zset = 'ZRANGE % 0 -1 WITHSCORES', set = 'SMEMBERS %',
  string = 'GET %'}
local found = {}
for i, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local words = {}
  for word in read[kind]:gmatch('%S+') do table.insert(words, word == '%' and key or word) end
  found[i] = {key, kind, redis.call(unpack(words))}
end
return cjson.encode(found)
"""
START_MS = 1_700_000_000_000
LEASE_MS, RING_MS = 10_000, 5_000
LOG_EVERY = 10
SPEC = JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001, "tags": {"a": "b"}})
MOST_JOBS = 3
ERROR = JobError(code="diverged", message="m", step=7)
FILES = {name: {"path": "p", "sha256": "0" * 64, "size_bytes": 1} for name in ("pdparams", "safetensors")}

QUEUED, RUNNING, PAUSING, PAUSED = Status.QUEUED, Status.RUNNING, Status.PAUSING, Status.PAUSED
CANCELLING, SUCCEEDED, FAILED, CANCELLED = Status.CANCELLING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED
ANSWER = {RUNNING: "go_on", CANCELLING: "cancel", PAUSING: "pause"}  # of the statuses in which a worker holds the job
TERMINAL = {SUCCEEDED, FAILED, CANCELLED}
LEGAL = {
    QUEUED: {RUNNING, PAUSED, CANCELLED},
    RUNNING: {QUEUED, PAUSING, CANCELLING, SUCCEEDED, FAILED},
    PAUSING: {RUNNING, PAUSED, CANCELLING, SUCCEEDED, FAILED},
    PAUSED: {QUEUED, CANCELLED},
    CANCELLING: {CANCELLED},
    SUCCEEDED: {QUEUED},
    FAILED: {QUEUED},
    CANCELLED: {QUEUED},
}
VISITED: Counter[str] = Counter()  # what the stories came by
# Seen a few times in most runs, so not asked for; nor are some others that are only counted.
RARE = {"succeeded from pausing", "failed from pausing", "cancelling from pausing"}
MUST_VISIT = {
    *({f"{edge} from {before}" for before, after in LEGAL.items() for edge in after} - RARE),
    *(f"stale {move}" for move in ("begin", "beat", "append", "end_epoch", "finish", "stop", "retry", "lease")),
    *("known key", "reused key", "claim asked again", "claim of nothing", "steps told again", "a page read"),
    *("lost in every attempt", "taken from a dead worker", "files are late", "not deleted", "trash emptied"),
    *("alias given", "alias moved", "alias forgotten", "alias of nothing", "kept by an alias"),
}

P = ParamSpec("P")
T = TypeVar("T")
Seen = dict[str, Any]  # the whole database: key -> hash, list, set, sorted set or text
ANY = st.integers(0, 99)


def point(number: int, token: str) -> dict[str, Any]:
    """The `number`th loss point. Whoever trains the step has the same loss, but another clock."""
    return {"step": number * LOG_EVERY, "loss": 1 / (1 + number), "time_s": float(token)}


@dataclass(eq=False, kw_only=True)
class Modelled:
    """What a job should be, and what was seen of it."""

    id: str
    spec: JobSpec
    owner: str
    created_ms: int
    rung_ms: int
    status: Status = QUEUED
    path: list[Status] = field(default_factory=lambda: [QUEUED])
    token: int = 0
    attempt: int = 0
    worker: str = ""
    claimed_ms: int = 0
    ran_ms: int = 0
    lease_end: int | None = None
    resumed_from: int | None = None
    points: list[str] = field(default_factory=list)
    epochs: int = 0
    extended: int | None = None
    has_model: bool = False
    has_partial: bool = False
    queued_ms: int | None = None  # since when it waits
    totals: Counter[str] = field(default_factory=Counter)  # what ever happened to it
    aliases: dict[str, int] = field(default_factory=dict)  # since when they name its model
    error: JobError | None = None
    is_unfiled: bool = False
    is_deleted: bool = False
    claims: list[Claim] = field(default_factory=list)
    read: list[str] = field(default_factory=list)  # what a client that follows the history has
    cursor: str | None = None

    @property
    def has_weights(self) -> bool:
        return self.has_model or self.has_partial

    def is_held(self, claim: Claim) -> bool:
        return not self.is_deleted and claim.token == str(self.token) and self.status in ANSWER

    def enter(self, status: Status) -> None:
        VISITED[f"{status} from {self.status}"] += 1
        self.status = status
        self.path.append(status)
        self.is_unfiled = True

    def leave(self, status: Status, now: int, *, error: JobError | None = None) -> None:
        """Out of a worker's hands, or out of the queue."""
        if self.lease_end is not None:
            self.ran_ms += now - self.claimed_ms
        self.lease_end = None
        self.error = error
        self.rung_ms = 0 if status == QUEUED else self.rung_ms
        self.queued_ms = now if status == QUEUED else None
        if status in TERMINAL:
            self.totals[f"finished:{status}:{error.code if error else ''}"] += 1
        self.enter(status)

    def take(self, worker: str, now: int) -> None:
        self.token, self.attempt, self.worker = self.token + 1, self.attempt + 1, worker
        self.claimed_ms, self.lease_end = now, now + LEASE_MS
        self.has_partial, self.queued_ms = False, None
        self.totals["attempts"] += 1
        self.enter(RUNNING)

    def finish(self, status: Status, now: int, *, partial: bool) -> None:
        self.has_partial |= partial
        if self.status == CANCELLING:
            self.leave(CANCELLED, now)
        else:
            self.has_model |= status == SUCCEEDED
            self.leave(status, now, error=ERROR if status == FAILED else None)

    def stop(self, now: int, *, partial: bool) -> None:
        self.has_partial |= partial
        if self.status != CANCELLING:
            self.attempt -= 1
        self.give_up("given_back", now)

    def lose(self, reason: str, now: int) -> None:
        """Its trainer or its worker died."""
        if self.status != CANCELLING and self.attempt == MAX_ATTEMPTS:
            VISITED["lost in every attempt"] += 1
            step = self.last_step if self.points else None
            self.leave(FAILED, now, error=WORKER_LOST.model_copy(update={"step": step}))
        else:
            self.give_up(reason, now)

    def give_up(self, reason: str, now: int) -> None:
        self.totals[f"retried:{reason}"] += self.status == RUNNING
        self.leave({CANCELLING: CANCELLED, PAUSING: PAUSED}.get(self.status, QUEUED), now)

    def begin_anew(self, now: int) -> None:
        VISITED["resumed after every attempt"] += self.attempt == MAX_ATTEMPTS
        self.attempt, self.ran_ms = 0, 0
        self.leave(QUEUED, now)

    def expected(self) -> Seen:
        """Its record, as far as the model knows it."""
        owner = {"owner": self.owner} if self.owner else {}
        return owner | {
            "status": self.status,
            "token": str(self.token),
            "attempt": str(self.attempt),
            "ran_ms": str(self.ran_ms),
            "last_step": str(self.last_step),
            "spec": self.spec.model_dump_json(),
        }

    @property
    def last_step(self) -> int:
        return (len(self.points) - 1) * LOG_EVERY if self.points else -1


class Server:
    """An embedded server of our own, which may be killed."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self._server = RedisServer(self.settings)
        self._child = self._server.start()

    def kill(self) -> None:
        os.kill(self._child.pid, signal.SIGKILL)
        self._child.stop(10)
        self._child = self._server.respawn()

    def close(self) -> None:
        self._child.stop(10)
        self._server.release()


def connect(server: Server) -> tuple[Any, WorkStore]:
    """A store whose moves read our clock."""
    redis = Redis.from_url(server.settings.store_url, decode_responses=True, retry=Retry(ConstantBackoff(0.01), 3))
    assert MOVES.count(SERVERS_CLOCK) == 1
    store = WorkStore(database.Database(redis))
    store._moves = redis.register_script(MOVES.replace(SERVERS_CLOCK, OUR_CLOCK))
    return redis, store


class Database:
    """All that the server has, read in one go."""

    def __init__(self, redis: Any) -> None:
        self._read = redis.register_script(READ_ALL)

    async def read(self) -> Seen:
        seen: Seen = {}
        for key, kind, value in json.loads(await self._read()):
            pairs = zip(value[::2], value[1::2], strict=True) if kind in ("hash", "zset") else ()
            match kind:
                case "hash":
                    seen[key] = dict(pairs)
                case "zset":
                    seen[key] = [(name, int(float(score))) for name, score in pairs]
                case _:
                    seen[key] = value
        del seen[CLOCK]
        return seen


class Happening(NamedTuple):
    """A method of `Stories`, with what it may be called with, and when it can come."""

    name: str
    arguments: st.SearchStrategy[dict[str, Any]]
    may: Callable[[Any], object]


HAPPENINGS: list[Happening] = []


def happens(
    *, often: int = 1, when: Callable[[Any], object] = bool, **arguments: st.SearchStrategy[Any]
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """As hypothesis' own `rule`, which leaves half of the rules out of each story: too few would come far."""

    def register(method: Callable[P, None]) -> Callable[P, None]:
        HAPPENINGS.extend(Happening(method.__name__, st.fixed_dictionaries(arguments), when) for _ in range(often))
        return method

    return register


def mostly(wanted: list[T], every: list[T], which: int) -> T:
    pool = every if which % 4 == 3 or not wanted else wanted
    return pool[which // 4 % len(pool)]


def has_claims(stories: "Stories") -> bool:
    return any(job.claims for job in stories.jobs)


class Stories(RuleBasedStateMachine):
    """Rules are what clients, workers, the reconciler and bad luck do; `seen` is the database after the last of them."""

    server: ClassVar[Server]

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._redis, self.store = connect(self.server)
        self.models = ModelStore(database.Database(self._redis))
        self.models._moves = self.store._moves
        self.jobs: list[Modelled] = []
        self.keys: dict[str, tuple[Modelled, str]] = {}  # idempotency key -> its job, and the spec asked for
        self.deleted_keys = 0  # whose jobs were deleted: each is good for nothing, and the next one is taken
        self.raws: list[RawJob] = []  # read for a job's file, which is not written yet
        self.trash: set[str] = set()
        self.now, self.names, self.kills = START_MS, 0, 0
        self.seen: Seen = {}
        self._database = Database(self._redis)
        self.move = ""  # a client's explicit wish among the last rule's doings

    @initialize()
    def begin_with_two_jobs(self) -> None:
        self._do(self._redis.flushall())
        self._wait(0)
        for key in (None, "a"):
            self.submit(key=key, epochs=1)
        self.train(which=0, count=2)

    def teardown(self) -> None:
        self._do(self._redis.aclose())
        self._loop.close()

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(coroutine)

    def _wait(self, ms: int) -> None:
        self.now += ms
        self._do(self._redis.set(CLOCK, self.now))

    def _pick(self, which: int, *wanted: Status) -> Modelled:
        """A job, mostly one in a status that is wanted."""
        fitting = [job for job in self.jobs if job.status in wanted and not job.is_deleted]
        return mostly(fitting, self.jobs, which)

    def _pick_claim(self, which: int) -> tuple[Modelled, Claim]:
        """A claim, mostly one that holds its job."""
        every = [(job, claim) for job in self.jobs for claim in job.claims]
        return mostly([(job, claim) for job, claim in every if job.is_held(claim)], every, which)

    def _is_lost(self, job: Modelled, claim: Claim, move: str, answer: str) -> bool:
        """Whether the claim does not hold the job; its write must then have changed nothing."""
        lost = not job.is_held(claim)
        assert (answer == "lost") == lost
        if lost:
            VISITED[f"stale {move}"] += 1
            assert self._do(self._database.read()) == self.seen
        return lost

    def _refused(self, error: type[Exception], coroutine: Coroutine[Any, Any, object]) -> None:
        with pytest.raises(error):
            self._do(coroutine)

    @rule(data=st.data())
    def next(self, data: st.DataObject) -> None:
        possible = [happening for happening in HAPPENINGS if happening.may(self)]
        name, arguments, _ = data.draw(st.sampled_from(possible))
        getattr(self, name)(**data.draw(arguments, label=name))

    # --- workers: every one of these may be late, and then does nothing ------------------------------------------------

    @happens(
        often=2,
        when=lambda self: any(job.status == QUEUED and not job.is_deleted for job in self.jobs),
        which=ANY,
        count=st.integers(1, 3),
    )
    def train(self, which: int, count: int) -> None:
        """What a worker does first, without accidents."""
        queued = [index for index, job in enumerate(self.jobs) if job.status == QUEUED and not job.is_deleted]
        job = self.jobs[queued[which % len(queued)]]
        self._take(job)
        self._begin(job, job.claims[-1], None)
        self._append(job, job.claims[-1], len(job.points), count)

    @happens(which=ANY, again=st.booleans())
    def claim(self, which: int, again: bool) -> None:
        """A worker's name is its own for each claim; with the same one it asks again because it got no answer."""
        job = self._pick(which, RUNNING if again else QUEUED)
        self._take(job, again=again and job.status == RUNNING and not job.is_deleted)

    def _take(self, job: Modelled, *, again: bool = False) -> None:
        self.names += 1
        worker = job.worker if again else f"w{self.names}"
        claim = self._do(self.store.claim(job.id, worker=worker, lease_s=LEASE_MS / 1000))
        if not again and (job.is_deleted or job.status != QUEUED):
            VISITED["claim of nothing"] += 1
            assert claim is None
            return
        assert claim
        if again:
            VISITED["claim asked again"] += 1
            assert claim.token == job.claims[-1].token
        else:
            assert all(int(claim.token) > int(older.token) for older in job.claims)
            job.take(worker, self.now)
            job.claims.append(claim)
        assert (claim.token, claim.attempt, claim.spec) == (str(job.token), job.attempt, job.spec)
        assert claim.last_step == (len(job.points) - 1) * LOG_EVERY if job.points else -1
        assert claim.ran_s == job.ran_ms / 1000

    @happens(when=has_claims, which=ANY, step=st.sampled_from([None, 10, 20]))
    def begin(self, which: int, step: int | None) -> None:
        self._begin(*self._pick_claim(which), step)

    def _begin(self, job: Modelled, claim: Claim, step: int | None) -> None:
        backend = {"device": "cpu", "kernel": "plain", "threads": 1}
        answer = self._do(self.store.begin(claim, backend, resumed_from=step))
        if not self._is_lost(job, claim, "begin", answer):
            assert answer == ANSWER[job.status]
            job.resumed_from = step

    @happens(when=has_claims, which=ANY)
    def beat(self, which: int) -> None:
        job, claim = self._pick_claim(which)
        answer = self._do(self.store.beat(claim, lease_s=LEASE_MS / 1000))
        if not self._is_lost(job, claim, "beat", answer):
            assert answer == ANSWER[job.status]
            job.lease_end = self.now + LEASE_MS

    @happens(when=has_claims, which=ANY, back=st.integers(0, 6), count=st.sampled_from([1, 3, 8, 1100]))
    def append(self, which: int, back: int, count: int) -> None:
        """Loss points, beginning with some that are there already: an attempt goes on from a checkpoint."""
        job, claim = self._pick_claim(which)
        self._append(job, claim, max(0, len(job.points) - back), count)

    def _append(self, job: Modelled, claim: Claim, first: int, count: int) -> None:
        there = len(job.points)
        points = [point(number, claim.token) for number in range(first, first + count)]
        answer = self._do(self.store.append(claim, points, steps_done=points[-1]["step"] + 1, images_per_s=1))
        if not self._is_lost(job, claim, "append", answer):
            assert answer == ANSWER[job.status]
            VISITED["steps told again"] += first < there
            VISITED["a long block"] += count > 1000
            job.points += [to_json(it) for it in points[there - first :]]

    @happens(when=has_claims, which=ANY, back=st.integers(-1, 1))
    def end_epoch(self, which: int, back: int) -> None:
        job, claim = self._pick_claim(which)
        number = max(0, job.epochs - back)
        answer = self._do(self.store.end_epoch(claim, {"epoch": number, "told_by": claim.token}))
        if not self._is_lost(job, claim, "end_epoch", answer):
            assert answer == ANSWER[job.status]
            job.epochs += number == job.epochs

    @happens(often=2, when=has_claims, which=ANY, status=st.sampled_from([SUCCEEDED, FAILED]), partial=st.booleans())
    def finish(self, which: int, status: Status, partial: bool) -> None:
        job, claim = self._pick_claim(which)
        wrote: dict[str, Any] = (
            {"result": {"test_accuracy": 0.9}, "files": FILES} if status == SUCCEEDED else {"error": ERROR}
        )
        partial = partial and status == FAILED
        answer = self._do(self.store.finish(claim, status, **wrote, partial=FILES if partial else None))
        if not self._is_lost(job, claim, "finish", answer):
            job.finish(status, self.now, partial=partial)
            assert answer == job.status

    @happens(when=has_claims, which=ANY, partial=st.booleans())
    def stop(self, which: int, partial: bool) -> None:
        job, claim = self._pick_claim(which)
        answer = self._do(self.store.stop(claim, partial=FILES if partial else None))
        if not self._is_lost(job, claim, "stop", answer):
            job.stop(self.now, partial=partial)
            assert answer == job.status

    @happens(often=2, when=has_claims, which=ANY)
    def the_trainer_dies(self, which: int) -> None:
        job, claim = self._pick_claim(which)
        answer = self._do(self.store.retry(job.id, claim, WORKER_LOST))
        if not self._is_lost(job, claim, "retry", answer):
            job.lose("trainer_died", self.now)
            assert answer == job.status

    # --- clients -----------------------------------------------------------------------------------------------------

    @happens(key=st.sampled_from(["a", None]), epochs=st.sampled_from([1, 2]))
    def submit(self, key: str | None, epochs: int) -> None:
        """Who has a key names what it asks for; the others do not."""
        spec = SPEC.model_copy(update={"epochs": epochs})
        text = spec.model_dump_json()
        owner = "ann" if key else ""
        store = self.store.of(Caller(owner=owner))
        key = key and f"{key}{self.deleted_keys}"
        known = self.keys.get(key or "")
        if known and not known[0].is_deleted:
            VISITED["known key" if known[1] == text else "reused key"] += 1
            if known[1] == text:
                job, is_new = self._do(store.submit_once(spec, key))
                assert (job.id, is_new) == (known[0].id, False)
            else:
                self._refused(KeyReused, store.submit_once(spec, key))
        elif known:
            VISITED["key of a deleted job"] += 1
            self.deleted_keys += 1
            self._refused(JobDeleted if known[1] == text else KeyReused, store.submit_once(spec, key))
        elif sum(not job.is_deleted for job in self.jobs) < MOST_JOBS:
            job, is_new = self._do(store.submit_once(spec, key))
            assert is_new
            self.jobs.append(
                Modelled(id=job.id, spec=spec, owner=owner, created_ms=self.now, rung_ms=self.now, queued_ms=self.now)
            )
            if key:
                self.keys[key] = (self.jobs[-1], text)

    @happens(which=ANY)
    def cancel(self, which: int) -> None:
        job = self._pick(which, RUNNING, PAUSING, PAUSED)
        if job.is_deleted:
            return self._refused(NotFound, self.store.cancel(job.id))
        is_wish = job.status not in (*TERMINAL, CANCELLING)
        if job.status in (QUEUED, PAUSED):
            job.leave(CANCELLED, self.now)
        elif is_wish:
            job.enter(CANCELLING)
        now, changed = self._do(self.store.cancel(job.id))
        assert (now.status, changed) == (job.status, is_wish)
        return None

    @happens(often=2, which=ANY)
    def pause(self, which: int) -> None:
        job = self._pick(which, RUNNING)
        if job.is_deleted:
            return self._refused(NotFound, self.store.pause(job.id))
        is_wish = job.status in (QUEUED, RUNNING)
        if job.status == QUEUED:
            job.leave(PAUSED, self.now)
        elif is_wish:
            job.enter(PAUSING)
        now, changed = self._do(self.store.pause(job.id))
        assert (now.status, changed) == (job.status, is_wish)
        return None

    @happens(often=2, which=ANY)
    def resume(self, which: int) -> None:
        job = self._pick(which, PAUSED, PAUSING, FAILED, CANCELLED)
        if job.is_deleted or job.status == CANCELLING:
            return self._refused(NotFound if job.is_deleted else JobNotTerminal, self.store.resume(job.id))
        is_wish = job.status in (PAUSED, PAUSING, FAILED, CANCELLED)
        if job.status == PAUSING:
            job.enter(RUNNING)
        elif job.status == PAUSED:
            job.leave(QUEUED, self.now)
        elif is_wish:
            job.extended = None
            job.begin_anew(self.now)
        self.move = f"resume {job.id}"
        now, changed = self._do(self.store.resume(job.id))
        assert (now.status, changed) == (job.status, is_wish)
        return None

    @happens(often=2, which=ANY, epochs=st.sampled_from([1, 2]))
    def extend(self, which: int, epochs: int) -> None:
        job = self._pick(which, *TERMINAL)
        may = not job.is_deleted and (job.status in TERMINAL or job.extended == epochs)
        if not may:
            return self._refused(NotFound if job.is_deleted else JobNotTerminal, self.store.extend(job.id, epochs))
        is_wish = job.status in TERMINAL
        if is_wish:
            VISITED["extended twice"] += job.extended is not None
            job.spec, job.extended = job.spec.extended(epochs), epochs
            job.begin_anew(self.now)
        self.move = f"extend {job.id}"
        now, changed = self._do(self.store.extend(job.id, epochs))
        assert (now.status, changed) == (job.status, is_wish)
        return None

    @happens(which=ANY)
    def delete(self, which: int) -> None:
        job = self._pick(which, *TERMINAL)
        if job.is_deleted or job.status not in TERMINAL:
            VISITED["not deleted"] += 1
            return self._refused(NotFound if job.is_deleted else JobNotTerminal, self.store.delete(job.id))
        if job.aliases:
            VISITED["kept by an alias"] += 1
            return self._refused(JobInUse, self.store.delete(job.id))
        self._do(self.store.delete(job.id))
        self._refused(ModelDeleted if job.has_weights else NotFound, self.store.model(job.id))
        job.is_deleted, job.is_unfiled, job.lease_end = True, False, None
        self.trash.add(job.id)
        return None

    @happens(often=2, when=has_claims, which=ANY, alias=st.sampled_from(["x", "y.z"]))
    def name_a_model(self, which: int, alias: str) -> None:
        job = self._pick(which, SUCCEEDED)
        if job.is_deleted or not job.has_model:
            return self._refused(NotFound if job.is_deleted else ModelNotReady, self.models.name(alias, job.id))
        before = next((other for other in self.jobs if alias in other.aliases), None)
        self._do(self.models.name(alias, job.id))
        if before is not job:
            VISITED["alias moved" if before else "alias given"] += 1
            if before:
                del before.aliases[alias]
                before.is_unfiled = True
            job.aliases[alias], job.is_unfiled = self.now, True
        assert self._do(self.store.model(alias)).job_id == job.id
        return None

    @happens(alias=st.sampled_from(["x", "y.z"]))
    def forget_an_alias(self, alias: str) -> None:
        job = next((job for job in self.jobs if alias in job.aliases), None)
        VISITED["alias forgotten" if job else "alias of nothing"] += 1
        if job is None:
            return self._refused(NotFound, self.models.unname(alias))
        self._do(self.models.unname(alias))
        del job.aliases[alias]
        job.is_unfiled = True
        return None

    @happens(when=has_claims, which=ANY, limit=st.integers(1, 4))
    def read_on(self, which: int, limit: int) -> None:
        """A client follows a history; what it has must always be the beginning of what there is."""
        job = self._pick(which, *ANSWER)
        if job.is_deleted:
            return self._refused(NotFound, self.store.loss(job.id, after=job.cursor, limit=limit))
        page = self._do(self.store.loss(job.id, after=job.cursor, limit=limit))
        job.read += page.points
        job.cursor = page.next
        VISITED["a page read"] += bool(page.points)
        assert job.read == job.points[: len(job.read)]
        assert (page.status, page.count) == (job.status, len(job.points))
        assert page.has_more == (len(job.read) < len(job.points))
        return None

    @happens(which=ANY)
    def look(self, which: int) -> None:
        """What a client is told of a job is what the job is, and the list has every job, newest first."""
        job = self._pick(which, QUEUED)
        assert [told.id for told in self._do(self.store.page())[0]] == [
            job.id for job in reversed(self.jobs) if not job.is_deleted
        ]
        if job.is_deleted:
            return self._refused(NotFound, self.store.get(job.id))
        told = self._do(self.store.get(job.id))
        queue = sorted((job.created_ms, job.id) for job in self.jobs if job.status == QUEUED and not job.is_deleted)
        place = queue.index((job.created_ms, job.id)) if job.status == QUEUED else None
        assert (told.status, told.attempt, told.queue_position) == (job.status, job.attempt, place)
        assert (told.model.ready, told.model.partial) == (job.has_weights, job.has_partial)
        assert (told.resumed_from_step, told.spec, told.error) == (job.resumed_from, job.spec, job.error)
        assert [transition.status for transition in told.transitions] == job.path
        return None

    # --- time, the reconciler and bad luck ---------------------------------------------------------------------------

    @happens(ms=st.sampled_from([1, 1000, RING_MS, LEASE_MS]))
    def wait(self, ms: int) -> None:
        self._wait(ms)

    @happens()
    def reconcile(self) -> None:
        late = [job for job in self.jobs if job.lease_end is not None and job.lease_end <= self.now]
        assert sorted(self._do(self.store.overdue())) == [job.id for job in late]
        for job in late:
            VISITED["taken from a dead worker"] += 1
            job.lose("lease_expired", self.now)
            assert self._do(self.store.retry(job.id, None, WORKER_LOST)) == job.status
        for job_id in self._do(self.store.queued()):
            job = next(job for job in self.jobs if job.id == job_id)
            rings = job.rung_ms + RING_MS <= self.now
            job.rung_ms = self.now if rings else job.rung_ms
            assert self._do(self.store.ring(job_id, min_age_s=RING_MS / 1000)) == rings

    @happens(when=lambda self: any(job.lease_end is not None for job in self.jobs), which=ANY)
    def a_worker_dies(self, which: int) -> None:
        """Nobody hears of it again (its claim may still write, as a frozen one would) until its lease has run out."""
        ends = [job.lease_end for job in self.jobs if job.lease_end is not None]
        self._wait(max(0, ends[which % len(ends)] - self.now))
        self.reconcile()

    @happens(when=has_claims, which=ANY)
    def an_impatient_reconciler(self, which: int) -> None:
        """Only a lease that has run out is taken; a job that nobody holds is not, either."""
        job = self._pick(which, *ANSWER)
        if job.lease_end is None or job.lease_end > self.now:
            VISITED["stale lease"] += 1
            assert self._do(self.store.retry(job.id, None, WORKER_LOST)) == "lost"
            assert self._do(self._database.read()) == self.seen

    @happens(which=ANY)
    def begin_to_file(self, which: int) -> None:
        job = self._pick(which, *TERMINAL, RUNNING)
        raw = self._do(self.store.raw(job.id))
        assert (raw is None) == job.is_deleted
        self.raws += [raw] if raw else []

    @happens(when=lambda self: self.raws, which=ANY)
    def end_to_file(self, which: int) -> None:
        """The file was written; meanwhile the job may be another."""
        raw = self.raws.pop(which % len(self.raws))
        job = next(job for job in self.jobs if job.id == raw.job_id)
        self._do(self.store.filed(raw))
        if job.is_deleted:
            self.trash.add(job.id)
        else:
            aliases = self.seen[f"descent:job:{job.id}"].get("aliases")
            job.is_unfiled = len(raw.transitions) != len(job.path) or raw.record.get("aliases") != aliases
        VISITED["files are late"] += job.is_unfiled

    @happens(when=lambda self: self.trash)
    def empty_the_trash(self) -> None:
        assert self._do(self.store.trash()) == sorted(self.trash)
        for job_id in self.trash:
            VISITED["trash emptied"] += 1
            self._do(self.store.emptied(job_id))
        self.trash.clear()

    @happens(
        when=lambda self: self.kills < 1 and any(job.status == RUNNING for job in self.jobs), number=st.integers(0, 7)
    )
    def kill_the_server(self, number: int) -> None:
        """Rarely, because it takes time."""
        if number < 6:
            return
        self.kills += 1
        VISITED["killed while running"] += 1
        self.server.kill()
        assert self._do(self._database.read()) == self.seen

    # --- after each of them ------------------------------------------------------------------------------------------

    @invariant()
    def the_database_is_as_it_should_be(self) -> None:
        before, self.seen = self.seen, self._do(self._database.read())
        living = [job for job in self.jobs if not job.is_deleted]
        for job in living:
            check_record(job, self.seen)
        check_sets(living, self.trash, self.seen)
        check_counts(self.jobs, before, self.seen)
        check_promises(before, self.seen, self.move)
        for job in self.jobs:
            if job.is_deleted:
                check_gone(job, self.trash, self.seen)
        named = {job.id for job, _ in self.keys.values()}
        assert {record["id"] for key, record in self.seen.items() if key.startswith("descent:idempotency:")} == named
        self.move = ""


def check_record(job: Modelled, seen: Seen) -> None:
    """A job's keys are what the model says."""
    key = f"descent:job:{job.id}"
    expected = job.expected()
    assert {name: seen[key].get(name) for name in expected} == expected
    assert json.loads(seen[key].get("error", "null")) == (job.error.model_dump() if job.error else None)
    assert json.loads(seen[key].get("aliases", "{}")) == job.aliases
    assert [json.loads(text)["status"] for text in seen[f"{key}:transitions"]] == job.path
    assert seen.get(f"{key}:loss", []) == job.points
    assert [json.loads(text)["epoch"] for text in seen.get(f"{key}:epochs", [])] == list(range(job.epochs))


def check_sets(living: list[Modelled], trash: set[str], seen: Seen) -> None:
    """Every job that was accepted is where its status says, and nowhere else."""
    assert [name for name, _ in seen.get("descent:jobs", [])] == [job.id for job in living]
    labels = ("optimizer:adam", "tag:1:a", "tag:1:a:b")
    of_models = {job.id: ("model", "model:mnist") if job.has_model else () for job in living}
    listed = {(key, name) for key, names in seen.items() if key.startswith("descent:labelled:") for name, _ in names}
    assert listed == {
        (f"descent:labelled:{label}", job.id)
        for job in living
        for label in (*labels, *of_models[job.id], f"status:{job.status}")
    }
    queue = sorted((job.created_ms, job.id) for job in living if job.status == QUEUED)
    for key in ("descent:queued", "descent:queued:descent.train.cpu"):  # where jobs that say `auto` are at home
        assert [(at, name) for name, at in seen.get(key, [])] == queue
    leases = {job.id: job.lease_end for job in living if job.status in ANSWER}
    assert dict(seen.get("descent:running", [])) == leases
    assert None not in leases.values()
    assert set(seen.get("descent:unfiled", [])) == {job.id for job in living if job.is_unfiled}
    assert set(seen.get("descent:trash", [])) == trash
    assert seen.get("descent:aliases", {}) == {alias: job.id for job in living for alias in job.aliases}
    for ranking in ("latest", "best"):
        assert {name for name, _ in seen.get(f"descent:models:{ranking}", [])} == {
            job.id for job in living if job.has_model
        }
    check_own([job for job in living if job.owner == "ann"], seen)


def check_own(jobs: list[Modelled], seen: Seen) -> None:
    """The sets of one owner's jobs."""
    assert [name for name, _ in seen.get("descent:jobs:ann", [])] == [job.id for job in jobs]
    assert set(seen.get("descent:live:ann", [])) == {job.id for job in jobs if job.status not in TERMINAL}
    for ranking in ("latest", "best"):
        ranked = {name for name, _ in seen.get(f"descent:models:{ranking}:ann", [])}
        assert ranked == {job.id for job in jobs if job.has_model}


def check_counts(jobs: list[Modelled], before: Seen, seen: Seen) -> None:
    """What /metrics tells: how many jobs are where, since when they wait, and what ever happened, also to deleted ones."""
    counts = {status: int(number) for status, number in seen["descent:counts"].items() if number != "0"}
    assert counts == Counter(job.status for job in jobs if not job.is_deleted)
    assert dict(seen.get("descent:waiting", [])) == {job.id: job.queued_ms for job in jobs if job.status == QUEUED}
    totals = Counter({name: int(number) for name, number in seen["descent:totals"].items()})
    assert totals == sum((job.totals for job in jobs), Counter(submitted=len(jobs)))
    assert all(totals[name] >= int(number) for name, number in before.get("descent:totals", {}).items())


def check_promises(before: Seen, seen: Seen, wish: str) -> None:
    """What a client may rely on, whatever the moves are. `wish`: the resume or extend that was asked for, if any."""
    for job_id, _ in seen.get("descent:jobs", []):
        key = f"descent:job:{job_id}"
        record, was = seen[key], before.get(key)
        path = [Status(json.loads(text)["status"]) for text in seen[f"{key}:transitions"]]
        assert path[0] == QUEUED
        assert path[-1] == record["status"]
        assert all(after in LEGAL[status] for status, after in itertools.pairwise(path))
        assert 0 <= int(record["attempt"]) <= MAX_ATTEMPTS
        old = {part: len(before.get(f"{key}:{part}", [])) for part in ("loss", "transitions", "epochs")}
        for part, length in old.items():
            assert seen.get(f"{key}:{part}", [])[:length] == before.get(f"{key}:{part}", [])
        steps = [json.loads(text)["step"] for text in seen.get(f"{key}:loss", [])[old["loss"] :]]
        assert steps == list(range(old["loss"] * LOG_EVERY, int(record["last_step"]) + 1, LOG_EVERY))
        if was is None:
            continue
        assert int(record["token"]) >= int(was["token"])
        if Status(was["status"]).terminal and wish not in (f"resume {job_id}", f"extend {job_id}"):
            assert part_about(job_id, seen) == part_about(job_id, before)


def part_about(job_id: str, seen: Seen) -> Seen:
    """What is stored of a job itself, however its model may be called."""
    about = {key: value for key, value in seen.items() if job_id in key}
    record = about.pop(f"descent:job:{job_id}")
    return about | {"record": {name: value for name, value in record.items() if name != "aliases"}}


def check_gone(job: Modelled, trash: set[str], seen: Seen) -> None:
    """Nothing names a deleted job any more, but whose its model was, the note to remove its files and its idempotency key."""
    naming = {key for key, value in seen.items() if job.id in key or job.id in json.dumps(value)}
    naming = {key for key in naming if not key.startswith("descent:idempotency:")}
    owner_of = f"descent:deleted:{job.id}"
    assert naming == ({owner_of} if job.has_weights else set()) | ({"descent:trash"} if job.id in trash else set())
    assert seen.get(owner_of) == (job.owner if job.has_weights else None)


@pytest.fixture
def killable(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


def test_no_story_of_clients_workers_and_deaths_breaks_a_promise(killable: Server) -> None:
    class StoriesOfIt(Stories):
        server = killable

    VISITED.clear()
    run_state_machine_as_test(
        StoriesOfIt,
        settings=settings(
            max_examples=90,
            stateful_step_count=70,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # shrinking a story takes minutes; add Phase.shrink to find a short one
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert MUST_VISIT - set(+VISITED) == set()


# --- races that once were bugs ------------------------------------------------------------------------------------------


def test_a_job_restored_in_its_third_attempt_gets_no_fourth(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        for worker in "abc":
            claim = await store.claim(job.id, worker=worker, lease_s=30)
            if worker != "c":
                await store.retry(job.id, claim, WORKER_LOST)
        raw = await store.raw(job.id)
        assert raw
        again = dataclasses.replace(raw, job_id=new_job_id())  # as if the database had been lost
        assert await store.restore(again, []) == "restored"
        claim = await store.claim(again.job_id, worker="d", lease_s=30)
        assert claim is None or claim.attempt <= MAX_ATTEMPTS

    with_store(use)


def test_a_job_that_became_another_and_back_while_it_was_filed_is_filed_again(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        await store.cancel(job.id)
        raw = await store.raw(job.id)
        assert raw
        await store.extend(job.id, 1)
        await store.cancel(job.id)
        await store.filed(raw)
        assert job.id in await store.unfiled()

    with_store(use)


def test_a_job_that_is_extended_is_filed_again(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        await store.cancel(job.id)
        raw = await store.raw(job.id)
        assert raw
        await store.filed(raw)
        await store.extend(job.id, 1)
        assert job.id in await store.unfiled()

    with_store(use)
