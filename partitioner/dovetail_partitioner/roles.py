"""Decides what moves with the cut, and how the rest is made again where it is needed.

A dynamic-batch export reads `Shape(x)` of its raw input near its output, so every tail would seem
to need the raw input. But a shape is known wherever any tensor of the same batch is. So tensors
that depend on nothing but constants and shapes are *derived*, not activations: they never cross,
and each segment makes its own:

- **folded**: the value is the same whatever the batch, and small: a constant;
- **affine**: each element is fixed or proportional to the batch: computed from the batch dimension
  of a tensor the reading op reads anyway (its *anchor*), so batch stays symbolic;
- **cloned**: the node itself is repeated in the segment. This covers constant generators, which
  would otherwise be blown up into weights, and fills shaped by the batch.

A shape that depends on data (behind NonZero, say) is an activation like any other. What is affine
is read off two runs rather than proven; the proof of the bundle compares batches with the whole.

How the steps follow each other: ARCHITECTURE.md, "Model to bundle".
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from onnx import GraphProto, NodeProto

from dovetail.tensor import ONNX_TYPE, Array
from dovetail_partitioner.graph import Graph, Op, TensorInfo
from dovetail_partitioner.onnx_read import captured
from dovetail_partitioner.probe import BATCH, Probe
from dovetail_partitioner.weights import INLINE

RANDOM: Final = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
    }
)
# Ops whose output size depends on their input's values.
_DATA_SHAPED: Final = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop"})
# Ops whose output size depends on the values of operands from this position on.
_SHAPE_OPERAND: Final = {
    "ConstantOfShape": 0,
    "Range": 0,
    "Reshape": 1,
    "Expand": 1,
    "Tile": 1,
    "Slice": 1,
    "Pad": 1,
    "Resize": 1,
    "Upsample": 1,
    "OneHot": 1,
    "TopK": 1,
    "Split": 1,
}


_BROADCAST_OPSET: Final = 7  # before it, Mul and Add took an axis to broadcast


@dataclass(frozen=True, slots=True)
class Folded:
    """A derived tensor that is a small constant."""

    value: Array


@dataclass(frozen=True, slots=True)
class Affine:
    """A derived tensor that is `fixed + slope * batch`, element by element."""

    fixed: Array
    slope: Array


@dataclass(frozen=True, slots=True)
class Cloned:
    """A derived tensor made by repeating a node: its index in the normalised model."""

    node: int


Derived = Folded | Affine | Cloned


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where an op can read the batch: axis `axis` of `tensor` is `factor` times the batch."""

    tensor: str
    axis: int
    factor: int


@dataclass(frozen=True)
class Roles:
    """A model's activations and how its derived tensors are made.

    Attributes:
        graph: the search graph.
        nodes: index in the normalised model of each op's node.
        derived: every tensor that is neither an activation nor a weight.
        anchors: by op index, for ops that need the batch.
    """

    graph: Graph
    nodes: tuple[int, ...]
    derived: Mapping[str, Derived]
    anchors: Mapping[int, Anchor]


def reads_of(node: NodeProto) -> list[str]:
    """Tensors a node reads, those its bodies capture included, each once."""
    return list(dict.fromkeys([*filter(None, node.input), *captured(node)]))


def shape_values(graph: GraphProto) -> frozenset[str]:
    """Tensors that depend only on shapes and constants, if all shapes are static."""
    constant = {tensor.name for tensor in graph.initializer}
    found: set[str] = set()
    for node in graph.node:
        reads = reads_of(node)
        if _random(node):
            continue
        if constant.issuperset(reads):
            constant.update(node.output)
        elif _reads_shape(node) or found.union(constant).issuperset(reads):
            found.update(filter(None, node.output))
    return frozenset(found)


def _random(node: NodeProto) -> bool:
    return node.op_type in RANDOM


def _reads_shape(node: NodeProto) -> bool:
    return node.op_type in {"Shape", "Size"} and node.domain in {"", "ai.onnx"}


