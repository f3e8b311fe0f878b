"""The Python client of the REST API, for programs that block and, as `AsyncClient`, for event loops.

    from client.client import Client

    with Client() as client:  # DESCENT_URL, DESCENT_API_KEY
        job = client.jobs.submit(optimizer="adam", learning_rate=0.001, epochs=1)
        for event in job.stream():  # losses, epochs and states, as they happen
            print(event)
        job.download("mnist.pdparams")
        print(client.predict("seven.png", model=job)["predictions"][0]["digit"])

What is lost on its way is asked for again, twice by default and only where that is safe; a submit has an idempotency key, so
that it makes one job however often it is sent. Errors are the tree in `client.errors`.
"""

import os
from collections.abc import Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import httpx2

from client import answers
from client.answers import EpochEnded, Event, JobData, LossHistory, Points, RangeTestData, StatusChanged, SweepData
from client.asynchronous import (
    AsyncApi,
    AsyncClient,
    AsyncJob,
    AsyncJobs,
    AsyncModels,
    AsyncRangeTest,
    AsyncRangeTests,
    AsyncSweep,
    AsyncSweeps,
)
from client.calls import options_of
from client.errors import (
    ApiError,
    Busy,
    ClientError,
    Conflict,
    Corrupt,
    Invalid,
    JobFailed,
    NotAllowed,
    NotFound,
    Unreachable,
    WaitTimeout,
)
from client.views import JobView, RangeTestView, SweepView
from client.wire import BlockingWire, Caller, each, now

__all__ = [
    "ApiError", "AsyncClient", "AsyncJob", "AsyncRangeTest", "AsyncSweep", "Busy", "Client", "ClientError", "Conflict",
    "Corrupt", "EpochEnded", "Event", "Invalid", "Job", "JobFailed", "LossHistory", "NotAllowed", "NotFound", "Points",
    "RangeTest", "StatusChanged", "Sweep", "Unreachable", "WaitTimeout",
]  # fmt: skip


class Job(JobView):
    """A job on the server, and what was last heard of it. Methods that change or ask something bring `data` up to date."""

    def __init__(self, core: AsyncJob) -> None:
        self._core = core

    @property
    def data(self) -> JobData:
        return self._core.data

    def refresh(self) -> Self:
        """Ask how it stands now."""
        now(self._core.refresh())
        return self

    def wait(self, timeout_s: float | None = None, *, check: bool = True) -> Self:
        """Wait until it has ended; a paused job has not.

        Raises JobFailed unless it succeeded (with `check=False` it does not), WaitTimeout after `timeout_s` seconds, and
        Unreachable when the server stays away for a minute.
        """
        now(self._core.wait(timeout_s, check=check))
        return self

    def stream(self, timeout_s: float | None = None) -> Generator[Event, None, None]:
        """What happens, as it happens, from the job's beginning to its end: `Points`, `EpochEnded`, `StatusChanged`.

        Each once and in order, also when the connection is cut meanwhile. `data` is up to date afterwards. Raises WaitTimeout,
        Unreachable, and NotFound when it is deleted meanwhile; a job that fails is no error, but a `StatusChanged`.
        """
        return each(self._core.stream(timeout_s))

    def loss(
        self,
        *,
        after: str | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
        max_points: int | None = None,
    ) -> LossHistory:
        """All its loss points so far; those behind the cursor `after`; of some steps; or at most `max_points`, sampled."""
        return now(self._core.loss(after=after, from_step=from_step, to_step=to_step, max_points=max_points))

    def metrics(self) -> list[answers.EpochMetrics]:
        """Losses, accuracy, rate and speed of each epoch that has ended."""
        return now(self._core.metrics())

    def events(self) -> list[answers.LogEntry]:
        """Its log so far; `stream` has it as it happens, with the losses."""
        return now(self._core.events())

    def checkpoints(self) -> list[answers.Checkpoint]:
        """The checkpoints that are kept, the best first."""
        return now(self._core.checkpoints())

    def evaluation(
        self, *, examples: int | None = None, label: int | None = None, predicted: int | None = None
    ) -> answers.Evaluation:
        """What its model makes of the test images: confusion matrix, scores, and up to so many examples of a kind."""
        return now(self._core.evaluation(examples=examples, label=label, predicted=predicted))

    def download(self, path: str | os.PathLike[str] | None = None, *, format: str = "pdparams") -> Path:
        """Write its model to a file, whole and verified or not at all; returns where.

        `format`: `pdparams`, `safetensors`, `inference` or `onnx`. `path` is a file or a folder; without one it is the
        working directory, and the name the server's. A download that is cut goes on where it was. Raises Conflict while there
        is no model, Corrupt for wrong bytes, OSError.
        """
        return now(self._core.download(path, format=format))

    def model(self, *, format: str = "pdparams") -> bytes:
        """Its model as bytes, verified. As `download`."""
        return now(self._core.model(format=format))

    def cancel(self) -> Self:
        """At once when it is queued, within seconds when it runs; one that has ended stays as it is."""
        now(self._core.cancel())
        return self

    def pause(self) -> Self:
        """Save it, and make room for the next job."""
        now(self._core.pause())
        return self

    def resume(self, *, epochs: int | None = None) -> Self:
        """Go on with a paused, failed or cancelled job; with `epochs`, train one that has ended for so many more."""
        now(self._core.resume(epochs=epochs))
        return self

    def delete(self) -> None:
        """Forget a job that has ended, with its files. Raises Conflict for others."""
        now(self._core.delete())


