"""The client of an edge, where something else answers."""

import http.server
import threading

import pytest

from dovetail.errors import Unavailable
from dovetail_cli.local.client import EdgeClient
from dovetail_cli.ray_pool import free_port


class Metrics(http.server.BaseHTTPRequestHandler):
    """Answers every path with text, as an exporter of metrics does."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"# HELP up 1 where it is up")

    def log_message(self, *_):
        pass


def test_somebody_else_on_the_edges_port_is_named():
    """Verify that text is no traceback but says where what answers is no edge."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]

        with pytest.raises(Unavailable, match=f"127.0.0.1:{port} is no edge"):
            EdgeClient(f"http://127.0.0.1:{port}").status()

        server.shutdown()


def test_a_port_is_given_once():
    """Verify that two that begin together, and listen later, do not get the same."""
    ports = [free_port() for _ in range(900)]

    assert len(set(ports)) == len(ports)
