"""A shaping proxy: a slow, long or broken link on one machine, for real bytes.

Why a proxy of our own: many kernels have no netem, traffic control needs root, and a demo should
need neither. Why a process of its own: its event loop must not wait for anybody else's work, or the
link it simulates would be slower than it says.

Each direction is a token bucket (a chunk may start when the chunks before it have left) followed by
a delay line of half the round trip. Nothing is dropped. Buffers are small on purpose: the sender
feels the link (100 kB at 4 Mbit/s take 200 ms) instead of handing everything over at once. All
connections share the rate, as they share a link. A new connection waits one round trip, which is
what a TCP handshake takes.

The trade-off: chunks of a few milliseconds keep the event loop cheap, so timing is right to a few
milliseconds, not to a packet.

`python -m dovetail_cli.shaper --listen PORT --to HOST:PORT --link 20mbit,15ms` reads links from
standard input, one a line, and applies each at once; it ends when standard input does, so it can't
outlive whoever started it.
"""

import argparse
import asyncio
import contextlib
import socket
import struct
import sys
from collections import deque
from typing import Final

from dovetail.errors import DovetailError
from dovetail_cli.link import LinkSpec, parse_link

_SLICE: Final = 0.004  # seconds of link time one chunk takes
_LEAST_CHUNK, _MOST_CHUNK = 512, 1 << 16  # bytes
_SLACK: Final = 0.002  # seconds of link time a late wake-up may catch up on
_BUFFER: Final = 1 << 14  # bytes asked of the kernel for each socket
_ABORT: Final = struct.pack("ii", 1, 0)  # SO_LINGER that makes close() send a reset


class Direction:
    """One way of the link: when the next chunk may have left."""

    def __init__(self) -> None:
        self._free_at = 0.0

    def reserve(self, size: int, rate: float, now: float) -> float:
        """Book `size` bytes at `rate` bytes/s; returns the time at which the last one has left.

        A chunk that comes a little late on a busy link only waited for the event loop: it is
        booked as if it had been on time, or every wake-up would make the link slower.
        """
        late = 0 < now - self._free_at < _SLACK
        self._free_at = (self._free_at if late else max(self._free_at, now)) + size / rate
        return self._free_at


class _Pipe:
    """One direction of one connection: read, pay for the bytes, deliver them later."""

    def __init__(
        self, shaper: "Shaper", way: Direction, source: socket.socket, sink: socket.socket
    ) -> None:
        self._shaper, self._way, self._source, self._sink = shaper, way, source, sink
        self._line: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take())
            group.create_task(self._deliver())

    async def _take(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._shaper.lifted.wait()
            link = self._shaper.link
            chunk = int(min(max(link.rate * _SLICE, _LEAST_CHUNK), _MOST_CHUNK))
            room = link.rate * link.rtt / 2 + 2 * chunk
            async with self._changed:
                while self._held >= room:
                    await self._changed.wait()
            data = await loop.sock_recv(self._source, chunk)
            left = self._way.reserve(len(data), self._shaper.link.rate, loop.time())
            await asyncio.sleep(left - loop.time())
            async with self._changed:
                self._line.append((left + self._shaper.link.rtt / 2, data))
                self._held += len(data)
                self._changed.notify_all()
            if not data:
                return

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            async with self._changed:
                while not self._line:
                    await self._changed.wait()
                due, data = self._line.popleft()
            await asyncio.sleep(due - loop.time())
            await self._shaper.lifted.wait()
            if not data:
                self._sink.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(self._sink, data)
            async with self._changed:
                self._held -= len(data)
                self._changed.notify_all()


class Shaper:
    """The proxy.

    Args:
        port: loopback port to listen on.
        to: host and port of the other side.
        link: the link to begin with.
    """

    def __init__(self, port: int, to: tuple[str, int], link: LinkSpec) -> None:
        self.link = link
        self.lifted = asyncio.Event()
        self._port, self._to = port, to
        self._ways = Direction(), Direction()
        self._open: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Task[None] | None = None

    async def apply(self, link: LinkSpec) -> None:
        """Use another link from now on.

        Raises:
            OSError: the port cannot be listened on.
        """
        self.link = link
        if link.mode == "refuse":
            await self.close()
        elif self._listener is None:
            self._listener = asyncio.create_task(self._accept(_listen(self._port)))
        if link.mode == "up":
            self.lifted.set()
        else:
            self.lifted.clear()

    async def close(self) -> None:
        """Stop listening and reset every connection."""
        tasks = [*self._open, *([self._listener] if self._listener else [])]
        self._listener = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                client, _ = await loop.sock_accept(listener)
                task = asyncio.create_task(self._serve(client))
                self._open.add(task)
                task.add_done_callback(self._open.discard)

    async def _serve(self, client: socket.socket) -> None:
        """Join a client with a connection of its own to the other side, until both have ended."""
        loop = asyncio.get_running_loop()
        server = socket.socket()
        with client, server:
            try:
                for end in (client, server):
                    _tune(end)
                await self.lifted.wait()
                await asyncio.sleep(self.link.rtt)
                await loop.sock_connect(server, self._to)
                async with asyncio.TaskGroup() as group:
                    group.create_task(_Pipe(self, self._ways[0], client, server).run())
                    group.create_task(_Pipe(self, self._ways[1], server, client).run())
            except (OSError, ExceptionGroup, asyncio.CancelledError):
                # One side is gone: the other must see a cut connection, not a tidy end.
                for end in (client, server):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)


def _tune(end: socket.socket) -> None:
    end.setblocking(False)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it, so that the window offered in the handshake is small already.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    listener.setblocking(False)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    return listener


async def _run(port: int, to: tuple[str, int], link: LinkSpec) -> None:
    shaper = Shaper(port, to, link)
    await shaper.apply(link)
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print(f"shaping 127.0.0.1:{port} to {to[0]}:{to[1]}: {link}", flush=True)  # noqa: T201  # this line is how the parent learns that the port is open
    while line := await orders.readline():
        try:
            await shaper.apply(parse_link(line.decode()))
        except DovetailError as error:
            sys.stderr.write(f"error: {error}\n")
    await shaper.close()


def main() -> int:
    """Run until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m dovetail_cli.shaper")
    parser.add_argument("--listen", type=int, required=True, help="loopback port to listen on")
    parser.add_argument("--to", required=True, help="HOST:PORT of the other side")
    parser.add_argument("--link", default="1gbit,0ms", help="RATE,RTT; the time is the round trip")
    args = parser.parse_args()
    host, _, port = args.to.rpartition(":")
    try:
        link = parse_link(args.link)
    except DovetailError as error:
        parser.error(str(error))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(args.listen, (host, int(port)), link))
    return 0


if __name__ == "__main__":
    sys.exit(main())
