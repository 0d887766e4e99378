"""The bundle: an OCI image layout that carries a model cut once, at every cut of a nested chain.

Why an OCI image layout: any registry stores it, `oras` moves it, and every byte is named by its
digest, so a device can check what it runs and fetch only the segments it needs. The digest of the
manifest is *the* version of a deployment; a head and a tail talk only when it is the same on both
sides.

What is inside follows only from the model, the profile file and the calibration rows: the same
three give the same bytes. Times are therefore not in it (see `dovetail.ladder.CostProfile`).

Weights are stored once. They are grouped by the set of segments that use them, so a weight that
two segments share is one blob, mapped once. A segment is not a ready ONNX file but a *fragment* (a
GraphProto that holds only nodes); `dovetail.runtime` joins the fragments of neighbouring segments
into one model by concatenation, which protobuf defines as a merge. So neighbours that no rung
separates load as one session, on devices without the onnx package.

References: OCI Image Format v1.1 (image-layout, manifest); protobuf encoding, "Last One Wins".
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import ValidationError

from dovetail.errors import BundleCorrupt, BundleError, UnknownRung
from dovetail.tensor import Document, TensorSpec

ARTIFACT_TYPE = "application/vnd.dovetail.bundle.v1"
CONFIG_TYPE = "application/vnd.dovetail.bundle.config.v1+json"
BLOB_TYPE = "application/vnd.dovetail.bundle.blob.v1"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
FORMAT: Final = "dovetail.dev/bundle.v1"

_CHUNK = 1 << 20


class Image(Document):
    """How an input tensor was made from 8-bit pixels: `x = (pixel * scale - mean) / std`.

    Attributes:
        input: name of the input tensor.
        layout: order of its axes; C is 1 or 3 (RGB).
        scale: factor on the pixel value, often 1/255.
        mean: per channel, in scaled units.
        std: per channel, in scaled units.
    """

    input: str
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class ModelInfo(Document):
    """The model the bundle was made from.

    Attributes:
        name: served name.
        digest: `sha256:…` of the model's bytes, external data included.
        weight_bytes: bytes of all weights, each counted once.
        notes: what the importer had to say, such as why batch is fixed to 1.
    """

    name: str
    digest: str
    weight_bytes: int
    notes: tuple[str, ...] = ()


class Segment(Document):
    """One piece of the model between two neighbouring cuts.

    Attributes:
        nodes: digest of the GraphProto fragment that holds the segment's nodes.
        reads: activation tensors made earlier, or graph inputs, that it reads.
        writes: activation tensors it makes that a later segment or the caller reads.
        row_wise: whether a row's answer is independent of its neighbours in a batch.
    """

    nodes: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    row_wise: bool = True


class WeightGroup(Document):
    """Weights used by exactly one set of segments.

    Attributes:
        segments: indices of the segments that use them.
        initializers: digest of the GraphProto fragment that declares them.
        data: digest of the blob with their bytes; None when all are small and inline.
    """

    segments: tuple[int, ...]
    initializers: str
    data: str | None = None


class Affine(Document):
    """Calibrated affine quantisation of one tensor: `real = scale[c] * (code - zero[c])`.

    Attributes:
        axis: channel axis; None for one scale over the whole tensor.
        scale: one value a channel, float32.
        zero: one value a channel: the code that stands for 0.0.
    """

    axis: int | None
    scale: tuple[float, ...]
    zero: tuple[int, ...]


class RungSpec(Document):
    """A rung as the bundle proves it.

    Attributes:
        id: `edge`, `cloud`, `cut<k>`, with `-<codec>` where the codec is not `raw`.
        cut: number of segments that run on the edge; 0 is cloud, all of them is edge.
        codec: name of the codec; `raw` on the edge rung, where nothing crosses.
        bytes_up: mean coded bytes of one row's crossing tensors over the calibration rows.
        bytes_down: bytes of one row's outputs that are made in the cloud.
        max_error: worst max|a-b| / max|a| over outputs and calibration rows.
        top1: share of calibration rows whose argmax agrees with the whole model; None where no
            output is a score vector.
    """

    id: str
    cut: int
    codec: str
    bytes_up: float
    bytes_down: int
    max_error: float
    top1: float | None


class BundleConfig(Document):
    """The bundle's description, stored as the manifest's config blob.

    Attributes:
        format: format version.
        model: where it came from.
        header: digest of the ModelProto without a graph: IR version, opsets, functions.
        inputs: the model's inputs, in order.
        outputs: the model's outputs, in order.
        tensors: every tensor that crosses from one segment to another.
        segments: in order of execution.
        groups: the weights.
        batch: name of the symbolic batch dimension; None where batch is fixed.
        image: declaration of the image input, if there is one.
        affine: quantisation tables: codec family (`int8`, `int4`, `uint8`) -> tensor -> table.
        rungs: by cut depth, then bytes.
        proof: digest of the proof document.
    """

    format: Literal["dovetail.dev/bundle.v1"] = FORMAT
    model: ModelInfo
    header: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tensors: tuple[TensorSpec, ...]
    segments: tuple[Segment, ...]
    groups: tuple[WeightGroup, ...]
    batch: str | None = None
    image: Image | None = None
    affine: Mapping[str, Mapping[str, Affine]] = {}
    rungs: tuple[RungSpec, ...]
    proof: str

    def crossing(self, cut: int) -> tuple[str, ...]:
        """Tensors that cross at `cut`, in a fixed order; none for the edge rung.

        A tensor crosses when it is a graph input or is made before the cut, and a segment behind
        the cut reads it, however far behind.
        """
        made = {spec.name for spec in self.inputs}
        for segment in self.segments[:cut]:
            made.update(segment.writes)
        read = {name for segment in self.segments[cut:] for name in segment.reads}
        return tuple(sorted(made & read))

    def remote_outputs(self, cut: int) -> tuple[TensorSpec, ...]:
        """Outputs of the model that segments behind `cut` make."""
        late = {name for segment in self.segments[cut:] for name in segment.writes}
        return tuple(spec for spec in self.outputs if spec.name in late)

    def spec(self, name: str) -> TensorSpec:
        """Declaration of an input, an output or a crossing tensor."""
        return self._specs[name]

    def rung(self, rung_id: str) -> RungSpec:
        """Find a rung; raises `UnknownRung`."""
        for rung in self.rungs:
            if rung.id == rung_id:
                return rung
        raise UnknownRung(
            f"rung {rung_id!r} is not on the ladder; it has {[rung.id for rung in self.rungs]}"
        )

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in (*self.inputs, *self.outputs, *self.tensors)}


def rung_id(cut: int, codec: str, segments: int) -> str:
    """Stable id of the rung (cut, codec) in a bundle of that many segments."""
    if cut == segments:
        return "edge"
    base = "cloud" if cut == 0 else f"cut{cut}"
    return base if codec == "raw" else f"{base}-{codec}"


def digest_of(data: bytes) -> str:
    """Name of a blob: `sha256:` and the hex digest of its bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def canonical_json(value: object) -> bytes:
    """JSON with one spelling: sorted keys, no spaces, UTF-8, shortest floats."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


class BundleWriter:
    """Writes a bundle; nothing is visible at `path` before `commit`.

    Use as a context manager: leaving it without `commit` removes every byte written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temp = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        self._blobs = self._temp / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        self._sizes: dict[str, int] = {}
        self._documents: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self._temp, ignore_errors=True)

    def add(self, data: bytes | memoryview) -> str:
        """Store a blob and return its digest; the same bytes are stored once."""
        return self.add_stream(iter((data,)))

    def add_stream(self, chunks: Iterator[bytes | memoryview]) -> str:
        """Store a blob from chunks, so that a large one is never in memory whole."""
        digest, size = self._store(chunks)
        self._sizes[digest] = size
        return digest

    def draft(self, config: BundleConfig) -> "Bundle":
        """Open what has been added so far as a bundle described by `config`.

        Segments must run before they can be proved, and the proof is part of the bundle. A draft
        may be read until the writer is left; it leaves no trace in what `commit` writes.
        """
        self._describe(config)
        return Bundle(self._temp)

    def commit(self, config: BundleConfig) -> str:
        """Write config, manifest and index, move the layout into place; returns the version."""
        digest = self._describe(config)
        self._temp.chmod(0o755)
        _swap(self._temp, self._path)
        return digest

    def _store(self, chunks: Iterator[bytes | memoryview]) -> tuple[str, int]:
        sha, size = hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(dir=self._blobs, delete=False) as file:
            for chunk in chunks:
                sha.update(chunk)
                size += len(chunk)
                file.write(chunk)
        Path(file.name).chmod(0o644)
        Path(file.name).rename(self._blobs / sha.hexdigest())
        return "sha256:" + sha.hexdigest(), size

    def _describe(self, config: BundleConfig) -> str:
        """Write the documents that name the blobs; those of an earlier draft go."""
        for name in self._documents - {_hex(digest) for digest in self._sizes}:
            (self._blobs / name).unlink(missing_ok=True)
        config_bytes = canonical_json(config.model_dump(mode="json", by_alias=True))
        config_digest, _ = self._store(iter((config_bytes,)))
        manifest = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": ARTIFACT_TYPE,
                "config": _descriptor(CONFIG_TYPE, config_digest, len(config_bytes)),
                "layers": [
                    _descriptor(BLOB_TYPE, d, size) for d, size in sorted(self._sizes.items())
                ],
            }
        )
        digest, _ = self._store(iter((manifest,)))
        self._documents = {_hex(config_digest), _hex(digest)}
        index = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [_descriptor(MANIFEST_TYPE, digest, len(manifest))],
        }
        (self._temp / "index.json").write_bytes(canonical_json(index))
        (self._temp / "oci-layout").write_bytes(canonical_json({"imageLayoutVersion": "1.0.0"}))
        return digest


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _swap(new: Path, path: Path) -> None:
    """Put `new` at `path`; an old bundle there is replaced, anything else is refused."""
    if path.exists():
        if not (path / "oci-layout").is_file() and any(path.iterdir()):
            raise BundleError(f"{path} exists and is not a bundle; choose another folder")
        old = new.with_name(new.name + ".old")
        path.rename(old)
        new.rename(path)
        shutil.rmtree(old)
    else:
        new.rename(path)


