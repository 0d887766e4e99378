"""Access: how a device reaches its pool, whom it trusts there, and what it shows.

Token and authority lie in files that are read again when they change, so that both can be rotated,
and a token that was revoked replaced, while the edge runs. Looking is the business of background
threads: a request takes whatever is at hand.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dovetail.errors import ManifestError
from dovetail.wire import DEVICE_CLASS_HEADER, DEVICE_HEADER
from dovetail_edge.link import TailLink
from dovetail_edge.secure import Trust

log = logging.getLogger("dovetail.edge")

LEDGER: Final = "/dovetail-ledger/v1"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a device shows and whom it trusts.

    Attributes:
        token: the device class's bearer token, or the file it is in; None where the pool is open.
        ca_file: PEM file of whom to trust under https; None for the system's authorities.
        device: who this device is; None says nothing.
    """

    token: str | Path | None = None
    ca_file: Path | None = None
    device: str | None = None


class Access:
    """The link to one endpoint and the headers of every request on it.

    Args:
        endpoint: `http://host:port[/prefix]`, or `https://…`.
        device_class: the caller's class; None where only its token tells.
        credentials: what to show, whom to trust.

    Attributes:
        link: the connections.
        headers: on every request; replaced, never changed.

    Raises:
        ManifestError: the endpoint is not such a URL, or a file cannot be used.
    """

    def __init__(self, endpoint: str, device_class: str | None, credentials: Credentials) -> None:
        self._class, self._credentials = device_class, credentials
        self.link = TailLink(endpoint, credentials.ca_file)
        self._seen = {path: stamp(path) for path in self._files()}
        self.headers = self._headers()

    def refresh(self) -> bool:
        """Read again what changed on disk; returns whether anything did.

        A file that cannot be used is logged, and what was read before stays.
        """
        changed = False
        for path, seen in list(self._seen.items()):
            now = stamp(path)
            if now == seen:
                continue
            self._seen[path] = now
            try:
                self._take(path)
            except ManifestError as error:
                log.warning("%s; what was read before stays in use", error)
            else:
                log.info("%s was read again", path)
                changed = True
        return changed

    def _take(self, path: Path) -> None:
        if path == self._credentials.ca_file:
            self.link.trust = Trust(path)
        else:
            self.headers = self._headers()

    def _files(self) -> list[Path]:
        ca_file, token = self._credentials.ca_file, self._credentials.token
        files = [token] if isinstance(token, Path) else []
        return [*files, ca_file] if ca_file and self.link.trust else files

    def _headers(self) -> Mapping[str, str]:
        found = {DEVICE_CLASS_HEADER: self._class, DEVICE_HEADER: self._credentials.device}
        headers = {name: value for name, value in found.items() if value is not None}
        token = self._credentials.token
        if token is not None:
            text = _read_token(token) if isinstance(token, Path) else token
            headers["Authorization"] = f"Bearer {text}"
        return headers


def _read_token(path: Path) -> str:
    try:
        text = path.read_text("ascii").strip()
    except OSError as error:
        raise ManifestError(f"token file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"token file {path} holds no token: expected one line of text"
        ) from error
    if not text or any(not sign.isprintable() for sign in text):
        raise ManifestError(f"token file {path} holds no token: expected one line of text")
    return text


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; also when it is a link that now leads elsewhere."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
