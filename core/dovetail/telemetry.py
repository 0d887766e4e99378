"""OpenTelemetry: every span and metric name once, and the set-up of a process.

Rooms import this module and name no span or metric of their own, so a dashboard can be checked
against one list. Only the API is imported here. Without an SDK a metric is a cheap no-op and a span
is not even begun: the API's own no-op span costs a small request as much as its messages do. The
SDK is loaded by `setup`, and only where a collector was named: nobody who does not ask for
telemetry pays for it.

Names follow the OpenTelemetry naming guide (own namespace, seconds and bytes, no plurals). Labels
never hold a request id, a device id or a tensor name: they have no bound.

References: OpenTelemetry specification (metrics, trace); W3C Trace Context (`traceparent`).
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dovetail.errors import MissingTool
from dovetail.ladder import Parts
from dovetail.measure import PARTS, Sample

ENDPOINT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"

SPAN_REQUEST: Final = "dovetail.edge"  # an edge's whole request, the root of its trace
SPAN_HEAD: Final = "dovetail.edge.head"
SPAN_CALL: Final = "dovetail.edge.call"  # the client span around the tail
SPAN_TAIL: Final = "dovetail.tail"
SPAN_RECONCILE: Final = "dovetail.operator.reconcile"

RUNG: Final = "dovetail.rung"
DEPLOYMENT: Final = "dovetail.deployment"
GENERATION: Final = "dovetail.plan.generation"
OUTCOME: Final = "outcome"
STAGE: Final = "dovetail.stage"
REASON: Final = "reason"
DIRECTION: Final = "network.io.direction"

_tracer = trace.get_tracer("dovetail")
_no_span: Final = nullcontext(trace.INVALID_SPAN)
_meter = metrics.get_meter("dovetail")
_propagator = TraceContextTextMapPropagator()

request_duration = _meter.create_histogram(
    "dovetail.request.duration", "s", "Time from call to answer, as the caller waits"
)
stage_duration = _meter.create_histogram(
    "dovetail.stage.duration", "s", "Time of one part of a request"
)
crossing_io = _meter.create_counter("dovetail.crossing.io", "By", "Body bytes that crossed")
fallbacks = _meter.create_counter(
    "dovetail.edge.fallbacks", "{request}", "Requests the edge finished instead of the tail"
)
moves = _meter.create_counter("dovetail.moves", "{move}", "Changes of the rung in use")
plan_generation = _meter.create_gauge(
    "dovetail.plan.generation", "1", "Generation of the plan in use"
)
batch_size = _meter.create_histogram("dovetail.tail.batch.size", "{row}", "Rows computed together")
queue_length = _meter.create_up_down_counter(
    "dovetail.tail.queue.length", "{request}", "Requests that wait for a computation"
)


def setup(service: str) -> None:
    """Export spans and metrics of this process by OTLP over HTTP, if a collector is named.

    Does nothing unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

    Args:
        service: `service.name` of the process, such as `dovetail-edge`.

    Raises:
        MissingTool: a collector is named and the SDK is not installed.
    """
    if not os.environ.get(ENDPOINT_VARIABLE):
        return
    try:
        # Imported here: only a process that exports needs the SDK.
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415
            OTLPMetricExporter,
        )
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
        from opentelemetry.sdk.metrics.export import (  # noqa: PLC0415
            PeriodicExportingMetricReader,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise MissingTool(
            f"{ENDPOINT_VARIABLE} is set, but the OpenTelemetry SDK is not installed: "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
        ) from error
    resource = Resource.create({"service.name": service})
    traces = TracerProvider(resource=resource)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(traces)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    metrics.set_meter_provider(MeterProvider([reader], resource=resource))


def span(
    name: str, parent: Context | None = None, kind: trace.SpanKind = trace.SpanKind.INTERNAL
) -> AbstractContextManager[trace.Span]:
    """A span around a block; nothing at all while the process has no SDK.

    A caller's trace still passes through such a process: the span in use stays the caller's.

    Args:
        name: one of the `SPAN_` names.
        parent: the caller's trace; None for the span in use.
        kind: its side of a call.
    """
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return _no_span
    return _tracer.start_as_current_span(name, parent, kind)


def inject(headers: dict[str, str]) -> None:
    """Add the current span's `traceparent` to a request's headers, if it has one."""
    if trace.get_current_span().get_span_context().is_valid:
        _propagator.inject(headers)


def extract(headers: Mapping[str, str]) -> Context | None:
    """The caller's trace, to start a span in; None where the headers carry none.

    Args:
        headers: request headers, looked up by lower-case name.
    """
    parent = headers.get("traceparent")
    if parent is None:
        return None
    carrier = {"traceparent": parent, "tracestate": headers.get("tracestate", "")}
    return _propagator.extract(carrier)


def record(sample: Sample) -> None:
    """Record one request's metrics, from the very sample that control uses."""
    labels = {RUNG: sample.rung, OUTCOME: sample.outcome}
    request_duration.record(sample.total, labels)
    crossing_io.add(sample.bytes_up, {DIRECTION: "transmit"})
    crossing_io.add(sample.bytes_down, {DIRECTION: "receive"})
    stage_duration.record(sample.recv, {STAGE: "recv"})
    _record_parts(sample.parts)


def _record_parts(parts: Parts) -> None:
    for stage in PARTS:
        stage_duration.record(getattr(parts, stage), {STAGE: stage})
