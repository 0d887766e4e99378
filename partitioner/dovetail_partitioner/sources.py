"""Brings what a deployment names to where it can be read: from HTTP, a claim, or a registry.

Whoever writes a resource need not be whoever runs the cluster, so what is named here is not
trusted: a file has a bound, a redirect does not lead away from TLS, a path does not lead out of the
claim it is in, neither by dots nor by a link.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import urllib3

from dovetail.errors import BodyTooLarge, ManifestError, ModelNotReadable, Unavailable
from dovetail.http import Http, Stream, chunks_of, download
from dovetail.registry import fetch_only_layer
from dovetail_partitioner.progress import Report, silent

MOST_MODEL: Final = 2 << 30
"""Bytes of a model's file: protobuf takes no larger one. With external data it may be larger, on a
claim."""
MOST_ROWS: Final = 2 << 30
_BUSY: Final = frozenset({408, 425, 429})


@dataclass(frozen=True)
class Places:
    """Where the operator mounts what a Job may read, and what it knows of its registry.

    Attributes:
        claim: the volume of a `pvc://` model.
        login: docker `config.json` for an `oci://` model.
        registry: `URL/REPOSITORY` that bundles go to.
    """

    claim: Path
    login: Path
    registry: str


def fetch_model(
    uri: str, digest: str | None, folder: Path, places: Places, report: Report = silent
) -> Path:
    """The model's file.

    Args:
        uri: `spec.model.uri`.
        digest: `sha256:…` that it must have.
        folder: where a fetched file is put.
        places: what is mounted.
        report: told of bytes.

    Raises:
        ManifestError: there is no such file, or it cannot be had in a cluster.
        ModelNotReadable: it does not have the digest, or is too large.
        DovetailError: as `dovetail.registry.fetch_only_layer`.
    """
    file = folder / "model.onnx"
    if uri.startswith("pvc://"):
        file = _on_claim(uri, places.claim)
        found = file_digest(file) if digest else None
    elif uri.startswith("oci://"):
        ours, login = places.registry, places.login
        fetch_only_layer(uri, file, ours=ours, login=login, most=MOST_MODEL, report=report)
        found = file_digest(file) if digest else None
    else:
        refuse_local(uri, "spec.model.uri")
        try:
            found = fetch_http(uri, file, MOST_MODEL, report, "fetching the model")
        except BodyTooLarge as error:
            raise ModelNotReadable(f"{uri}: {error}") from error
    if digest is not None and found != digest:
        raise ModelNotReadable(f"{uri} has digest {found}, the manifest expects {digest}")
    return file


def refuse_local(uri: str, field: str) -> None:
    """Refuse what only the machine of a manifest's author sees; raises `ManifestError`."""
    if uri.startswith("file:"):
        raise ManifestError(
            f"{field} is {uri}: a cluster sees no file of the machine that the manifest was "
            "written on; put it where an http:// or https:// address leads"
        )


def fetch_http(
    uri: str, file: Path, most: int, report: Report = silent, part: str = "fetching"
) -> str:
    """Bring what an address leads to into a file; returns its `sha256:…`.

    A connection that breaks is gone on with where the server says that it is still the same file.

    Args:
        uri: `http://…` or `https://…`.
        file: where it will be, whole.
        most: bytes that it may have.
        report: told of bytes.
        part: what it is told they are.

    Raises:
        ManifestError: there is nothing, or it is not for everybody.
        BodyTooLarge: it is larger than `most`.
        Unavailable: the server does not answer, or is not well.
    """
    http, tag = Http(), ""

    @contextmanager
    def source(begin: int) -> Iterator[Stream]:
        nonlocal tag
        going_on = {"Range": f"bytes={begin}-", "If-Range": tag} if begin and tag else {}
        with http.open("GET", uri, going_on) as answer:
            _expect(answer, uri)
            tag = _strong(answer.headers.get("ETag", ""))
            start = begin if answer.status == 206 else 0
            left = answer.length_remaining
            yield Stream(start, start + left if left is not None else None, chunks_of(answer))

    partial = file.with_name(f"{file.name}.partial")
    try:
        digest, _ = download(source, partial, most, report, part)
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)  # nothing would tell whether it is still the same file
    return digest


def file_digest(path: Path) -> str:
    """`sha256:…` of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _expect(answer: urllib3.BaseHTTPResponse, uri: str) -> None:
    status = answer.status
    if status in (200, 206):
        return
    if status in _BUSY or status >= 500:
        raise Unavailable(f"{uri}: the server answered {status}")
    why = {401: "it asks for a login", 403: "it is refused", 404: "there is no such file"}
    raise ManifestError(f"{uri}: the server answered {status}: {why.get(status, 'no file')}")


def _strong(tag: str) -> str:
    """An entity tag by which a range may be asked for; empty where it is none."""
    return tag if tag.startswith('"') else ""


def _on_claim(uri: str, root: Path) -> Path:
    inner = uri.removeprefix("pvc://").partition("/")[2]
    path = (root / inner).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ManifestError(f"{uri} leads out of the claim")
    if not path.is_file():
        raise ManifestError(f"{uri}: the claim has no file {inner}")
    return path
