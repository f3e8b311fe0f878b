"""How predictions are worked on together, which models are kept, and what computes them."""

import asyncio
import hashlib
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from fastapi.testclient import TestClient

from api import predicting
from api.app import create_app
from api.predicting import MODELS_KEPT, Predicting, Together
from core.errors import ArtifactCorrupt, ModelUnsupported, Unavailable
from core.jobs import artifacts
from core.jobs.job import Status
from core.jobs.store import JobStore, StoredModel
from core.settings import Settings
from core.storage import Storage
from core.training.fused import arrays
from core.training.predictor import Floats, Predictor
from tests.conftest import eventually
from tests.staged import Api
from tests.test_predictor import random_weights

IMAGES = np.random.default_rng(5).random((40, 28, 28), np.float32)


# --- together ------------------------------------------------------------------------------------------------------------


class Work:
    """Doubles numbers; counts what came together, and can be held up. -1 is an error of its own, -2 one of all."""

    def __init__(self) -> None:
        self.together: list[list[int]] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def __call__(self, asked: Sequence[int]) -> Sequence[int | Exception]:
        self.together.append(list(asked))
        await self.may_go_on.wait()
        if -2 in asked:
            raise Unavailable("all")
        return [ArtifactCorrupt("its own") if number == -1 else 2 * number for number in asked]


def together(
    use: Callable[[Work, Together[int, int]], Awaitable[None]], *, most: int = 100, waiting: int = 100
) -> None:
    async def run() -> None:
        work = Work()
        async with asyncio.timeout(20):
            await use(work, Together(work, abs, most=most, most_waiting=waiting))

    asyncio.run(run())


def test_who_comes_alone_waits_for_nobody() -> None:
    async def use(work: Work, all: Together[int, int]) -> None:
        assert [await all.ask(1), await all.ask(2)] == [2, 4]
        assert work.together == [[1], [2]]

    together(use)


def test_what_comes_meanwhile_is_worked_on_together_next() -> None:
    async def use(work: Work, all: Together[int, int]) -> None:
        work.may_go_on.clear()
        asked = [asyncio.ensure_future(all.ask(number)) for number in (1, 2, 3, 4)]
        await asyncio.sleep(0)
        asked += [asyncio.ensure_future(all.ask(number)) for number in (5, 6)]
        await asyncio.sleep(0)
        work.may_go_on.set()
        assert await asyncio.gather(*asked) == [2, 4, 6, 8, 10, 12]
        assert work.together == [[1, 2, 3, 4], [5, 6]]

    together(use)


def test_no_more_goes_together_than_may_but_what_is_more_by_itself_goes_alone() -> None:
    async def use(work: Work, all: Together[int, int]) -> None:
        assert await asyncio.gather(*(all.ask(number) for number in (3, 3, 3, 9, 1, 2))) == [6, 6, 6, 18, 2, 4]
        assert work.together == [[3, 3], [3], [9], [1, 2]]

    together(use, most=7)


def test_an_error_is_whose_it_is() -> None:
    async def use(work: Work, all: Together[int, int]) -> None:
        one, other = await asyncio.gather(all.ask(-1), all.ask(2), return_exceptions=True)
        assert isinstance(one, ArtifactCorrupt)
        assert other == 4
        both = await asyncio.gather(all.ask(-2), all.ask(2), return_exceptions=True)
        assert [type(each) for each in both] == [Unavailable, Unavailable]
        assert await all.ask(7) == 14

    together(use)


def test_who_has_gone_is_not_worked_for_and_disturbs_nobody() -> None:
    async def use(work: Work, all: Together[int, int]) -> None:
        work.may_go_on.clear()
        first, second, third = (asyncio.ensure_future(all.ask(number)) for number in (60, 61, 62))
        await asyncio.sleep(0.01)
        first.cancel()
        second.cancel()
        await asyncio.sleep(0)
        work.may_go_on.set()
        assert await third == 124
        assert work.together == [[60], [62]]

    together(use, waiting=1000)


def test_too_much_that_waits_is_refused_until_it_is_less() -> None:
    async def use(work: Work, all: Together[int, int]) -> None:
        work.may_go_on.clear()
        asked = [asyncio.ensure_future(all.ask(1)), *(asyncio.ensure_future(all.ask(4)) for _ in range(3))]
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable) as refused:
            await all.ask(1)
        assert refused.value.retry_after_s == 1
        work.may_go_on.set()
        assert await asyncio.gather(*asked) == [2, 8, 8, 8]
        assert await all.ask(1) == 2

    together(use, most=1, waiting=12)


