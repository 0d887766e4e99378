"""`/healthz`, `/readyz` and `/metrics`, telling the truth.

Alive means that every watch was heard of within its bound; ready that the stores are full. Who
leads is in neither: a standby is as healthy as a leader, and restarting it would help nobody.
"""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


class HealthServer:
    """Serves until stopped.

    Args:
        host: address to bind.
        port: port to bind; 0 for a free one.
        alive: whether the process works.
        ready: whether it knows the cluster.
    """

    def __init__(
        self, host: str, port: int, *, alive: Callable[[], bool], ready: Callable[[], bool]
    ) -> None:
        checks = {"/healthz": alive, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, generate_latest(), CONTENT_TYPE_LATEST)
                elif self.path in checks:
                    fine = checks[self.path]()
                    self._answer(200 if fine else 503, b"ok\n" if fine else b"no\n", "text/plain")
                else:
                    self._answer(404, b"not found\n", "text/plain")

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Probes come every few seconds; they are no news."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def port(self) -> int:
        """The port bound."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to serve; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
