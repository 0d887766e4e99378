"""The link under TLS, against real TLS servers on loopback."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.certificates import Authority
from tests.chaos import peer as peers

from dovetail.errors import DeadlineExceeded, ManifestError, TailUnavailable, TailUntrusted
from dovetail_edge.link import Call, Overtaken, TailLink
from dovetail_edge.secure import Trust

GOOD = peers.http(200, b"hello")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def peer(authority: Authority) -> Iterator[peers.Peer]:
    one = peers.Peer(peers.says(GOOD), authority.server("127.0.0.1").context())
    yield one
    one.close()


def soon() -> float:
    return time.monotonic() + 20


def test_one_secured_connection_is_kept_and_speaks_http_1_1(
    peer: peers.Peer, authority: Authority
) -> None:
    """Requests share it, tickets that the server sends between them do no harm."""
    spoken: list[str | None] = []

    def converse(sock: socket.socket) -> None:
        assert isinstance(sock, ssl.SSLSocket)
        spoken.append(sock.selected_alpn_protocol())
        peers.says(GOOD)(sock)

    peer.converse = converse
    with closing(TailLink(peer.endpoint, authority.ca_file)) as link:
        for _ in range(5):
            reply = link.call(Call("POST", "/x", body=(b"a", b"", b"bc")), soon())
            assert (reply.status, reply.body, reply.sent) == (200, b"hello", 3)
    assert peer.connections == 1
    assert spoken == ["http/1.1"]


def test_large_bodies_cross_unchanged_both_ways(peer: peers.Peer, authority: Authority) -> None:
    """Small parts that share a record, large ones that need many, one behind the other."""
    parts = (b"a", bytes(range(256)) * 100, b"b" * 16384, bytes(3 << 20), b"end")

    def echo(sock: socket.socket) -> None:
        while request := peers.read_request(sock):
            sock.sendall(peers.http(200, request.partition(b"\r\n\r\n")[2]))

    peer.converse = echo
    with closing(TailLink(peer.endpoint, authority.ca_file)) as link:
        for _ in range(2):
            reply = link.call(Call("POST", "/", body=parts, limit=8 << 20), soon())
            assert reply.body == b"".join(parts)
    assert peer.connections == 1


def test_a_stranger_is_refused_and_the_message_says_what_to_give(
    peer: peers.Peer, tmp_path: Path
) -> None:
    """Neither another authority nor the system's own will do."""
    other = Authority(tmp_path, "other")
    for ca_file, named in ((other.ca_file, str(other.ca_file)), (None, "the system's authorities")):
        with (
            closing(TailLink(peer.endpoint, ca_file)) as link,
            pytest.raises(TailUntrusted, match="--ca-file") as refused,
        ):
            link.call(Call("GET", "/"), soon())
        assert named in str(refused.value)


def test_a_certificate_for_another_host_is_refused(peer: peers.Peer, authority: Authority) -> None:
    """A trusted authority does not make every name right."""
    peer.tls = authority.server(host="elsewhere.example").context()
    with (
        closing(TailLink(peer.endpoint, authority.ca_file)) as link,
        pytest.raises(TailUntrusted, match=r"127\.0\.0\.1"),
    ):
        link.call(Call("GET", "/"), soon())


def test_a_new_authority_is_trusted_from_the_next_connection_on(
    peer: peers.Peer, authority: Authority, tmp_path: Path
) -> None:
    """What is trusted may change while the link lives."""
    fresh = Authority(tmp_path, "fresh")
    with closing(TailLink(peer.endpoint, authority.ca_file)) as link:
        assert link.call(Call("GET", "/"), soon()).status == 200
        peer.tls = fresh.server("127.0.0.1").context()
        with pytest.raises(TailUntrusted):
            link.call(Call("GET", "/"), soon(), fresh=True)
        link.trust = Trust(fresh.ca_file)
        assert link.call(Call("GET", "/"), soon(), fresh=True).status == 200


def test_a_server_without_tls_or_without_an_end_is_a_tail_that_fails(
    peer: peers.Peer, authority: Authority
) -> None:
    """Plain HTTP, a hang in the handshake, a cut in it, a cut in the answer."""
    endpoint = peer.endpoint
    with closing(TailLink(endpoint, authority.ca_file)) as link:
        peer.converse = peers.says_and_leaves(peers.http(200, b"half", length=99))
        with pytest.raises(TailUnavailable, match="before its answer was complete"):
            link.call(Call("GET", "/"), soon())
        peer.tls, peer.converse = None, peers.cut
        with pytest.raises(TailUnavailable, match="no TLS"):
            link.call(Call("GET", "/"), soon())
        peer.converse = lambda sock: sock.sendall(GOOD)
        with pytest.raises(TailUnavailable, match="no TLS"):
            link.call(Call("GET", "/"), soon())
        peer.converse = peers.hang
        with pytest.raises(DeadlineExceeded):
            link.call(Call("GET", "/"), time.monotonic() + 0.2)


def test_a_secured_connection_the_peer_closed_is_not_used_again(
    peer: peers.Peer, authority: Authority
) -> None:
    """Keep-alive ended by the other side costs no failed request."""
    peer.converse = peers.says_and_leaves(GOOD)
    with closing(TailLink(peer.endpoint, authority.ca_file)) as link:
        for _ in range(3):
            assert link.call(Call("GET", "/"), soon()).status == 200
            time.sleep(0.05)
    assert peer.connections == 3


def test_an_alarm_ends_a_secured_wait_whose_body_is_not_even_sent(
    peer: peers.Peer, authority: Authority
) -> None:
    """As on a plain link: whoever is done first ends it."""
    peer.converse = peers.never_read
    here, other = socket.socketpair()
    rung = threading.Event()

    class Bell:
        at = time.monotonic() + 0.05

        def ring(self) -> int:
            rung.set()
            other.close()
            return here.fileno()

    with (
        closing(TailLink(peer.endpoint, authority.ca_file)) as link,
        here,
        pytest.raises(Overtaken),
    ):
        link.call(Call("POST", "/", body=(bytes(30 << 20),)), soon(), alarm=Bell())
    assert rung.is_set()


def test_a_ca_file_that_is_none_is_refused_with_its_name(tmp_path: Path) -> None:
    """Missing, empty, or something else."""
    empty = tmp_path / "empty.crt"
    empty.write_text("nothing\n")
    for path in (empty, tmp_path / "missing.crt"):
        with pytest.raises(ManifestError, match=path.name):
            TailLink("https://127.0.0.1:1", path)
