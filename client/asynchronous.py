"""The client for an event loop; and all that the other does, which runs these coroutines over a wire that blocks."""

import errno
import os
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack, cast

import httpx2

from client import answers, transfers
from client.answers import Event, JobData, LossHistory, RangeTestData, SweepData
from client.calls import as_json, creation, id_of, is_one_image, listed, options_of, preview
from client.errors import JobFailed
from client.views import JobView, RangeTestView, SweepView
from client.wire import AsyncWire, Call, Caller

# --- jobs --------------------------------------------------------------------------------------------------------------


class AsyncJob(JobView):
    """A job on the server. As `Job`, whose methods say more."""

    def __init__(self, caller: Caller, data: JobData) -> None:
        self._caller, self._data = caller, data

    @property
    def data(self) -> JobData:
        return self._data

    @property
    def _path(self) -> str:
        return f"/jobs/{self.id}"

    async def _asked(self, action: str, *, repeatable: bool = True, body: Any = None) -> Self:
        call = Call(method="POST", path=f"{self._path}/{action}", json=body, repeatable=repeatable)
        self._data = await self._caller.json(call)
        return self

    async def _got(self, what: str, **params: Any) -> Any:
        return await self._caller.json(Call(method="GET", path=f"{self._path}/{what}", params=params))

    async def refresh(self) -> Self:
        self._data = await self._caller.json(Call(method="GET", path=self._path))
        return self

    async def wait(self, timeout_s: float | None = None, *, check: bool = True) -> Self:
        self._data = await transfers.ended(self._caller, self._path, timeout_s, what=self.id)
        if check and self.status != "succeeded":
            raise JobFailed(self._data)
        return self

    async def stream(self, timeout_s: float | None = None) -> AsyncGenerator[Event, None]:
        async for event in transfers.events(self._caller, f"{self._path}/events", {}, timeout_s, what=self.id):
            yield event
        await self.refresh()

    async def loss(
        self,
        *,
        after: str | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
        max_points: int | None = None,
    ) -> LossHistory:
        params = {"from_step": from_step, "to_step": to_step, "max_points": max_points}
        points: list[answers.LossPoint] = []
        while True:
            page = await self._got("loss", after=after, **params)
            points += page["points"]
            after = page["next"]
            if not page["has_more"]:
                known = ("job_id", "status", "terminal", "count", "next", "sampling", "summary")
                return LossHistory(points=points, **{name: page[name] for name in known})

    async def metrics(self) -> list[answers.EpochMetrics]:
        return cast(list[answers.EpochMetrics], (await self._got("metrics"))["epochs"])

    async def events(self) -> list[answers.LogEntry]:
        return cast(list[answers.LogEntry], (await self._got("events"))["events"])

    async def checkpoints(self) -> list[answers.Checkpoint]:
        return cast(list[answers.Checkpoint], (await self._got("checkpoints"))["checkpoints"])

    async def evaluation(
        self, *, examples: int | None = None, label: int | None = None, predicted: int | None = None
    ) -> answers.Evaluation:
        found: answers.Evaluation = await self._got("evaluation", examples=examples, label=label, predicted=predicted)
        return found

    async def download(self, path: str | os.PathLike[str] | None = None, *, format: str = "pdparams") -> Path:
        wanted = Path.cwd() if path is None else Path(path)
        if path is not None and os.fspath(path).endswith("/") and not wanted.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", os.fspath(path))
        return await transfers.file(self._caller, f"{self._path}/model", {"format": format}, wanted)

    async def model(self, *, format: str = "pdparams") -> bytes:
        return await transfers.content(self._caller, f"{self._path}/model", {"format": format})

    async def cancel(self) -> Self:
        return await self._asked("cancel")

    async def pause(self) -> Self:
        return await self._asked("pause")

    async def resume(self, *, epochs: int | None = None) -> Self:
        if epochs is None:
            return await self._asked("resume")
        return await self._asked("resume", body={"epochs": epochs}, repeatable=False)  # twice would be twice as many

    async def delete(self) -> None:
        await self._caller.answer(Call(method="DELETE", path=self._path))


