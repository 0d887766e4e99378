"""An OCI image layout on disk: an index, one manifest, one config blob and any number of others.

Why it is read this strictly: a bundle may come from anyone, and everything that is loaded later is
named in these few documents. Each is parsed into a closed type (an unknown key, a second spelling
or a wrong size is an error), so one changed byte anywhere is noticed, either here or by a digest;
and a digest is only ever 64 hex digits, so that no blob can name a path outside the folder. The
price is that layouts with several manifests, which OCI allows, are refused.

Reference: OCI Image Format v1.1 (image-layout, index, manifest, descriptor).
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self, TypeVar

from pydantic import Field, ValidationError

from dovetail.errors import BundleCorrupt, BundleError
from dovetail.tensor import Document

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"

_CHUNK = 1 << 20
_MOST_DOCUMENT = 64 << 20  # bytes of a document that is read whole before its digest is known

_D = TypeVar("_D", bound=Document)

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Descriptor(Document):
    """How OCI points at a blob; the optional fields are what registry clients add."""

    media_type: str
    digest: Digest
    size: Annotated[int, Field(ge=0, strict=True)]
    artifact_type: str | None = None
    annotations: Mapping[str, str] | None = None


class _Marker(Document):
    image_layout_version: Literal["1.0.0"]


class _ManifestEntry(Descriptor):
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"]


class _Index(Document):
    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.index.v1+json"] | None = None
    manifests: tuple[_ManifestEntry]
    annotations: Mapping[str, str] | None = None


class Manifest(Document):
    """A manifest of one artifact.

    Attributes:
        schema_version, media_type: as OCI has them.
        artifact_type: what the artifact is.
        config: its config blob.
        layers: its other blobs.
        annotations: what registry clients add.
    """

    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"]
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] | None = None


class Layout(NamedTuple):
    """What a layout's index and manifest say.

    Attributes:
        digest: digest of the manifest.
        sizes: bytes of every blob the manifest names, config included, by digest.
        config: the config blob.
    """

    digest: str
    sizes: dict[str, int]
    config: bytes


def digest_of(data: bytes) -> str:
    """Name of a blob: `sha256:` and the hex digest of its bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def canonical_json(value: object) -> bytes:
    """JSON with one spelling: sorted keys, no spaces, UTF-8, shortest floats."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def parse(kind: type[_D], data: bytes, path: Path | str) -> _D:
    """Read one of a layout's documents; raises `BundleError` saying where it is damaged."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        what = kind.__name__.removeprefix("_").lower()
        raise BundleError(
            f"{path} is not a bundle: its {what} is damaged at {where or 'the start'}: "
            f"{first['msg']}"
        ) from error


def blob_dir(path: Path) -> Path:
    """Folder of a layout's blobs."""
    return path / "blobs" / "sha256"


def open_layout(path: Path, artifact_type: str) -> Layout:
    """Read index, manifest and config, each checked against the digest it is named by.

    Raises:
        BundleError: not a layout of one artifact of that type.
        BundleCorrupt: manifest or config do not have the size and digest they are named by.
    """
    parse(_Marker, _document(path / "oci-layout"), path)
    [entry] = parse(_Index, _document(path / "index.json"), path).manifests
    blobs = blob_dir(path)
    manifest = parse(Manifest, read_blob(blobs, entry.digest, entry.size), path)
    if manifest.artifact_type != artifact_type:
        raise BundleError(
            f"{path}: artifact type {manifest.artifact_type!r} is not {artifact_type!r}"
        )
    sizes = {one.digest: one.size for one in (*manifest.layers, manifest.config)}
    config = read_blob(blobs, manifest.config.digest, manifest.config.size)
    return Layout(entry.digest, sizes, config)


def read_blob(blobs: Path, digest: str, size: int) -> bytes:
    """Read a blob whole; raises `BundleCorrupt` unless size and digest are as named."""
    file = blobs / digest.removeprefix("sha256:")
    try:
        found = file.stat().st_size
        data = file.read_bytes() if found == size else b""
    except OSError as error:
        raise BundleCorrupt(f"blob {digest} cannot be read: {error.strerror}") from error
    _same(digest, digest_of(data), size, found)
    return data


def verify_blob(blobs: Path, digest: str, size: int) -> None:
    """Check a blob's size and digest without holding it; raises `BundleCorrupt`."""
    sha, found = hashlib.sha256(), 0
    try:
        with (blobs / digest.removeprefix("sha256:")).open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
                found += len(chunk)
    except OSError as error:
        raise BundleCorrupt(f"blob {digest} cannot be read: {error.strerror}") from error
    _same(digest, "sha256:" + sha.hexdigest(), size, found)


