"""HTTP for what is large or far away: a model, a blob of a registry, an upload.

Three things go wrong with plain clients here. A peer that accepts and then is silent holds a
program for ever: every wait has a bound. A redirect carries credentials to a stranger, or away from
TLS: they are followed by hand, few of them, with `Authorization` left behind on another host and
never from https to http. A connection that breaks after a gigabyte begins anew: `download` goes on
where the file ends, and gives up only when nothing more comes.

Not for requests of an inference, which have a link of their own in the edge.

Reference: RFC 9110 sections 14 (range requests) and 15.4 (redirection).
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final
from urllib.parse import urljoin, urlsplit

import urllib3

from dovetail.errors import BodyTooLarge, ManifestError, Unavailable

CHUNK: Final = 1 << 20
_REDIRECTS: Final = 5
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_TIMEOUT: Final = urllib3.Timeout(connect=10.0, read=60.0)
_PAUSES: Final = (0.5, 2.0, 8.0)  # seconds between attempts that bring nothing

Body = bytes | IO[bytes]
Report = Callable[[str, int, int], None]
"""Told that `done` of `total` steps of the named part are finished."""


def quiet(part: str, done: int, total: int) -> None:
    """Report nothing."""


class Http:
    """Kept-alive connections with bounds; safe to use from several threads."""

    def __init__(self) -> None:
        self._pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=False, maxsize=8)

    @contextmanager
    def open(
        self, method: str, url: str, headers: Mapping[str, str] = {}, body: Body | None = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Make a request; the answer's body is not read yet, and is read as it was stored.

        Args:
            method: HTTP method; redirects are followed for GET and HEAD alone.
            url: `http://…` or `https://…`.
            headers: header fields.
            body: what to send; a file is streamed from where it stands.

        Raises:
            ManifestError: not a URL.
            Unavailable: no answer, or too many redirects, or one away from TLS; also while the
                body is read inside the `with`.
        """
        fields = {"Accept-Encoding": "identity", **headers}
        try:
            answer = self._follow(method, url, fields, body)
        except (
            urllib3.exceptions.LocationParseError,
            urllib3.exceptions.URLSchemeUnknown,
        ) as error:
            raise ManifestError(f"{url} is not a URL of http or https: {error}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"{_host(url)} does not answer: {_plain(error)}") from error
        try:
            yield answer
        except urllib3.exceptions.HTTPError as error:  # while the body is read
            raise Unavailable(f"{_host(url)} stopped answering: {_plain(error)}") from error
        finally:
            if answer.length_remaining == 0:
                answer.drain_conn()  # the connection can be used again
            answer.close()

    def _follow(
        self, method: str, url: str, headers: dict[str, str], body: Body | None
    ) -> urllib3.BaseHTTPResponse:
        for _ in range(_REDIRECTS + 1):
            answer = self._pool.request(
                method, url, body=body, headers=headers, preload_content=False, redirect=False
            )
            place = answer.headers.get("Location")
            if method not in ("GET", "HEAD") or answer.status not in _MOVED or place is None:
                return answer
            answer.drain_conn()
            there = urljoin(url, place)
            here, next_ = urlsplit(url), urlsplit(there)
            if next_.scheme not in {here.scheme, "https"}:
                raise Unavailable(f"{url} redirects to {there}, which is not protected by TLS")
            if next_.netloc != here.netloc:
                headers.pop("Authorization", None)
            url = there
        raise Unavailable(f"{url}: more than {_REDIRECTS} redirects")


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes that are on their way.

    Attributes:
        begin: offset of the first one in the whole.
        total: bytes of the whole; None where it is not known.
        chunks: the bytes; raises `Unavailable` where they end early.
    """

    begin: int
    total: int | None
    chunks: Iterator[bytes]


Source = Callable[[int], AbstractContextManager[Stream]]
"""Opens the bytes from an offset on; may begin anew at 0."""


def download(
    source: Source, partial: Path, most: int, report: Report = quiet, part: str = "fetching"
) -> tuple[str, int]:
    """Stream into a file, going on where it ends, until it is whole.

    Args:
        source: where the bytes are.
        partial: the file; what it holds already is kept if the source can go on from there.
        most: bytes that it may have.
        report: told of bytes.
        part: what it is told they are.

    Returns:
        `sha256:…` of the file, and its bytes.

    Raises:
        BodyTooLarge: there are more than `most`; nothing is kept.
        Unavailable: the source does not answer, again and again; what came is kept.
        DovetailError: whatever else the source raises.
    """
    failures = 0
    while True:
        have = partial.stat().st_size if partial.exists() else 0
        try:
            return _append(source, partial, most, report, part)
        except Unavailable:
            failures = 0 if partial.exists() and partial.stat().st_size > have else failures + 1
            if failures > len(_PAUSES):
                raise
            time.sleep(_PAUSES[max(failures - 1, 0)])


def _append(source: Source, partial: Path, most: int, report: Report, part: str) -> tuple[str, int]:
    with partial.open("a+b") as file:
        file.seek(0)
        sha = hashlib.file_digest(file, "sha256")
        size = file.tell()
        with source(size) as stream:
            if stream.begin != size:
                file.truncate(0)
                sha, size = hashlib.sha256(), 0
            for chunk in stream.chunks:
                size += len(chunk)
                if size > most:
                    break
                sha.update(chunk)
                file.write(chunk)
                report(part, size, stream.total or most)
    if size > most:
        partial.unlink()
        raise BodyTooLarge(f"{part}: there are more than {most} bytes, which is the most taken")
    return f"sha256:{sha.hexdigest()}", size


def chunks_of(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """An answer's body, chunk by chunk."""
    return answer.stream(CHUNK, decode_content=False)


def _host(url: str) -> str:
    return urlsplit(url).netloc or url


def _plain(error: Exception) -> str:
    """What a transport error says, without the library's wrapping."""
    reason = getattr(error, "reason", None)
    return str(reason if isinstance(reason, Exception) else error)
