"""Traces, told to an OpenTelemetry collector over OTLP/HTTP when its address is set. The variables are OpenTelemetry's own.

The SDK is an extra (`otel`) and is imported then alone; without an address nothing is.
"""

import logging
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_FLUSH_S = 2.0  # for the last spans, when the collector is gone as well

log = logging.getLogger(__name__)


def provider_for(service: str) -> "TracerProvider | None":
    """What makes this process' spans and sends them, in a thread of its own; None when nobody wants any.

    An address without the SDK, or of another protocol, is a warning: such variables are often set for a whole machine.
    """
    if not _is_wanted():
        return None
    if (protocol := _first(_PROTOCOLS) or "http/protobuf") != "http/protobuf":
        log.warning("no traces: OTLP is spoken as http/protobuf alone", extra={"protocol": protocol})
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no traces: an OTLP endpoint is set, and the extra is missing: pip install '.[otel]'")
        return None
    named = {SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME") or service}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def close(provider: "TracerProvider | None") -> None:
    """Send what is left, and wait for that no longer than a moment."""
    if provider is not None:
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        ending.join(_FLUSH_S)


def traceparent() -> str:
    """The span that is open here, as W3C Trace Context writes it; '' without one. For processes that serve FastAPI."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def _is_wanted() -> bool:
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    return bool(_first(ENDPOINTS)) and not off


def _first(names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := os.environ.get(name))), "")
