"""Predictions of one API process: what is asked for while others are worked on is worked on together, next."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from typing import TYPE_CHECKING, Generic, TypeVar

from anyio import CapacityLimiter, to_thread

from core.errors import ArtifactCorrupt, DescentError, ModelUnsupported, Unavailable
from core.jobs import artifacts
from core.jobs.store import JobStore, StoredModel
from core.settings import Settings

if TYPE_CHECKING:  # a thread loads NumPy and what stands on it beside the first requests (`_get_ready`)
    from core.training.fused.arrays import Layer
    from core.training.predictor import Floats, Predictor

A = TypeVar("A")
R = TypeVar("R")

MOST_TOGETHER = 256  # images: 13 ms (bench/RESULTS.md)
MOST_WAITING = 4096  # images, 12 MB; and requests that wait for the database
MODELS_KEPT = 8
_PATIENCE_S = 0.02  # with the database
_MOST_FETCHING = 8  # models that are on their way here
_READY_LIMIT_S = 3  # for the kernel, which is found in 0.1 s and compiled in one


class Together(Generic[A, R]):
    """What is asked for one by one is worked on together: at once when nothing else is, else as soon as that is done.

    So nobody waits for company, and the more is asked the more is done in one go. `work` has an answer, or an exception,
    for each in its order; what it raises is everybody's. `weigh` says how much of `most` one is. Work that takes longer than
    `patience_s` goes on by itself, and holds up nobody else.
    """

    def __init__(
        self,
        work: Callable[[Sequence[A]], Awaitable[Sequence[R | Exception]]],
        weigh: Callable[[A], int] = lambda asked: 1,
        *,
        most: int,
        most_waiting: int = MOST_WAITING,
        patience_s: float | None = None,
    ) -> None:
        self._patience_s, self._slow = patience_s, set[asyncio.Task[None]]()
        self._work, self._weigh, self._most, self._most_waiting = work, weigh, most, most_waiting
        self._waiting: list[tuple[A, asyncio.Future[R]]] = []
        self._weight = 0  # of those who wait
        self._working: asyncio.Task[None] | None = None

    async def ask(self, asked: A) -> R:
        """Raises Unavailable when too much waits already."""
        if self._weight >= self._most_waiting:
            raise Unavailable("too many predictions wait", retry_after_s=1)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._waiting.append((asked, answer))
        self._weight += self._weigh(asked)
        if self._working is None:
            self._working = loop.create_task(self._go_on())
        return await answer

    async def _go_on(self) -> None:
        try:
            while taken := self._take():
                done = asyncio.create_task(self._answer(taken))
                _, slow = await asyncio.wait({done}, timeout=self._patience_s)
                if slow:
                    self._slow.add(done)
                    done.add_done_callback(self._slow.discard)
        finally:
            self._working = None

    async def _answer(self, taken: Sequence[tuple[A, "asyncio.Future[R]"]]) -> None:
        [answers] = await asyncio.gather(self._work([asked for asked, _ in taken]), return_exceptions=True)
        each = [answers] * len(taken) if isinstance(answers, BaseException) else answers
        for (_, waiting), answer in zip(taken, each, strict=True):
            _give(waiting, answer)

    def _take(self) -> list[tuple[A, "asyncio.Future[R]"]]:
        """The first of those who still wait, as many as go together; at least one, when there is one."""
        taken, weight = 0, 0
        self._waiting = [(asked, answer) for asked, answer in self._waiting if not answer.done()]
        for asked, _ in self._waiting:
            weight += self._weigh(asked)
            if taken and weight > self._most:
                break
            taken += 1
        first, self._waiting = self._waiting[:taken], self._waiting[taken:]
        self._weight = sum(self._weigh(asked) for asked, _ in self._waiting)
        return first


def _give(waiting: "asyncio.Future[R]", answer: R | BaseException) -> None:
    if waiting.done():
        return  # who asked has gone
    if isinstance(answer, BaseException):
        waiting.set_exception(answer)
    else:
        waiting.set_result(answer)


class Predicting:
    """The models that names name, and what they make of images.

    One thread computes, so a model that many ask for at once is read once; the newest few are kept, by their digests.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._files = settings, artifacts.storage(settings)
        self._fetching = CapacityLimiter(_MOST_FETCHING)
        self._layer: Layer | None = None
        self._is_ready = Event()
        Thread(target=self._get_ready, name="get ready", daemon=True).start()
        self._models: OrderedDict[str, Predictor] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "predict")
        self._named: Together[tuple[JobStore, str], StoredModel] = Together(
            _look_up, most=MOST_WAITING, patience_s=_PATIENCE_S
        )
        self._computed: Together[tuple[StoredModel, Floats], Floats] = Together(
            self._compute, lambda asked: len(asked[1]), most=MOST_TOGETHER
        )

    async def load(self, stored: StoredModel) -> "Predictor":
        """Have the model in memory. Raises ModelUnsupported, ArtifactCorrupt, Unavailable."""
        await self._bring(stored)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._predictor, stored)

    def _get_ready(self) -> None:
        """What the first prediction would otherwise do: import, and perhaps compile."""
        from core.training import pictures, predictor  # noqa: F401
        from core.training.fused import arrays

        settings = self._settings
        try:
            self._layer = arrays.load(
                settings.cache_dir / "kernels", wanted=settings.kernel == "fused", prebuilt=settings.kernels
            )
        finally:
            self._is_ready.set()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def of(
        self, store: JobStore, name: str, prepare: Callable[[StoredModel], Awaitable["Floats"]]
    ) -> tuple[StoredModel, "Floats"]:
        """What the model that a name or a job's id names makes of the images that `prepare` makes for it.

        Float32 [N, 28, 28] -> probabilities [N, 10]. A job that is deleted or trained further meanwhile is no damage. Raises
        NotFound, ModelDeleted, ModelNotReady, ModelUnsupported, ArtifactCorrupt, Unavailable, and what `prepare` raises.
        """
        stored = await self._named.ask((store, name))
        images = await prepare(stored)
        try:
            await self._bring(stored)
            return stored, await self._computed.ask((stored, images))
        except ArtifactCorrupt:
            now = await self._named.ask((store, name))
            if now == stored:
                raise
            await self._bring(now)
            return now, await self._computed.ask((now, await prepare(now)))

    async def _bring(self, stored: StoredModel) -> None:
        """Have a copy of a far file here, so that the thread that computes waits for no network."""
        file = stored.files["safetensors"]
        if self._files.is_far and file["sha256"] not in self._models:
            await to_thread.run_sync(artifacts.read_verified, self._files, file, limiter=self._fetching)

    async def _compute(self, asked: Sequence[tuple[StoredModel, "Floats"]]) -> Sequence["Floats | Exception"]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compute_here, asked)

    def _compute_here(self, asked: Sequence[tuple[StoredModel, "Floats"]]) -> Sequence["Floats | Exception"]:
        """What is for one model in one go."""
        answers: dict[int, Floats | Exception] = {}
        by_model: dict[str, list[int]] = {}  # by file: equal trainings have equal weights, and one's may be gone
        for place, (stored, _) in enumerate(asked):
            by_model.setdefault(stored.files["safetensors"]["path"], []).append(place)
        for places in by_model.values():
            stored, images = asked[places[0]][0], [asked[place][1] for place in places]
            answers |= zip(places, self._predict(stored, images), strict=True)
        return [answers[place] for place in range(len(asked))]

    def _predict(self, stored: StoredModel, images: Sequence["Floats"]) -> Sequence["Floats | Exception"]:
        import numpy as np

        try:
            probabilities = self._predictor(stored).probabilities(np.concatenate(images))
            if not np.isfinite(probabilities).all():
                raise ModelUnsupported("what the model gives is no number: its training had blown up")
        except (DescentError, MemoryError) as error:
            return [error] * len(images)
        return np.split(probabilities, np.cumsum([len(some) for some in images])[:-1])

    def _predictor(self, stored: StoredModel) -> "Predictor":
        """The one that is kept by the model's digest, or read now; the one unused for longest makes room for it."""
        from core.training.predictor import Predictor

        file = stored.files["safetensors"]
        if file["sha256"] not in self._models:
            self._is_ready.wait(_READY_LIMIT_S)
            content = artifacts.read_verified(self._files, file)
            self._models[file["sha256"]] = Predictor.from_safetensors(content, self._best_layer)
        self._models.move_to_end(file["sha256"])
        while len(self._models) > MODELS_KEPT:
            self._models.popitem(last=False)
        return self._models[file["sha256"]]

    def _best_layer(self, x: "Floats", weight: "Floats", bias: "Floats") -> "Floats":
        """By the kernel, as soon as it is there; by NumPy while a slow compiler works on it."""
        from core.training.fused.arrays import plain_conv_relu_pool

        return (self._layer or plain_conv_relu_pool)(x, weight, bias)


async def _look_up(asked: Sequence[tuple[JobStore, str]]) -> Sequence[StoredModel | Exception]:
    """The models that names name to their callers: each is asked for once, after all who want it have come."""
    distinct = {(store.caller, name): store for store, name in asked}
    found = await asyncio.gather(*(store.model(name) for (_, name), store in distinct.items()), return_exceptions=True)
    named = dict(zip(distinct, found, strict=True))
    return [named[store.caller, name] for store, name in asked]  # type: ignore[misc]  # cancelled is none of them
