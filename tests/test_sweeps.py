"""Sweeps: what they become, how many of their jobs run at a time, who is stopped early, and the whole of it over HTTP."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from core.errors import JobNotTerminal, KeyReused, NotFound
from core.jobs import archive, artifacts, broker
from core.jobs.job import WORKER_LOST, Job, Status
from core.jobs.sweeps import Standing, Sweep, SweepStore
from core.jobs.work import Claim, WorkStore
from core.settings import Settings
from core.storage import Folder
from core.sweep import Asha, SweepSpec
from tests.conftest import Server, WithStore, eventually

SMALL: dict[str, Any] = {
    "optimizers": ["sgd", "adam"],
    "learning_rates": [0.01, 0.001],
    "epochs": 1,
    "batch_size": 1000,
}


def made(**fields: Any) -> SweepSpec:
    return SweepSpec.model_validate(fields)


# --- what a sweep becomes ------------------------------------------------------------------------------------------------


def test_an_empty_sweep_is_the_lesson() -> None:
    jobs = made().jobs()
    assert [(job.optimizer.name, job.learning_rate) for job in jobs] == [
        (name, rate) for name in ("sgd", "momentum", "adagrad", "rmsprop", "adam") for rate in (0.1, 0.01, 0.001)
    ]
    assert {(job.epochs, job.batch_size, job.seed) for job in jobs} == {(5, 100, 0)}


def test_a_grid_has_every_combination_with_every_seed_and_the_common_fields() -> None:
    spec = made(**SMALL, seeds=[3, 4], tags={"k": "v"}, weight_decay=0.1)
    jobs = spec.jobs()
    assert len({job.hash() for job in jobs}) == len(jobs) == spec.count == 8
    assert [job.seed for job in jobs] == [3, 4] * 4
    assert all(job.tags == {"k": "v"} and job.weight_decay == 0.1 and job.batch_size == 1000 for job in jobs)


def test_random_draws_the_same_again_and_within_its_range() -> None:
    drawn = made(strategy="random", samples=40, learning_rates={"low": 1e-4, "high": 1e-1}, search_seed=7)
    rates = [job.learning_rate for job in drawn.jobs()]
    assert drawn.jobs() == SweepSpec.model_validate_json(drawn.model_dump_json()).jobs()
    assert drawn.jobs() != drawn.model_copy(update={"search_seed": 8}).jobs()
    assert all(isinstance(rate, float) and 1e-4 <= rate <= 1e-1 for rate in rates)
    below = sum(isinstance(rate, float) and rate < 10**-2.5 for rate in rates)
    assert 10 <= below <= 30  # even on a logarithmic scale: about half
    assert len({job.optimizer.name for job in drawn.jobs()}) > 2


def test_random_from_a_grid_draws_no_combination_twice() -> None:
    jobs = made(strategy="random", samples=15, seeds=[0]).jobs()
    assert sorted(job.hash() for job in jobs) == sorted(job.hash() for job in made().jobs())


def test_what_is_drawn_from_a_narrow_range_is_inside_it_and_never_twice_the_same() -> None:
    narrow = {"strategy": "random", "optimizers": ["sgd"], "learning_rates": {"low": 0.100012, "high": 0.100041}}
    assert [job.learning_rate for job in made(**narrow, samples=1).jobs()] == [0.100012]
    with pytest.raises(ValidationError, match="fewer rates"):
        made(**narrow, samples=2)


def test_rungs_grow_by_the_factor_and_end_before_the_last_epoch() -> None:
    assert Asha().rungs(30) == [1, 3, 9, 27]
    assert Asha(reduction_factor=2, min_epochs=2).rungs(8) == [2, 4]
    assert Asha().rungs(1) == []


# --- the store -----------------------------------------------------------------------------------------------------------


async def submitted(store: WorkStore, **fields: Any) -> tuple[SweepStore, Sweep]:
    sweeps = SweepStore(store.database)
    sweep, is_new = await sweeps.submit(made(**fields), None)
    assert is_new
    return sweeps, sweep


async def jobs_of(store: WorkStore, sweep: Sweep) -> list[Job]:
    return [await store.get(job_id) for job_id in sweep.job_ids]


async def claimed(store: WorkStore, job_id: str, worker: str) -> Claim | None:
    return await store.claim(job_id, worker=worker, lease_s=60)


async def slots(store: WorkStore, sweep: Sweep) -> tuple[set[str], list[str], set[str]]:
    """Of a sweep with a limit: who has a place, who is held back, and who is in the queue or in a worker's hands."""
    redis, key = store.database.redis, f"descent:sweep:{sweep.id}"
    moving = {*await redis.zrange("descent:queued", 0, -1), *await redis.zrange("descent:running", 0, -1)}
    return await redis.smembers(f"{key}:active"), await redis.lrange(f"{key}:held", 0, -1), moving & set(sweep.job_ids)