def test_slow_work_holds_up_nobody_who_comes_later() -> None:
    async def run() -> None:
        held = asyncio.Event()

        async def work(asked: Sequence[int]) -> Sequence[int]:
            if 1 in asked:
                await held.wait()
            return [2 * number for number in asked]

        all: Together[int, int] = Together(work, most=100, patience_s=0.01)
        async with asyncio.timeout(20):
            slow = asyncio.ensure_future(all.ask(1))
            await asyncio.sleep(0.001)
            assert [await all.ask(2), await all.ask(3)] == [4, 6]
            assert not slow.done()
            held.set()
            assert await slow == 2

    asyncio.run(run())


# --- models --------------------------------------------------------------------------------------------------------------


def stored_model(settings: Settings, seed: int, content: bytes | None = None) -> StoredModel:
    """A model's file, and what the store would say of it."""
    content = content or safetensors.numpy.save(random_weights(seed))
    path = settings.jobs_dir / f"{seed}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    file = {"path": path.name, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    return StoredModel(job_id=f"job_{seed:032x}", dataset="mnist", files={"safetensors": file}, test_accuracy=None)


@pytest.fixture
def settings(tmp_path: Path, cache: Path) -> Settings:
    return Settings(home=tmp_path, cache=cache)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the models' files as they are read."""
    read: list[str] = []
    real = artifacts.read_verified

    def counted(files: Storage, file: dict[str, str]) -> bytes:
        read.append(file["path"])
        return real(files, file)

    monkeypatch.setattr(artifacts, "read_verified", counted)
    return read


def compute(settings: Settings, *rounds: Sequence[tuple[StoredModel, Floats]]) -> list[list[Floats | Exception]]:
    """The answers to what is asked at once, round by round, of one process."""

    async def run() -> list[list[Floats | Exception]]:
        all = Predicting(settings)
        try:
            return [
                await asyncio.gather(*(all._computed.ask(each) for each in asked), return_exceptions=True)  # type: ignore[misc]
                for asked in rounds
            ]
        finally:
            all.close()

    return asyncio.run(run())


def test_each_gets_the_answer_to_its_own_images_by_its_own_model(settings: Settings) -> None:
    models = [stored_model(settings, seed) for seed in range(3)]
    asked = [(models[n % 3], IMAGES[n : n + 1 + n % 4]) for n in range(30)]
    [answers] = compute(settings, asked)
    for (model, images), answer in zip(asked, answers, strict=True):
        expected = Predictor(random_weights(models.index(model))).probabilities(images)
        assert isinstance(answer, np.ndarray)
        assert answer.shape == (len(images), 10)
        assert np.abs(answer - expected).max() < 1e-5


def test_a_model_that_many_ask_for_at_once_is_read_once(settings: Settings, reads: list[str]) -> None:
    model = stored_model(settings, 1)
    asked = [(model, IMAGES[n : n + 1]) for n in range(20)]
    compute(settings, asked, asked)
    assert reads == ["1.safetensors"]


def test_the_models_used_last_are_kept_and_no_more(settings: Settings, reads: list[str]) -> None:
    models = [stored_model(settings, seed) for seed in range(MODELS_KEPT + 1)]
    one_by_one = [[(model, IMAGES[:1])] for model in models]
    first = one_by_one[0]
    compute(settings, *one_by_one[:-1], first, one_by_one[-1], first, one_by_one[1])
    assert reads == [f"{n}.safetensors" for n in (*range(MODELS_KEPT + 1), 1)]


