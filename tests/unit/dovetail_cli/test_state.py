"""The state directory: one holder, rising generations, private tokens; where models come from."""

import hashlib
import http.server
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tiny_bundle import write_tiny_bundle

from dovetail.errors import ManifestError, ModelNotReadable, StateInUse
from dovetail_cli.local.source import resolve
from dovetail_cli.local.state import State, fingerprint


def test_a_held_state_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    """The message says who holds it; leaving gives it back."""
    first, second = State(tmp_path / "s"), State(tmp_path / "s")
    with first, pytest.raises(StateInUse, match=r"process [0-9]+"), second:
        pass
    with State(tmp_path / "s") as again:
        assert again.path.is_dir()


def test_tokens_are_made_once_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    """Servers keep a fingerprint, never the token."""
    with State(tmp_path / "s") as state:
        first, other = state.token("camera"), state.token("robot")
        again = state.token("camera")

    assert first.read_text() == again.read_text() != other.read_text()
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert fingerprint(first) == hashlib.sha256(first.read_text().encode()).hexdigest()


def test_generations_go_on_from_the_last_plan(tmp_path: Path) -> None:
    """An edge ignores a lower generation, so a new run must begin above."""
    plan = write_tiny_bundle(tmp_path / "bundle").plan(generation=41)
    with State(tmp_path / "s") as state:
        assert state.generation("camera") == 0
        state.keep(plan)
        assert state.generation("camera") == 41
        state.plan_file("camera").write_text("half a pl")
        assert state.generation("camera") == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server with one file."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "m.onnx").write_bytes(b"model")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "www"), **more)  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/m.onnx"
        running.shutdown()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_file_is_found_beside_the_manifest_and_its_digest_checked(tmp_path: Path) -> None:
    """A relative path, a wrong digest, a file that is not there."""
    (tmp_path / "m.onnx").write_bytes(b"model")

    assert resolve("file:m.onnx", tmp_path, tmp_path, _digest(b"model")) == tmp_path / "m.onnx"
    with pytest.raises(ModelNotReadable, match="expects sha256:"):
        resolve("file:m.onnx", tmp_path, tmp_path, _digest(b"another"))
    with pytest.raises(ManifestError, match="relative to"):
        resolve("file:gone.onnx", tmp_path, tmp_path)


def test_a_download_is_checked_and_kept(tmp_path: Path, server: str) -> None:
    """With a digest it is fetched once; a wrong one is refused; nothing half-written stays."""
    kept = tmp_path / "kept"
    kept.mkdir()

    path = resolve(server, tmp_path, kept, _digest(b"model"))
    (tmp_path / "www" / "m.onnx").write_bytes(b"changed")

    assert resolve(server, tmp_path, kept, _digest(b"model")).read_bytes() == b"model"
    assert resolve(server, tmp_path, kept).read_bytes() == b"changed"
    with pytest.raises(ModelNotReadable):
        resolve(server, tmp_path, kept, _digest(b"another"))
    with pytest.raises(ManifestError, match="404"):
        resolve(server + "x", tmp_path, kept)
    assert path.read_bytes() == b"model"
    assert not [item for item in kept.iterdir() if item.suffix == ".partial"]
    assert not (kept / _digest(b"another").removeprefix("sha256:")).exists()
