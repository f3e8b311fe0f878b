"""A request is followed through the queue: its id in the logs of API, worker and trainer, its trace at a collector."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from core import tracing
from core.jobs.job import Status
from tests.conftest import ROOT, Server, eventually, serving

SHORT = {"optimizer": "adam", "learning_rate": 0.001, "epochs": 1, "batch_size": 500}
LONG = SHORT | {"epochs": 1000, "batch_size": 100, "log_every": 100}
CALLER, TRACE = "00f067aa0ba902b7", "4bf92f3577b34da6a3ce929d0e0e4736"
Line = dict[str, Any]


class Collector:
    """An OTLP/HTTP collector: keeps what spans it is sent, by service."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        collector = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf":
                    collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            facts = {it.key: it.value.string_value for it in resource.resource.attributes}
            self.spans += [(facts["service.name"], span) for scope in resource.scope_spans for span in scope.spans]

    def of(self, trace_id: str) -> dict[str, list[Span]]:
        """The spans of a trace, by service and name."""
        found: dict[str, list[Span]] = {}
        for service, span in list(self.spans):
            if span.trace_id.hex() == trace_id:
                found.setdefault(f"{service}: {span.name}", []).append(span)
        return found


def attributes(span: Span) -> dict[str, Any]:
    return {it.key: getattr(it.value, it.value.WhichOneof("value") or "") for it in span.attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    serving_it = threading.Thread(target=collector.server.serve_forever)
    serving_it.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    serving_it.join()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, mnist: object, collector: Collector
) -> Iterator[Server]:
    """A server that is traced, and sends its spans soon."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as environment:  # of the server; ours is as before when it has started
            environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
            running = stack.enter_context(serving(tmp_path_factory.mktemp("traced"), cache, beat_s="0.3", lease_s="2"))
        yield running


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url) as http:
        yield http


def lines(server: Server, service: str) -> list[Line]:
    """What a service has logged, every line of it: one that is no JSON raises."""
    return [json.loads(text) for text in (server.home / "logs" / f"{service}.log").read_text().splitlines()]


def lines_with(server: Server, service: str, **facts: object) -> list[Line]:
    return [line for line in lines(server, service) if facts.items() <= line.items()]


def is_over(http: httpx2.Client, job_id: str) -> Line | None:
    job: Line = http.get(f"/jobs/{job_id}").json()
    return job if job["terminal"] else None


@pytest.fixture(scope="module")
def followed(http: httpx2.Client) -> tuple[str, str]:
    """The id of a request, which is part of a caller's trace, and of the job that it made, which has ended."""
    answer = http.post("/jobs", json=SHORT, headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    job_id = answer.json()["id"]
    assert eventually(lambda: is_over(http, job_id), within_s=60)["status"] == Status.SUCCEEDED
    return answer.headers["X-Request-ID"], job_id


def test_a_request_is_followed_by_its_id_to_the_trainers_log(server: Server, followed: tuple[str, str]) -> None:
    request_id, job_id = followed
    of_api = lines_with(server, "api", request_id=request_id)
    assert {"job created", "request"} <= {line["event"] for line in of_api}
    of_worker = eventually(
        lambda: (
            found
            if (found := lines_with(server, "worker-1", request_id=request_id, job_id=job_id, attempt=1))
            and found[-1]["event"] == "job left"
            else None
        )
    )
    events = [(line["logger"], line["event"]) for line in of_worker]
    assert ("worker.run", "job claimed") in events
    trainers = [event for logger, event in events if logger == "__main__"]
    assert trainers == ["training began", "training ended"]
    assert all({"at", "level", "logger", "event"} <= line.keys() for line in of_api + of_worker)


def test_the_job_says_which_request_made_it(http: httpx2.Client, followed: tuple[str, str]) -> None:
    request_id, job_id = followed
    asked = [(t["status"], t["request_id"]) for t in http.get(f"/jobs/{job_id}").json()["transitions"]]
    assert asked == [("queued", request_id), ("running", None), ("succeeded", None)]


def test_who_cancels_or_resumes_is_followed_as_well(server: Server, http: httpx2.Client) -> None:
    job_id = http.post("/jobs", json=LONG, headers={"X-Request-ID": "made"}).json()["id"]
    eventually(lambda: http.get(f"/jobs/{job_id}").json()["latest"], within_s=60)
    http.post(f"/jobs/{job_id}/pause", headers={"X-Request-ID": "paused-it"})
    eventually(lambda: http.get(f"/jobs/{job_id}").json()["status"] == "paused")
    http.post(f"/jobs/{job_id}/resume", headers={"X-Request-ID": "resumed-it"})
    eventually(lambda: http.get(f"/jobs/{job_id}").json()["status"] == "running")
    http.post(f"/jobs/{job_id}/cancel", headers={"X-Request-ID": "cancelled-it"})
    job = eventually(lambda: is_over(http, job_id), within_s=60)
    told = [(t["status"], t["request_id"]) for t in job["transitions"] if t["request_id"]]
    assert told == [
        ("queued", "made"), ("pausing", "paused-it"), ("queued", "resumed-it"), ("cancelling", "cancelled-it"),
    ]  # fmt: skip
    left = eventually(lambda: (found := lines_with(server, "worker-1", job_id=job_id, event="job left"))[1:] and found)
    told_by = [(line["request_id"], line["ended"], line["asked_by"]) for line in left]
    assert told_by == [("made", "paused", "paused-it"), ("resumed-it", "cancelled", "cancelled-it")]


def test_a_callers_own_id_is_kept_when_it_is_well_formed(http: httpx2.Client) -> None:
    def answered(*sent: str) -> str:
        answer = http.get("/jobs/nothing", headers=[("X-Request-Id", it) for it in sent])
        assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
        return str(answer.headers["X-Request-ID"])

    for own in ("0198a3c2-7c5e-7000-8000-aabbccddeeff", "Root=1-67891233-abcdef012345678912345678", "a" * 128):
        assert answered(own) == own
    for odd in ("", "a" * 129, 'say "hi"', "a b", "{}"):
        assert len(answered(odd)) == 32
    assert len(answered("one", "two")) == 32
    assert answered() != answered()


def test_one_trace_holds_the_request_and_the_run(
    collector: Collector, server: Server, followed: tuple[str, str]
) -> None:
    request_id, job_id = followed
    spans = eventually(lambda: found if "descent-worker: train" in (found := collector.of(TRACE)) else None)
    ((request,), (epoch,), (run,)) = (
        spans.pop(name) for name in ("descent-api: POST /jobs", "descent-worker: epoch", "descent-worker: train")
    )
    assert not spans
    assert request.parent_span_id.hex() == CALLER
    assert run.parent_span_id == request.span_id
    assert epoch.parent_span_id == run.span_id
    assert run.start_time_unix_nano < epoch.start_time_unix_nano < epoch.end_time_unix_nano < run.end_time_unix_nano
    assert attributes(epoch)["descent.valid_accuracy"] > 0.5
    assert attributes(run) == {
        "descent.job.id": job_id, "descent.job.attempt": 1, "descent.job.optimizer": "adam",
        "descent.job.device": "cpu", "descent.job.status": "succeeded",
    }  # fmt: skip
    assert [event.name for event in run.events] == ["training began"]
    for service in ("api", "worker-1"):
        assert lines_with(server, service, trace_id=TRACE, request_id=request_id, job_id=job_id)


def test_a_run_that_is_given_up_says_why(collector: Collector, http: httpx2.Client) -> None:
    trace_id = "5bf92f3577b34da6a3ce929d0e0e4736"
    hopeless = SHORT | {"optimizer": "sgd", "learning_rate": 1e6, "batch_size": 10}
    sent = {"traceparent": f"00-{trace_id}-{CALLER}-01"}
    job_id = http.post("/jobs", json=hopeless, headers=sent).json()["id"]
    assert eventually(lambda: is_over(http, job_id), within_s=60)["error"]["code"] == "diverged"
    (run,) = eventually(lambda: collector.of(trace_id).get("descent-worker: train"))
    assert run.status.code == run.status.STATUS_CODE_ERROR
    assert attributes(run)["descent.job.reason"] == "diverged"


def test_what_asks_for_ever_is_not_traced(collector: Collector, http: httpx2.Client) -> None:
    http.get("/healthz")
    http.get("/optimizers")
    eventually(lambda: any(span.name == "GET /optimizers" for _, span in list(collector.spans)))
    assert not {span.name for _, span in collector.spans} & {"GET /healthz", "GET /readyz", "GET /metrics"}


def test_nothing_of_it_is_loaded_when_no_collector_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; from core.settings import Settings; from pathlib import Path\n"
        f"settings = Settings(home=Path({str(tmp_path)!r}))\n"
        "from api.app import create_app; create_app(settings)\n"
        "from core.devices import slots; from worker.app import make_app; make_app(settings, slots(settings)[0])\n"
        "print(*(name for name in sys.modules if name.startswith(('opentelemetry.exporter', 'opentelemetry.sdk.trace'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("environment", "missing", "said"),
    [
        ({}, "opentelemetry.sdk.trace", "pip install '.[otel]'"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None, "http/protobuf alone"),
        ({"OTEL_SDK_DISABLED": "true"}, None, None),
    ],
)
def test_traces_that_cannot_be_sent_are_a_warning_and_not_the_end(
    environment: dict[str, str], missing: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **environment}.items():
        monkeypatch.setenv(name, value)
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    with caplog.at_level(logging.WARNING):
        assert tracing.provider_for("descent-test") is None
    assert [said in record.getMessage() for record in caplog.records if said] == [True] * bool(said)
    assert bool(caplog.records) == bool(said)
