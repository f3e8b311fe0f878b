"""Models and their names over real HTTP, and the second data set from the job to the label."""

import asyncio
import dataclasses
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from client.client import ApiError, Client
from core.errors import InvalidRequest, JobInUse, NotFound
from core.jobs import artifacts
from core.jobs.job import Status, new_job_id
from core.jobs.models import MAX_ALIASES, ModelStore
from core.jobs.owners import Caller
from core.jobs.record import to_json
from core.jobs.work import WorkStore
from core.settings import Settings
from core.spec import JobSpec
from core.training.datasets import Dataset
from tests.conftest import DOOMED, Server, WithStore, eventually
from tests.test_api import is_problem
from tests.test_store import FILES, SPEC, claimed
from tests.test_sweeps import submitted

QUICK: dict[str, Any] = {"optimizer": "adam", "learning_rate": 0.003, "epochs": 1, "batch_size": 1000}

Left = Callable[..., str]


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=30) as http:
        yield http


@pytest.fixture(scope="module")
def clothes_job(server: Server, fashion: Dataset) -> str:
    """A job on Fashion-MNIST, trained by the worker process of `server`."""
    assert fashion.name == "fashion-mnist"
    with Client(server.url) as client:
        job_id = str(client.jobs.submit(**QUICK, dataset="fashion-mnist").id)
        job = eventually(
            lambda: (it := client.jobs.get(job_id).data)["terminal"] and it, within_s=120, what="the end of the job"
        )
    assert job["status"] == "succeeded", job["error"]
    return job_id


@pytest.fixture
def leave_model(server: Server, client: Client, trained_job: str) -> Left:
    """Have a worker (this process) do a job without training: it leaves the weights of `trained_job`."""
    weights = {name: client.jobs.get(trained_job).model(format=name) for name in artifacts.FORMATS}
    settings = Settings(home=server.home)

    async def work(dataset: str, accuracy: float) -> str:
        spec = JobSpec.model_validate(QUICK | {"dataset": dataset})
        async with WorkStore.connect(settings.store_url) as store:
            claim = await claimed(store, await store.submit(spec))
            at, folder = artifacts.storage(settings), artifacts.claim_folder(claim.job_id, claim.token)
            files = {name: artifacts.publish(at, folder, artifacts.FORMATS[name], it) for name, it in weights.items()}
            result = {"test_accuracy": accuracy}
            assert await store.finish(claim, Status.SUCCEEDED, result=result, files=files) == "succeeded"
            return claim.job_id

    def leave(dataset: str = "mnist", *, accuracy: float = 0.5) -> str:
        return asyncio.run(work(dataset, accuracy))

    return leave


# --- the second data set -----------------------------------------------------------------------------------------------


def test_clothes_are_predicted_by_name(client: Client, clothes_job: str, fashion: Dataset) -> None:
    images, labels = fashion.test.images[:256], fashion.test.labels[:256]
    answer = client.predict(images.tolist(), model=clothes_job, range=255)
    assert answer["model"]["dataset"] == "fashion-mnist"
    assert (np.array([it["class"] for it in answer["predictions"]]) == labels).mean() > 0.65
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    for prediction in answer["predictions"]:
        assert prediction["label"] == names[prediction["class"]]
        assert prediction["digit"] is None
        assert [it["label"] for it in prediction["top_k"]] == [names[it["class"]] for it in prediction["top_k"]]
        assert prediction["top_k"][0]["probability"] == prediction["confidence"] == max(prediction["probabilities"])


def test_a_picture_of_clothes_is_put_into_the_frame_as_its_data_set_was(
    client: Client, clothes_job: str, fashion: Dataset
) -> None:
    trouser = next(index for index, label in enumerate(fashion.test.labels) if label == 1)
    small = Image.fromarray(255 - np.pad(fashion.test.images[trouser], 6)).resize((300, 300))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    answer = client.predict([buffer.getvalue()], model=clothes_job)
    assert answer["predictions"][0]["label"] == "Trouser"