class LayoutWriter:
    """Writes a layout; nothing is visible at `path` before it is moved there whole.

    Use as a context manager: leaving it before that removes every byte written.

    Args:
        path: where the layout will stand; a layout that is there already is replaced.

    Raises:
        BundleError: something else is at `path`.
    """

    def __init__(self, path: Path) -> None:
        _refuse_to_replace(path)
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temp = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        self._blobs = blob_dir(self._temp)
        self._blobs.mkdir(parents=True)
        self._sizes: dict[str, int] = {}
        self._documents: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self._temp, ignore_errors=True)

    def add(self, data: bytes | memoryview) -> str:
        """Store a blob and return its digest; the same bytes are stored once."""
        return self.add_stream((data,))

    def add_stream(self, chunks: Iterable[bytes | memoryview]) -> str:
        """Store a blob from chunks, so that a large one is never in memory whole."""
        digest, size = self._store(chunks)
        self._sizes[digest] = size
        return digest

    def finish(self, artifact_type: str, config_type: str, layer_type: str, config: bytes) -> str:
        """Write config, manifest and index, move the layout into place.

        Returns:
            The manifest's digest.
        """
        digest = self._describe(artifact_type, config_type, layer_type, config)
        self._temp.chmod(0o755)
        _swap(self._temp, self._path)
        return digest

    def _store(self, chunks: Iterable[bytes | memoryview]) -> tuple[str, int]:
        sha, size = hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(dir=self._temp, delete=False) as file:
            try:
                for chunk in chunks:
                    sha.update(chunk)
                    size += file.write(chunk)
            except BaseException:
                Path(file.name).unlink()  # a half-written blob must not be moved into place
                raise
        Path(file.name).chmod(0o644)
        Path(file.name).rename(self._blobs / sha.hexdigest())
        return "sha256:" + sha.hexdigest(), size

    def _describe(
        self, artifact_type: str, config_type: str, layer_type: str, config: bytes
    ) -> str:
        """Write the documents that name the blobs; those of an earlier draft go."""
        for stale in self._documents - self._sizes.keys():
            (self._blobs / stale.removeprefix("sha256:")).unlink(missing_ok=True)
        head, _ = self._store((config,))
        manifest = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": artifact_type,
                "config": _descriptor(config_type, head, len(config)),
                "layers": [
                    _descriptor(layer_type, digest, size)
                    for digest, size in sorted(self._sizes.items())
                ],
            }
        )
        digest, _ = self._store((manifest,))
        self._documents = {head, digest}
        write_entry(self._temp, digest, len(manifest))
        return digest


def write_entry(path: Path, digest: str, size: int) -> None:
    """Make a folder with blobs a layout of one manifest, given its digest and bytes."""
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [_descriptor(MANIFEST_TYPE, digest, size)],
    }
    (path / "index.json").write_bytes(canonical_json(index))
    (path / "oci-layout").write_bytes(canonical_json({"imageLayoutVersion": "1.0.0"}))


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _refuse_to_replace(path: Path) -> None:
    if not path.exists() or (path / "oci-layout").is_file():
        return
    if not path.is_dir() or any(path.iterdir()):
        raise BundleError(f"{path} exists and is not a bundle; choose another folder")


def _swap(new: Path, path: Path) -> None:
    """Put `new` at `path`; an old layout there is removed once the new one stands."""
    _refuse_to_replace(path)
    if not path.exists():
        new.rename(path)
        return
    old = new.with_name(new.name + ".old")
    path.rename(old)
    new.rename(path)
    shutil.rmtree(old)


def _document(file: Path) -> bytes:
    try:
        if file.stat().st_size > _MOST_DOCUMENT:
            raise BundleError(f"{file} is larger than any bundle's; {_MOST_DOCUMENT} bytes at most")
        return file.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(
            f"{file.parent} is not a bundle: {file.name} is missing; "
            "make one with `dovetail partition MODEL --bundle DIR`"
        ) from error
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from error


def _same(digest: str, found_digest: str, size: int, found: int) -> None:
    if found != size or found_digest != digest:
        raise BundleCorrupt(
            f"blob {digest} has other bytes than its name says "
            f"({found} bytes, {size} expected); fetch the bundle again"
        )