@pytest.mark.parametrize("seed", range(6))
def test_a_limit_holds_whatever_happens_to_the_jobs(with_store: WithStore[None], seed: int) -> None:
    """A long random story; after each move as many jobs have a place as may, and the rest wait for one."""
    rng, limit = random.Random(seed), 1 + seed % 3

    async def story(store: WorkStore) -> None:
        sweeps, sweep = await submitted(
            store, seeds=list(range(7)), optimizers=["sgd"], learning_rates=[0.1], max_concurrent=limit
        )
        claims: dict[str, Claim] = {}
        for number in range(150):
            job_id = rng.choice(sweep.job_ids)
            move = rng.choice(["claim", "claim", "finish", "stop", "retry", "cancel", "pause", "resume", "resume"])
            await act(store, move, job_id, claims, f"w{seed}-{number}")
            active, held, moving = await slots(store, sweep)
            assert active == moving
            assert len(active) <= limit
            assert not held or len(active) == limit
            assert not active & set(held)
            waiting = {job.id for job in await jobs_of(store, sweep) if job.status is Status.QUEUED}
            assert set(held) <= waiting <= active | set(held)
        for number in range(100):
            _, held, moving = await slots(store, sweep)
            for job_id in moving:
                await act(store, "claim", job_id, claims, f"end{seed}-{number}")
                await act(store, "finish", job_id, claims, "")
        assert not moving
        assert not held
        jobs = await jobs_of(store, sweep)
        assert all(job.terminal or job.status is Status.PAUSED for job in jobs)
        await sweeps.cancel(sweep.id)
        await sweeps.delete(sweep.id)

    with_store(story)


async def act(store: WorkStore, move: str, job_id: str, claims: dict[str, Claim], worker: str) -> None:
    """One move of a story. What a move refuses is left."""
    if move == "claim":
        claim = await claimed(store, job_id, worker)
        claims |= {job_id: claim} if claim else {}
    elif move == "finish" and job_id in claims:
        await store.finish(claims[job_id], Status.SUCCEEDED, result={"test_accuracy": 0.5})
    elif move == "stop" and job_id in claims:
        await store.stop(claims[job_id])
    elif move == "retry" and job_id in claims:
        await store.retry(job_id, claims[job_id], WORKER_LOST)
    elif move == "cancel":
        await store.cancel(job_id)
    elif move == "pause":
        await store.pause(job_id)
    elif move == "resume" and await store.status(job_id) is not Status.CANCELLING:
        await store.resume(job_id)