class AsyncJobs:
    """`client.jobs`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def submit(self, *, idempotency_key: str | None = None, **spec: Unpack[answers.JobSpec]) -> AsyncJob:
        return AsyncJob(self._caller, await self._caller.json(creation("/jobs", spec, idempotency_key)))

    async def preview(self, **spec: Unpack[answers.JobSpec]) -> answers.JobPreview:
        found: answers.JobPreview = await self._caller.json(preview("/jobs", spec))
        return found

    async def get(self, job_id: str) -> AsyncJob:
        return AsyncJob(self._caller, await self._caller.json(Call(method="GET", path=f"/jobs/{job_id}")))

    async def list(
        self,
        *,
        status: str | None = None,
        optimizer: str | None = None,
        tag: str | None = None,
        sweep: str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[AsyncJob, None]:
        params = {"status": status, "optimizer": optimizer, "tag": tag, "sweep": sweep}
        async for data in listed(self._caller, "/jobs", "jobs", params, limit):
            yield AsyncJob(self._caller, data)


# --- sweeps and range tests --------------------------------------------------------------------------------------------


class AsyncSweep(SweepView):
    """A sweep on the server. As `Sweep`, whose methods say more."""

    def __init__(self, caller: Caller, data: SweepData) -> None:
        self._caller, self._data = caller, data

    @property
    def data(self) -> SweepData:
        return self._data

    @property
    def _path(self) -> str:
        return f"/sweeps/{self.id}"

    async def refresh(self) -> Self:
        self._data = await self._caller.json(Call(method="GET", path=self._path))
        return self

    async def wait(self, timeout_s: float | None = None) -> Self:
        self._data = await transfers.ended(self._caller, self._path, timeout_s, what=self.id)
        return self

    async def cancel(self) -> Self:
        self._data = await self._caller.json(Call(method="POST", path=f"{self._path}/cancel"))
        return self

    async def delete(self) -> None:
        await self._caller.answer(Call(method="DELETE", path=self._path))

    async def jobs(self) -> AsyncGenerator[AsyncJob, None]:
        async for job in AsyncJobs(self._caller).list(sweep=self.id):
            yield job

    async def table(self) -> answers.Table:
        return (await self.refresh()).data["table"]


class AsyncSweeps:
    """`client.sweeps`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def submit(self, *, idempotency_key: str | None = None, **spec: Unpack[answers.SweepSpec]) -> AsyncSweep:
        return AsyncSweep(self._caller, await self._caller.json(creation("/sweeps", spec, idempotency_key)))

    async def preview(self, **spec: Unpack[answers.SweepSpec]) -> answers.SweepPreview:
        found: answers.SweepPreview = await self._caller.json(preview("/sweeps", spec))
        return found

    async def get(self, sweep_id: str) -> AsyncSweep:
        return AsyncSweep(self._caller, await self._caller.json(Call(method="GET", path=f"/sweeps/{sweep_id}")))

    async def list(self, *, limit: int | None = None) -> AsyncGenerator[AsyncSweep, None]:
        async for data in listed(self._caller, "/sweeps", "sweeps", {}, limit):
            yield AsyncSweep(self._caller, data)


class AsyncRangeTest(RangeTestView):
    """A range test on the server. As `RangeTest`, whose methods say more."""

    def __init__(self, caller: Caller, data: RangeTestData) -> None:
        self._caller, self._data = caller, data

    @property
    def data(self) -> RangeTestData:
        return self._data

    @property
    def _path(self) -> str:
        return f"/lr-range-tests/{self.id}"

    async def refresh(self) -> Self:
        self._data = await self._caller.json(Call(method="GET", path=self._path))
        return self

    async def wait(self, timeout_s: float | None = None, *, check: bool = True) -> Self:
        self._data = await transfers.ended(self._caller, self._path, timeout_s, what=self.id)
        if check and self.status != "succeeded":
            raise JobFailed((await self.job()).data)
        return self

    async def cancel(self) -> Self:
        await self._caller.answer(Call(method="POST", path=f"/jobs/{self.id}/cancel"))
        return await self.refresh()

    async def job(self) -> AsyncJob:
        return await AsyncJobs(self._caller).get(self.id)