class Jobs:
    """`client.jobs`."""

    def __init__(self, core: AsyncJobs) -> None:
        self._core = core

    def submit(self, *, idempotency_key: str | None = None, **spec: Unpack[answers.JobSpec]) -> Job:
        """Create a job: an `optimizer` and a `learning_rate`, and what else is not to be the lesson's default.

        It is made once, however often the request has to be sent; to be sure of that over several runs of a program, give an
        `idempotency_key` of your own. Raises Invalid, Busy.
        """
        return Job(now(self._core.submit(idempotency_key=idempotency_key, **spec)))

    def preview(self, **spec: Unpack[answers.JobSpec]) -> answers.JobPreview:
        """What a job would be, with all defaults; nothing is created. Raises Invalid."""
        return now(self._core.preview(**spec))

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        return Job(now(self._core.get(job_id)))

    def list(
        self,
        *,
        status: str | None = None,
        optimizer: str | None = None,
        tag: str | None = None,
        sweep: str | None = None,
        limit: int | None = None,
    ) -> Generator[Job, None, None]:
        """Jobs, newest first, page after page as they are wanted; `limit` of them at most. `tag` is `key` or `key:value`."""
        found = self._core.list(status=status, optimizer=optimizer, tag=tag, sweep=sweep, limit=limit)
        return (Job(job) for job in each(found))


class Sweep(SweepView):
    """A sweep on the server, and what was last heard of it."""

    def __init__(self, core: AsyncSweep) -> None:
        self._core = core

    @property
    def data(self) -> SweepData:
        return self._core.data

    def refresh(self) -> Self:
        """Ask how it stands now."""
        now(self._core.refresh())
        return self

    def wait(self, timeout_s: float | None = None) -> Self:
        """Wait until all its jobs have ended, however that was. Raises WaitTimeout, Unreachable."""
        now(self._core.wait(timeout_s))
        return self

    def cancel(self) -> Self:
        """Cancel those of its jobs that have not ended."""
        now(self._core.cancel())
        return self

    def delete(self) -> None:
        """Forget a sweep that has ended, with its jobs."""
        now(self._core.delete())

    def jobs(self) -> Generator[Job, None, None]:
        """Its jobs, newest first."""
        return (Job(job) for job in each(self._core.jobs()))

    def table(self) -> answers.Table:
        """What came of its jobs so far: rows, best first, and whether the best two differ by more than noise."""
        return now(self._core.table())


class Sweeps:
    """`client.sweeps`."""

    def __init__(self, core: AsyncSweeps) -> None:
        self._core = core

    def submit(self, *, idempotency_key: str | None = None, **spec: Unpack[answers.SweepSpec]) -> Sweep:
        """Many jobs at once: `optimizers` x `learning_rates` x `seeds`. With nothing it is the lesson's fifteen."""
        return Sweep(now(self._core.submit(idempotency_key=idempotency_key, **spec)))

    def preview(self, **spec: Unpack[answers.SweepSpec]) -> answers.SweepPreview:
        """What a sweep would be, and about how long it would take; nothing is created."""
        return now(self._core.preview(**spec))

    def get(self, sweep_id: str) -> Sweep:
        """Raises NotFound."""
        return Sweep(now(self._core.get(sweep_id)))

    def list(self, *, limit: int | None = None) -> Generator[Sweep, None, None]:
        """Sweeps, newest first; `limit` of them at most."""
        return (Sweep(sweep) for sweep in each(self._core.list(limit=limit)))