def test_a_job_that_is_held_back_cannot_be_claimed_or_rung_and_its_turn_is_told(with_store: WithStore[None]) -> None:
    async def story(store: WorkStore) -> None:
        sweeps, sweep = await submitted(store, **SMALL, max_concurrent=1)
        first, second, third, fourth = sweep.job_ids
        await store.released()
        assert await claimed(store, second, "w") is None
        assert not await store.ring(second, min_age_s=-1)
        job = await store.get(second)
        assert (job.status, job.queue_position, job.sweep) == (Status.QUEUED, None, sweep.id)
        claim = await claimed(store, first, "w")
        assert claim
        await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 0.5})
        assert await store.released() == [second]
        assert await store.released() == []
        await store.cancel(second)
        assert await store.released() == [third]
        await store.cancel(fourth)
        assert await sweeps.cancel(sweep.id)
        assert not await sweeps.cancel(sweep.id)
        assert await store.released() == []
        await sweeps.delete(sweep.id)

    with_store(story)


def test_the_messages_of_those_that_may_run_are_queued_with_them(
    with_store: WithStore[None], redis_settings: Settings
) -> None:
    doorbell = broker.doorbells(broker.make_celery(redis_settings.store_url))

    async def story(store: WorkStore) -> None:
        redis, sweeps = store.database.redis, SweepStore(store.database)
        await redis.delete(broker.CPU_QUEUE)
        sweep, _ = await sweeps.submit(made(**SMALL, max_concurrent=3), "once", doorbell=doorbell)
        await sweeps.submit(made(**SMALL, max_concurrent=3), "once", doorbell=doorbell)
        messages = [json.loads(text) for text in await redis.lrange(broker.CPU_QUEUE, 0, -1)]
        assert [message["headers"]["id"] for message in reversed(messages)] == sweep.job_ids[:3]
        await redis.delete(broker.CPU_QUEUE)
        await sweeps.cancel(sweep.id)
        await sweeps.delete(sweep.id)

    with_store(story)


def test_asha_stops_those_that_are_not_among_the_best_third(with_store: WithStore[None]) -> None:
    async def story(store: WorkStore) -> None:
        fields = {"epochs": 4, "seeds": list(range(6)), "optimizers": ["sgd"], "learning_rates": [0.1]}
        sweeps, sweep = await submitted(store, **fields, early_stopping="asha")
        answers = []
        claims = [claim for job_id in sweep.job_ids if (claim := await claimed(store, job_id, job_id))]
        for claim, accuracy in zip(claims, (0.5, 0.6, 0.55, 0.58, 0.6, 0.9), strict=True):
            answers.append(await store.end_epoch(claim, {"epoch": 0, "valid_accuracy": accuracy}))
            assert (
                await store.end_epoch(claim, {"epoch": 0, "valid_accuracy": 0.0}) == answers[-1]
            )  # told twice, judged once
        # 1st of 1; 1st of 2; 2nd of 3; 2nd of 4, where two may go on; the best again (a tie); the best
        assert answers == ["go_on", "go_on", "cancel", "go_on", "go_on", "go_on"]
        stopped = claims[2]
        assert await store.end_epoch(claims[0], {"epoch": 1, "valid_accuracy": 0.1}) == "go_on"  # 2 is not a rung
        assert await store.end_epoch(claims[0], {"epoch": 2, "valid_accuracy": 0.1}) == "go_on"  # the first there
        assert await store.stop(stopped) == Status.CANCELLED
        job = await store.get(stopped.job_id)
        assert job.stopped_early is not None
        assert job.stopped_early.model_dump() == {"epochs": 1, "valid_accuracy": 0.55, "place": 2, "runs": 3, "kept": 1}
        again, _ = await store.resume(stopped.job_id)
        assert again.stopped_early is None
        await sweeps.cancel(sweep.id)
        for claim in claims:
            await store.stop(claim)
        await sweeps.delete(sweep.id)
        keys = [key async for key in store.database.redis.scan_iter(f"*{sweep.id}*")]
        assert keys == []

    with_store(story)