class AsyncRangeTests:
    """`client.rate_ranges`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def submit(
        self, *, idempotency_key: str | None = None, **spec: Unpack[answers.RangeTestSpec]
    ) -> AsyncRangeTest:
        return AsyncRangeTest(self._caller, await self._caller.json(creation("/lr-range-tests", spec, idempotency_key)))

    async def get(self, job_id: str) -> AsyncRangeTest:
        return AsyncRangeTest(
            self._caller, await self._caller.json(Call(method="GET", path=f"/lr-range-tests/{job_id}"))
        )


# --- models, and the client itself -------------------------------------------------------------------------------------


class AsyncModels:
    """`client.models`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def list(
        self, *, dataset: str | None = None, limit: int | None = None
    ) -> AsyncGenerator[answers.Model, None]:
        async for model in listed(self._caller, "/models", "models", {"dataset": dataset}, limit):
            yield cast(answers.Model, model)

    async def aliases(self) -> dict[str, str]:
        page = await self._caller.json(Call(method="GET", path="/models", params={"limit": 1}))
        return cast(dict[str, str], page["aliases"])

    async def get(self, name: str) -> answers.Model:
        model: answers.Model = await self._caller.json(Call(method="GET", path=f"/models/{name}"))
        return model

    async def name(self, alias: str, job: str | JobView) -> answers.Model:
        call = Call(method="PUT", path=f"/models/{alias}", json={"job_id": id_of(job)})
        model: answers.Model = await self._caller.json(call)
        return model

    async def unname(self, alias: str) -> None:
        await self._caller.answer(Call(method="DELETE", path=f"/models/{alias}"))


class AsyncApi:
    """All that a client does, over whatever wire."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.jobs, self.sweeps = AsyncJobs(caller), AsyncSweeps(caller)
        self.rate_ranges, self.models = AsyncRangeTests(caller), AsyncModels(caller)

    async def rate_range(self, **spec: Unpack[answers.RangeTestSpec]) -> AsyncRangeTest:
        return await self.rate_ranges.submit(**spec)

    async def compare(
        self,
        jobs: Iterable[str | JobView],
        *,
        x: str = "step",
        max_points: int | None = None,
        target_accuracy: float | None = None,
    ) -> answers.Comparison:
        ids = ",".join(map(id_of, jobs))
        params = {"jobs": ids, "x": x, "max_points": max_points, "target_accuracy": target_accuracy}
        found: answers.Comparison = await self._caller.json(Call(method="GET", path="/compare", params=params))
        return found

    async def stream(
        self, jobs: Iterable[str | JobView], timeout_s: float | None = None
    ) -> AsyncGenerator[Event, None]:
        params = {"jobs": ",".join(map(id_of, jobs))}
        async for event in transfers.events(self._caller, "/events", params, timeout_s, what="the jobs"):
            yield event

    async def predict(
        self,
        images: Any,
        *,
        model: str | JobView = "best",
        range: int = 1,
        top_k: int = 3,
        debug: bool = False,
    ) -> answers.Predictions:
        sent = [as_json(image) for image in ([images] if is_one_image(images) else images)]
        body = {"images": sent, "model": id_of(model), "range": range, "top_k": top_k}
        params = {"debug": "true"} if debug else {}
        call = Call(method="POST", path="/predict", json=body, params=params)
        found: answers.Predictions = await self._caller.json(call)
        return found

    async def optimizers(self) -> answers.Optimizers:
        found: answers.Optimizers = await self._caller.json(Call(method="GET", path="/optimizers"))
        return found

    async def datasets(self) -> list[answers.Dataset]:
        return cast(list[answers.Dataset], (await self._caller.json(Call(method="GET", path="/datasets")))["datasets"])

    async def version(self) -> str:
        return str((await self._caller.json(Call(method="GET", path="/version")))["version"])

    async def ready(self) -> answers.Readiness:
        found: answers.Readiness = await self._caller.json(Call(method="GET", path="/readyz", expected=(503,)))
        return found

    async def close(self) -> None:
        await self._caller.wire.end()


class AsyncClient(AsyncApi):
    """Talks to one server from an event loop; use it in an `async with` block. As `Client`, whose methods say more."""

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        timeout_s: float = 30,
        retries: int = 2,
        trust_env: bool = True,
    ) -> None:
        self.url, options = options_of(url, key, timeout_s, trust_env=trust_env)
        super().__init__(
            Caller(AsyncWire(httpx2.AsyncClient(**options)), url=self.url, retries=retries, timeout_s=timeout_s)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()
