"""The request that something is done for. Its id, and its place in a trace, stay with a job on its way through the queue."""

from contextvars import ContextVar
from dataclasses import dataclass

from core.logs import bind


@dataclass(frozen=True, kw_only=True)
class Origin:
    request_id: str
    traceparent: str = ""  # as W3C Trace Context writes it; '' when nothing is traced

    @property
    def trace_id(self) -> str | None:
        return self.traceparent.split("-")[1] if self.traceparent else None


_current: ContextVar[Origin | None] = ContextVar("origin", default=None)


def begin(origin: Origin) -> None:
    """From here on this task, and those it starts, work for that request; their log lines say so."""
    _current.set(origin)
    bind(request_id=origin.request_id, trace_id=origin.trace_id)


def current() -> Origin | None:
    """None when no request is behind what is done."""
    return _current.get()
