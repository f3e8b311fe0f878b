"""One attempt at a job as a span of the trace that its request began; nothing at all when traces are off."""

import time
from typing import TYPE_CHECKING, Any, Self

from core.jobs.job import Status
from core.jobs.work import Claim

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class Span:
    """From the claim to the end. An epoch is a span below it, which is sent when the epoch is over."""

    def __init__(self, provider: "TracerProvider | None", claim: Claim, *, device: str) -> None:
        self._span: Any = None
        if provider is None:
            return
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = {"traceparent": claim.origin.traceparent} if claim.origin else {}
        self._tracer = provider.get_tracer("descent")
        self._span = self._tracer.start_span(
            "train",
            context=TraceContextTextMapPropagator().extract(parent),
            kind=SpanKind.CONSUMER,
            attributes={
                "descent.job.id": claim.job_id,
                "descent.job.attempt": claim.attempt,
                "descent.job.optimizer": claim.spec.optimizer.name,
                "descent.job.device": claim.spec.device if claim.spec.device != "auto" else device,
            },
        )
        self._inside = set_span_in_context(self._span)
        self._epoch_began, self._epoch = time.time_ns(), 0
        self._steps_per_epoch = claim.spec.steps_per_epoch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.end("lost", reason=kind.__name__)

    @property
    def trace_id(self) -> str | None:
        return f"{self._span.get_span_context().trace_id:032x}" if self._span else None

    def began(self, backend: dict[str, Any], resumed_from: int | None) -> None:
        """The trainer is at work, on that. What it tells of the epochs before is told again, and no span of this attempt."""
        if self._span:
            self._span.set_attribute("descent.job.device", backend["device"])
            self._span.add_event("training began", backend | {"resumed_from_step": resumed_from or 0})
            self._epoch_began, self._epoch = time.time_ns(), (resumed_from or 0) // self._steps_per_epoch

    def epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch is over. It may be told twice, when its way to Redis was cut."""
        if self._span and metrics["epoch"] == self._epoch:
            told = {f"descent.{name}": value for name, value in metrics.items() if value is not None}
            span = self._tracer.start_span("epoch", self._inside, attributes=told, start_time=self._epoch_began)
            self._epoch_began, self._epoch = time.time_ns(), self._epoch + 1
            span.end(self._epoch_began)

    def end(self, status: str, *, reason: str | None = None, asked_by: str | None = None) -> None:
        """`status`: the job's, or `lost`; `reason`: why it was stopped or failed; `asked_by`: the request that wanted it."""
        if self._span:
            from opentelemetry.trace import StatusCode

            known = {"status": status, "reason": reason, "asked_by": asked_by}
            self._span.set_attributes({f"descent.job.{name}": text for name, text in known.items() if text})
            if status in (Status.FAILED, "lost") or (status == Status.QUEUED and reason is None):  # its trainer died
                self._span.set_status(StatusCode.ERROR, reason or status)
            self._span.end()