def test_a_pause_does_not_save_a_hopeless_run_and_a_lost_database_remembers_the_rungs(
    with_store: WithStore[None], tmp_path: Path
) -> None:
    async def story(store: WorkStore) -> None:
        fields = {"epochs": 4, "seeds": list(range(4)), "optimizers": ["sgd"], "learning_rates": [0.1]}
        _, sweep = await submitted(store, **fields, early_stopping="asha")
        claims = [claim for job_id in sweep.job_ids[:3] if (claim := await claimed(store, job_id, job_id))]
        for claim in claims[:2]:
            await store.end_epoch(claim, {"epoch": 0, "valid_accuracy": 0.9})
        await store.pause(claims[2].job_id)
        assert await store.end_epoch(claims[2], {"epoch": 0, "valid_accuracy": 0.1}) == "cancel"
        for job_id in sweep.job_ids:
            await archive.file_job(store, Folder(tmp_path), job_id)
        await archive.file_sweep(store, Folder(tmp_path), sweep.id)
        rung = f"descent:sweep:{sweep.id}:rung:1"
        before = await store.database.redis.zrange(rung, 0, -1, withscores=True)
        await store.database.redis.flushdb()
        for token in "12":  # a job that runs has its epochs in its spool
            folder = artifacts.claim_folder(sweep.job_ids[int(token) - 1], "1")
            message = {"type": "epoch", "metrics": {"epoch": 0, "valid_accuracy": 0.9}}
            artifacts.publish(Folder(tmp_path), folder, artifacts.SPOOL, json.dumps(message).encode() + b"\n")
        await archive.reindex(store, Folder(tmp_path))
        assert await store.database.redis.zrange(rung, 0, -1, withscores=True) == before[1:]

    with_store(story)


def test_a_sweep_that_was_cancelled_goes_on_when_one_of_its_jobs_does(with_store: WithStore[None]) -> None:
    async def story(store: WorkStore) -> None:
        sweeps, sweep = await submitted(store, **SMALL)
        await sweeps.cancel(sweep.id)
        assert (await sweeps.get(sweep.id)).cancelled_at is not None
        await store.resume(sweep.job_ids[0])
        assert (await sweeps.get(sweep.id)).cancelled_at is None
        standing = await sweeps.standing(sweep.id)
        assert standing == Standing.of(await jobs_of(store, sweep))
        assert (standing.counts, standing.begun) == ({Status.CANCELLED: 3, Status.QUEUED: 1}, 3)
        await sweeps.cancel(sweep.id)
        await sweeps.delete(sweep.id)

    with_store(story)


def test_one_idempotency_key_makes_one_sweep_and_no_job_of_the_same_name(with_store: WithStore[None]) -> None:
    async def story(store: WorkStore) -> None:
        sweeps, spec = SweepStore(store.database), made(**SMALL)
        first, is_new = await sweeps.submit(spec, "mine")
        again, is_new_again = await sweeps.submit(spec, "mine")
        assert (is_new, is_new_again, again.id) == (True, False, first.id)
        with pytest.raises(KeyReused):
            await sweeps.submit(made(**SMALL, seeds=[1]), "mine")
        with pytest.raises(KeyReused):
            await store.submit_once(spec.jobs()[0], "mine")
        with pytest.raises(JobNotTerminal):
            await sweeps.delete(first.id)
        await sweeps.cancel(first.id)
        await sweeps.delete(first.id)
        with pytest.raises(NotFound):
            await sweeps.get(first.id)
        assert await store.outlines(first.job_ids) == []

    with_store(story)


