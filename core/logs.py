"""Log lines: JSON, one an event, each with what is known of where it happened: the request, the job, the attempt, the trace."""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from pythonjsonlogger.json import JsonFormatter

_bound: ContextVar[Mapping[str, Any]] = ContextVar("bound", default=MappingProxyType({}))


def bind(**fields: Any) -> None:
    """From here on the lines of this task (or thread), and of the tasks it starts, have these fields; None takes one away."""
    _bound.set({name: value for name, value in {**_bound.get(), **fields}.items() if value is not None})


def bound() -> Mapping[str, Any]:
    """What the lines have here."""
    return _bound.get()


class Lines(JsonFormatter):
    """A line as JSON. What an event says itself counts more than what is bound."""

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        super().add_fields(log_data, record, message_dict)
        for name, value in _bound.get().items():
            log_data.setdefault(name, value)
