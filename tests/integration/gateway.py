"""The chart's gateway on loopback: helm's render, the real HAProxy, the real DNS server.

What a pod has and a test has not is replaced in the rendered text, and nothing else: the address
that is bound, where the certificate lies, the cluster's DNS server, the port of pools, and for how
long a name's address is believed, so that a test of its change need not wait as long.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from tests.kube.binaries import find
from tests.kube.helm import CHART, found_helm, one

from dovetail.errors import MissingTool
from dovetail_cli.ray_pool import free_port

HOST: Final = "dovetail-gateway.dovetail-system.svc"
_HAPROXY: Final = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_TIED: Final = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
_WAIT: Final = 30.0


def until(look: Callable[[], Any], what: str, seconds: float = _WAIT) -> Any:
    """Look until there is something; fails with what was missed."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)
    return found


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def seen(self) -> Any:
        """What an upstream says that it was asked."""
        return json.loads(self.body)


class Upstream:
    """Stands where a pool would: says what it was asked, or sends a body back."""

    def __init__(self, address: str, port: int) -> None:
        self.address, self.port, self.connections = address, port, 0
        self.begun, self.go_on = threading.Event(), threading.Event()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                upstream.connections += 1

            def do_GET(self) -> None:
                if self.path == "/wait":
                    upstream.begun.set()
                    upstream.go_on.wait(_WAIT)
                if self.path == "/break":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b"half")
                    self.close_connection = True
                    return
                if self.path == "/hang-up":
                    self.close_connection = True
                    return
                self._say(b"")

            def do_POST(self) -> None:
                body = b"".join(self._chunks())
                if self.path == "/echo":
                    self._answer(body, "application/octet-stream")
                else:
                    self._say(body)

            def _chunks(self) -> Iterator[bytes]:
                if "Content-Length" in self.headers:
                    yield self.rfile.read(int(self.headers["Content-Length"]))
                    return
                while size := int(self.rfile.readline(), 16):
                    yield self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()

            def _say(self, body: bytes) -> None:
                said = {
                    "upstream": upstream.address,
                    "method": self.command,
                    "path": self.path,
                    "headers": {name.lower(): value for name, value in self.headers.items()},
                    "digest": hashlib.sha256(body).hexdigest(),
                    "size": len(body),
                }
                self._answer(json.dumps(said).encode(), "application/json")

            def _answer(self, body: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Dovetail-Plan", "7")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """What was asked is in the answers."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A connection that the other side ended is no news."""

        self._server = Server((address, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Names:
    """The cluster's DNS: a real CoreDNS that answers from a file of hosts.

    Attributes:
        file: the hosts.
        port: where it listens on loopback.
        process: the CoreDNS.
        hosts: addresses by name.
    """

    file: Path
    port: int
    process: subprocess.Popen[bytes] = field(init=False)
    hosts: dict[str, str] = field(default_factory=dict)

    def set(self, pool: str, namespace: str, address: str | None) -> None:
        """Let a pool's Service have an address, or let there be no such Service."""
        name = f"{pool}-serve-svc.{namespace}.svc.cluster.local"
        self.hosts.pop(name, None)
        if address is not None:
            self.hosts[name] = address
        new = self.file.with_suffix(".new")
        new.write_text("".join(f"{at} {name}\n" for name, at in self.hosts.items()))
        new.replace(self.file)


@contextmanager
def running_names(folder: Path) -> Iterator[Names]:
    """A DNS server; skipped, with what to do, where there is none."""
    try:
        program = find("coredns")
    except MissingTool as error:
        pytest.skip(str(error))
    names = Names(folder / "hosts", free_port())
    names.file.write_text("")
    (folder / "Corefile").write_text(
        f"cluster.local:{names.port} {{\n  bind 127.0.0.1\n"
        f"  hosts {names.file} {{\n    ttl 1\n    reload 100ms\n  }}\n}}\n"
    )
    command = [*_TIED, str(program.path), "-conf", str(folder / "Corefile")]
    with (folder / "coredns.log").open("wb") as log:
        names.process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield names
    finally:
        names.process.kill()
        names.process.wait()


@dataclass
class Gateway:
    """HAProxy as the chart's pod runs it.

    Attributes:
        port: where it listens on loopback.
        certificates: folder with its certificate and key, and beside them what devices trust.
        process: the pod's script.
        names: the DNS that it asks.
        upstream_port: the port on which it expects pools.
        log: what it says.
    """

    port: int
    certificates: Path
    process: subprocess.Popen[bytes]
    names: Names
    upstream_port: int
    log: Path

    @property
    def ca_file(self) -> Path:
        """What devices trust."""
        return self.certificates.parent / "ca.crt"

    def tls(self, *, host: str = HOST, ca: Path | None = None) -> ssl.SSLSocket:
        """A connection whose certificate was verified."""
        context = ssl.create_default_context(cafile=ca or self.ca_file)
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=_WAIT)
        try:
            return context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise

    def connection(self) -> http.client.HTTPConnection:
        """The same for HTTP."""
        made = http.client.HTTPConnection(HOST, self.port, timeout=_WAIT)
        made.sock = self.tls()
        return made

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        over: http.client.HTTPConnection | None = None,
    ) -> Answer:
        """One request, on a connection of its own unless one is given."""
        connection = over or self.connection()
        try:
            method = "GET" if body is None else "POST"
            connection.request(method, path, body, dict(headers or {}))
            got = connection.getresponse()
            found = {name.lower(): value for name, value in got.getheaders()}
            return Answer(got.status, found, got.read())
        finally:
            if over is None:
                connection.close()

    def serial(self) -> int:
        """Serial number of the certificate that a new connection is shown."""
        from cryptography import x509

        with self.tls() as sock:
            shown = sock.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number

    def replace_certificate(self, secret: Mapping[str, str]) -> None:
        """Put another certificate where a kubelet would: all files at once, by one rename."""
        _write_certificate(self.certificates, secret)


def _write_certificate(folder: Path, secret: Mapping[str, str]) -> None:
    """Files of a Secret's volume: a link to a folder that another takes the place of."""
    home = folder.parent
    data = home / f"data-{len(list(home.glob('data-*')))}"
    data.mkdir()
    (data / "tls.crt").write_bytes(b64decode(secret["tls.crt"]))
    (data / "tls.crt.key").write_bytes(b64decode(secret["tls.key"]))
    link = home / "link"
    link.symlink_to(data.name)
    link.replace(folder)
    part = home / "ca.crt.part"  # whoever asks meanwhile reads the one or the other
    part.write_bytes(b64decode(secret["ca.crt"]))
    part.replace(home / "ca.crt")


@contextmanager
def running_gateway(
    folder: Path, names: Names, upstream_port: int, **values: Any
) -> Iterator[Gateway]:
    """The gateway of a release with these values; skipped, with what to do, without HAProxy."""
    if _HAPROXY is None:
        pytest.skip("haproxy is not on PATH; on Debian: apt-get install haproxy")
    objects = found_helm(folder).template(**values)
    text = one(objects, "ConfigMap", "dovetail-gateway")["data"]["haproxy.cfg"]
    certificates, port = folder / "tls", free_port()
    _write_certificate(certificates, one(objects, "Secret", "dovetail-gateway-tls")["data"])
    for pattern, instead in (
        (r"bind :8443", f"bind 127.0.0.1:{port}"),
        (r"/etc/gateway/tls/", f"{certificates}/"),
        (r"parse-resolv-conf", f"nameserver test 127.0.0.1:{names.port}"),
        (r"hold valid 10s", "hold valid 1s"),
        (r":8000\b", f":{upstream_port}"),
    ):
        text, count = re.subn(pattern, instead, text)
        assert count, f"the chart's configuration has no {pattern} any more"
    (folder / "haproxy.cfg").write_text(text)
    script = str(CHART / "files" / "gateway.sh")
    command = [*_TIED, "/bin/sh", script, str(folder / "haproxy.cfg"), str(certificates), "1"]
    path = f"{Path(_HAPROXY).parent}:{os.environ['PATH']}"
    log = folder / "haproxy.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=sink, env=os.environ | {"PATH": path}
        )
    gateway = Gateway(port, certificates, process, names, upstream_port, log)
    try:
        until(lambda: _answers(gateway), f"HAProxy to answer; it said: {log.read_text()}")
        yield gateway
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


def _answers(gateway: Gateway) -> bool:
    assert gateway.process.poll() is None, gateway.log.read_text()
    try:
        return gateway.ask("/healthz").body == b"ok\n"
    except OSError:
        return False
