"""The link against small real servers on loopback."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.chaos import peer as peers

from dovetail.errors import DeadlineExceeded, ManifestError, TailUnavailable
from dovetail_edge.link import Call, Overtaken, TailLink

GOOD = peers.http(200, b"hello", "X-Answer: 42")


@pytest.fixture
def peer() -> Iterator[peers.Peer]:
    one = peers.Peer(peers.says(GOOD))
    yield one
    one.close()


def soon() -> float:
    return time.monotonic() + 20


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://a:1", "https://", "http://a:99999999"])
def test_an_endpoint_that_cannot_be_called_is_refused_with_its_name(url: str) -> None:
    """Before any request, naming what was expected."""
    with pytest.raises(ManifestError, match=r"http://host:port"):
        TailLink(url)


def test_one_connection_is_kept_and_used_again(peer: peers.Peer) -> None:
    """Requests one after the other share it; headers are found by lower-case name."""
    with closing(TailLink(peer.endpoint)) as link:
        for _ in range(5):
            reply = link.call(Call("POST", "/x", body=(b"a", b"", b"bc")), soon())
            assert (reply.status, reply.body, reply.sent) == (200, b"hello", 3)
            assert reply.headers["x-answer"] == "42"
    assert peer.connections == 1


def test_a_connection_the_peer_closed_is_not_used_again(peer: peers.Peer) -> None:
    """Keep-alive ended by the other side costs no failed request."""
    peer.converse = peers.says_and_leaves(GOOD)
    with closing(TailLink(peer.endpoint)) as link:
        for _ in range(3):
            assert link.call(Call("GET", "/"), soon()).status == 200
            time.sleep(0.05)
    assert peer.connections == 3


def test_a_connection_whose_answer_was_not_awaited_is_never_used_again(peer: peers.Peer) -> None:
    """Or its late answer would reach the next request."""
    answers = iter([b"late", b"right"])

    def slow(sock: socket.socket) -> None:
        while peers.read_request(sock):
            body = next(answers)
            if body == b"late":
                time.sleep(0.3)
            sock.sendall(peers.http(200, body))

    peer.converse = slow
    with closing(TailLink(peer.endpoint)) as link:
        with pytest.raises(DeadlineExceeded):
            link.call(Call("GET", "/"), time.monotonic() + 0.1)
        time.sleep(0.5)
        assert link.call(Call("GET", "/"), soon()).body == b"right"


def test_an_answer_over_its_limit_is_refused_while_it_arrives(peer: peers.Peer) -> None:
    """Memory is bounded by what was asked for, not by what a peer sends."""
    peer.converse = peers.says(peers.http(200, b"x" * 5000))
    with (
        closing(TailLink(peer.endpoint)) as link,
        pytest.raises(TailUnavailable, match="larger than 100"),
    ):
        link.call(Call("GET", "/", limit=100), soon())


def test_an_early_answer_to_a_body_still_being_sent_is_read(peer: peers.Peer) -> None:
    """A server may refuse a body before it has taken it; the connection is not kept."""

    def refuse(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(peers.http(413, b"no"))
        while sock.recv(65536):
            pass

    peer.converse = refuse
    with closing(TailLink(peer.endpoint)) as link:
        for _ in range(2):
            reply = link.call(Call("POST", "/", body=(bytes(30 << 20),)), soon())
            assert reply.status == 413
    assert peer.connections == 2


def test_an_alarm_rings_while_nobody_reads_and_its_end_ends_the_wait(peer: peers.Peer) -> None:
    """The wait ends with what the alarm began, though the body is not even sent."""
    peer.converse = peers.never_read
    here, other = socket.socketpair()
    rung = threading.Event()

    class Bell:
        at = time.monotonic() + 0.05

        def ring(self) -> int:
            rung.set()
            other.close()
            return here.fileno()

    with closing(TailLink(peer.endpoint)) as link, here, pytest.raises(Overtaken):
        link.call(Call("POST", "/", body=(bytes(30 << 20),)), soon(), alarm=Bell())
    assert rung.is_set()
