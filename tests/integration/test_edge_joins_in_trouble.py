"""Devices that join while something goes wrong: links, disks, bytes, certificates, tokens."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.certificates import Authority
from tests.chaos.peer import Peer, Relay
from tests.edge_process import EdgeProcess, infer, is_right, running, until
from tests.integration.joins import NAME, Device, Group, follows
from tests.tiny_bundle import TinyBundle, rows

from dovetail.layout import blob_dir, digest_of
from dovetail.pool import TailApp
from dovetail_cli.ray_pool import free_port
from dovetail_serving.intake import token_digest

pytestmark = pytest.mark.ray


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


@pytest.fixture
def relay(group: Group) -> Relay:
    return Relay((group.served.pool.host, group.served.pool.port))


def weights_of(made: TinyBundle) -> str:
    """Digest of the largest blob."""
    return max(made.bundle.blobs, key=made.bundle.blobs.__getitem__)


def answers(edge: EdgeProcess, made: TinyBundle) -> bool:
    """Whether it answers as the whole model."""
    feed = rows(1, seed=5)
    return is_right(infer(edge.triton(), feed), made.whole(feed))


def waits_for(edge: EdgeProcess) -> str:
    """Why it is not ready."""
    try:
        got = edge.call("GET", "/v2/health/ready")
    except OSError:
        return ""
    return "" if got.status == 200 else str(json.loads(got.body)["error"])


def test_a_person_joins_a_device_over_tls_by_one_command(
    group: Group, device: Device, relay: Relay, tmp_path: Path
) -> None:
    """The authority is the one in the Secret; a device that does not trust it says what to give."""
    group.publish(group.first)
    authority = Authority(tmp_path)
    with closing(Peer(relay, authority.server("127.0.0.1").context())) as front:
        with running(device.join(front.endpoint)) as edge:
            code, said = edge.ended()
        assert (code, device.state.joinpath("bundles").exists()) == (2, False)
        assert "is not trusted" in said
        assert "--ca-file" in said
        with running(device.join(front.endpoint, f"--ca-file={authority.ca_file}")) as edge:
            assert answers(edge, group.first)
            assert edge.status()["trouble"] is None
            code, said = edge.end()
    assert code == 0
    assert f"joined {front.endpoint}" in said


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "No such file"), ("", "holds no token"), ("not the group's", "refuses the token")],
)
def test_a_device_that_cannot_join_ends_with_one_line_that_says_why(
    group: Group, device: Device, token: str | None, said: str
) -> None:
    """Exit code 2, and nothing but its name is left on its disk."""
    device.token_file.unlink() if token is None else device.token_file.write_text(token)
    with running(device.join(group.endpoint)) as edge:
        code, errors = edge.ended()
    assert code == 2
    assert errors.startswith("error: ")
    assert said in errors
    assert str(device.token_file) in errors
    assert [path.name for path in device.state.iterdir()] == ["device"]


@pytest.mark.parametrize("where", ["nobody", "not a pool"])
def test_an_address_that_is_no_pool_is_named(group: Group, device: Device, where: str) -> None:
    """Where nobody listens, and where somebody else does."""
    url = f"http://127.0.0.1:{free_port()}" if where == "nobody" else f"{group.endpoint}/elsewhere"
    with running(device.join(url)) as edge:
        code, errors = edge.ended()
    assert code == 2
    assert "address of a pool, the `endpoint` in the Secret" in errors
    assert "Connection refused" in errors or "HTTP 404" in errors


def test_a_port_that_is_taken_is_named_before_anything_is_fetched(
    group: Group, device: Device
) -> None:
    """Exit code 2, as for anything else that a person gave."""
    taken = device.join(group.endpoint, f"--host={group.served.pool.host}")
    with running(taken, port=group.served.pool.port, settled=False) as edge:
        code, errors = edge.ended()
    assert code == 2
    assert f"cannot listen on {group.served.address}" in errors
    assert not (device.state / "bundles").exists()


def test_a_device_killed_amid_a_fetch_goes_on_where_it_was(
    group: Group, device: Device, relay: Relay
) -> None:
    """Kill -9 with a part of the weights on disk: the next start asks for the rest alone.

    A second edge beside it, as when one pod takes another's place, keeps its hands off.
    """
    made = group.second
    group.publish(made)
    name, size = weights_of(made), made.bundle.blobs[weights_of(made)]
    partial = device.folder(made) / "partial" / name.removeprefix("sha256:")

    def ranges() -> list[bytes]:
        heads = [head for head in relay.asked if name.encode() in head]
        return [head.partition(b"Range: bytes=")[2].partition(b"\r\n")[0] for head in heads]

    def stall(request: bytes, answer: bytes) -> bytes:
        return b"" if name.encode() in request and len(ranges()) > 1 else answer

    relay.alter = stall
    with closing(Peer(relay)) as front:
        with running(device.flags(front.endpoint), settled=False) as edge:
            until(lambda: len(ranges()) > 1)
            with running(device.flags(group.endpoint), settled=False) as other:
                until(lambda: "another process fetches" in waits_for(other))
            edge.end(signal.SIGKILL)
        kept = partial.stat().st_size
        assert 0 < kept < size
        assert name not in device.blobs(made)
        relay.alter = lambda _, answer: answer
        relay.asked.clear()
        with running(device.flags(front.endpoint)) as edge:
            assert answers(edge, made)
    assert ranges()[0].startswith(b"%d-" % kept)
    assert b"0" not in {one.partition(b"-")[0] for one in ranges()}


def test_bytes_that_changed_on_the_way_are_never_run(
    group: Group, device: Device, relay: Relay
) -> None:
    """A blob that is not what its digest says is thrown away whole, and asked for again."""
    made = group.first
    group.publish(made)

    def flip(request: bytes, answer: bytes) -> bytes:
        if weights_of(made).encode() in request and not answer.startswith(b"HTTP"):
            return answer[:-1] + bytes([answer[-1] ^ 1])
        return answer

    relay.alter = flip
    with (
        closing(Peer(relay)) as front,
        running(device.flags(front.endpoint), settled=False) as edge,
    ):
        until(lambda: "other bytes than its name says" in waits_for(edge))
        assert weights_of(made) not in device.blobs(made)
        relay.alter = lambda _, answer: answer
        until(edge.ready)
        assert answers(edge, made)


def test_bytes_that_changed_on_the_disk_are_never_run(group: Group, device: Device) -> None:
    """Found when it is loaded, and fetched again; without its pool the device says so."""
    made = group.first
    group.publish(made)
    with running(device.flags(group.endpoint)) as edge:
        assert answers(edge, made)
    path = blob_dir(device.folder(made)) / weights_of(made).removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    nobody = f"http://127.0.0.1:{free_port()}"
    with running(device.flags(nobody), settled=False) as edge:
        until(lambda: "cannot connect" in waits_for(edge))
        assert not edge.ready()
    with running(device.flags(group.endpoint)) as edge:
        assert answers(edge, made)
    assert digest_of(path.read_bytes()) == weights_of(made)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_bundle_that_has_no_room_is_refused_before_it_is_fetched(
    group: Group, small_disk: Path
) -> None:
    """5 MB for a disk of 1: the line says how much is missing where."""
    group.publish(group.second)
    device = Device(small_disk)
    with running(device.join(group.endpoint)) as edge:
        code, errors = edge.ended()
    assert code == 2
    assert "has room for" in errors
    assert str(device.state) in errors
    assert weights_of(group.second) not in device.blobs(group.second)


def test_a_disk_that_fills_amid_a_fetch_holds_nothing_half_and_the_rest_comes_later(
    group: Group, small_disk: Path, relay: Relay
) -> None:
    """Somebody else's file takes the room; once it is gone the device goes on by itself."""
    made = group.first
    group.publish(made)
    device, other = Device(small_disk), small_disk / "other"

    def fill(request: bytes, answer: bytes) -> bytes:
        if weights_of(made).encode() in request and not other.exists():
            with suppress(OSError), other.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        return answer

    relay.alter = fill
    with (
        closing(Peer(relay)) as front,
        running(device.join(front.endpoint), settled=False) as edge,
    ):
        until(lambda: "No space left on device" in waits_for(edge))
        for digest in device.blobs(made):
            path = blob_dir(device.folder(made)) / digest.removeprefix("sha256:")
            assert digest_of(path.read_bytes()) == digest
        relay.alter = lambda _, answer: answer
        other.unlink()
        until(edge.ready)
        assert answers(edge, made)


