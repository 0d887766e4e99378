"""Writes a model, cut at every cut of a nested chain, as the fragments a bundle stores.

A segment is not an ONNX file but a GraphProto that holds only nodes, so that neighbouring segments
can be joined by concatenation (see `dovetail.runtime`). Two rules follow. No name may be made
twice: derived tensors, which every segment that needs them makes again, carry the segment's number
(`t@s3`). And no weight may be declared twice: weights are grouped by the exact set of segments that
use them, one declaration and one blob a group, so a shared weight is stored and mapped once. Small
constants are cheaper to repeat than to group, and are numbered too.

Nothing depends on anything but the model and the cuts, and messages are serialised
deterministically: the same model and cuts give the same bytes.

References: ONNX IR specification; protobuf encoding, "Last One Wins" (merging of messages).
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from dovetail.tensor import ONNX_TYPE, TensorSpec
from dovetail_partitioner.importer import Imported
from dovetail_partitioner.normalise import all_names, rename_reads
from dovetail_partitioner.roles import Affine, Anchor, Cloned, Folded, reads_of
from dovetail_partitioner.weights import ALIGN, Weight, map_file

_CHUNK: Final = 1 << 22


@dataclass(frozen=True)
class EmittedSegment:
    """One segment.

    Attributes:
        nodes: serialised GraphProto that holds only nodes, in topological order.
        reads: activations made by earlier segments, or graph inputs, that it reads.
        writes: activations it makes that a later segment or the caller reads.
        ops: indices of its ops in the search graph, ascending.
    """

    nodes: bytes
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    ops: tuple[int, ...]


@dataclass(frozen=True)
class EmittedGroup:
    """The weights that exactly these segments use.

    Attributes:
        segments: their indices, ascending.
        initializers: serialised GraphProto that holds only initializers.
        data: makes the chunks of the blob the initializers point into; None where all are inline.
    """

    segments: tuple[int, ...]
    initializers: bytes
    data: Callable[[], Iterator[bytes | memoryview]] | None


@dataclass(frozen=True)
class Emitted:
    """A model in pieces.

    Attributes:
        header: serialised ModelProto without a graph.
        segments: in order of execution.
        groups: by their segments.
        tensors: declarations of every tensor that crosses between segments and is no graph input
            or output.
    """

    header: bytes
    segments: tuple[EmittedSegment, ...]
    groups: tuple[EmittedGroup, ...]
    tensors: tuple[TensorSpec, ...]


def emit(imported: Imported, cuts: Sequence[frozenset[int]]) -> Emitted:
    """Cut a model into segments.

    Args:
        imported: the model.
        cuts: a nested chain of downsets of its search graph, none empty, none all ops.

    Returns:
        The pieces, one more than there are cuts.
    """
    pieces = _pieces(imported, cuts)
    marker = _marker(imported.proto.graph)
    makers = [_Segment(imported, number, marker) for number in range(len(pieces))]
    for maker, ops in zip(makers, pieces, strict=True):
        for index in ops:
            maker.add(index)
    users: dict[str, list[int]] = {}
    for number, maker in enumerate(makers):
        for name in maker.weights:
            users.setdefault(name, []).append(number)
    reads, writes = _boundaries(imported, pieces)
    between = sorted({name for names in reads for name in names} & {n for w in writes for n in w})
    declared = {spec.name for spec in (*imported.inputs, *imported.outputs)}
    return Emitted(
        header=_header(imported.proto),
        segments=tuple(
            EmittedSegment(maker.fragment(), reads[number], writes[number], tuple(pieces[number]))
            for number, maker in enumerate(makers)
        ),
        groups=_groups(imported, users, makers),
        tensors=tuple(_spec(imported, name) for name in between if name not in declared),
    )


def _pieces(imported: Imported, cuts: Sequence[frozenset[int]]) -> list[list[int]]:
    everything = frozenset(range(len(imported.graph.ops)))
    chain = [frozenset[int](), *cuts, everything]
    pieces = []
    for before, after in itertools.pairwise(chain):
        assert before < after, "cuts are nested, none empty and none the whole"
        assert imported.graph.is_downset(after), "a cut holds what its ops read"
        pieces.append(sorted(after - before))
    return pieces


def _boundaries(
    imported: Imported, pieces: Sequence[Sequence[int]]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Per segment, activations read from outside and made for outside, in a fixed order."""
    graph = imported.graph
    home = {index: number for number, ops in enumerate(pieces) for index in ops}
    outputs = set(graph.outputs)
    reads, writes = [], []
    for number, ops in enumerate(pieces):
        made = [name for index in ops for name in graph.ops[index].writes]
        wanted = {name for index in ops for name in graph.ops[index].reads}
        reads.append(tuple(sorted(wanted - set(made))))
        writes.append(
            tuple(
                name
                for name in made
                if name in outputs or any(home[i] != number for i in graph.readers[name])
            )
        )
    return reads, writes