@dataclass
class _Builder:
    """One pass over the nodes, in topological order."""

    graph: GraphProto
    probe: Probe
    symbol: str | None
    cuttable: bool
    rebase: bool
    infos: dict[str, TensorInfo] = field(default_factory=dict)
    activations: set[str] = field(default_factory=set)
    derived: dict[str, Derived] = field(default_factory=dict)
    constant: set[str] = field(default_factory=set)
    nodes: list[int] = field(default_factory=list)

    def add_input(self, name: str) -> None:
        """Register a graph input."""
        self.infos[name] = replace(self.info(name, tainted=False), crossable=True)
        self.activations.add(name)

    def visit(self, index: int, node: NodeProto) -> None:
        """Say what a node's outputs are."""
        reads = reads_of(node)
        outputs = [name for name in node.output if name]
        tainted = self._tainted(node, reads)
        for name in outputs:
            self.infos[name] = self.info(name, tainted=tainted)
        wanted = {output.name for output in self.graph.output}
        made: Mapping[str, Derived] | None
        if _random(node) or wanted.intersection(outputs):
            made = None
        elif self.constant.issuperset(reads):
            self.constant.update(outputs)
            made = dict.fromkeys(outputs, Cloned(index))
        elif _reads_shape(node) and reads[0] in self.activations:
            made = self._from_shape(reads[0], outputs)
        elif not self.activations.intersection(reads):
            made = self._from_derived(index, outputs)
        else:
            made = None
        if made is None:
            self.activations.update(outputs)
            self.nodes.append(index)
        else:
            self.derived.update(made)

    def _from_shape(self, source: str, outputs: list[str]) -> Mapping[str, Derived] | None:
        """A shape read is derived where every size is fixed or follows the batch."""
        sizes = self.infos[source].shape
        if any(isinstance(dim, str) and self.factor(dim) is None for dim in sizes):
            return None
        made = {name: self._value(name) for name in outputs}
        return None if None in made.values() else {k: v for k, v in made.items() if v}

    def _from_derived(self, index: int, outputs: list[str]) -> Mapping[str, Derived]:
        made = {name: self._value(name) for name in outputs}
        if None in made.values():
            return dict.fromkeys(outputs, Cloned(index))
        return {k: v for k, v in made.items() if v}

    def _value(self, name: str) -> Derived | None:
        one = self.probe.values.get(name)
        if one is None:
            return None
        many = one if self.symbol is None else self.probe.stacked_values.get(name)
        if many is None or many.shape != one.shape or one.nbytes > INLINE:
            return None
        if one.tobytes() == many.tobytes():
            return Folded(one)
        if not np.issubdtype(one.dtype, np.integer) or not self.rebase:
            return None
        fixed = one == many
        if not np.all(fixed | (many == BATCH * one)):
            return None
        return Affine(np.where(fixed, one, 0), np.where(fixed, 0, one))

    def _tainted(self, node: NodeProto, reads: Sequence[str]) -> bool:
        """Whether sizes seen in a run may be others for other data."""
        if node.op_type in _DATA_SHAPED:
            return True
        for name in reads:
            dims = self.infos[name].shape if name in self.infos else ()
            if any(isinstance(dim, str) and self.factor(dim) is None for dim in dims):
                return True
        first = _SHAPE_OPERAND.get(node.op_type)
        return first is not None and any(n in self.activations for n in node.input[first:])

    def info(self, name: str, *, tainted: bool) -> TensorInfo:
        """Put together what inference and the runs say of a tensor."""
        static = self.probe.static.get(name)
        one = self.probe.measured.get(name)
        many = one if self.symbol is None else self.probe.stacked.get(name)
        rank = len(static) if static is not None else len(one or ())
        dims: list[int | str] = []
        for axis in range(rank):
            known = static[axis] if static is not None else None
            if known is not None:
                dims.append(known)
            elif tainted or one is None or many is None or len(one) != rank or len(many) != rank:
                dims.append(f"{name}.{axis}")
            else:
                dims.append(self._dim(name, axis, one[axis], many[axis]))
        sizes = one if one is not None else [self.factor(d) or 1 for d in dims]
        dtype = self.probe.dtypes.get(name, "unknown")
        width = np.dtype(dtype).itemsize if dtype in ONNX_TYPE else 2
        nbytes = int(np.prod(sizes, dtype=np.int64)) * width
        known_type = static is not None or one is not None
        crossable = known_type and self.cuttable and self._crossable(dtype, dims)
        return TensorInfo(name, dtype, tuple(dims), nbytes, crossable)

    def _dim(self, name: str, axis: int, one: int, many: int) -> int | str:
        if one == many:
            return one
        if self.symbol is not None and many == BATCH * one:
            return self.symbol if one == 1 else f"{one}*{self.symbol}"
        return f"{name}.{axis}"

    def factor(self, dim: int | str) -> int | None:
        """The size itself; how many times the batch; None for a size that depends on data."""
        if isinstance(dim, int):
            return dim
        if dim == self.symbol:
            return 1
        factor, star, symbol = dim.partition("*")
        return int(factor) if star and symbol == self.symbol and factor.isdigit() else None

    def _crossable(self, dtype: str, dims: Sequence[int | str]) -> bool:
        rest = dims if self.symbol is None else dims[1:]
        leads = self.symbol is None or (bool(dims) and dims[0] == self.symbol)
        return dtype in ONNX_TYPE and leads and all(isinstance(d, int) and d > 0 for d in rest)

    def batch_sources(self, reads: Sequence[str]) -> list[str]:
        """Activations whose shapes the batch comes from that making `reads` takes."""
        maker = {name: node for node in self.graph.node for name in node.output if name}
        todo = [name for name in reads if name in self.derived]
        seen: set[str] = set()
        found: dict[str, None] = {}
        affine = False
        while todo:
            name = todo.pop()
            if name in self.activations:
                found[name] = None
            elif name in self.derived and name not in seen:
                seen.add(name)
                affine = affine or isinstance(self.derived[name], Affine)
                if not isinstance(self.derived[name], Folded):
                    todo.extend(reads_of(maker[name]))
        return list(found) if affine else []

    def anchor(self, candidates: Sequence[str]) -> Anchor | None:
        """The first axis of a candidate that follows the batch."""
        for name in candidates:
            for axis, dim in enumerate(self.infos[name].shape):
                factor = self.factor(dim) if isinstance(dim, str) else None
                if factor:
                    return Anchor(name, axis, factor)
        return None

    def constant_bytes(self, reads: Sequence[str]) -> int:
        """Bytes of the weights behind `reads`; generated ones at their generated size."""
        total = 0
        todo = list(dict.fromkeys(reads))
        while todo:
            name = todo.pop()
            role = self.derived.get(name)
            if name in self.activations:
                continue
            size = self.infos[name].nbytes
            if not isinstance(role, Cloned):
                total += size
                continue
            behind = [n for n in reads_of(self.graph.node[role.node]) if n not in self.activations]
            if sum(self.infos[n].nbytes for n in behind) > INLINE:
                todo.extend(behind)
            else:
                total += size
        return total