def test_a_device_whose_token_is_revoked_is_refused_says_so_and_goes_on_alone(
    group: Group, device: Device
) -> None:
    """Right answers without the cloud, not heard of any more; a new token ends it, no restart."""
    made = group.first
    group.publish(made)

    def silent() -> float:
        read = group.served.ledger()
        known = read["devices"].get(NAME, {}).get("camera", {}).get(name, {})
        return float(read["now"] - known.get("seen", 0.0))

    with running(device.join(group.endpoint)) as edge:
        assert answers(edge, made)
        name = edge.status()["device"]
        until(lambda: silent() < 3)
        with group.revoked("another token"):
            until(lambda: edge.status()["trouble"] is not None)
            assert "the bearer token is not valid" in edge.status()["trouble"]
            feed = rows(1)
            result = infer(edge.triton(), feed)
            assert result.get_response()["parameters"]["degraded"] is True
            assert is_right(result, made.whole(feed))
            until(lambda: silent() > 6)  # it asks more often than that
            device.token_file.write_text("another token")
            until(lambda: edge.status()["trouble"] is None, 60)
            until(lambda: silent() < 3)


@pytest.mark.slow
def test_a_pool_that_was_set_back_is_believed_where_the_version_in_use_is_gone(
    group: Group, device: Device
) -> None:
    """A lower generation, but the only one that anybody serves (ADR 0011)."""
    later = group.publish(group.second)
    with running(device.flags(group.endpoint)) as edge:
        assert follows(edge, later)
        earlier = group.set_back(group.first)
        until(lambda: follows(edge, earlier), 60)
        assert earlier.generation < later.generation
        assert answers(edge, group.first)
        assert edge.status()["trouble"] is None