def test_a_lost_database_gets_its_sweeps_back(with_store: WithStore[None], tmp_path: Path) -> None:
    async def story(store: WorkStore) -> None:
        sweeps, sweep = await submitted(store, **SMALL, max_concurrent=2)
        claim = await claimed(store, sweep.job_ids[0], "w")
        assert claim
        for job_id in sweep.job_ids:
            await archive.file_job(store, Folder(tmp_path), job_id)
        await sweeps.cancel(sweep.id)
        await store.finish(claim, Status.SUCCEEDED)
        await archive.file_sweep(store, Folder(tmp_path), sweep.id)
        assert sweep.id not in await store.unfiled()
        before = await sweeps.get(sweep.id)
        await store.database.redis.flushdb()
        outcome = await archive.reindex(store, Folder(tmp_path))
        assert set(outcome) == {sweep.id, *sweep.job_ids}
        assert set(outcome.values()) == {"restored"}
        assert await sweeps.get(sweep.id) == before
        active, held, moving = await slots(store, before)  # the files of the jobs are from before the end
        assert len(active) == 2
        assert active == moving
        assert len(held) == 2
        assert await archive.reindex(store, Folder(tmp_path)) == dict.fromkeys(outcome, "exists")
        await sweeps.cancel(sweep.id)
        await sweeps.delete(sweep.id)
        await archive.file_sweep(store, Folder(tmp_path), sweep.id)
        assert not list(tmp_path.glob("sweep_*"))

    with_store(story)


# --- over HTTP -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        yield http