def test_a_damaged_model_is_noticed_and_the_others_of_its_batch_are_not_touched(settings: Settings) -> None:
    good, bad = stored_model(settings, 1), stored_model(settings, 2)
    path = settings.jobs_dir / bad.files["safetensors"]["path"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    [[one, other]] = compute(settings, [(good, IMAGES[:1]), (bad, IMAGES[:1])])
    assert isinstance(one, np.ndarray)
    assert isinstance(other, ArtifactCorrupt)


def test_a_lost_file_is_no_damage_to_a_job_with_equal_weights(settings: Settings) -> None:
    whole = stored_model(settings, 1)
    gone = {"safetensors": {**whole.files["safetensors"], "path": "gone.safetensors"}}
    lost = StoredModel(job_id="job_" + "f" * 32, dataset="mnist", files=gone, test_accuracy=None)
    [[one, other]] = compute(settings, [(lost, IMAGES[:1]), (whole, IMAGES[:1])])
    assert isinstance(one, ArtifactCorrupt)
    assert isinstance(other, np.ndarray)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_model_that_gives_no_numbers_says_so(settings: Settings, value: float) -> None:
    weights = {name: np.full_like(each, value) for name, each in random_weights().items()}
    broken = stored_model(settings, 1, safetensors.numpy.save(weights))
    good = stored_model(settings, 2)
    [[one, other]] = compute(settings, [(broken, IMAGES[:1]), (good, IMAGES[:1])])
    assert isinstance(one, ModelUnsupported)
    assert isinstance(other, np.ndarray)


def test_requests_that_wait_are_predicted_in_one_go(api: Api) -> None:
    """A second API over the same database, in this process: the thread that computes is held up meanwhile."""
    app, go_on = create_app(api.settings), threading.Event()
    bodies = [{"model": api.jobs[Status.SUCCEEDED], "image": image.tolist()} for image in IMAGES[:12]]
    with TestClient(app, base_url="http://localhost") as here, ThreadPoolExecutor(12) as pool:
        alone = [here.post("/predict", json=body).json()["predictions"] for body in bodies]
        all = app.state.shared.predicting
        sizes: list[int] = []
        real = all._compute_here

        def counted(asked: Sequence[tuple[StoredModel, Floats]]) -> Sequence[Floats | Exception]:
            sizes.append(len(asked))
            return real(asked)

        all._compute_here = counted
        try:
            all._thread.submit(go_on.wait)
            first = pool.submit(here.post, "/predict", json=bodies[0])
            eventually(lambda: all._computed._working, what="the first one's turn")
            rest = [pool.submit(here.post, "/predict", json=body) for body in bodies[1:]]
            eventually(lambda: all._computed._weight == 11, what="the others")
        finally:
            go_on.set()
        answers = [each.result().json()["predictions"] for each in (first, *rest)]
    assert sizes == [1, 11]
    for one, other in zip(alone, answers, strict=True):
        assert np.abs(np.subtract(one[0]["probabilities"], other[0]["probabilities"])).max() < 1e-6


def test_a_name_that_many_ask_for_at_once_is_looked_up_once() -> None:
    looked: list[str] = []

    class Counting(JobStore):
        def __init__(self) -> None:
            pass

        caller = None  # type: ignore[assignment]

        async def model(self, name: str) -> StoredModel:
            looked.append(name)
            if name == "gone":
                raise Unavailable("away")
            return StoredModel(job_id=name, dataset="mnist", files={}, test_accuracy=None)

    async def found() -> Sequence[StoredModel | Exception]:
        store = Counting()
        return await predicting._look_up([(store, name) for name in ("best", "prod", "best", "gone", "best")])

    answers = asyncio.run(found())
    assert sorted(looked) == ["best", "gone", "prod"]
    assert [getattr(answer, "job_id", None) for answer in answers] == ["best", "prod", "best", None, "best"]


# --- what computes -------------------------------------------------------------------------------------------------------


def test_the_kernel_gives_what_numpy_and_paddle_give(settings: Settings) -> None:
    import paddle

    from core.training.network import DigitNetwork

    layer = arrays.load(settings.cache_dir / "kernels", prebuilt=None)
    weights = {
        name: (value / 2).astype(np.float32) for name, value in random_weights(3).items()
    }  # logits such as trained networks have
    network = DigitNetwork()
    network.set_state_dict(weights)
    eager = paddle.nn.functional.softmax(network(paddle.to_tensor(IMAGES[:, None]))).numpy()
    for count in (1, 3, 40):
        given = Predictor(weights, layer).probabilities(IMAGES[:count])
        assert np.abs(given - eager[:count]).max() < 1e-5
        assert np.abs(given - Predictor(weights).probabilities(IMAGES[:count])).max() < 1e-5


def test_without_the_kernel_numpy_predicts_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "core.training.fused.arrays"):
        assert arrays.load(tmp_path, wanted=False) is arrays.plain_conv_relu_pool
        assert arrays.load(tmp_path, compilers=()) is arrays.plain_conv_relu_pool
    assert ["switched off" in caplog.text, "no C++ compiler" in caplog.text] == [True, True]


def test_a_kernel_that_computes_something_else_is_not_used(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = arrays.ArrayKernel.conv_relu_pool
    monkeypatch.setattr(arrays.ArrayKernel, "conv_relu_pool", lambda *given: real(*given) + 1)
    arrays.load.cache_clear()
    try:
        layer = arrays.load(cache / "kernels", compile_limit_s=59.0)
    finally:
        arrays.load.cache_clear()
    assert layer is arrays.plain_conv_relu_pool
