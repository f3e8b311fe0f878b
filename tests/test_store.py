"""The store against a real server; time is the server's own, so leases here are short."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from pydantic import TypeAdapter

from core.errors import (
    InvalidRequest,
    JobDeleted,
    JobNotTerminal,
    KeyReused,
    ModelDeleted,
    ModelNotReady,
    NotFound,
    Unavailable,
)
from core.jobs import broker
from core.jobs.job import WORKER_LOST, Job, JobError, Moment, Status, from_ms, new_job_id
from core.jobs.owners import Caller
from core.jobs.sweeps import SweepStore
from core.jobs.work import MAX_ATTEMPTS, Claim, WorkStore
from core.settings import Settings
from core.spec import JobSpec
from core.sweep import SweepSpec
from tests.conftest import WithStore

SPEC = JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001, "epochs": 1})
FILES = {name: {"path": "p", "sha256": "0" * 64, "size_bytes": 1} for name in ("pdparams", "safetensors")}


def point(step: int, loss: float | None = 1.0) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "batch": step, "loss": loss, "time_s": step / 10}


async def claimed(store: WorkStore, job: Job, *, worker: str = "w1", lease_s: float = 30) -> Claim:
    claim = await store.claim(job.id, worker=worker, lease_s=lease_s)
    assert claim
    return claim


async def append(store: WorkStore, claim: Claim, *steps: int) -> str:
    return await store.append(claim, [point(step) for step in steps], steps_done=steps[-1] + 1, images_per_s=100)


def test_a_new_job_is_queued_and_says_so(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        first, second = await store.submit(SPEC), await store.submit(SPEC)
        assert (first.status, first.attempt, first.terminal) == (Status.QUEUED, 0, False)
        assert second.queue_position == (first.queue_position or 0) + 1
        assert first.id < second.id
        assert first.progress.total_steps == 500
        assert [t.status for t in first.transitions] == ["queued"]

    with_store(use)


def test_moments_sort_as_texts(with_store: WithStore[Any]) -> None:
    texts = [TypeAdapter[Any](Moment).dump_json(from_ms(ms)) for ms in (1_763_905_375_000, 1_763_905_375_011)]
    assert texts == [b'"2025-11-23T13:42:55.000Z"', b'"2025-11-23T13:42:55.011Z"']

    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        assert len(job.model_dump(mode="json")["created_at"]) == len("2025-11-23T13:42:55.000Z")

    with_store(use)


def test_only_one_of_many_claims_gets_the_job(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        claims = await asyncio.gather(*(store.claim(job.id, worker=f"w{n}", lease_s=30) for n in range(20)))
        assert len([claim for claim in claims if claim]) == 1
        assert (await store.get(job.id)).attempt == 1

    with_store(use)


def test_a_claim_whose_answer_was_lost_can_be_asked_again(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        assert await claimed(store, job) == await claimed(store, job)
        assert (await store.get(job.id)).attempt == 1

    with_store(use)


def test_points_come_back_in_order_and_none_twice(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        claim = await claimed(store, job)
        await append(store, claim, 0, 10, 20)
        await append(store, claim, 10, 20, 30)
        page = await store.loss(job.id, limit=3)
        assert (page.count, page.next, page.has_more) == (4, "3", True)
        rest = await store.loss(job.id, after=page.next)
        assert [p[:9] for p in page.points + rest.points] == ['{"step":0', '{"step":1', '{"step":2', '{"step":3']
        assert (rest.next, rest.has_more) == ("4", False)
        assert (await store.loss(job.id, after="4")).points == []
        assert len((await store.loss(job.id, from_step=10, to_step=20)).points) == 2
        with pytest.raises(InvalidRequest):
            await store.loss(job.id, after="5")

    with_store(use)


def test_the_hash_names_the_backend_once_there_is_one(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        claim = await claimed(store, job)
        backend = {"device": "cpu", "kernel": "plain", "threads": 2}
        assert await store.begin(claim, backend, resumed_from=None) == "go_on"
        begun = await store.get(job.id)
        assert job.spec_hash == SPEC.hash()
        assert begun.spec_hash == SPEC.hash(backend)
        assert begun.backend is not None
        assert begun.backend.model_dump() == backend

    with_store(use)


def test_a_long_batch_of_points_is_stored_whole(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        claim = await claimed(store, await store.submit(SPEC))
        await append(store, claim, *range(12_345))
        page = await store.loss(claim.job_id)
        assert (page.count, len(page.points), page.has_more) == (12_345, 10_000, True)

    with_store(use)


def test_a_stale_claim_writes_nothing(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        old = await claimed(store, job, worker="old", lease_s=0.01)
        await append(store, old, 0)
        await asyncio.sleep(0.05)
        assert job.id in await store.overdue()
        assert await store.retry(job.id, None, WORKER_LOST) == "queued"
        new = await claimed(store, job, worker="new")
        assert new.attempt == 2
        assert await append(store, old, 10) == "lost"
        assert await store.beat(old, lease_s=30) == "lost"
        assert await store.end_epoch(old, {"epoch": 0}) == "lost"
        assert await store.finish(old, Status.SUCCEEDED, files=FILES) == "lost"
        assert await store.stop(old) == "lost"
        assert await store.retry(job.id, old, WORKER_LOST) == "lost"
        after = await store.get(job.id)
        assert (after.status, after.attempt, after.latest and after.latest.step) == (Status.RUNNING, 2, 0)
        assert await append(store, new, 0, 10) == "go_on"
        assert (await store.loss(job.id)).count == 2

    with_store(use)


def test_a_beating_worker_keeps_its_job(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        claim = await claimed(store, await store.submit(SPEC), lease_s=0.2)
        for _ in range(4):
            await asyncio.sleep(0.1)
            assert await store.beat(claim, lease_s=0.2) == "go_on"
        assert await store.retry(claim.job_id, None, WORKER_LOST) == "lost"
        assert (await store.get(claim.job_id)).status is Status.RUNNING

    with_store(use)


def test_attempts_are_counted_and_end_in_worker_lost(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            claim = await claimed(store, job, worker=f"w{attempt}")
            assert claim.attempt == attempt
            await append(store, claim, 10 * (attempt - 1))
            await store.retry(job.id, claim, WORKER_LOST)
        ended = await store.get(job.id)
        assert ended.status is Status.FAILED
        assert ended.error == WORKER_LOST.model_copy(update={"step": 20})
        assert await store.claim(job.id, worker="late", lease_s=30) is None

    with_store(use)


def test_a_job_given_back_uses_no_attempt_but_a_new_token(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        tokens = set()
        for n in range(5):
            claim = await claimed(store, job, worker=f"w{n}")
            tokens.add(claim.token)
            assert claim.attempt == 1
            assert await store.stop(claim) == "queued"
            assert await append(store, claim, 0) == "lost"
        assert len(tokens) == 5

    with_store(use)


def test_cancel_in_every_state(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        queued = await store.submit(SPEC)
        cancelled, changed = await store.cancel(queued.id)
        assert (cancelled.status, changed) == (Status.CANCELLED, True)
        assert await store.claim(queued.id, worker="w", lease_s=30) is None

        claim = await claimed(store, await store.submit(SPEC))
        statuses = [await store.cancel(claim.job_id) for _ in range(2)]
        assert [(job.status, changed) for job, changed in statuses] == [("cancelling", True), ("cancelling", False)]
        assert await append(store, claim, 0) == "cancel"
        assert await store.beat(claim, lease_s=30) == "cancel"
        assert await store.finish(claim, Status.SUCCEEDED, files=FILES) == "cancelled"
        ended = await store.get(claim.job_id)
        assert (ended.status, ended.model.ready) == (Status.CANCELLED, False)
        assert [t.status for t in ended.transitions] == ["queued", "running", "cancelling", "cancelled"]
        assert await store.cancel(claim.job_id) == (ended, False)
        assert await append(store, claim, 10) == "lost"

        for give_up in (store.stop, lambda claim: store.retry(claim.job_id, claim, WORKER_LOST)):
            claim = await claimed(store, await store.submit(SPEC))
            await store.cancel(claim.job_id)
            assert await give_up(claim) == "cancelled"

        with pytest.raises(NotFound):
            await store.cancel("job_" + "0" * 32)

    with_store(use)


def test_pause_and_resume_in_every_state(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        assert [(j.status, changed) for j, changed in [await store.resume(job.id)]] == [("queued", False)]
        for expected in (True, False):
            paused, changed = await store.pause(job.id)
            assert (paused.status, paused.terminal, changed) == ("paused", False, expected)
        assert await store.claim(job.id, worker="w", lease_s=30) is None
        assert (await store.resume(job.id))[0].queue_position is not None

        claim = await claimed(store, job)
        await append(store, claim, 0)
        assert (await store.pause(job.id))[0].status == "pausing"
        assert await store.beat(claim, lease_s=30) == "pause"
        assert await append(store, claim, 10) == "pause"
        assert await store.stop(claim, partial=FILES) == "paused"
        paused = await store.get(job.id)
        assert (paused.attempt, paused.model.ready, paused.model.partial) == (0, True, True)
        assert (await store.model(job.id)).files == FILES
        assert await append(store, claim, 20) == "lost"
        assert (await store.resume(job.id))[1]
        again = await claimed(store, job, worker="w2")
        assert (again.attempt, again.last_step) == (1, 10)
        assert not (await store.get(job.id)).model.ready
        with pytest.raises(ModelNotReady):
            await store.model(job.id)

        await store.pause(job.id)
        assert (await store.resume(job.id))[0].status == "running"  # it changed its mind before the worker heard of it
        assert await store.beat(again, lease_s=30) == "go_on"
        await store.pause(job.id)
        assert (await store.cancel(job.id))[0].status == "cancelling"
        with pytest.raises(JobNotTerminal):
            await store.resume(job.id)
        assert await store.stop(again, partial=FILES) == "cancelled"
        assert (await store.get(job.id)).model.partial
        assert await store.pause(job.id) == (await store.get(job.id), False)
        for name in ("best", "latest"):
            assert await named(store, name) != job.id  # partial weights are nobody's best

        for unknown in (store.pause, store.resume, store.delete):
            with pytest.raises(NotFound):
                await unknown("job_" + "0" * 32)

    with_store(use)


async def named(store: WorkStore, name: str) -> str | None:
    try:
        return (await store.model(name)).job_id
    except NotFound:
        return None


def test_a_pause_that_meets_a_death_is_a_pause_or_the_end(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            claim = await claimed(store, job, worker=f"w{attempt}")
            await append(store, claim, attempt)
            await store.pause(job.id)
            status = await store.retry(job.id, claim, WORKER_LOST)
            assert status == ("paused" if attempt < MAX_ATTEMPTS else "failed")
            await store.resume(job.id)
        assert (await store.get(job.id)).attempt == 0  # an explicit resume gives it three more

    with_store(use)


def test_a_job_that_finishes_while_it_is_paused_has_finished(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        claim = await claimed(store, await store.submit(SPEC))
        await store.pause(claim.job_id)
        assert await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 0.1}, files=FILES) == "succeeded"

    with_store(use)


def test_a_failed_job_that_is_resumed_starts_its_counts_afresh(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        claim = await claimed(store, await store.submit(SPEC))
        await append(store, claim, 0, 10)
        await asyncio.sleep(0.02)
        error = JobError(code="max_runtime", message="m", step=10)
        assert await store.finish(claim, Status.FAILED, error=error, partial=FILES) == "failed"
        failed = await store.get(claim.job_id)
        assert (failed.error, failed.model.partial) == (error, True)
        resumed, changed = await store.resume(claim.job_id)
        assert (resumed.status, resumed.error, resumed.finished_at, changed) == ("queued", None, None, True)
        again = await claimed(store, resumed, worker="w2")
        assert (again.attempt, again.last_step, again.ran_s) == (1, 10, 0)
        assert int(again.token) > int(claim.token)
        await asyncio.sleep(0.02)
        assert await store.stop(again) == "queued"
        assert (await claimed(store, resumed, worker="w3")).ran_s > 0

    with_store(use)


def test_a_job_that_ended_can_be_made_longer(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        claim = await claimed(store, await store.submit(SPEC))
        with pytest.raises(JobNotTerminal):
            await store.extend(claim.job_id, 2)
        await append(store, claim, 0, 490, 499)
        await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 0.1}, files=FILES)
        assert (await store.resume(claim.job_id))[1] is False  # there is nothing to go on with
        longer, changed = await store.extend(claim.job_id, 2)
        assert (longer.status, longer.spec.epochs, longer.progress.total_steps, changed) == ("queued", 3, 1500, True)
        assert longer.spec_hash == SPEC.extended(2).hash() != claim.spec.hash()
        assert (await store.extend(claim.job_id, 2))[1] is False  # the same wish, sent again
        with pytest.raises(JobNotTerminal):
            await store.extend(claim.job_id, 1)
        assert longer.model.ready  # what it had stays until there is better
        again = await claimed(store, longer, worker="w2")
        assert (again.spec.epochs, again.last_step) == (3, 499)
        await append(store, again, 500)
        await store.finish(again, Status.SUCCEEDED, result={"test_accuracy": 0.2}, files=FILES)
        for epochs in (1000, 998):
            with pytest.raises(InvalidRequest, match="1000"):
                await store.extend(claim.job_id, epochs)

    with_store(use)


def test_a_deleted_job_leaves_no_key_but_whose_it_was_for_a_month(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        claim = await claimed(store, await store.submit(SPEC))
        with pytest.raises(JobNotTerminal):
            await store.delete(claim.job_id)
        await append(store, claim, 0)
        await store.end_epoch(claim, {"epoch": 0})
        await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 3.0}, files=FILES)
        assert await named(store, "best") == claim.job_id
        others = await store.trash()  # of other tests on this server
        await store.delete(claim.job_id)
        assert await store.trash() == sorted([*others, claim.job_id])
        await store.emptied(claim.job_id)
        assert await store.trash() == others
        keys = [key async for key in store._redis.scan_iter("descent:*")]
        assert [key for key in keys if claim.job_id in key] == [f"descent:deleted:{claim.job_id}"]
        month_ms = 30 * 24 * 3600 * 1000
        assert month_ms - 60_000 < await store._redis.pttl(f"descent:deleted:{claim.job_id}") <= month_ms
        for key in ("descent:jobs", "descent:models:best", "descent:models:latest"):
            assert await store._redis.zscore(key, claim.job_id) is None
        assert claim.job_id not in await store.unfiled()
        assert await append(store, claim, 10) == "lost"
        with pytest.raises(NotFound):
            await store.get(claim.job_id)
        with pytest.raises(ModelDeleted):
            await store.model(claim.job_id)

    with_store(use)


def test_that_a_model_was_deleted_is_told_to_its_owner_alone(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        ann, bob = (store.of(Caller(owner=owner, sees_all=False)) for owner in ("ann", "bob"))
        claim = await claimed(store, await ann.submit(SPEC))
        await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 0.5}, files=FILES)
        raw = await store.raw(claim.job_id)
        await store.delete(claim.job_id)
        for caller in (ann, store):
            with pytest.raises(ModelDeleted):
                await caller.model(claim.job_id)
        told = []
        for job_id in (claim.job_id, new_job_id()):
            with pytest.raises(NotFound) as caught:
                await bob.model(job_id)
            told.append(str(caught.value))
        assert told[0] == told[1]
        await store.emptied(claim.job_id)
        assert raw
        assert await store.restore(raw, []) == "restored"  # from a copy of its files
        assert (await ann.model(claim.job_id)).files == FILES
        await store.delete(claim.job_id)

    with_store(use)


def test_a_deleted_job_without_a_model_is_as_if_it_had_never_been(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        await store.cancel(job.id)
        await store.delete(job.id)
        with pytest.raises(NotFound):
            await store.model(job.id)
        await store.emptied(job.id)
        assert not [key async for key in store._redis.scan_iter("descent:*") if job.id in key]

    with_store(use)


def test_the_models_of_a_deleted_sweep_are_deleted_ones(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        sweeps = SweepStore(store.database)
        spec = SweepSpec.model_validate({"optimizers": ["sgd"], "learning_rates": [0.1, 0.01]})
        sweep, _ = await sweeps.submit(spec, None)
        trained, untrained = sweep.job_ids
        claim = await store.claim(trained, worker="w", lease_s=30)
        assert claim
        await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 0.5}, files=FILES)
        await sweeps.cancel(sweep.id)
        await sweeps.delete(sweep.id)
        with pytest.raises(ModelDeleted):
            await store.model(trained)
        with pytest.raises(NotFound):
            await store.model(untrained)

    with_store(use)


def test_a_key_names_one_job(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        answers = await asyncio.gather(*(store.submit_once(SPEC, "my-key") for _ in range(50)))
        assert len({job.id for job, _ in answers}) == 1
        assert [is_new for _, is_new in answers].count(True) == 1
        with pytest.raises(KeyReused):
            await store.submit_once(SPEC.extended(1), "my-key")
        job = answers[0][0]
        await store.cancel(job.id)
        assert (await store.submit_once(SPEC, "my-key"))[0].status == "cancelled"
        await store.delete(job.id)
        with pytest.raises(JobDeleted):  # a late repetition is not to train it again
            await store.submit_once(SPEC, "my-key")
        assert (await store.submit_once(SPEC, "other"))[0].id != job.id

    with_store(use)


def test_a_server_that_is_nearly_full_takes_no_more_jobs_and_finishes_those_it_has(
    with_store: WithStore[Any],
) -> None:
    async def use(store: WorkStore) -> None:
        redis = store._redis
        limit = (await redis.config_get("maxmemory"))["maxmemory"]
        job, _ = await store.submit_once(SPEC, "full")
        try:
            used = (await redis.info("memory"))["used_memory"]
            await redis.config_set("maxmemory", int(used / 0.85))
            with pytest.raises(Unavailable, match="full"):
                await store.submit(SPEC)
            assert (await store.submit_once(SPEC, "full"))[0].id == job.id
            await redis.config_set("maxmemory", int(used / 2))  # over the limit: the server refuses all other writes
            claim = await claimed(store, job)
            assert await append(store, claim, *range(1000)) == "go_on"
            assert await store.beat(claim, lease_s=30) == "go_on"
            assert await store.finish(claim, Status.SUCCEEDED, result={}, files=FILES) == "succeeded"
            await store.delete(job.id)
        finally:
            await redis.config_set("maxmemory", limit)
        assert (await store.submit(SPEC)).status == "queued"

    with_store(use)


def test_a_finished_job_has_all_it_will_ever_have(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        claim = await claimed(store, await store.submit(SPEC))
        with pytest.raises(ModelNotReady) as caught:
            await store.model(claim.job_id)
        assert caught.value.retry_after_s
        await append(store, claim, 0, 499)
        await store.end_epoch(claim, {"epoch": 0, "valid_accuracy": 0.9})
        await store.end_epoch(claim, {"epoch": 0, "valid_accuracy": 0.1})
        (epoch,) = await store.epochs(claim.job_id)
        assert epoch.pop("at_ms") > 1.7e12
        assert epoch == {"epoch": 0, "valid_accuracy": 0.9}
        result = {"test_accuracy": 2.0, "final_loss": 0.1}  # better than any other, so `best` is this one
        assert await store.finish(claim, Status.SUCCEEDED, result=result, files=FILES) == "succeeded"
        job = await store.get(claim.job_id)
        assert (job.terminal, job.model.ready, job.progress.fraction) == (True, True, 1.0)
        assert job.finished_at
        assert job.result.final_loss == 0.1
        for name in (job.id, "latest", "best"):
            assert (await store.model(name)).job_id == job.id

    with_store(use)


def test_a_failed_job_says_why_and_has_no_model(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        claim = await claimed(store, await store.submit(SPEC))
        error = JobError(code="diverged", message="m", step=7)
        await store.finish(claim, Status.FAILED, error=error)
        assert (await store.get(claim.job_id)).error == error
        with pytest.raises(ModelNotReady, match="failed") as caught:
            await store.model(claim.job_id)
        assert caught.value.retry_after_s is None

    with_store(use)


def test_a_loss_that_is_not_finite_stays_valid_json(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        claim = await claimed(store, await store.submit(SPEC))
        await store.append(claim, [point(0, None) | {"nonfinite": "nan"}], steps_done=1, images_per_s=0)
        assert (await store.get(claim.job_id)).latest is not None
        with pytest.raises(ValueError):
            await store.append(claim, [point(1, float("nan"))], steps_done=2, images_per_s=0)

    with_store(use)


def test_pages_hold_every_job_once_newest_first(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        tagged = SPEC.model_copy(update={"tags": {"set": "pages"}})
        ids = [(await store.submit(tagged)).id for _ in range(7)]
        other = JobSpec.model_validate({"optimizer": "sgd", "learning_rate": 1, "tags": {"set": "pages"}})
        ids.append((await store.submit(other)).id)
        seen, after = [], None
        while True:
            jobs, after = await store.page(after=after, limit=3, tag=("set", "pages"))
            seen += [job.id for job in jobs]
            if after is None:
                break
        assert seen == ids[::-1]
        assert [job.id for job in (await store.page(tag=("set", None), optimizer="sgd"))[0]] == ids[-1:]
        assert (await store.page(tag=("set", "other")))[0] == []
        await store.cancel(ids[0])
        cancelled = await store.page(tag=("set", "pages"), status=Status.CANCELLED)
        assert [job.id for job in cancelled[0]] == ids[:1]

    with_store(use)


def test_outlines_are_of_those_jobs_that_there_are_in_the_order_asked_for(with_store: WithStore[Any]) -> None:
    async def scenario(store: WorkStore) -> None:
        told, waiting, gone = [await store.submit(SPEC) for _ in range(3)]
        claim = await claimed(store, told)
        await append(store, claim, 0, 10, 20)
        await store.end_epoch(claim, {"epoch": 0, "valid_accuracy": 0.5})
        await store.cancel(gone.id)
        await store.delete(gone.id)
        first, second = await store.outlines([waiting.id, gone.id, told.id])
        assert (first.job_id, first.record["status"], first.points) == (waiting.id, "queued", 0)
        assert (first.epochs, first.last) == ([], [])
        assert (second.job_id, second.record["status"], second.points) == (told.id, "running", 3)
        assert ([json.loads(text) for text in second.last], len(second.epochs)) == ([point(20)], 1)
        assert await store.outlines([]) == []

    with_store(scenario)


def test_filters_that_meet_are_met_by_every_job_of_the_list(with_store: WithStore[Any]) -> None:
    """With more jobs behind each filter than one read looks at."""

    def spec(optimizer: str, **tags: str) -> JobSpec:
        return JobSpec.model_validate({"optimizer": optimizer, "learning_rate": 0.001, "tags": tags})

    async def use(store: WorkStore) -> None:
        first = await store.submit(spec("lamb", run="x", other="y"))
        crowd = [spec("lamb"), spec("nadam", run="x")] * 510
        for start in range(0, len(crowd), 60):
            await asyncio.gather(*(store.submit(one) for one in crowd[start : start + 60]))
        last = await store.submit(spec("lamb", run="x:y"))
        both, more = await store.page(optimizer="lamb", tag=("run", None))
        assert ([job.id for job in both], more) == ([last.id, first.id], None)
        one, more = await store.page(optimizer="lamb", tag=("run", None), limit=1)
        assert ([job.id for job in one], more) == ([last.id], last.id)
        rest, more = await store.page(optimizer="lamb", tag=("run", None), limit=1, after=more)
        assert ([job.id for job in rest], more) == ([first.id], None)
        await store.cancel(last.id)
        for wanted, ids in ((Status.CANCELLED, [last.id]), (Status.QUEUED, [first.id]), (Status.RUNNING, [])):
            found, _ = await store.page(status=wanted, optimizer="lamb", tag=("run", None))
            assert [job.id for job in found] == ids
        assert [job.id for job in (await store.page(tag=("run", "x:y")))[0]] == [last.id]
        assert (await store.page(tag=("run:x", "y")))[0] == (await store.page(tag=("run:x:y", None)))[0] == []

    with_store(use)


def test_a_new_jobs_message_is_queued_with_it_and_is_as_celery_sends_it(
    redis_settings: Settings, with_store: WithStore[Any]
) -> None:
    app = broker.make_celery(redis_settings.store_url)
    doorbell = broker.doorbells(app)

    async def use(store: WorkStore) -> None:
        job, is_new = await store.submit_once(SPEC, "with a message", doorbell=doorbell)
        again, is_new_again = await store.submit_once(SPEC, "with a message", doorbell=doorbell)
        assert (again, is_new, is_new_again) == (job, True, False)
        app.send_task(broker.TASK, args=[job.id], task_id=job.id, queue=broker.CPU_QUEUE)
        messages = [text for text in await store.messages(broker.CPU_QUEUE) if broker.job_id_of(text) == job.id]
        celerys, ours = map(json.loads, messages)
        tags = {message["properties"].pop("delivery_tag") for message in (ours, celerys)}
        assert len(tags) == 2
        assert ours == celerys

    with_store(use)


def test_a_bell_rings_for_one_and_only_while_queued(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await store.submit(SPEC)
        assert not await store.ring(job.id, min_age_s=10)
        await asyncio.sleep(1.1)
        rung = await asyncio.gather(*(store.ring(job.id, min_age_s=1) for _ in range(10)))
        assert sum(rung) == 1
        await store.cancel(job.id)
        assert not await store.ring(job.id, min_age_s=0)

    with_store(use)


def test_workers_that_fall_silent_are_forgotten(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        before = await store.workers()
        await store.announce("a", alive_s=30, info={})
        await store.announce("b", alive_s=0.01, info={})
        await asyncio.sleep(0.05)
        assert await store.workers() == before + 1

    with_store(use)


def test_a_redis_that_is_not_there_is_unavailable_at_once() -> None:
    async def use() -> None:
        async with WorkStore.connect("unix:///nowhere/redis.sock") as store:
            with pytest.raises(Unavailable):
                await store.submit(SPEC)

    asyncio.run(asyncio.wait_for(use(), 5))


def test_of_all_workers_one_has_a_turn_and_it_comes_again(with_store: WithStore[None]) -> None:
    async def use(store: WorkStore) -> None:
        long, short = uuid4().hex, uuid4().hex
        assert await store.take_turn(long, every_s=60)
        assert not await store.take_turn(long, every_s=60)
        assert await store.take_turn(short, every_s=0.05)
        async with asyncio.timeout(20):
            while not await store.take_turn(short, every_s=60):
                await asyncio.sleep(0.02)
            while not await store.take_turn(
                long, every_s=0.02
            ):  # who looks often does not wait for one who looks seldom
                await asyncio.sleep(0.02)

    with_store(use)