class RangeTest(RangeTestView):
    """A learning-rate range test on the server, and what was last heard of it."""

    def __init__(self, core: AsyncRangeTest) -> None:
        self._core = core

    @property
    def data(self) -> RangeTestData:
        return self._core.data

    def refresh(self) -> Self:
        """Ask how it stands now."""
        now(self._core.refresh())
        return self

    def wait(self, timeout_s: float | None = None, *, check: bool = True) -> Self:
        """Wait until it has ended; `suggestion` then says which rate, and why. Raises as `Job.wait`."""
        now(self._core.wait(timeout_s, check=check))
        return self

    def cancel(self) -> Self:
        now(self._core.cancel())
        return self

    def job(self) -> Job:
        """The job that it is: to stream, pause or delete."""
        return Job(now(self._core.job()))


class RangeTests:
    """`client.rate_ranges`."""

    def __init__(self, core: AsyncRangeTests) -> None:
        self._core = core

    def submit(self, *, idempotency_key: str | None = None, **spec: Unpack[answers.RangeTestSpec]) -> RangeTest:
        """As `client.rate_range`."""
        return RangeTest(now(self._core.submit(idempotency_key=idempotency_key, **spec)))

    def get(self, job_id: str) -> RangeTest:
        """Raises NotFound, also for a job that is no range test."""
        return RangeTest(now(self._core.get(job_id)))


class Models:
    """`client.models`."""

    def __init__(self, core: AsyncModels) -> None:
        self._core = core

    def list(self, *, dataset: str | None = None, limit: int | None = None) -> Generator[answers.Model, None, None]:
        """The models that jobs have left, newest jobs first."""
        return each(self._core.list(dataset=dataset, limit=limit))

    def aliases(self) -> dict[str, str]:
        """All names in use, and the ids of the jobs whose models they name."""
        return now(self._core.aliases())

    def get(self, name: str) -> answers.Model:
        """The model that an alias, `best`, `latest` or a job's id names. Raises NotFound."""
        return now(self._core.get(name))

    def name(self, alias: str, job: str | JobView) -> answers.Model:
        """Have an alias name a job's model, whatever it named before."""
        return now(self._core.name(alias, job))

    def unname(self, alias: str) -> None:
        """Forget an alias; the model stays."""
        now(self._core.unname(alias))


class Client:
    """Talks to one server. Use it in a `with` block; threads may share it.

    `url`: else DESCENT_URL, else http://127.0.0.1:8000. `key`: else DESCENT_API_KEY. `timeout_s`: how long the server may be
    silent. `retries`: how often a call is made again. `trust_env`: whether a proxy named in the environment is used.
    """

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
        self._core = AsyncApi(
            Caller(BlockingWire(httpx2.Client(**options)), url=self.url, retries=retries, timeout_s=timeout_s)
        )
        self.jobs, self.sweeps = Jobs(self._core.jobs), Sweeps(self._core.sweeps)
        self.rate_ranges, self.models = RangeTests(self._core.rate_ranges), Models(self._core.models)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        now(self._core.close())

    def rate_range(self, **spec: Unpack[answers.RangeTestSpec]) -> RangeTest:
        """Find a learning rate: one short run whose rate rises from `start` to `end`; an `optimizer` is a whole request."""
        return RangeTest(now(self._core.rate_range(**spec)))

    def compare(
        self,
        jobs: Iterable[str | JobView],
        *,
        x: str = "step",
        max_points: int | None = None,
        target_accuracy: float | None = None,
    ) -> answers.Comparison:
        """Up to 50 jobs beside each other: curves over `step`, `epoch` or `time`, and a table with verdicts."""
        return now(self._core.compare(jobs, x=x, max_points=max_points, target_accuracy=target_accuracy))

    def stream(self, jobs: Iterable[str | JobView], timeout_s: float | None = None) -> Generator[Event, None, None]:
        """As `Job.stream`, for up to 50 jobs in one."""
        return each(self._core.stream(jobs, timeout_s))

    def predict(
        self,
        images: Any,
        *,
        model: str | JobView = "best",
        range: int = 1,
        top_k: int = 3,
        debug: bool = False,
    ) -> answers.Predictions:
        """What images show, one or up to 256: paths of PNG or JPEG files, their bytes, or arrays or lists of numbers, 28x28
        or 784.

        `range` is the brightest value of an array, 1 or 255. With `debug` each prediction has `seen`, the 28x28 that the
        network saw.
        """
        return now(self._core.predict(images, model=model, range=range, top_k=top_k, debug=debug))

    def optimizers(self) -> answers.Optimizers:
        """Optimizers, schedules and clips, with their parameters, defaults and bounds."""
        return now(self._core.optimizers())

    def datasets(self) -> list[answers.Dataset]:
        return now(self._core.datasets())

    def version(self) -> str:
        """The server's."""
        return now(self._core.version())

    def ready(self) -> answers.Readiness:
        """Whether a job could run, and each thing that this needs; it does not raise when something is missing."""
        return now(self._core.ready())