@pytest.mark.slow
def test_a_token_of_another_deployment_takes_the_device_there(group: Group, device: Device) -> None:
    """Its model, its plan, from generation 1 on, without a restart (ADR 0011)."""
    later = group.publish(group.second)
    made = group.first
    theirs = TailApp(
        "joins/theirs",
        str(made.bundle.path),
        made.bundle.digest,
        {"camera": made.plan("cut1", deployment="joins/theirs", deadline=20.0)},
        tokens={"camera": token_digest("their token")},
        actor_options={"num_cpus": 0.1},
    )
    group.served.serve(theirs)
    with running(device.flags(group.endpoint)) as edge:
        assert follows(edge, later)
        device.token_file.write_text("their token")
        until(lambda: edge.status()["deployment"] == "joins/theirs", 60)
        assert edge.status()["generation"] == 1
        assert answers(edge, made)
    group.served.drop(theirs)


@pytest.mark.slow
def test_a_device_may_join_before_there_is_a_version_for_it(group: Group, device: Device) -> None:
    """Its token is known, its plan is to come: no failure, and no restart once it is there."""
    made = group.first
    early = TailApp(
        "joins/early",
        str(made.bundle.path),
        made.bundle.digest,
        {},
        tokens={"robot": token_digest("early")},
        actor_options={"num_cpus": 0.1},
    )
    group.served.serve(early)
    device.token_file.write_text("early")
    with running(device.join(group.endpoint), settled=False) as edge:
        until(lambda: "no version is served yet" in waits_for(edge))
        plan = made.plan("cut1", deployment="joins/early", device_class="robot", deadline=20.0)
        group.served.serve(replace(early, plans={"robot": plan}))
        until(edge.ready, 90)
        assert answers(edge, made)
        assert edge.status()["deviceClass"] == "robot"
    group.served.drop(early)
