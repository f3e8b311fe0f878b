"""What /metrics shows: what the API's processes measured of themselves, and the store's numbers as of the scrape."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    values,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from starlette.types import Scope

from core.jobs.measures import Labels, Measures

OPENMETRICS = "application/openmetrics-text"
OTHER = "other"  # a path or method that is none of the API's: labels are never a client's own words
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PREDICT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

# Of when each series began: in the text format they would be gauges of their own, one for each histogram and counter.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Sharing:
    """A folder in which several API processes keep what they measured, so that each can tell of all of them.

    A process that is started again has its number again, and counts on from where it was killed. The library finds the
    folder and the kind of its values in globals, so there is one such process to an interpreter.
    """

    folder: Path
    number: str

    def clear(self) -> None:
        """Before the process is started (again): what one of its number that has died had in progress is no more."""
        mark_process_dead(self.number, self.folder)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Have the instruments that are made from now on in the folder."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.folder)
        values.ValueClass = values.MultiProcessValue(lambda: self.number)  # type: ignore[no-untyped-call]

    def arrive(self) -> None:
        """Say which process this is, once it is about to serve."""
        making = self.folder / self.number
        making.write_text(str(os.getpid()))
        making.rename(making.with_suffix(".pid"))

    def pids(self) -> dict[str, str]:
        """Of each process that has arrived, by its number; one that has died stays until its follower arrives."""
        return {file.stem: file.read_text() for file in sorted(self.folder.glob("*.pid"))}


class Metrics:
    """The instruments of one API process."""

    def __init__(self, sharing: Sharing | None = None) -> None:
        self._registry = CollectorRegistry()
        PlatformCollector(registry=self._registry)
        Info("descent_build", "The version that runs.", registry=self._registry).info({"version": version("descent")})
        if sharing:
            sharing.begin()
            self._registry.register(_Processes(sharing))
            MultiProcessCollector(self._registry, sharing.folder)  # type: ignore[no-untyped-call]
            self._instruments(None)
        else:
            ProcessCollector(registry=self._registry)
            GCCollector(registry=self._registry)
            self._instruments(self._registry)

    def _instruments(self, registry: CollectorRegistry | None) -> None:
        self._requests = Counter(
            "descent_http_requests",
            "Requests answered, by route template.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "descent_http_request_duration_seconds",
            "Time until an answer began; what a client asked to wait (Prefer) is in it.",
            ["method", "route"],
            buckets=_REQUEST_S,
            registry=registry,
        )
        self.in_progress = Gauge(
            "descent_http_requests_in_progress",
            "Requests not yet answered to the end, open event streams included.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._predict_seconds = Histogram(
            "descent_predict_duration_seconds",
            "Time of a prediction from the request read to its digits, loading the model included.",
            buckets=_PREDICT_S,
            registry=registry,
        )
        self._predict_images = Counter("descent_predict_images", "Images predicted.", registry=registry)

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """An HTTP request got its answer's head after so long."""
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        route = getattr(scope.get("route"), "path", OTHER)
        self._requests.labels(method, route, f"{status // 100}xx").inc()
        self._seconds.labels(method, route).observe(seconds)

    def predicted(self, images: int, seconds: float) -> None:
        self._predict_images.inc(images)
        self._predict_seconds.observe(seconds)

    def expose(self, measures: Measures | None, accept: str) -> tuple[bytes, str]:
        """All metrics and their media type. `measures` is None when the store is away.

        The library's own negotiation raises on a version that is no number, so it is not shown the header.
        """
        offered = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
        encode, media_type = choose_encoder(OPENMETRICS if OPENMETRICS in offered else "")
        return encode(_Scrape(self._registry, _of_store(measures))), media_type


class _Processes(Collector):
    """The `process_` families of several API processes, each sample with the number of its process."""

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for number, pid in self._sharing.pids().items():
            for family in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                of_all = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                of_all.samples += [Sample(each.name, {"process": number}, each.value) for each in family.samples]
        return families.values()


class _Scrape(Collector):
    """The process' own families and the store's."""

    def __init__(self, registry: CollectorRegistry, families: Iterable[Metric]) -> None:
        self._registry, self._families = registry, families

    def collect(self) -> Iterable[Metric]:
        yield from self._registry.collect()
        yield from self._families


def _of_store(seen: Measures | None) -> Iterator[Metric]:
    """The store's families. What is not known is left out, not 0; what is known to be none is 0, so that it can alert."""
    yield _gauge("descent_store_up", "Whether Redis answered this scrape; if not, its metrics are missing.", bool(seen))
    if seen is None:
        return
    yield _gauge("descent_jobs", "Jobs, by status.", seen.jobs, "status")
    yield _gauge(
        "descent_queue_jobs",
        "Jobs that wait for a worker; those that their sweep holds back are not among them.",
        seen.queued,
    )
    yield _gauge("descent_queue_gpu_jobs", "Those of them that only a worker with a GPU trains.", seen.queued_for_gpu)
    yield _gauge("descent_queue_stuck_jobs", "Those of them that no live worker can train.", seen.stuck)
    yield _gauge(
        "descent_queue_longest_wait_seconds",
        "How long the job that has waited longest has been queued; 0 when none is.",
        seen.longest_wait_s,
    )
    workers: dict[Labels, int] = {("cpu",): 0, ("gpu",): 0} | seen.workers
    yield _gauge("descent_workers", "Workers alive, by whether they have a GPU: `gpu` or `cpu`.", workers, "device")
    yield _gauge(
        "descent_training_images_per_second",
        "Images trained per second, over all running jobs of a device.",
        {("cpu",): 0} | seen.images_per_s,
        "device",
    )
    yield _counter("descent_jobs_submitted", "Jobs accepted.", seen.submitted)
    yield _counter(
        "descent_jobs_finished",
        "Jobs that ended, by status and error code; one that is resumed ends again.",
        seen.finished,
        "status",
        "code",
    )
    yield _counter("descent_job_attempts", "Times a worker took a job.", seen.attempts)
    yield _counter(
        "descent_job_retries",
        "Jobs queued again because their trainer died, their worker's lease expired, or it left and gave them back.",
        seen.retried,
        "reason",
    )
    yield _gauge("descent_store_memory_bytes", "Memory that Redis uses.", seen.memory_bytes)
    if seen.memory_limit_bytes is not None:
        yield _gauge(
            "descent_store_memory_limit_bytes",
            "Redis' memory limit, if it has one; from 80 % of it jobs are refused.",
            seen.memory_limit_bytes,
        )


def _gauge(name: str, text: str, values: float | Mapping[Labels, float], *labels: str) -> Metric:
    return _family(GaugeMetricFamily(name, text, labels=labels), values)


def _counter(name: str, text: str, values: float | Mapping[Labels, float], *labels: str) -> Metric:
    return _family(CounterMetricFamily(name, text, labels=labels), values)


def _family(family: GaugeMetricFamily | CounterMetricFamily, values: float | Mapping[Labels, float]) -> Metric:
    """With a value for each set of label values, or with its only one."""
    for labels, value in values.items() if isinstance(values, Mapping) else [((), values)]:
        family.add_metric(list(labels), value)
    return family
