"""Bundles on their way, through a real registry and over connections that break."""

import base64
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.kube.registry import PASSWORD, REPOSITORY, USER, push_artifact, running_registry
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

from dovetail.bundle import Bundle
from dovetail.errors import (
    BundleCorrupt,
    BundleError,
    ManifestError,
    MissingTool,
    Unauthorized,
    Unavailable,
)
from dovetail.registry import Registry, fetch_only_layer

NOBODY = Path("/no/such/config.json")


class Relay:
    """A wire to the registry that counts bytes, and breaks each connection after so many."""

    def __init__(self, port: int) -> None:
        self.port, self.sent, self.received, self.limit = port, 0, 0, 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.port))
            threading.Thread(target=self._pump, args=(near, far, "sent"), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, "received"), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        passed = 0
        try:
            while data := source.recv(1 << 14):
                sink.sendall(data)
                passed += len(data)
                setattr(self, name, getattr(self, name) + len(data))
                if name == "received" and self.limit and passed > self.limit:
                    break
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def started(folder: Path, **more: bool) -> Iterator[str]:
    try:
        with running_registry(folder, **more) as url:
            yield url
    except MissingTool as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with started(tmp_path_factory.mktemp("registry")) as url:
        yield url


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """Half a megabyte of weights in one blob."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", width=128)


@pytest.fixture
def relay(url: str) -> Iterator[Relay]:
    relay = Relay(int(url.rpartition(":")[2]))
    yield relay
    relay.close()


def registry(url: str, repository: str = REPOSITORY, login: Path = NOBODY) -> Registry:
    return Registry.at(f"{url}/{repository}", login)


def weight(tiny: TinyBundle) -> int:
    return max(tiny.bundle.blobs.values())


def test_what_was_pushed_is_what_is_pulled(url: str, tiny: TinyBundle, tmp_path: Path):
    """The digest is the version, on both sides of a registry."""
    ours = registry(url)

    digest = ours.push(tiny.bundle)
    ours.pull(digest, tmp_path / "pulled")

    pulled = Bundle(tmp_path / "pulled")
    pulled.verify()
    assert (pulled.digest, pulled.blobs) == (tiny.bundle.digest, tiny.bundle.blobs)
    assert ours.description(digest) == tiny.bundle.config
    assert ours.costs(ours.push_costs(tiny.costs)) == tiny.costs
    ours.push_costs(tiny.costs, "mine")
    assert ours.tagged_costs("mine") == tiny.costs


def test_a_blob_that_is_there_is_not_sent_again(url: str, tiny: TinyBundle, relay: Relay):
    """A new version sends only what is new in it."""
    told: list[tuple[str, int, int]] = []
    registry(relay.url, "twice").push(tiny.bundle, lambda *step: told.append(step))
    first = relay.sent
    registry(relay.url, "twice").push(tiny.bundle)

    assert first > weight(tiny)
    assert relay.sent - first < weight(tiny) / 10
    assert told[-1] == ("pushing", len(tiny.bundle.blobs), len(tiny.bundle.blobs))


def test_a_push_that_breaks_off_leaves_nothing_visible(url: str, tiny: TinyBundle, tmp_path: Path):
    """The manifest is sent last."""
    ours = registry(url, "half")

    def stop(part: str, done: int, total: int) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ours.push(tiny.bundle, stop)

    with pytest.raises(BundleError, match=r"half has no sha256:"):
        ours.pull(tiny.bundle.digest, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_pull_goes_on_where_connections_break(
    url: str, tiny: TinyBundle, relay: Relay, tmp_path: Path
):
    """Each connection brings a quarter of the largest blob; none of it comes twice."""
    registry(url).push(tiny.bundle)
    relay.limit = weight(tiny) // 4

    registry(relay.url).pull(tiny.bundle.digest, tmp_path / "pulled")

    Bundle(tmp_path / "pulled").verify()
    assert relay.received < 1.5 * sum(tiny.bundle.blobs.values())


def test_a_pull_that_was_killed_is_gone_on_with(
    url: str, tiny: TinyBundle, relay: Relay, tmp_path: Path
):
    """What it brought stays beside, and is not brought again."""
    registry(url).push(tiny.bundle)
    code = (
        "import os, sys; from pathlib import Path; from dovetail.registry import Registry\n"
        "def stop(part, done, total):\n"
        f"    if done > {weight(tiny) // 2}: os.kill(os.getpid(), 9)\n"
        "Registry.at(sys.argv[1]).pull(sys.argv[2], Path(sys.argv[3]), stop)\n"
    )
    command = [sys.executable, "-c", code, f"{url}/{REPOSITORY}", tiny.bundle.digest]
    killed = subprocess.run([*command, str(tmp_path / "pulled")], check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "pulled").exists()

    registry(relay.url).pull(tiny.bundle.digest, tmp_path / "pulled")

    Bundle(tmp_path / "pulled").verify()
    assert relay.received < weight(tiny)


def test_of_many_who_pull_the_same_one_does_it(
    url: str, tiny: TinyBundle, relay: Relay, tmp_path: Path
):
    """Replicas on a node start together."""
    registry(url).push(tiny.bundle)

    def pull(_: int) -> str:
        registry(relay.url).pull(tiny.bundle.digest, tmp_path / "pulled")
        return Bundle(tmp_path / "pulled").digest

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(pull, range(8))) == {tiny.bundle.digest}

    assert relay.received < 1.5 * sum(tiny.bundle.blobs.values())


def test_a_registry_that_is_down_may_be_asked_again_later(tiny: TinyBundle, tmp_path: Path):
    """Unlike one that has no such bundle."""
    folder = tmp_path / "registry"
    folder.mkdir()
    with started(folder) as url:
        ours = registry(url)
        ours.push(tiny.bundle)
        with pytest.raises(BundleError, match="has no sha256:000"):
            ours.pull("sha256:" + "0" * 64, tmp_path / "pulled")

    with pytest.raises(Unavailable, match="does not answer") as caught:
        ours.pull(tiny.bundle.digest, tmp_path / "pulled")
    assert caught.value.retryable


def test_a_blob_with_other_bytes_than_its_name_says_is_refused(tiny: TinyBundle, tmp_path: Path):
    """A registry whose disk was changed behind its back cannot lie."""
    folder = tmp_path / "registry"
    folder.mkdir()
    with started(folder) as url:
        registry(url).push(tiny.bundle)
        largest = max(tiny.bundle.blobs, key=tiny.bundle.blobs.__getitem__)
        [data] = (folder / "data").rglob(f"{largest.removeprefix('sha256:')}/data")
        changed = bytearray(data.read_bytes())
        changed[1000] ^= 1
        data.write_bytes(changed)

        with pytest.raises(BundleCorrupt, match=largest):
            registry(url).pull(tiny.bundle.digest, tmp_path / "pulled")

        changed[1000] ^= 1
        data.write_bytes(changed)
        assert not (tmp_path / "pulled").exists()
        registry(url).pull(tiny.bundle.digest, tmp_path / "pulled")  # what was bad was not kept
    Bundle(tmp_path / "pulled").verify()


def test_an_artifact_of_another_kind_is_no_bundle(url: str, tiny: TinyBundle, tmp_path: Path):
    """A digest of something else is told, not opened."""
    costs = registry(url).push_costs(tiny.costs)

    with pytest.raises(BundleError, match="artifact type"):
        registry(url).pull(costs, tmp_path / "pulled")


def login(path: Path, host: str, **entry: str) -> Path:
    path.write_text(json.dumps({"auths": {host: entry}}))
    return path


def encoded(password: str) -> str:
    return base64.b64encode(f"{USER}:{password}".encode()).decode()


def test_a_registry_that_asks_who_one_is_gets_the_login_that_is_mounted(
    tiny: TinyBundle, tmp_path: Path
):
    """In every spelling that docker's file has; a new password needs no restart."""
    folder, file = tmp_path / "registry", tmp_path / "config.json"
    folder.mkdir()
    with started(folder, login=True) as url:
        host = url.partition("//")[2]
        ours = registry(url, login=file)
        for entry in ({"auth": encoded("wrong")}, {"username": USER, "password": "wrong"}):
            login(file, host, **entry)
            with pytest.raises(Unauthorized, match=r"dockerconfigjson"):
                ours.push(tiny.bundle)
        login(file, "elsewhere:5000", auth=encoded(PASSWORD))
        with pytest.raises(Unauthorized, match=f"has a login for elsewhere:5000, none for {host}"):
            ours.push(tiny.bundle)
        file.unlink()
        with pytest.raises(Unauthorized, match="no file"):
            ours.push(tiny.bundle)
        file.write_text("{")
        with pytest.raises(ManifestError, match=r"docker config\.json"):
            ours.push(tiny.bundle)

        login(file, f"{url}/v1/", username=USER, password=PASSWORD)
        ours.push(tiny.bundle)
        login(file, host, auth=encoded(PASSWORD))
        registry(url, login=file).pull(tiny.bundle.digest, tmp_path / "pulled")
    Bundle(tmp_path / "pulled").verify()