def test_best_and_latest_are_of_one_data_set(client: Client, http: httpx2.Client, leave_model: Left) -> None:
    best = {dataset: leave_model(dataset, accuracy=2.0) for dataset in ("mnist", "fashion-mnist")}
    latest = {dataset: leave_model(dataset, accuracy=0.1) for dataset in ("mnist", "fashion-mnist")}
    wanted = {"best": best["mnist"], "latest": latest["mnist"],
              "best:fashion-mnist": best["fashion-mnist"], "latest:fashion-mnist": latest["fashion-mnist"]}  # fmt: skip
    assert wanted.items() <= client.models.aliases().items()
    for name, job_id in wanted.items():
        assert http.get(f"/models/{name}").json()["job_id"] == job_id
        assert client.predict([[0.0] * 784], model=name)["model"]["job_id"] == job_id
    assert client.predict([[0.0] * 784])["model"]["job_id"] == best["mnist"]
    for dataset in best:
        found = list(client.models.list(dataset=dataset, limit=100))
        assert {model["dataset"] for model in found} == {dataset}
    for job_id in {*best.values(), *latest.values()}:
        client.jobs.get(job_id).delete()
        assert job_id not in client.models.aliases().values()


# --- the list ----------------------------------------------------------------------------------------------------------


def test_the_list_has_every_model_once_newest_first(http: httpx2.Client, trained_job: str, leave_model: Left) -> None:
    other = leave_model()
    whole = http.get("/models", params={"limit": 100}).json()
    assert whole["next"] is None
    ids = [model["job_id"] for model in whole["models"]]
    assert {trained_job, other} <= set(ids)
    assert ids == sorted(ids, reverse=True)
    paged, after = [], None
    while True:
        page = http.get("/models", params={"limit": 1} | ({"after": after} if after else {})).json()
        paged += page["models"]
        assert page["aliases"] == whole["aliases"]
        after = page["next"]
        if after is None:
            break
    assert paged == whole["models"]
    job = http.get(f"/jobs/{trained_job}").json()
    (model,) = (model for model in whole["models"] if model["job_id"] == trained_job)
    assert (model["sha256"], model["size_bytes"]) == (job["model"]["sha256"], job["model"]["size_bytes"])
    assert (model["test_accuracy"], model["finished_at"]) == (job["result"]["test_accuracy"], job["finished_at"])
    assert http.get(model["links"]["weights"], params={"format": "safetensors"}).status_code == 200
    for name, job_id in whole["aliases"].items():
        assert name in next(model for model in whole["models"] if model["job_id"] == job_id)["names"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "after=x", "dataset=cifar", "dataset=", "what=1", "limit=1&limit=2.5"]
)
def test_a_list_that_makes_no_sense_is_refused(http: httpx2.Client, query: str) -> None:
    is_problem(http.get(f"/models?{query}"), 422, "validation-error")


# --- aliases -----------------------------------------------------------------------------------------------------------


def test_an_alias_names_a_model_until_it_names_another(
    client: Client, http: httpx2.Client, trained_job: str, leave_model: Left
) -> None:
    other = leave_model()
    for job_id in (trained_job, trained_job, other):  # twice the same does no harm
        model = client.models.name("prod", job_id)
        assert (model["job_id"], "prod" in model["names"]) == (job_id, True)
        assert http.get("/models/prod").json() == model
        assert client.predict([[0.0] * 784], model="prod")["model"]["job_id"] == job_id
    assert "prod" not in http.get(f"/models/{trained_job}").json()["names"]
    in_use = is_problem(http.delete(f"/jobs/{other}"), 409, "job-in-use")
    assert "prod" in in_use["detail"]
    assert http.get(f"/jobs/{other}").status_code == 200
    client.models.unname("prod")
    is_problem(http.get("/models/prod"), 404)
    is_problem(http.delete("/models/prod"), 404)
    is_problem(http.post("/predict", json={"model": "prod", "image": [0.0] * 784}), 404)
    client.jobs.get(other).delete()


@pytest.mark.parametrize("alias", ["best", "latest", "best:fashion-mnist", "latest:fashion-mnist"])
def test_what_the_server_keeps_is_not_given(http: httpx2.Client, trained_job: str, alias: str) -> None:
    is_problem(http.put(f"/models/{alias}", json={"job_id": trained_job}), 409, "alias-reserved")
    is_problem(http.delete(f"/models/{alias}"), 409, "alias-reserved")


