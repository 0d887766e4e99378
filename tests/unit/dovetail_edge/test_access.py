"""What a device shows, read again when it changes."""

from pathlib import Path

import pytest
from tests.certificates import Authority

from dovetail.errors import ManifestError
from dovetail_edge.access import Access, Credentials

HTTP, HTTPS = "http://127.0.0.1:9", "https://127.0.0.1:9/ns/pool"


def test_every_request_says_class_device_and_token(tmp_path: Path) -> None:
    """What is not known is left out."""
    file = tmp_path / "token"
    file.write_text("  secret\n")
    assert Access(HTTP, "camera", Credentials(file, None, "porch")).headers == {
        "Dovetail-Device-Class": "camera",
        "Dovetail-Device": "porch",
        "Authorization": "Bearer secret",
    }
    assert Access(HTTP, None, Credentials()).headers == {}


def test_a_token_is_read_again_when_its_file_changes_or_leads_elsewhere(tmp_path: Path) -> None:
    """As a person writes it, and as a kubelet swaps the folder behind a link."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(name)
    link = tmp_path / "now"
    link.symlink_to("one")
    access = Access(HTTP, None, Credentials(link / "token"))
    assert not access.refresh()

    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(link)
    assert access.refresh()
    assert access.headers["Authorization"] == "Bearer two"
    assert not access.refresh()

    (link / "token").write_text("three, and longer")
    assert access.refresh()
    assert access.headers["Authorization"] == "Bearer three, and longer"


@pytest.mark.parametrize("text", ["", "\n", "two\nlines", "caf\u00e9", None])
def test_a_file_without_a_token_is_refused_at_the_start_and_left_later(
    tmp_path: Path, text: str | None
) -> None:
    """A device that runs goes on with what it had."""
    file = tmp_path / "token"

    def write() -> None:
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text, "utf-8")

    write()
    with pytest.raises(ManifestError, match=str(file)):
        Access(HTTP, None, Credentials(file))
    file.write_text("good")
    access = Access(HTTP, None, Credentials(file))
    write()
    assert not access.refresh()
    assert access.headers["Authorization"] == "Bearer good"


def test_another_authority_is_trusted_once_its_file_is_there(tmp_path: Path) -> None:
    """And a file that is none changes nothing."""
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    file = tmp_path / "ca.crt"
    file.write_bytes(first.pem)
    access = Access(HTTPS, None, Credentials(None, file))
    before = access.link.trust
    file.write_text("nothing")
    assert not access.refresh()
    assert access.link.trust is before
    file.write_bytes(second.pem)
    assert access.refresh()
    assert access.link.trust is not before


def test_without_tls_no_authority_is_looked_at(tmp_path: Path) -> None:
    """A pool that is reached in the clear needs none."""
    access = Access(HTTP, None, Credentials(None, tmp_path / "missing.crt"))
    assert access.link.trust is None
    assert not access.refresh()