def test_a_model_is_the_only_layer_of_an_artifact(url: str, tmp_path: Path):
    """As `oras push` makes them; anything else is told."""
    host = url.partition("//")[2]

    def fetch(digest: str, most: int = 100) -> bytes:
        file = tmp_path / "model.onnx"
        uri = f"oci://{host}/models@{digest}"
        fetch_only_layer(uri, file, ours=f"{url}/{REPOSITORY}", login=NOBODY, most=most)
        return file.read_bytes()

    assert fetch(push_artifact(url, "models", b"a model")) == b"a model"
    with pytest.raises(ManifestError, match="2 layers"):
        fetch(push_artifact(url, "models", b"a model", b"another"))
    with pytest.raises(ManifestError, match="at most 3"):
        fetch(push_artifact(url, "models", b"a model"), most=3)
    with pytest.raises(BundleError, match="has no sha256:1"):
        fetch("sha256:" + "1" * 64)
    with pytest.raises(ManifestError, match="is not oci://"):
        fetch("latest")


def test_where_there_is_no_room_it_is_said(url: str, tiny: TinyBundle, tmp_path: Path):
    """A full disk is not a registry that is away."""
    registry(url).push(tiny.bundle)
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system needs the right to mount one")
    try:
        with pytest.raises(Unavailable, match="No space left"):
            registry(url).pull(tiny.bundle.digest, small / "pulled")
    finally:
        subprocess.run(["umount", str(small)], check=True)
        shutil.rmtree(small)
