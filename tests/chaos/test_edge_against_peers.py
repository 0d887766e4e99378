"""An edge against peers that refuse, hang, cut, lie or stop half-way: real sockets throughout."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.chaos import peer as peers
from tests.tiny_bundle import TinyBundle, rows, write_tiny_bundle

from dovetail.errors import DovetailError, PrivacyRefused, TailUnavailable
from dovetail.tensor import Array
from dovetail_edge import Session


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@contextmanager
def peer(converse: peers.Conversation) -> Iterator[peers.Peer]:
    one = peers.Peer(converse)
    try:
        yield one
    finally:
        one.close()


def assert_right(tiny: TinyBundle, feed: dict[str, Array], got: dict[str, Array]) -> None:
    for name, want in tiny.whole(feed).items():
        np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-5)


def _oip(name: str, shape: list[int], request_id: str, version: str) -> bytes:
    document = {
        "model_name": "tiny",
        "model_version": version,
        "id": request_id,
        "outputs": [{"name": name, "datatype": "FP32", "shape": shape, "data": [0.0] * shape[-1]}],
    }
    return json.dumps(document).encode()


_LIES = {
    "garbage": peers.garbage,
    "cut": peers.cut,
    "cut after the request": peers.cut_after_request,
    "half an answer": peers.says_and_leaves(peers.http(200, b'{"outputs":[', length=500)),
    "no JSON": peers.says(peers.http(200, b"not json")),
    "no outputs": peers.says(peers.http(200, b'{"outputs":[]}')),
    "an endless answer": peers.says(peers.http(200, b"x" * 100_000, length=10**12)),
    "endless headers": peers.says(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000),
    "another request's answer": peers.says(
        peers.http(200, _oip("scores", [1, 10], "someone else's", "0"))
    ),
    "an ingress without a replica": peers.says(peers.http(503, b"no server is available")),
    "404": peers.says(peers.http(404, b"{}")),
    "409": peers.says(peers.http(409, b'{"error":"x"}', "Dovetail-Error: UnknownVersion")),
    "401": peers.says(peers.http(401, b'{"error":"x"}', "Dovetail-Error: Unauthorized")),
}


@pytest.mark.parametrize("what", _LIES)
def test_a_peer_that_lies_never_makes_a_wrong_answer(tiny: TinyBundle, what: str) -> None:
    """The edge answers alone, rightly and flagged; the next one does not wait for the peer."""
    feed = rows(2)
    with (
        peer(_LIES[what]) as lying,
        Session(tiny.bundle, tiny.plan(deadline=20.0), endpoint=lying.endpoint) as session,
    ):
        first, second = session.infer_detailed(feed), session.infer_detailed(feed)
    for answer in (first, second):
        assert_right(tiny, feed, answer.outputs)
        assert (answer.rung, answer.degraded) == ("edge", True)
        assert answer.sample.outcome == "degraded"
    assert first.sample.bytes_up > 0
    assert second.sample.bytes_up == 0


@pytest.mark.parametrize("what", ["garbage", "cut", "409"])
def test_without_a_fallback_the_error_is_typed_and_may_be_retried(
    tiny: TinyBundle, what: str
) -> None:
    """`Fail` answers with an error of ours; one that a repeat can cure says so."""
    plan = tiny.plan(fallback="Fail", deadline=20.0)
    with peer(_LIES[what]) as lying, Session(tiny.bundle, plan, endpoint=lying.endpoint) as session:
        with pytest.raises(DovetailError):
            session.infer(rows(1))
        with pytest.raises(TailUnavailable) as second:
            session.infer(rows(1))
    assert second.value.retryable


def test_a_refused_connection_is_answered_on_the_edge(tiny: TinyBundle) -> None:
    """Nobody listens: the edge goes on from the cut, and the breaker opens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    feed = rows(1)
    with Session(tiny.bundle, tiny.plan(), endpoint=endpoint) as session:
        answer = session.infer_detailed(feed)
        assert_right(tiny, feed, answer.outputs)
        assert answer.degraded
        assert session.status().breaker == "open"


@pytest.mark.parametrize("converse", [peers.hang, peers.never_read])
def test_a_peer_that_hangs_is_overtaken_by_the_edge(
    tmp_path: Path, converse: peers.Conversation
) -> None:
    """The edge starts its own continuation in time, also while its body is stuck half sent."""
    tiny = write_tiny_bundle(tmp_path / "bundle", side=512)
    feed = rows(4, side=512)  # 12 MB: more than the kernel's buffers take
    plan = tiny.plan("cloud", deadline=0.5, pinned=True)
    with peer(converse) as hung, Session(tiny.bundle, plan, endpoint=hung.endpoint) as session:
        answers = [session.infer_detailed(feed) for _ in range(3)]
        for answer in answers:
            assert_right(tiny, feed, answer.outputs)
            assert answer.degraded
        assert session.status().breaker == "open"
    assert answers[-1].sample.bytes_up == 0


def test_many_threads_at_once_each_get_their_own_answer(tiny: TinyBundle) -> None:
    """Concurrent requests against a peer that cuts: every answer fits its own input."""
    wrong: list[str] = []
    with (
        peer(peers.cut_after_request) as cutting,
        Session(tiny.bundle, tiny.plan(deadline=20.0), endpoint=cutting.endpoint) as session,
    ):

        def work(seed: int) -> None:
            feed = rows(1, seed=seed)
            try:
                assert_right(tiny, feed, session.infer(feed))
            except AssertionError as error:
                wrong.append(str(error))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_private_sends_no_sample_no_probe_and_no_tensor(tiny: TinyBundle) -> None:
    """Under `Private` nothing but a request without a body ever leaves."""
    seen: list[bytes] = []

    def listen(sock: socket.socket) -> None:
        while request := peers.read_request(sock):
            seen.append(request)
            sock.sendall(peers.http(404, b"{}"))

    plan = tiny.plan("edge", privacy="Private")
    with (
        peer(listen) as listening,
        Session(tiny.bundle, plan, endpoint=listening.endpoint) as session,
    ):
        until = time.monotonic() + 2
        while time.monotonic() < until:
            answer = session.infer_detailed(rows(1))
            assert (answer.rung, answer.degraded) == ("edge", False)
            time.sleep(0.05)
    assert seen, "the plan is asked for"
    assert all(request.startswith(b"GET /") for request in seen)
    assert all(request.endswith(b"\r\n\r\n") for request in seen)


@pytest.mark.parametrize(("privacy", "default"), [("Private", "cut1"), ("Masked", "cloud")])
def test_privacy_refuses_rather_than_falls_back(
    tiny: TinyBundle, privacy: str, default: str
) -> None:
    """A plan whose only rung would send what may not leave is refused, and nothing is sent."""
    plan = tiny.plan(default, privacy=privacy)
    only = tuple(rung for rung in plan.ladder if rung.id == default)
    with peer(peers.hang) as listening:
        plan = plan.model_copy(update={"ladder": only})
        with (
            Session(tiny.bundle, plan, endpoint=listening.endpoint) as session,
            pytest.raises(PrivacyRefused, match=privacy),
        ):
            session.infer(rows(1))
