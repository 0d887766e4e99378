"""A real TCP peer that misbehaves: what an edge may meet where its tail should be."""

import contextlib
import select
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

Conversation = Callable[[socket.socket], None]


def read_request(sock: socket.socket) -> bytes:
    """Read one HTTP request with a Content-Length whole; empty where the peer closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(65536)
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line[:15] == b"Content-Length:"
    )
    while len(body) < length:
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


def hang(sock: socket.socket) -> None:
    """Take everything, say nothing."""
    while sock.recv(65536):
        pass


def never_read(sock: socket.socket) -> None:
    """Take nothing, so that the sender's buffers fill."""
    threading.Event().wait(20)


def cut(sock: socket.socket) -> None:
    """Hang up after the first bytes."""
    sock.recv(1)


def cut_after_request(sock: socket.socket) -> None:
    """Take the whole request, then hang up, as a killed replica does."""
    read_request(sock)


def garbage(sock: socket.socket) -> None:
    """Answer in no protocol at all."""
    read_request(sock)
    sock.sendall(b"\x00\xff\x13garbage\r\n\r\n" * 50)


def says(answer: bytes) -> Conversation:
    """Answer every request on a connection with these bytes."""

    def converse(sock: socket.socket) -> None:
        while read_request(sock):
            sock.sendall(answer)

    return converse


def says_and_leaves(answer: bytes) -> Conversation:
    """Answer one request with these bytes and hang up."""

    def converse(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer)

    return converse


def http(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """An HTTP answer; `length` lies about the body's."""
    lines = [
        f"HTTP/1.1 {status} Whatever",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Peer:
    """Listens on loopback and has one conversation with every connection.

    Attributes:
        converse: what it does with connections that are accepted from now on.
        connections: how many it accepted.
        tls: what connections from now on are secured with; None for none.
    """

    def __init__(self, converse: Conversation, tls: ssl.SSLContext | None = None) -> None:
        self.converse, self.connections, self.tls = converse, 0, tls
        peer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                peer.connections += 1
                with contextlib.suppress(OSError):
                    if peer.tls is None:
                        peer.converse(self.request)
                        return
                    with peer.tls.wrap_socket(self.request, server_side=True) as secured:
                        peer.converse(secured)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Relay:
    """Stands between a device and its pool, and changes what it is told to.

    Attributes:
        address: host and port of the pool.
        alter: makes another answer of what came for a request.
        asked: heads of the requests that went through, oldest first.
    """

    address: tuple[str, int]
    alter: Callable[[bytes, bytes], bytes] = lambda _, answer: answer
    asked: list[bytes] = field(default_factory=list)

    def __call__(self, sock: socket.socket) -> None:
        """Pass bytes on, both ways, until either side has none left."""
        with socket.create_connection(self.address) as pool:
            while True:
                buffered = isinstance(sock, ssl.SSLSocket) and sock.pending()
                for one in [sock] if buffered else select.select([sock, pool], [], [])[0]:
                    data = one.recv(65536)
                    if not data:
                        return
                    if one is sock:
                        if data.startswith((b"GET ", b"POST ")):
                            self.asked.append(data.partition(b"\r\n\r\n")[0])
                        pool.sendall(data)
                    else:
                        sock.sendall(self.alter(self.asked[-1], data))