def ended(http: httpx2.Client, sweep_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        sweep: dict[str, Any] = http.get(f"/sweeps/{sweep_id}").json()
        return sweep if sweep["terminal"] else None

    return eventually(look, within_s=120, what="the sweep's end")


def test_a_sweep_is_trained_to_its_end_one_job_at_a_time(http: httpx2.Client) -> None:
    answer = http.post("/sweeps", json=SMALL | {"learning_rates": [0.01], "max_concurrent": 1, "name": "both"})
    sweep = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/sweeps/{sweep['id']}")
    assert sweep["progress"]["jobs"] == len(sweep["jobs"]) == 2
    done = ended(http, sweep["id"])
    assert (done["status"], done["counts"], done["progress"]["fraction"]) == ("finished", {"succeeded": 2}, 1.0)
    assert [job["optimizer"]["name"] for job in done["jobs"]] == ["sgd", "adam"]
    jobs = [http.get(f"/jobs/{job['job_id']}").json() for job in done["jobs"]]
    assert jobs[0]["finished_at"] <= jobs[1]["started_at"]
    assert all(job["result"]["test_accuracy"] > 0.05 for job in done["jobs"])
    table = done["table"]
    means = [row["test_accuracy"]["mean"] for row in table["rows"]]
    assert means == sorted((job["result"]["test_accuracy"] for job in done["jobs"]), reverse=True)
    assert (table["best"]["label"], table["target_accuracy"]) == (table["rows"][0]["label"], 0.97)
    assert {row["label"] for row in table["rows"]} == {"sgd 0.01", "adam 0.01"}
    assert table["noise"]["within_noise"] in (True, False)
    listed = http.get("/jobs", params={"sweep": sweep["id"], "optimizer": "adam"}).json()["jobs"]
    assert [job["id"] for job in listed] == [jobs[1]["id"]]
    etag = http.get(f"/sweeps/{sweep['id']}").headers["etag"]
    assert http.get(f"/sweeps/{sweep['id']}", headers={"If-None-Match": etag}).status_code == 304
    assert http.get(f"/sweeps/{sweep['id']}", headers={"If-Match": '"x"'}).status_code == 412
    assert sweep["id"] in [listed["id"] for listed in http.get("/sweeps", params={"limit": 1}).json()["sweeps"]]
    assert http.post(f"/sweeps/{sweep['id']}/cancel").status_code == 200
    assert http.delete(f"/sweeps/{sweep['id']}").status_code == 204
    assert http.get(f"/sweeps/{sweep['id']}").status_code == 404
    assert http.get(f"/jobs/{jobs[0]['id']}").status_code == 404


def test_a_preview_stores_nothing_and_a_cancelled_sweep_ends(http: httpx2.Client) -> None:
    before = http.get("/sweeps").json()["sweeps"][:1]
    preview = http.post("/sweeps", params={"validate_only": True}, json={}).json()
    assert (len(preview["jobs"]), preview["total_steps"], preview["points"]) == (15, 15 * 2500, 15 * 251)
    assert http.get("/sweeps").json()["sweeps"][:1] == before
    headers = {"Idempotency-Key": "one-lesson"}
    sweep = http.post("/sweeps", json={"seeds": [0, 1]}, headers=headers).json()
    again = http.post("/sweeps", json={"seeds": [0, 1]}, headers=headers)
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (sweep["id"], "true")
    assert http.delete(f"/sweeps/{sweep['id']}").json()["code"] == "job-not-terminal"
    assert http.post(f"/sweeps/{sweep['id']}/cancel").status_code == 202
    done = ended(http, sweep["id"])
    assert (done["status"], done["counts"]) == ("cancelled", {"cancelled": 30})
    http.delete(f"/sweeps/{sweep['id']}")


@pytest.mark.parametrize(
    ("body", "pointer", "says"),
    [
        ({"optimizers": ["sgd", "adma"]}, "/optimizers/1", "adam"),
        ({"optimizers": ["sgd", {"name": "adam", "beta3": 0.1}]}, "/optimizers/1/beta3", "beta1"),
        ({"optimizers": []}, "/optimizers", ""),
        ({"optimizers": ["sgd", "SGD"]}, "/optimizers", "twice"),
        ({"learning_rates": [0.1, 0]}, "/learning_rates/1", ""),
        ({"learning_rates": [0.1, "a"]}, "/learning_rates/1", ""),
        ({"learning_rates": "0.1"}, "/learning_rates", "list"),
        ({"learning_rates": [{"schedule": "step_decay", "initial": 1}]}, "/learning_rates/0/step_size", "required"),
        (
            {"learning_rates": {"low": 0.1, "high": 0.01}, "strategy": "random", "samples": 2},
            "/learning_rates/high",
            "above",
        ),
        (
            {"learning_rates": {"low": 0.1, "hihg": 0.01}, "strategy": "random", "samples": 2},
            "/learning_rates/hihg",
            "high",
        ),
        ({"learning_rates": {"low": 0.01, "high": 0.1}}, "/learning_rates", "random"),
        ({"learning_rates": [{"schedule": "range_test"}]}, "/learning_rates", "lr-range-tests"),
        ({"strategy": "random"}, "/samples", "how many"),
        ({"strategy": "random", "samples": 16}, "/samples", "15"),
        ({"samples": 3}, "/samples", "random"),
        ({"seeds": [1, 1]}, "/seeds", "twice"),
        ({"seeds": [-1]}, "/seeds/0", ""),
        ({"seeds": list(range(50))}, "/seeds", "500"),
        ({"optimizers": ["sgd", "lamb"], "weight_decay": 0.1}, "/weight_decay", "lamb"),
        ({"batch_size": 50_001}, "/batch_size", "50000"),
        ({"early_stopping": "hyperband"}, "/early_stopping/name", "asha"),
        ({"early_stopping": {"name": "asha", "reduction_factor": 1}}, "/early_stopping/reduction_factor", ""),
        ({"max_concurrent": 0}, "/max_concurrent", ""),
        ({"target_accuracy": 1.0}, "/target_accuracy", ""),
        ({"optimizer": "sgd"}, "/optimizer", "optimizers"),
        ([], "", "object"),
    ],
)
def test_a_wrong_sweep_is_told_where(http: httpx2.Client, body: Any, pointer: str, says: str) -> None:
    answer = http.post("/sweeps", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert len(answer.content) < 4096
    told = {error["pointer"]: json.dumps(error) for error in answer.json()["errors"]}
    assert says in told[pointer]


@pytest.mark.parametrize("sweep_id", ["sweep_" + "0" * 32, "job_" + "0" * 32, "..%2f..", "%00", "x" * 9000])
def test_what_is_no_sweep_is_not_found(http: httpx2.Client, sweep_id: str) -> None:
    for answer in (
        http.get(f"/sweeps/{sweep_id}"),
        http.post(f"/sweeps/{sweep_id}/cancel"),
        http.delete(f"/sweeps/{sweep_id}"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
