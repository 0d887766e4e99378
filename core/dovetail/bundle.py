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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from dovetail.encoding import Affine, Image, image_problem
from dovetail.errors import BundleError, UnknownRung
from dovetail.layout import (
    Digest,
    LayoutWriter,
    blob_dir,
    canonical_json,
    open_layout,
    parse,
    read_blob,
    verify_blob,
)
from dovetail.tensor import FLOATS, Document, TensorSpec

ARTIFACT_TYPE = "application/vnd.dovetail.bundle.v1"
CONFIG_TYPE = "application/vnd.dovetail.bundle.config.v1+json"
BLOB_TYPE = "application/vnd.dovetail.bundle.blob.v1"
FORMAT: Final = "dovetail.dev/bundle.v1"

_SEGMENT_BYTES: Final = 3_000_000  # what a segment may cost in memory beside the model


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

    nodes: Digest
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
    initializers: Digest
    data: Digest | None = None


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
    header: Digest
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tensors: tuple[TensorSpec, ...]
    segments: tuple[Segment, ...]
    groups: tuple[WeightGroup, ...]
    batch: str | None = None
    image: Image | None = None
    affine: Mapping[str, Mapping[str, Affine]] = {}
    rungs: tuple[RungSpec, ...]
    proof: Digest

    @property
    def keeps_whole(self) -> bool:
        """Whether runtimes load the uncut network beside its segments, for what is not cut.

        A boundary hides fusions from ONNX Runtime and costs a call, which a network of few
        milliseconds feels. Such a network is small: one that fits into what its segments may take
        anyway is loaded twice.
        """
        count = len(self.segments)
        return count > 1 and self.model.weight_bytes <= count * _SEGMENT_BYTES

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


class BundleWriter(LayoutWriter):
    """Writes a bundle; nothing is visible before `commit`, nothing is left without it."""

    def draft(self, config: BundleConfig) -> "Bundle":
        """Open what has been added so far as a bundle described by `config`.

        Segments must run before they can be proved, and the proof is part of the bundle. A draft
        can be read until the writer is left, and leaves no trace in what `commit` writes.
        """
        self._describe(ARTIFACT_TYPE, CONFIG_TYPE, BLOB_TYPE, _dumped(config))
        return Bundle(self._temp)

    def commit(self, config: BundleConfig) -> str:
        """Write config, manifest and index, move the layout into place; returns the version.

        Raises:
            BundleError: the description contradicts itself, see `check_config`.
        """
        check_config(config)
        return self.finish(ARTIFACT_TYPE, CONFIG_TYPE, BLOB_TYPE, _dumped(config))


def _dumped(config: BundleConfig) -> bytes:
    return canonical_json(config.model_dump(mode="json", by_alias=True))


class Bundle:
    """A bundle on disk, read lazily.

    Args:
        path: folder of the OCI image layout.

    Raises:
        BundleError: not a bundle, of another format, or one that contradicts itself.
        BundleCorrupt: manifest or config do not have the digests they are named by.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest, self._sizes, config = open_layout(path, ARTIFACT_TYPE)
        self._verified: set[str] = set()
        self.config = parse(BundleConfig, config, path)
        check_config(self.config)
        for digest in self.needs(0, len(self.config.segments)):
            self.blob_path(digest)

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
        return blob_dir(self.path)

    def blob_path(self, digest: str) -> Path:
        """Path of a blob the manifest names; raises `BundleError` for any other digest."""
        if digest not in self._sizes:
            raise BundleError(f"{self.path}: the bundle has no blob {digest}")
        return self.blob_dir / digest.removeprefix("sha256:")

    def read(self, digest: str) -> bytes:
        """Read a blob whole and check its digest."""
        return read_blob(self.blob_path(digest).parent, digest, self._sizes[digest])

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

    def ensure(self, digests: Iterable[str]) -> None:
        """Check blobs that are about to be loaded, each once in this object's life.

        Weights are mapped, not read, so nothing else would notice a changed byte in them.

        Raises:
            BundleCorrupt: a blob does not have the digest it is named by.
        """
        for digest in digests:
            if digest not in self._verified:
                verify_blob(self.blob_path(digest).parent, digest, self._sizes[digest])
                self._verified.add(digest)

    def verify(self) -> None:
        """Check size and digest of every blob; raises `BundleCorrupt` naming the first bad one."""
        for digest, size in self._sizes.items():
            verify_blob(self.blob_dir, digest, size)


def check_config(config: BundleConfig) -> None:
    """Check that a description fits itself, so that nothing later meets a name it does not know.

    Raises:
        BundleError: a tensor without a declaration, a segment, group or rung out of range, an
            image or a quantisation table that does not fit its tensor.
    """
    for problem in (*_segment_problems(config), *_rung_problems(config), *_codec_problems(config)):
        raise BundleError(f"the bundle of model {config.model.name!r} is not valid: {problem}")


def _segment_problems(config: BundleConfig) -> Iterator[str]:
    specs = (*config.inputs, *config.outputs, *config.tensors)
    declared = {spec.name for spec in specs}
    if len(declared) != len({(spec.name, spec.dtype, spec.shape) for spec in specs}):
        yield "a tensor is declared twice, in two ways"
    made = {spec.name for spec in config.inputs}
    for index, segment in enumerate(config.segments):
        if strange := set(segment.reads) - made:
            yield f"segment {index} reads {sorted(strange)}, which nothing before it makes"
        if strange := set(segment.writes) - declared:
            yield f"segment {index} writes {sorted(strange)}, which are not declared"
        made.update(segment.writes)
    if strange := {spec.name for spec in config.outputs} - made:
        yield f"no segment makes the outputs {sorted(strange)}"
    for group in config.groups:
        if not group.segments or not set(group.segments) <= set(range(len(config.segments))):
            yield f"a weight group belongs to segments {list(group.segments)}"


def _rung_problems(config: BundleConfig) -> Iterator[str]:
    count = len(config.segments)
    if len({rung.id for rung in config.rungs}) != len(config.rungs):
        yield "two rungs have one id"
    for rung in config.rungs:
        if not 0 <= rung.cut <= count or rung.id != rung_id(rung.cut, rung.codec, count):
            yield f"rung {rung.id!r} is not cut {rung.cut} of {count} segments with {rung.codec!r}"


def _codec_problems(config: BundleConfig) -> Iterator[str]:
    specs = {spec.name: spec for spec in (*config.inputs, *config.tensors)}
    if config.image is not None and (problem := image_problem(config.image, config.inputs)):
        yield problem
    for family, tables in config.affine.items():
        for name, table in tables.items():
            if name not in specs or specs[name].dtype not in FLOATS:
                yield f"the {family!r} table of {name!r} is for no float tensor"
            elif not table.fits(specs[name].shape):
                yield f"the {family!r} table of {name!r} does not fit {list(specs[name].shape)}"
