"""A proxy before the real API server that falls silent or refuses when told, and else hands on.

Reads only, over plain HTTP, so that clients need no other certificate. A connection that a network
lost without a word looks to its client as a stream does here that was hushed: open, and no byte
comes. A server that has too much to do says so as this one does, in plain text and with a time.
"""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import yaml
from tests.kube.apiserver import ApiServer

_REFUSAL: Final = b"Too many requests, please try again later."


@dataclass(slots=True)
class Between:
    """What went through the proxy, and what shall not.

    Attributes:
        server: the API server behind it.
        kubeconfig: file for clients that shall come through it.
        lists: when each list was asked for, by the monotonic clock, and the status it was given.
        swallowed: bytes of watches that nobody was given.
        refusals: seconds that each of the next lists is asked to wait instead of an answer.
    """

    server: ApiServer
    kubeconfig: Path
    lists: list[tuple[float, int]] = field(default_factory=list)
    swallowed: int = 0
    refusals: list[int] = field(default_factory=list)
    _hush: threading.Event = field(default_factory=threading.Event)

    def hush(self) -> None:
        """Every watch that is open stays open, and nothing of it arrives any more."""
        self._hush.set()
        self._hush = threading.Event()  # of the watches that come

    def answer(self, client: http.server.BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        if "watch" in parse_qs(urlsplit(client.path).query):
            self._relay(client, self._hush)
            return
        began = time.monotonic()
        if self.refusals:
            self.lists.append((began, 429))
            client.send_response(429)
            client.send_header("Retry-After", str(self.refusals.pop(0)))
            client.send_header("Content-Length", str(len(_REFUSAL)))
            client.end_headers()
            client.wfile.write(_REFUSAL)
        else:
            self.lists.append((began, self._relay(client, threading.Event())))

    def _relay(self, client: http.server.BaseHTTPRequestHandler, hushed: threading.Event) -> int:
        headers = {"Accept": client.headers["Accept"]}
        with self.server.client.stream("GET", client.path, headers=headers, timeout=None) as answer:
            client.send_response(answer.status_code)
            client.send_header("Content-Type", answer.headers["Content-Type"])
            client.send_header("Transfer-Encoding", "chunked")
            client.end_headers()
            for chunk in answer.iter_bytes():
                if hushed.is_set():
                    self.swallowed += len(chunk)
                else:
                    client.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            client.wfile.write(b"0\r\n\r\n")
            return answer.status_code


@contextmanager
def between(server: ApiServer, folder: Path) -> Iterator[Between]:
    """Put a proxy before an API server."""
    kubeconfig = folder / "between.kubeconfig"
    proxy = Between(server, kubeconfig)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # a stream comes in chunks

        def do_GET(self) -> None:
            try:
                proxy.answer(self)
            except OSError:  # who asked has gone
                return

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        document = yaml.safe_load(server.kubeconfig.read_text())
        document["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{listener.server_port}"}
        kubeconfig.write_text(yaml.safe_dump(document))
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            listener.shutdown()
