"""The link: kept-alive HTTP/1.1 connections to the tail, and one exchange on one of them.

Why not a client library: while a request waits for the tail, its own thread must be able to begin
the edge's continuation at a given moment, also while the body is still being sent over a slow
link, and to leave as soon as that continuation is done. No client offers that without a thread or
an event loop in between, and those hops cost more than the exchange itself. What is left is small:
one non-blocking socket, `poll`, and httptools (the parser uvicorn uses) for the answers.

What it prevents: a connection on which anything went wrong, or whose answer was not waited for, is
closed and never used again, so an answer can't reach a request it was not made for. Answers are
bounded before they are read. Names are resolved only in the constructor and in `resolve`, which
the background thread calls: a resolver that hangs while offline must neither hold a request nor the
start of a device that can answer by itself.

TLS is a socket of another make (`secure`); nothing else here knows of it.
"""

import contextlib
import errno
import math
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httptools

from dovetail.errors import DeadlineExceeded, ManifestError, TailUnavailable
from dovetail.tensor import Buffer
from dovetail_edge.secure import SecureSocket, Trust

_CHUNK = 64 << 10
_MAX_HEADERS = 32 << 10
_MAX_PARTS = 64  # buffers a system call is given; the system's own limit is 1024
_MAX_IDLE = 8  # connections kept; more only while more requests are under way
_FIRST_LOOK = 1.0  # seconds that a new link waits for its name; later looks go on without it
_PORTS = {"http": 80, "https": 443}

Connection = socket.socket | SecureSocket


class Overtaken(Exception):
    """What an alarm began was done before the tail answered."""


class Alarm(Protocol):
    """Something to begin at a moment while an exchange waits.

    Attributes:
        at: when, on `time.monotonic`.
    """

    at: float

    def ring(self) -> int:
        """Begin, once; returns a file descriptor that turns readable when it is done."""


