"""The shaping proxy, on real sockets: bytes, order and state, never times."""

import asyncio
import hashlib
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from dovetail_cli.link import LinkSpec
from dovetail_cli.ray_pool import free_port
from dovetail_cli.shaper import Direction, Shaper

FAST = LinkSpec(50e6, 0.002)


@asynccontextmanager
async def _echo() -> AsyncIterator[int]:
    """A server that sends back what it gets, until it gets an end."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def _shaped(link: LinkSpec, body: Callable[[Shaper, int], Awaitable[None]]) -> None:
    async def run() -> None:
        async with _echo() as server:
            port = free_port()
            shaper = Shaper(port, ("127.0.0.1", server), link)
            await shaper.apply(link)
            try:
                await body(shaper, port)
            finally:
                await shaper.close()

    asyncio.run(asyncio.wait_for(run(), 60))


async def _round_trip(port: int, payload: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sending = asyncio.create_task(_send(writer, payload))
    answer = await reader.read(-1)
    await sending
    writer.close()
    return answer


async def _send(writer: asyncio.StreamWriter, payload: bytes) -> None:
    writer.write(payload)
    await writer.drain()
    writer.write_eof()


def test_bytes_arrive_whole_in_order_and_with_their_end() -> None:
    """Nothing is dropped, repeated or reordered, on several connections at once."""
    payloads = [random.Random(seed).randbytes(700_000 + seed) for seed in range(3)]

    async def body(_: Shaper, port: int) -> None:
        answers = await asyncio.gather(*(_round_trip(port, p) for p in payloads))
        digests = [hashlib.sha256(data).digest() for data in answers]
        assert digests == [hashlib.sha256(data).digest() for data in payloads]

    _shaped(FAST, body)


def test_a_sender_feels_a_slow_link_instead_of_handing_everything_over() -> None:
    """Most of a large body is still with the sender while the link is busy with it."""

    async def body(_: Shaper, port: int) -> None:
        with socket.socket() as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
            sender.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sender, ("127.0.0.1", port))
            taken = 0
            for _ in range(20):
                try:
                    taken += sender.send(bytes(1 << 20))
                except BlockingIOError:
                    await asyncio.sleep(0.01)
        assert 0 < taken < 1 << 20

    _shaped(LinkSpec(10e3, 0.0), body)


def test_a_link_that_is_down_delivers_nothing_and_loses_nothing() -> None:
    """A connection outlives an outage: what was sent into it arrives after it."""

    async def body(shaper: Shaper, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        await shaper.apply(LinkSpec(mode="down"))
        writer.write(b"during")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        await shaper.apply(FAST)
        assert await reader.readexactly(6) == b"during"
        writer.close()

    _shaped(FAST, body)


def test_a_link_that_refuses_resets_what_is_open_and_what_comes() -> None:
    """Connections end with an error, new ones are refused, and it can be lifted."""

    async def body(shaper: Shaper, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        await reader.readexactly(1)
        await shaper.apply(LinkSpec(mode="refuse"))
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await shaper.apply(FAST)
        assert await _round_trip(port, b"again") == b"again"

    _shaped(FAST, body)


def test_the_other_side_being_gone_cuts_the_connection() -> None:
    """A client sees a reset, never a tidy end or a hang."""

    async def run() -> None:
        port = free_port()
        shaper = Shaper(port, ("127.0.0.1", free_port()), FAST)
        await shaper.apply(FAST)
        reader, _ = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 30)
        await shaper.close()

    asyncio.run(run())


def test_a_direction_books_bytes_one_behind_the_other() -> None:
    """Bytes leave at the rate; an idle link owes nothing and saves nothing up."""
    way = Direction()

    assert way.reserve(1000, 1000.0, now=10.0) == pytest.approx(11.0)
    assert way.reserve(500, 1000.0, now=10.0) == pytest.approx(11.5)
    assert way.reserve(500, 1000.0, now=11.5005) == pytest.approx(12.0)
    assert way.reserve(1000, 1000.0, now=20.0) == pytest.approx(21.0)


def test_the_process_takes_links_from_standard_input_and_ends_with_it() -> None:
    """It says when it listens, survives a bad line, and can't outlive whoever started it."""
    port = free_port()
    command = [sys.executable, "-m", "dovetail_cli.shaper", "--listen", str(port)]
    with subprocess.Popen(
        [*command, "--to", "127.0.0.1:9", "--link", "20mbit,15ms"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == (
            f"shaping 127.0.0.1:{port} to 127.0.0.1:9: 20mbit,15ms\n"
        )
        _, complaint = process.communicate("nonsense\nrefuse\n", timeout=30)

    assert process.returncode == 0
    assert "'nonsense" in complaint
