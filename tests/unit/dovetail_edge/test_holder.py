"""The holder: another session takes over between two requests."""

import threading
from collections.abc import Iterator

import pytest
from tests.chaos import peer as peers
from tests.tiny_bundle import TinyBundle, rows, write_tiny_bundle

from dovetail.errors import NotReady
from dovetail_edge import Session
from dovetail_edge.holder import Holder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def nobody() -> Iterator[str]:
    peer = peers.Peer(peers.cut)
    yield peer.endpoint
    peer.close()


def session(tiny: TinyBundle, endpoint: str, generation: int) -> Session:
    return Session(tiny.bundle, tiny.plan("edge", generation=generation), endpoint=endpoint)


def test_nothing_to_answer_with_is_said_with_what_is_waited_for() -> None:
    """Not a crash, and not a wait without a word."""
    holder = Holder()
    holder.waiting = "the bundle is fetched"
    assert not holder.ready
    with pytest.raises(NotReady, match="the bundle is fetched"), holder.lease():
        pass
    with pytest.raises(NotReady, match="the bundle is fetched"):
        holder.status()


def test_a_request_ends_on_the_session_it_began_on(tiny: TinyBundle, nobody: str) -> None:
    """The one that was replaced is closed after its last request, and not before."""
    holder, feed = Holder("porch"), rows(1)
    holder.swap(session(tiny, nobody, 1))
    with holder.lease() as first:
        swap = threading.Thread(target=holder.swap, args=(session(tiny, nobody, 2),))
        swap.start()
        while holder.session is first:
            pass
        with holder.lease() as second:
            assert (first.plan.generation, second.plan.generation) == (1, 2)
        assert swap.is_alive()
        assert first.infer(feed).keys() == tiny.whole(feed).keys()
    swap.join(20)
    assert not swap.is_alive()
    with pytest.raises(RuntimeError, match="shutdown"):
        first._pool.submit(print)
    status = holder.status()
    assert (status.device, status.generation) == ("porch", 2)
    holder.swap(None)
    assert not holder.ready


def test_an_edge_that_was_told_to_end_takes_no_more_requests(tiny: TinyBundle, nobody: str) -> None:
    """It answers those that still come."""
    holder = Holder()
    holder.swap(session(tiny, nobody, 1))
    assert holder.ready
    holder.leaving = True
    assert not holder.ready
    with holder.lease() as held:
        assert held.infer(rows(1))
    holder.swap(None)