@pytest.mark.parametrize(
    "alias", ["Prod", "a_b", "-a", "a-", "..a", "a b", "a:b", "job_" + "0" * 32, "x" * 65, "é", "%00", "a%0a"]
)
def test_a_word_that_is_no_alias_is_refused(http: httpx2.Client, trained_job: str, alias: str) -> None:
    problem = is_problem(http.put(f"/models/{alias}", json={"job_id": trained_job}), 422, "validation-error")
    assert problem["errors"][0]["pointer"] == "path alias"
    is_problem(http.delete(f"/models/{alias}"), 404)


@pytest.mark.parametrize("alias", ["a", "7", "v1.2", "prod-2026-11-22", "x" * 64])
def test_a_slug_is_an_alias(client: Client, trained_job: str, alias: str) -> None:
    assert alias in client.models.name(alias, trained_job)["names"]
    client.models.unname(alias)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"job_id": None}, 422),
        ({"job_id": "best"}, 422),
        ({"job_id": "job_" + "0" * 32 + "\n"}, 422),
        ({"job_id": "job_" + "0" * 32, "force": True}, 422),
        ({"job_id": "job_" + "0" * 32}, 404),
    ],
)
def test_an_alias_for_what_is_no_job_is_refused(http: httpx2.Client, body: Any, status: int) -> None:
    is_problem(http.put("/models/new", json=body), status)
    is_problem(http.get("/models/new"), 404)


def test_a_job_without_a_model_gets_no_alias(client: Client, http: httpx2.Client) -> None:
    job_id = client.jobs.submit(**DOOMED).id
    is_problem(http.put("/models/new", json={"job_id": job_id}), 409, "model-not-ready")
    eventually(lambda: client.jobs.get(job_id).terminal, within_s=60, what="the failure")
    is_problem(http.put("/models/new", json={"job_id": job_id}), 409, "model-not-ready")
    is_problem(http.get(f"/models/{job_id}"), 404)
    with pytest.raises(ApiError) as refused:
        client.predict([[0.0] * 784], model="new")
    assert refused.value.status == 404


def test_who_predicts_while_models_are_exchanged_always_gets_one(
    client: Client, server: Server, leave_model: Left
) -> None:
    """A new model is given the alias, and the old one is deleted, again and again."""
    old, answers = leave_model(), []
    client.models.name("live", old)
    with ThreadPoolExecutor(4) as pool, httpx2.Client(base_url=server.url, timeout=30) as http:

        def ask() -> int:
            return http.post("/predict", json={"model": "live", "image": [0.0] * 784}).status_code

        for _ in range(8):
            new = leave_model()
            asked = [pool.submit(ask) for _ in range(10)]
            client.models.name("live", new)
            client.jobs.get(old).delete()
            answers += [future.result() for future in asked]
            old = new
    assert answers == [200] * 80
    client.models.unname("live")


# --- the store ---------------------------------------------------------------------------------------------------------


async def empty_the_trash(store: WorkStore) -> None:
    """The jobs of these tests have no files, and other tests share their server."""
    for deleted in await store.trash():
        await store.emptied(deleted)


def test_aliases_are_limited_and_each_is_one_jobs(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        models = ModelStore(store.database)
        ids = []
        for worker in ("a", "b"):
            claim = await claimed(store, await store.submit(SPEC), worker=worker)
            await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 0.5}, files=FILES)
            ids.append(claim.job_id)
        for number in range(MAX_ALIASES):
            await models.name(f"a{number}", ids[number % 2])
        with pytest.raises(InvalidRequest, match="path alias"):
            await models.name("more", ids[0])
        await models.name("a0", ids[1])  # to move one is no more than there were
        given = {name: job for name, job in (await models.aliases()).items() if job in ids and name.startswith("a")}
        assert len(given) == MAX_ALIASES
        assert given["a0"] == ids[1]
        for number in range(MAX_ALIASES):
            await models.unname(f"a{number}")
        for job_id in ids:
            await store.delete(job_id)
            with pytest.raises(NotFound):
                await models.get(job_id)
        await empty_the_trash(store)

    with_store(use)