def _spec(imported: Imported, name: str) -> TensorSpec:
    info = imported.graph.tensors[name]
    return TensorSpec(name=name, dtype=info.dtype, shape=info.shape)


def _header(model: ModelProto) -> bytes:
    header = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    return bytes(header.SerializeToString(deterministic=True))


def _marker(graph: GraphProto) -> str:
    """A suffix that no name of the model ends its own part with."""
    names = all_names(graph)
    marker = "@s"
    while any(marker in name for name in names):
        marker = "@" + marker
    return marker


@dataclass
class _Segment:
    """Collects the nodes of one segment, and what they need beside activations."""

    imported: Imported
    number: int
    marker: str
    nodes: list[NodeProto] = field(default_factory=list)
    weights: dict[str, None] = field(default_factory=dict)
    small: list[TensorProto] = field(default_factory=list)
    _named: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.imported.proto.graph
        self._source = graph.node
        self._constants = {tensor.name: tensor for tensor in graph.initializer}

    def add(self, index: int) -> None:
        """Append an op, and before it whatever it reads that is no activation."""
        roles = self.imported.roles
        self._copy(roles.nodes[index], roles.anchors.get(index), rename=False)

    def fragment(self) -> bytes:
        """The segment's nodes."""
        return bytes(GraphProto(node=self.nodes).SerializeToString(deterministic=True))

    def _copy(self, position: int, anchor: Anchor | None, *, rename: bool) -> None:
        node = NodeProto()
        node.CopyFrom(self._source[position])
        needed = [name for name in reads_of(node) if name not in self.imported.graph.tensors]
        rename_reads(node, {name: self._need(name, anchor) for name in needed})
        if rename:
            node.name = self._own(node.name)
            for place, name in enumerate(node.output):
                if name:
                    node.output[place] = self._own(name)
        self.nodes.append(node)

    def _own(self, name: str) -> str:
        return f"{name}{self.marker}{self.number}"

    def _need(self, name: str, anchor: Anchor | None) -> str:
        """Make a weight or derived tensor available; returns its name in this segment."""
        if name not in self._named:
            self._named[name] = self._make(name, anchor)
        return self._named[name]

    def _make(self, name: str, anchor: Anchor | None) -> str:
        if name in self._constants:
            return self._constant(self._constants[name])
        match self.imported.roles.derived[name]:
            case Folded(value):
                return self._inline(self._own(name), value)
            case Affine() as affine:
                assert anchor is not None, "an op that needs the batch has an anchor"
                return self._affine(name, affine, anchor)
            case Cloned(position):
                self._copy(position, anchor, rename=True)
                made = filter(None, self._source[position].output)
                self._named.update((other, self._own(other)) for other in made)
                return self._own(name)

    def _constant(self, tensor: TensorProto) -> str:
        if tensor.data_location == TensorProto.EXTERNAL:
            self.weights[tensor.name] = None
            return str(tensor.name)
        copy = TensorProto()
        copy.CopyFrom(tensor)
        copy.name = self._own(tensor.name)
        self.small.append(copy)
        return str(copy.name)

    def _inline(self, name: str, value: np.ndarray) -> str:
        self.small.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _affine(self, name: str, affine: Affine, anchor: Anchor) -> str:
        """Compute `fixed + slope * batch` from a shape this segment has anyway."""
        own = self._own(name)
        axis = np.array(anchor.axis if affine.slope.ndim == 0 else [anchor.axis], dtype=np.int64)
        slope = affine.slope.astype(np.int64)
        steps = [
            ("Shape", [anchor.tensor], f"{own}.shape"),
            ("Gather", [f"{own}.shape", self._inline(f"{own}.axis", axis)], f"{own}.size"),
        ]
        batch = f"{own}.size"
        if anchor.factor != 1:
            factor = self._inline(f"{own}.factor", np.array(anchor.factor, dtype=np.int64))
            steps.append(("Div", [batch, factor], f"{own}.batch"))
            batch = f"{own}.batch"
        steps.append(("Mul", [batch, self._inline(f"{own}.slope", slope)], f"{own}.part"))
        fixed = self._inline(f"{own}.fixed", affine.fixed.astype(np.int64))
        wide = affine.fixed.dtype == np.int64
        steps.append(("Add", [f"{own}.part", fixed], own if wide else f"{own}.sum"))
        for op_type, reads, made in steps:
            self.nodes.append(NodeProto(op_type=op_type, name=made, input=reads, output=[made]))
        if not wide:
            cast = NodeProto(op_type="Cast", name=own, input=[f"{own}.sum"], output=[own])
            attribute = cast.attribute.add(name="to", type=2)
            attribute.i = ONNX_TYPE[affine.fixed.dtype.name]
            self.nodes.append(cast)
        return own


