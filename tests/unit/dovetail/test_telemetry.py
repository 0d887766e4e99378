"""Telemetry: silent unless a collector is named, and then real OTLP over HTTP."""

import http.server
import os
import subprocess
import sys
import threading

import pytest
from opentelemetry import context

from dovetail import telemetry

SCRIPT = """
from dovetail import telemetry
from dovetail.ladder import Parts
from dovetail.measure import Sample
telemetry.setup("dovetail-edge")
headers = {}
with telemetry.span(telemetry.SPAN_REQUEST):
    telemetry.inject(headers)
telemetry.record(Sample("cut1", Parts(head=0.001), 0.002, "ok"))
from opentelemetry import metrics, trace
for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
    if hasattr(provider, "force_flush"):
        provider.force_flush()
print(headers.get("traceparent", "none"))
"""


def run(**more: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")} | more
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_without_a_collector_nothing_is_loaded_and_no_header_is_sent() -> None:
    """The no-op path: no trace, and so no `traceparent`."""
    assert run() == "none"


def test_with_a_collector_spans_and_metrics_arrive_there() -> None:
    """Both signals reach the named endpoint, and the trace continues in the header."""
    seen: dict[str, bytes] = {}

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            seen[self.path] = seen.get(self.path, b"") + self.rfile.read(length)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        parent = run(
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.server_address[1]}",
            OTEL_EXPORTER_OTLP_COMPRESSION="none",
        )
        server.shutdown()
    assert parent.startswith("00-")
    assert b"dovetail.edge" in seen["/v1/traces"]
    assert b"dovetail.request.duration" in seen["/v1/metrics"]
    assert b"dovetail.stage.duration" in seen["/v1/metrics"]


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}])
def test_a_missing_or_senseless_traceparent_is_no_error(headers: dict[str, str]) -> None:
    """A caller's header must not be able to break a request."""
    found = telemetry.extract(headers)
    with telemetry.span("x", found) as span:
        assert not span.get_span_context().is_valid


def test_a_callers_trace_passes_through_a_process_without_an_sdk() -> None:
    """Nothing is recorded here, and whoever is called next still belongs to the trace."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    caller = telemetry.extract({"traceparent": parent})
    assert caller is not None
    token = context.attach(caller)
    headers: dict[str, str] = {}
    with telemetry.span(telemetry.SPAN_CALL):
        telemetry.inject(headers)
    context.detach(token)

    assert headers == {"traceparent": parent}