def test_a_sweep_with_a_named_model_is_not_deleted(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        models = ModelStore(store.database)
        sweeps, sweep = await submitted(store, optimizers=["sgd"], learning_rates=[0.1], seeds=[0, 1])
        for job_id in sweep.job_ids:
            claim = await claimed(store, await store.get(job_id), worker=job_id)
            await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 0.5}, files=FILES)
        await models.name("winner", sweep.job_ids[1])
        with pytest.raises(JobInUse):
            await sweeps.delete(sweep.id)
        assert len(await store.outlines(sweep.job_ids)) == 2
        await models.unname("winner")
        await sweeps.delete(sweep.id)
        assert await store.outlines(sweep.job_ids) == []
        await empty_the_trash(store)

    with_store(use)


@pytest.mark.parametrize("later_first", [False, True])
def test_of_two_files_that_claim_an_alias_the_later_is_right(with_store: WithStore[Any], later_first: bool) -> None:
    """The database was lost before the file of the job that lost the alias was written again."""

    async def use(store: WorkStore) -> None:
        models = ModelStore(store.database)
        claim = await claimed(store, await store.submit(SPEC))
        await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 0.5}, files=FILES)
        raw = await store.raw(claim.job_id)
        assert raw
        alias, ids = f"restored-{later_first}".lower(), {}
        for at_ms in sorted((1_000, 2_000), reverse=later_first):
            record = raw.record | {"aliases": to_json({alias: at_ms})}
            again = dataclasses.replace(raw, job_id=new_job_id(), record=record)
            assert await store.restore(again, []) == "restored"
            ids[at_ms] = again.job_id
        assert (await models.get(alias)).job_id == ids[2_000]
        assert alias not in (await models.get(ids[1_000])).names
        await store.delete(ids[1_000])
        with pytest.raises(JobInUse, match=alias):
            await store.delete(ids[2_000])
        await models.unname(alias)
        for job_id in (claim.job_id, ids[2_000]):
            await store.delete(job_id)
        await empty_the_trash(store)

    with_store(use)


def test_each_owner_has_aliases_and_a_best_of_their_own(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        models, ids = ModelStore(store.database), {}
        callers = {name: Caller(owner=name, sees_all=False) for name in ("fashion-mnist", "bob")}
        for number, (name, caller) in enumerate(callers.items()):
            claim = await claimed(store, await store.of(caller).submit(SPEC), worker=name)
            await store.finish(claim, Status.SUCCEEDED, result={"test_accuracy": 0.5 + number}, files=FILES)
            ids[name] = claim.job_id
            await models.of(caller).name("prod", claim.job_id)
        for name, caller in callers.items():
            own, other = models.of(caller), next(ids[it] for it in ids if it != name)
            assert await own.aliases() == {"best": ids[name], "latest": ids[name], "prod": ids[name]}
            assert [entry.names for entry in (await own.page(after=None, limit=9, dataset=None))[0]] == [
                ("best", "latest", "prod")
            ]
            assert (await store.of(caller).model("prod")).job_id == ids[name]
            for asked in (own.get(other), own.name("mine", other), store.of(caller).model(other)):
                with pytest.raises(NotFound):
                    await asked
            with pytest.raises(NotFound):
                await store.of(caller).model("best:fashion-mnist")
        raw = await store.raw(ids["bob"])
        assert raw
        for name, caller in callers.items():
            with pytest.raises(JobInUse, match="prod"):
                await store.of(caller).delete(ids[name])
            await models.of(caller).unname("prod")
            await store.of(caller).delete(ids[name])
        await empty_the_trash(store)
        assert await store.restore(raw, []) == "restored"  # his alias comes back as his
        assert (await models.of(callers["bob"]).get("prod")).job_id == ids["bob"]
        with pytest.raises(NotFound):
            await models.get("prod")
        await models.of(callers["bob"]).unname("prod")
        await store.delete(ids["bob"])
        await empty_the_trash(store)

    with_store(use)