class Bundle:
    """A bundle on disk, read lazily.

    Args:
        path: folder of the OCI image layout.

    Raises:
        BundleError: not a bundle, or of another format.
        BundleCorrupt: index, manifest or config do not have the digests they are named by.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest, self._sizes, config = _open(path)
        try:
            self.config = BundleConfig.model_validate_json(config)
        except ValidationError as error:
            raise BundleError(
                f"{path}: the bundle's config is not {FORMAT}: {error.errors()[0]['msg']}"
            ) from error

    @property
    def version(self) -> str:
        """First 12 hex digits of the manifest digest: the version in a rung call."""
        return self.digest.removeprefix("sha256:")[:12]

    @property
    def blobs(self) -> Mapping[str, int]:
        """Size in bytes of every blob the manifest names."""
        return self._sizes

    @property
    def blob_dir(self) -> Path:
        """Folder in which external data locations are resolved."""
        return self.path / "blobs" / "sha256"

    def blob_path(self, digest: str) -> Path:
        """Path of a blob the manifest names; raises `BundleError` for any other digest."""
        if digest not in self._sizes:
            raise BundleError(f"{self.path}: the bundle has no blob {digest}")
        return self.blob_dir / digest.removeprefix("sha256:")

    def read(self, digest: str) -> bytes:
        """Read a blob whole and check its digest."""
        return _checked(self.blob_path(digest), digest)

    def needs(self, first: int, last: int) -> Sequence[str]:
        """Digests of the blobs that segments first…last-1 need."""
        config = self.config
        digests = {config.header, *(s.nodes for s in config.segments[first:last])}
        for group in config.groups:
            if any(first <= index < last for index in group.segments):
                digests.add(group.initializers)
                if group.data:
                    digests.add(group.data)
        return sorted(digests)

    def verify(self) -> None:
        """Check size and digest of every blob; raises `BundleCorrupt` naming the first bad one."""
        for digest, size in self._sizes.items():
            _verify(self.blob_path(digest), digest, size)


def _open(path: Path) -> tuple[str, dict[str, int], bytes]:
    blobs = path / "blobs" / "sha256"
    try:
        layout = json.loads((path / "oci-layout").read_bytes())
        index = json.loads((path / "index.json").read_bytes())
        [entry] = index["manifests"]
        digest = entry["digest"]
        if layout["imageLayoutVersion"] != "1.0.0":
            raise BundleError(
                f"{path}: OCI image layout {layout['imageLayoutVersion']} is not 1.0.0"
            )
    except FileNotFoundError as error:
        raise BundleError(
            f"{path} is not a bundle: {Path(error.filename).name} is missing; "
            "make one with `dovetail partition MODEL --bundle DIR`"
        ) from error
    except (ValueError, KeyError, TypeError, NotADirectoryError) as error:
        raise BundleError(f"{path} is not a bundle: index.json is damaged ({error})") from error
    manifest_bytes = _checked(blobs / _hex(digest), digest)
    manifest = json.loads(manifest_bytes)
    if manifest.get("artifactType") != ARTIFACT_TYPE:
        raise BundleError(
            f"{path}: artifact type {manifest.get('artifactType')!r} is not {ARTIFACT_TYPE!r}"
        )
    sizes = {layer["digest"]: layer["size"] for layer in manifest["layers"]}
    for name in sizes:
        _hex(name)
    config = manifest["config"]
    sizes[config["digest"]] = config["size"]
    return digest, sizes, _checked(blobs / _hex(config["digest"]), config["digest"])


def _hex(digest: object) -> str:
    """File name of a digest; anything that is not one could name a path outside the bundle."""
    text = str(digest).removeprefix("sha256:")
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise BundleError(f"{digest!r} is not a sha256 digest")
    return text


def _checked(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleCorrupt(f"blob {digest} cannot be read: {error.strerror}") from error
    if digest_of(data) != digest:
        raise BundleCorrupt(
            f"blob {digest} has other bytes than its name says; fetch the bundle again"
        )
    return data


def _verify(path: Path, digest: str, size: int) -> None:
    sha = hashlib.sha256()
    try:
        found = path.stat().st_size
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
    except OSError as error:
        raise BundleCorrupt(f"blob {digest} cannot be read: {error.strerror}") from error
    if found != size or "sha256:" + sha.hexdigest() != digest:
        raise BundleCorrupt(
            f"blob {digest} has other bytes than its name says "
            f"({found} bytes, {size} expected); fetch the bundle again"
        )