def _groups(
    imported: Imported, users: Mapping[str, Sequence[int]], makers: Sequence[_Segment]
) -> tuple[EmittedGroup, ...]:
    by_name = {weight.name: weight for weight in imported.weights}
    members: dict[tuple[int, ...], list[Weight]] = {}
    for name in sorted(users):
        members.setdefault(tuple(users[name]), []).append(by_name[name])
    for number, maker in enumerate(makers):
        if maker.small:
            members.setdefault((number,), [])
    mapped = map_file(imported.scratch)
    return tuple(_group(key, members[key], makers, mapped) for key in sorted(members))


def _group(
    segments: tuple[int, ...],
    weights: Sequence[Weight],
    makers: Sequence[_Segment],
    mapped: memoryview,
) -> EmittedGroup:
    small = makers[segments[0]].small if len(segments) == 1 else []
    if not weights:
        return EmittedGroup(segments, _initializers(small), None)
    places, data = _blob(weights, mapped)
    sha = hashlib.sha256()
    for chunk in data():
        sha.update(chunk)
    protos = [weight.proto(sha.hexdigest(), places[weight.offset]) for weight in weights]
    return EmittedGroup(segments, _initializers([*small, *protos]), data)


def _initializers(tensors: Sequence[TensorProto]) -> bytes:
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    return bytes(GraphProto(initializer=ordered).SerializeToString(deterministic=True))


def _blob(
    weights: Sequence[Weight], mapped: memoryview
) -> tuple[Mapping[int, int], Callable[[], Iterator[bytes | memoryview]]]:
    """Lay weights out in one blob, each content once; returns new offset by old, and the bytes."""
    lengths = {weight.offset: weight.length for weight in weights}
    places, end = {}, 0
    for offset, length in lengths.items():
        places[offset] = end + -end % ALIGN
        end = places[offset] + length

    def data() -> Iterator[bytes | memoryview]:
        written = 0
        for offset, length in lengths.items():
            yield bytes(places[offset] - written)
            for start in range(offset, offset + length, _CHUNK):
                yield mapped[start : min(start + _CHUNK, offset + length)]
            written = places[offset] + length

    return places, data
