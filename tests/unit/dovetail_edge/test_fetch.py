"""What a pool says of where to begin, and what it may not make a device do."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.chaos import peer as peers
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail.errors import DovetailError, FetchFailed, TailUnavailable
from dovetail.layout import digest_of
from dovetail_edge import Credentials
from dovetail_edge.access import Access
from dovetail_edge.cache import Cache
from dovetail_edge.fetch import Cloud, Fetcher


@pytest.fixture
def pool() -> Iterator[peers.Peer]:
    one = peers.Peer(peers.cut)
    yield one
    one.close()


@pytest.fixture
def cloud(pool: peers.Peer) -> Iterator[Cloud]:
    with closing(Cloud(Access(pool.endpoint, None, Credentials()))) as made:
        yield made


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.mark.parametrize(
    "placement",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"application": 7}',
        b'{"application": "../../else"}',
        b'{"application": "a HTTP/1.1\\r\\nX: y"}',
    ],
)
def test_a_placement_that_does_not_hold_is_followed_nowhere(
    pool: peers.Peer, cloud: Cloud, placement: bytes
) -> None:
    """It becomes part of a path: one request was made, and no second."""
    asked: list[bytes] = []

    def converse(sock: socket.socket) -> None:
        while request := peers.read_request(sock):
            asked.append(request)
            sock.sendall(peers.http(200, placement))

    pool.converse = converse
    with pytest.raises(TailUnavailable, match="placement does not hold"):
        cloud.plan()
    assert len(asked) == 1


@pytest.mark.parametrize(
    "change", [{"bundle": "sha256:../../../etc"}, {"deployment": "a/b/../c"}, {"generation": 0}]
)
def test_a_plan_that_does_not_hold_is_not_taken(
    pool: peers.Peer, cloud: Cloud, tiny: TinyBundle, change: dict[str, object]
) -> None:
    """Its digest names a folder, its deployment a path."""
    plan = json.loads(tiny.plan().model_dump_json(by_alias=True))
    answers = iter([b'{"application": "a"}', json.dumps({**plan, **change}).encode()])

    def converse(sock: socket.socket) -> None:
        while peers.read_request(sock):
            sock.sendall(peers.http(200, next(answers)))

    pool.converse = converse
    with pytest.raises(TailUnavailable, match="plan does not hold"):
        cloud.plan()


@pytest.mark.parametrize("document", [b"", b"other bytes", b"x" * (5 << 20)])
def test_a_manifest_that_is_not_what_its_digest_says_leaves_nothing(
    pool: peers.Peer, cloud: Cloud, tiny: TinyBundle, tmp_path: Path, document: bytes
) -> None:
    """Other bytes, or far too many."""
    pool.converse = peers.says(peers.http(200, document))
    cache = Cache(tmp_path / "bundles")
    with pytest.raises((FetchFailed, TailUnavailable)):
        Fetcher(cloud, cache).prepare(tiny.plan())
    assert not cache.path(tiny.bundle.digest).exists()


def test_a_digest_that_names_no_bundle_is_refused(
    pool: peers.Peer, cloud: Cloud, tiny: TinyBundle, tmp_path: Path
) -> None:
    """The right bytes, which are something else."""
    document = b'{"schemaVersion": 2}'
    pool.converse = peers.says(peers.http(200, document))
    plan = tiny.plan().model_copy(update={"bundle": digest_of(document)})
    with pytest.raises(DovetailError, match=digest_of(document)):
        Fetcher(cloud, Cache(tmp_path)).prepare(plan)


def test_a_pool_that_ignores_ranges_is_not_believed(
    pool: peers.Peer, cloud: Cloud, tiny: TinyBundle, tmp_path: Path
) -> None:
    """Whole answers, or short ones, would be put one behind the other."""
    name = tiny.bundle.digest.removeprefix("sha256:")
    manifest = (tiny.bundle.blob_dir / name).read_bytes()

    def converse(sock: socket.socket) -> None:
        while request := peers.read_request(sock):
            whole = b"Range:" not in request
            sock.sendall(peers.http(200, manifest if whole else b"everything"))

    pool.converse = converse
    with pytest.raises(FetchFailed, match="answered with 10 bytes, status 200"):
        Fetcher(cloud, Cache(tmp_path)).prepare(tiny.plan())
