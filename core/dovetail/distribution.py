"""One repository of an OCI registry: manifests and blobs, each by its digest.

A registry can refuse, be late or be down, and each of these is told apart, because a person can
give a login, and a program can only wait. It cannot lie: what comes is checked against the digest
it was asked for by.

Why this is not `oras`: docs/adr/0010.

Reference: OCI Distribution Specification v1.1.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlencode, urljoin

import urllib3

from dovetail.errors import (
    BodyTooLarge,
    BundleCorrupt,
    BundleError,
    DovetailError,
    ManifestError,
    Unavailable,
)
from dovetail.http import Body, Http, Report, Stream, chunks_of, download, quiet
from dovetail.layout import MANIFEST_TYPE, digest_of
from dovetail.login import Login, challenge_of

MOST_DOCUMENT: Final = 16 << 20  # bytes of a manifest or another document that is held whole
_BYTES: Final = {"Content-Type": "application/octet-stream"}


class Repository:
    """One repository; safe to use from several threads.

    Args:
        url: `http(s)://host[:port]` of the registry.
        name: the repository.
        login: who asks.
    """

    def __init__(self, url: str, name: str, login: Login) -> None:
        self.url, self.name = url, name
        self._root, self._login, self._http = f"{url}/v2/{name}", login, Http()
        self._authorization: str | None = None

    def __str__(self) -> str:
        return f"{self.url}/{self.name}"

    def manifest(self, digest: str) -> bytes:
        """A manifest by its digest; raises as `blob`."""
        return self._named("manifests", digest)

    def tagged(self, tag: str) -> bytes:
        """The manifest that somebody put under a tag; raises as `blob`."""
        return self._document("manifests", tag)

    def blob(self, digest: str) -> bytes:
        """A small blob.

        Raises:
            BundleError: there is none of that digest, or it is no small one.
            BundleCorrupt: its bytes do not have that digest.
            Unauthorized: the registry refuses the login.
            Unavailable: the registry does not answer, or is not well.
        """
        return self._named("blobs", digest)

    def fetch(self, digest: str, size: int, file: Path, report: Report = quiet) -> None:
        """Bring a blob into a file, going on where an earlier attempt ended.

        Args:
            digest: its digest.
            size: its bytes.
            file: where it will be once it is whole; until then it has `.partial` behind its name.
            report: told of bytes.

        Raises:
            DovetailError: as `blob`.
        """
        partial = file.with_name(f"{file.name}.partial")

        @contextmanager
        def source(begin: int) -> Iterator[Stream]:
            if begin >= size > 0:  # whole, or longer than it may be: the digest will tell
                yield Stream(begin, size, iter(()))
                return
            headers = {"Range": f"bytes={begin}-"} if begin else {}
            with self._ask("GET", f"{self._root}/blobs/{digest}", headers) as answer:
                self._expect(answer, digest, 200, 206)
                start = begin if answer.status == 206 else 0
                yield Stream(start, size, chunks_of(answer))

        try:
            found, length = download(source, partial, size, report, digest[:19])
        except BodyTooLarge as error:
            raise BundleCorrupt(f"{self}: blob {digest} is larger than it says") from error
        if found != digest or length != size:
            partial.unlink()
            raise BundleCorrupt(
                f"{self}: blob {digest} has other bytes than its name says ({length} bytes, {size} "
                "expected); push it again"
            )
        partial.rename(file)

    def has(self, kind: str, digest: str) -> bool:
        """Whether there is a blob or manifest; `kind` is `blobs` or `manifests`."""
        headers = {"Accept": MANIFEST_TYPE}
        with self._ask("HEAD", f"{self._root}/{kind}/{digest}", headers) as answer:
            if answer.status == 404:
                return False
            self._expect(answer, digest, 200)
            return True

    def put_blob(self, digest: str, size: int, data: bytes | Path) -> None:
        """Send a blob, unless it is there.

        Raises:
            Unauthorized: the registry refuses the login.
            Unavailable: the registry does not answer, or does not take it.
        """
        if self.has("blobs", digest):
            return
        with self._ask("POST", f"{self._root}/blobs/uploads/", {"Content-Length": "0"}) as answer:
            self._expect(answer, digest, 202)
            place = urljoin(f"{self.url}/", answer.headers.get("Location", ""))
        place += ("&" if "?" in place else "?") + urlencode({"digest": digest})
        headers = {**_BYTES, "Content-Length": str(size)}
        with self._ask("PUT", place, headers, data) as answer:
            self._expect(answer, digest, 201)

    def put_manifest(self, tag: str, data: bytes) -> str:
        """Send a manifest; returns its digest.

        It gets a tag besides, because registries take what has none for rubbish.

        Raises:
            DovetailError: as `put_blob`.
        """
        digest, headers = digest_of(data), {"Content-Type": MANIFEST_TYPE}
        with self._ask("PUT", f"{self._root}/manifests/{tag}", headers, data) as answer:
            self._expect(answer, digest, 201)
        return digest

    def _named(self, kind: str, digest: str) -> bytes:
        content = self._document(kind, digest)
        if digest_of(content) != digest:
            raise BundleCorrupt(f"{self}@{digest} does not have the digest it is named by")
        return content

    def _document(self, kind: str, reference: str) -> bytes:
        accept = {"Accept": MANIFEST_TYPE} if kind == "manifests" else {}
        with self._ask("GET", f"{self._root}/{kind}/{reference}", accept) as answer:
            self._expect(answer, reference, 200)
            content = answer.read(MOST_DOCUMENT + 1)
        if len(content) > MOST_DOCUMENT:
            raise BundleError(f"{self}@{reference} has more than {MOST_DOCUMENT} bytes")
        return content

    @contextmanager
    def _ask(
        self, method: str, url: str, headers: Mapping[str, str], data: bytes | Path | None = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """One request, again with what a refusal asks for; the last answer is given."""
        with self._once(method, url, headers, data) as answer:
            if answer.status != 401:
                yield answer
                return
            challenge = challenge_of(answer)
        self._authorization = self._login.answer(challenge, self._http, url)
        with self._once(method, url, headers, data) as answer:
            yield answer

    @contextmanager
    def _once(
        self, method: str, url: str, headers: Mapping[str, str], data: bytes | Path | None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        fields = dict(headers)
        if self._authorization is not None and url.startswith(f"{self.url}/"):
            fields["Authorization"] = self._authorization
        if isinstance(data, Path):
            with data.open("rb") as file, self._http.open(method, url, fields, file) as answer:
                yield answer
        else:
            body: Body | None = data
            with self._http.open(method, url, fields, body) as answer:
                yield answer

    def _expect(self, answer: urllib3.BaseHTTPResponse, what: str, *good: int) -> None:
        if answer.status not in good:
            raise self._problem(answer.status, what, _said(answer))

    def _problem(self, status: int, what: str, said: str) -> DovetailError:
        if status in (401, 403):
            return self._login.refused(str(self))
        if status == 404:
            return BundleError(f"{self} has no {what}{said}")
        if status in (408, 425, 429) or status >= 500:
            return Unavailable(f"the registry answered {status} for {self}@{what}{said}")
        return ManifestError(f"the registry answered {status} for {self}@{what}{said}")


def _said(answer: urllib3.BaseHTTPResponse) -> str:
    """What a registry says beside a status, shortened."""
    text = answer.read(4096).decode("utf-8", "replace").strip()
    return f": {' '.join(text.split())[:300]}" if text else ""