@dataclass(frozen=True, slots=True)
class Call:
    """An HTTP request.

    Attributes:
        method: HTTP method.
        path: path below the endpoint, starting with a slash.
        headers: headers beside Host and Content-Length.
        body: the body, in parts that are sent one behind the other: joining them would copy it.
        limit: most bytes of body that an answer may have.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[Buffer] = ()
    limit: int = 1 << 20

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum(map(len, self.body))


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer.

    Attributes:
        status: status code.
        headers: by lower-case name.
        body: the body, in memory of its own.
        seconds: from the first byte sent to the last byte received.
        connect: seconds spent connecting before that; 0 on a kept connection.
        sent: bytes of the request's body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytearray
    seconds: float
    connect: float
    sent: int


class TailLink:
    """Connections to one endpoint; safe to use from many threads.

    Args:
        endpoint: `http://host:port[/prefix]`, or `https://…`.
        ca_file: whom to trust under https; None for the system's authorities.

    Attributes:
        endpoint: as given.
        trust: whom new connections trust; None without TLS.

    Raises:
        ManifestError: the endpoint is not such a URL, or the CA file cannot be used.
    """

    def __init__(self, endpoint: str, ca_file: Path | None = None) -> None:
        parts = urlsplit(endpoint)
        try:
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError:
            port = 0
        if parts.scheme not in _PORTS or not parts.hostname or not port:
            raise ManifestError(
                f"endpoint {endpoint!r} is not http://host:port[/prefix] or https://…"
            )
        self.endpoint = endpoint
        self.trust = Trust(ca_file) if parts.scheme == "https" else None
        self._host, self._port, self._prefix = parts.hostname, port, parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._addresses: list[tuple[int, tuple[object, ...]]] = []
        self._idle: deque[Connection] = deque()
        first = threading.Thread(target=self.resolve, name="dovetail-resolve", daemon=True)
        first.start()
        first.join(_FIRST_LOOK)

    def resolve(self) -> None:
        """Look the host up; the last addresses are kept where that fails."""
        with contextlib.suppress(OSError):
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = [(family, address) for family, _, _, _, address in found]

    def call(
        self, call: Call, until: float, *, alarm: Alarm | None = None, fresh: bool = False
    ) -> Reply:
        """Send a request and wait for the answer.

        Args:
            call: the request.
            until: when to give up, on `time.monotonic`.
            alarm: what to begin if the answer takes long.
            fresh: whether a kept connection must not be used.

        Raises:
            DeadlineExceeded: no answer by `until`.
            Overtaken: what the alarm began is done.
            TailUnavailable: refused, cut off, or not answered in HTTP.
        """
        wait = _Wait(until, alarm)
        begin = time.monotonic()
        sock = (None if fresh else self._kept()) or self._connect(wait)
        connected = time.monotonic()
        try:
            reader = _converse(sock, self._head(call), call, wait)
        except BaseException:
            sock.close()
            raise
        done = time.monotonic()
        if reader.keep and len(self._idle) < _MAX_IDLE:
            self._idle.append(sock)
        else:
            sock.close()
        return Reply(
            reader.status,
            reader.headers,
            reader.body,
            done - connected,
            connected - begin,
            call.size,
        )

    def close(self) -> None:
        """Close the kept connections."""
        while self._idle:
            self._idle.pop().close()

    def _kept(self) -> Connection | None:
        """A kept connection that the peer has not closed."""
        while True:
            try:
                sock = self._idle.pop()
            except IndexError:
                return None
            try:
                sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return sock
            except OSError:
                pass
            sock.close()  # closed by the peer, or it spoke unasked

    def _connect(self, wait: "_Wait") -> Connection:
        problem = "its name does not resolve"
        for family, address in self._addresses:
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                code = sock.connect_ex(address)
                if code == errno.EINPROGRESS:
                    wait.ready(sock, select.POLLOUT)
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            except BaseException:
                sock.close()
                raise
            if code == 0:
                return self._secured(sock, wait)
            sock.close()
            problem = os.strerror(code)
        raise TailUnavailable(f"cannot connect to the tail at {self.endpoint}: {problem}")

    def _secured(self, sock: socket.socket, wait: "_Wait") -> Connection:
        """The connection as it is used: under TLS where the endpoint says so."""
        if self.trust is None:
            return sock
        secure = SecureSocket(sock, self.trust, self._host, self.endpoint)
        try:
            while events := secure.shake():
                wait.ready(secure, events)
        except BaseException:
            secure.close()
            raise
        return secure

    def _head(self, call: Call) -> bytes:
        lines = [
            f"{call.method} {self._prefix}{call.path} HTTP/1.1",
            f"Host: {self._authority}",
            f"Content-Length: {call.size}",
            *(f"{name}: {value}" for name, value in call.headers.items()),
            "\r\n",
        ]
        return "\r\n".join(lines).encode("latin-1")


class _Wait:
    """Waits for a socket, rings the alarm when it is time, and gives up in the end."""

    def __init__(self, until: float, alarm: Alarm | None) -> None:
        self._until, self._alarm = until, alarm
        self._done = -1  # the alarm's file descriptor, once rung

    def ready(self, sock: Connection, events: int) -> None:
        poll = select.poll()
        poll.register(sock, events)
        if self._done >= 0:
            poll.register(self._done, select.POLLIN)
        while True:
            limit, now = self._until, time.monotonic()
            if self._alarm is not None and self._done < 0:
                if now >= self._alarm.at:
                    self._done = self._alarm.ring()
                    poll.register(self._done, select.POLLIN)
                else:
                    limit = min(limit, self._alarm.at)
            if now >= self._until:
                raise DeadlineExceeded("the tail did not answer in time")
            pause = None if math.isinf(limit) else math.ceil((limit - now) * 1e3)
            ready = {descriptor for descriptor, _ in poll.poll(pause)}
            if sock.fileno() in ready:
                return
            if ready:
                raise Overtaken


class _Reader:
    """What httptools calls while it parses an answer."""

    def __init__(self, limit: int) -> None:
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.done = self.keep = False
        self.status = 0
        self._limit, self._head_bytes, self._in_head = limit, 0, True
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: memoryview) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise TailUnavailable(f"the tail's answer is not HTTP: {error}") from error
        if self._in_head and self._head_bytes > _MAX_HEADERS:
            raise TailUnavailable(f"the tail's answer has over {_MAX_HEADERS} bytes of headers")
        if len(self.body) > self._limit:
            raise TailUnavailable(f"the tail's answer is larger than {self._limit} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True
        self.keep = self._parser.should_keep_alive()


def _converse(sock: Connection, head: bytes, call: Call, wait: _Wait) -> _Reader:
    """Send head and body; read the answer, which may begin before the body is sent."""
    reader = _Reader(call.limit)
    parts = [memoryview(part) for part in (head, *call.body)]
    buffer = memoryview(bytearray(_CHUNK))
    try:
        while not reader.done:
            parts = _send(sock, parts)
            wait.ready(sock, select.POLLIN | (select.POLLOUT if parts else 0))
            _receive(sock, reader, buffer)
    except OSError as error:
        raise TailUnavailable(f"the connection to the tail broke: {error.strerror}") from error
    if parts:
        reader.keep = False  # answered early: the rest of the body was never sent
    return reader


def _send(sock: Connection, parts: list[memoryview]) -> list[memoryview]:
    """Send what the socket takes; returns what is left."""
    left = [part for part in parts if part]
    if left:
        with contextlib.suppress(BlockingIOError):
            sent = sock.sendmsg(left[:_MAX_PARTS])
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if left:
                left[0] = left[0][sent:]
    return left


def _receive(sock: Connection, reader: _Reader, buffer: memoryview) -> None:
    """Read what has arrived, if anything."""
    while not reader.done:
        try:
            size = sock.recv_into(buffer)
        except BlockingIOError:
            return
        if size == 0:
            raise TailUnavailable("the tail closed the connection before its answer was complete")
        reader.feed(buffer[:size])