def assign(
    graph: GraphProto, probe: Probe, symbol: str | None, *, opset: int, cuttable: bool
) -> Roles:
    """Sort a normalised model's tensors into activations and derived ones.

    Args:
        graph: the graph, in topological order.
        probe: what is known of its tensors.
        symbol: name of the batch dimension; None where it is bound.
        opset: version of ONNX's own operators.
        cuttable: whether any tensor may cross.

    Returns:
        The search graph and how everything outside it is made.
    """
    builder = _Builder(graph, probe, symbol, cuttable, opset >= _BROADCAST_OPSET)
    for value in graph.input:
        builder.add_input(value.name)
    for tensor in graph.initializer:
        builder.infos[tensor.name] = builder.info(tensor.name, tainted=False)
    for index, node in enumerate(graph.node):
        builder.visit(index, node)
    outputs = [value.name for value in graph.output]
    made = [(position, *_op(builder, graph.node[position])) for position in builder.nodes]
    kept = _needed(made, outputs)
    ops = tuple(replace(op, index=index) for index, (_, op, _) in enumerate(kept))
    names = [value.name for value in graph.input] + [name for op in ops for name in op.writes]
    search_graph = Graph(
        ops=ops,
        tensors={name: builder.infos[name] for name in names},
        inputs=tuple(value.name for value in graph.input),
        outputs=tuple(outputs),
    )
    anchors = {index: anchor for index, (_, _, anchor) in enumerate(kept) if anchor is not None}
    return Roles(search_graph, tuple(position for position, _, _ in kept), builder.derived, anchors)


def _needed(
    made: Sequence[tuple[int, Op, Anchor | None]], outputs: Collection[str]
) -> list[tuple[int, Op, Anchor | None]]:
    """Ops that an output comes from; others were there only to have their shape read."""
    wanted = set(outputs)
    kept = []
    for item in reversed(made):
        if wanted.intersection(item[1].writes):
            wanted.update(item[1].reads)
            kept.append(item)
    return kept[::-1]


def _op(builder: _Builder, node: NodeProto) -> tuple[Op, Anchor | None]:
    """The op of a node, and its anchor if something it reads takes the batch."""
    reads = reads_of(node)
    own = [name for name in reads if name in builder.activations]
    anchor = None
    sources = builder.batch_sources(reads)
    if sources:
        anchor = builder.anchor([*own, *sources])
        if anchor is not None and anchor.tensor not in own:
            own.append(anchor.tensor)
    op = Op(
        index=0,  # numbered when all that are needed are known
        name=node.name,
        op_type=node.op_type,
        reads=tuple(own),
        writes=tuple(name for name in node.output if name),
        weight_bytes=builder.constant_bytes([name for name in reads if name not in own]),
    )
    return op, anchor
