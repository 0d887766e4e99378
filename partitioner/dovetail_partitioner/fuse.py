"""Contracts ops that ONNX Runtime fuses, so that no cut parts them.

A cut inside a fusion costs twice: the fused kernel is lost (a cut between Conv and Clip made
EfficientNet-Lite0 1.19x slower), and the search wastes its choice on positions that differ in
nothing. Rather than ONNX Runtime's catalogue of patterns, which changes with every release, this
uses the structure they share:

1. a cheap op on the only reader side of a tensor joins the op that makes it (bias, batch norm,
   activation, QuantizeLinear, reshapes), unless it makes the tensor larger;
2. DequantizeLinear joins its only reader, DynamicQuantizeLinear all of its readers;
3. cheap ops that lead only to one cheap op join it (layer norm, GELU, SiLU, softmax with scale and
   mask), and then join what makes their only input, by rule 1;
4. a heavy op that leads only to such a group joins it (attention scores, residual Add), as does the
   MatMul that is softmax's only reader;
5. cheap ops between a graph input and one group join the group, unless they drop values. What they
   make is the input in another dress (quantised, scaled, transposed): a codec of the input does as
   well, and a cut there would call raw data masked.

Every step joins a group with its only predecessor, its only successor, or a convex set, so the
quotient stays acyclic: a downset of groups is a downset of ops. Contracting more than ONNX Runtime
fuses only leaves out cuts that move bytes for no gain; contracting less only costs time.
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from math import prod
from typing import Final

from dovetail_partitioner.graph import Graph

_HEAVY: Final = frozenset(
    {
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "FusedConv",
        "FusedMatMul",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "MatMulNBits",
        "QLinearConv",
        "QLinearMatMul",
    }
)
_CHEAP: Final = frozenset(
    {
        "Abs",
        "Add",
        "BatchNormalization",
        "BiasGelu",
        "Cast",
        "Celu",
        "Clip",
        "Div",
        "Dropout",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "FastGelu",
        "Flatten",
        "Floor",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "LayerNormalization",
        "LeakyRelu",
        "Less",
        "Log",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "Not",
        "PRelu",
        "Pow",
        "QuantizeLinear",
        "QuickGelu",
        "Reciprocal",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Round",
        "Selu",
        "Sigmoid",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "Softmax",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Tanh",
        "ThresholdedRelu",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)


def fuse(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """Group ops that belong together.

    Args:
        graph: the graph.

    Returns:
        A partition of its op indices; groups in an order in which their quotient is topological,
        members ascending.
    """
    groups = _Groups(graph)
    for op in graph.ops:
        groups.join_maker(op.index)
    for op in graph.ops:
        groups.join_quantisation(op.index)
    for op in reversed(graph.ops):
        groups.gather(op.index)
    for op in graph.ops:
        groups.join_maker(op.index)
    for op in graph.ops:
        groups.join_heavy(op.index)
    for op in graph.ops:
        groups.join_reader(op.index)
    return groups.ordered()


class _Groups:
    """A partition of ops with its quotient graph, kept up to date as groups join."""

    def __init__(self, graph: Graph) -> None:
        count = len(graph.ops)
        self._graph = graph
        self._of = list(range(count))
        self._members = {index: [index] for index in range(count)}
        self._before = {index: graph.predecessors(index) for index in range(count)}
        self._after: dict[int, set[int]] = {index: set() for index in range(count)}
        for index, makers in self._before.items():
            for maker in makers:
                self._after[maker].add(index)
        self._outputs = set(graph.outputs)

    def join_maker(self, index: int) -> None:
        """Rule 1: a cheap group on the only reader side of one tensor joins its maker."""
        group = self._of[index]
        if not self._is_cheap(group):
            return
        reads = self._reads(group)
        if len(reads) != 1:
            return
        [name] = reads
        maker = self._graph.producer.get(name)
        if maker is None or name in self._outputs:
            return
        alone = all(self._of[reader] == group for reader in self._graph.readers[name])
        if alone and self._bytes_out(group) <= self._graph.tensors[name].nbytes:
            self._join(self._of[maker], group)

    def join_quantisation(self, index: int) -> None:
        """Rule 2: what makes an activation larger, or of several parts, stays with its readers."""
        kind, group = self._graph.ops[index].op_type, self._of[index]
        after = self._after[group]
        if kind == "DequantizeLinear" and len(after) == 1 and len(self._members[group]) == 1:
            self._join(next(iter(after)), group)
        if kind == "DynamicQuantizeLinear" and after and self._is_convex({group, *after}):
            for reader in sorted(after):
                self._join(group, reader)

    def gather(self, index: int) -> None:
        """Rule 3: cheap groups that lead only to this cheap group join it."""
        group = self._of[index]
        if not self._is_cheap(group):
            return
        while True:
            joined = [
                maker
                for maker in self._before[group]
                if self._is_cheap(maker)
                and self._after[maker] == {group}
                and not self._outputs.intersection(self._writes(maker))
                and not self._narrows(maker, group)
            ]
            if not joined:
                return
            for maker in sorted(joined):
                self._join(group, maker)

    def join_heavy(self, index: int) -> None:
        """Rule 4: a heavy op joins the cheap group it alone leads to; softmax its only MatMul."""
        op, group = self._graph.ops[index], self._of[index]
        after = self._after[group]
        if len(after) != 1 or self._outputs.intersection(self._writes(group)):
            return
        [reader] = after
        if self._narrows(group, reader):
            return
        softmax = self._graph.ops[self._members[group][-1]].op_type == "Softmax"
        if (op.op_type in _HEAVY and self._is_cheap(reader)) or (
            softmax and not self._is_cheap(reader)
        ):
            self._join(reader, group)

    def join_reader(self, index: int) -> None:
        """Rule 5: a cheap group that only dresses up the graph's inputs joins its only reader."""
        group = self._of[index]
        if not self._is_cheap(group):
            return
        reads, after = self._reads(group), self._after[group]
        if not reads or not reads.issubset(self._graph.inputs):
            return
        writes = self._writes(group)
        if len(after) != 1 or self._outputs.intersection(writes):
            return
        if self._values(writes) >= self._values(reads):
            self._join(next(iter(after)), group)

    def ordered(self) -> tuple[tuple[int, ...], ...]:
        """Groups in topological order of the quotient, the smallest member first."""
        waiting = {group: len(before) for group, before in self._before.items()}
        ready = [(min(self._members[g]), g) for g, count in waiting.items() if count == 0]
        heapify(ready)
        order = []
        while ready:
            _, group = heappop(ready)
            order.append(tuple(sorted(self._members[group])))
            for later in self._after[group]:
                waiting[later] -= 1
                if waiting[later] == 0:
                    heappush(ready, (min(self._members[later]), later))
        assert len(order) == len(self._members), "joining groups made a cycle"
        return tuple(order)

    def _join(self, kept: int, gone: int) -> None:
        for index in self._members[gone]:
            self._of[index] = kept
        self._members[kept] = sorted(self._members[kept] + self._members.pop(gone))
        for mine, theirs in ((self._before, self._after), (self._after, self._before)):
            for other in mine.pop(gone):
                theirs[other].discard(gone)
                if other != kept:
                    theirs[other].add(kept)
                    mine[kept].add(other)

    def _is_cheap(self, group: int) -> bool:
        return all(self._graph.ops[index].op_type in _CHEAP for index in self._members[group])

    def _narrows(self, maker: int, group: int) -> bool:
        """Whether a cut between two groups moves fewer bytes than one behind them."""
        alone = len(self._before[group]) == 1
        return alone and self._bytes_out(maker) < self._bytes_out(group)

    def _writes(self, group: int) -> list[str]:
        """Tensors that leave the group."""
        return [
            name
            for index in self._members[group]
            for name in self._graph.ops[index].writes
            if name in self._outputs or any(self._of[r] != group for r in self._graph.readers[name])
        ]

    def _reads(self, group: int) -> set[str]:
        """Tensors that come from outside the group."""
        producer, of = self._graph.producer, self._of
        return {
            name
            for index in self._members[group]
            for name in self._graph.ops[index].reads
            if name not in producer or of[producer[name]] != group
        }

    def _bytes_out(self, group: int) -> int:
        return sum(self._graph.tensors[name].nbytes for name in self._writes(group))

    def _values(self, names: Iterable[str]) -> int:
        """How many values tensors hold in one row."""
        shapes = (self._graph.tensors[name].shape for name in names)
        return sum(prod(dim for dim in shape if isinstance(dim, int)) for shape in shapes)

    def _is_convex(self, groups: Iterable[int]) -> bool:
        """Whether no path leaves the set and comes back."""
        inside = set(groups)
        todo = [later for group in inside for later in self._after[group] if later not in inside]
        seen = set(todo)
        while todo:
            for later in self._after[todo.pop()]:
                if later in inside:
                    return False
                if later not in seen:
                    seen.add(later)
                    todo.append(later)
        return True
