"""The search graph: what the cut is looked for in, free of ONNX.

A cut is a set of ops that is closed under predecessors (a downset). To search it, only ops that
*move with the cut* may be ops: those that compute on activations. Constants, and what is computed
from constants and shapes alone, can be made again on either side for nothing, so they never cross
and are not here (see `dovetail_partitioner.shapes`). Keeping this graph apart from ONNX lets the
min cut be tested against brute force on graphs no model has.

What a cut is: docs/concepts.md, "One knob" and "Segments".
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An activation tensor.

    Attributes:
        name: name in the model.
        dtype: numpy dtype name; an ONNX type name where numpy has none.
        shape: dimensions; a string is symbolic: the batch, or a size that depends on the data.
        nbytes: bytes of one row (batch 1), as measured where a size depends on the data.
        crossable: whether it may cross from one segment to another: its dtype travels on the wire,
            axis 0 is the batch where batch is symbolic, and every other size is known.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    nbytes: int
    crossable: bool = True


@dataclass(frozen=True, slots=True)
class Op:
    """An operation on activations.

    Attributes:
        index: position in the graph; an op's index is greater than those of its predecessors.
        name: the node's name in the model, unique.
        op_type: ONNX operator type.
        reads: activation tensors read, those captured by If/Loop/Scan bodies included.
        writes: tensors made.
        weight_bytes: bytes of the constants it reads, generated ones at their generated size.
    """

    index: int
    name: str
    op_type: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    weight_bytes: int = 0


@dataclass(frozen=True)
class Graph:
    """Ops in topological order over activation tensors.

    Attributes:
        ops: every op; `ops[i].index == i`.
        tensors: every activation tensor by name, graph inputs included.
        inputs: graph inputs, made on the edge.
        outputs: graph outputs, wanted on the edge.
    """

    ops: tuple[Op, ...]
    tensors: Mapping[str, TensorInfo]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @cached_property
    def producer(self) -> Mapping[str, int]:
        """Index of the op that makes a tensor; graph inputs have none."""
        return {name: op.index for op in self.ops for name in op.writes}

    @cached_property
    def readers(self) -> Mapping[str, tuple[int, ...]]:
        """Indices of the ops that read a tensor, ascending; every tensor has an entry."""
        found: dict[str, list[int]] = {name: [] for name in self.tensors}
        for op in self.ops:
            for name in dict.fromkeys(op.reads):
                found[name].append(op.index)
        return {name: tuple(indices) for name, indices in found.items()}

    def predecessors(self, index: int) -> set[int]:
        """Ops that make what op `index` reads."""
        made = (self.producer.get(name) for name in self.ops[index].reads)
        return {maker for maker in made if maker is not None}

    def is_downset(self, ops: Collection[int]) -> bool:
        """Whether `ops` is closed under predecessors."""
        inside = set(ops)
        return all(self.predecessors(index) <= inside for index in inside)

    def crossing(self, head: Collection[int]) -> tuple[str, ...]:
        """Tensors available after `head` (graph inputs included) that an op outside reads."""
        inside = set(head)
        return tuple(
            name
            for name, readers in self.readers.items()
            if (name not in self.producer or self.producer[name] in inside)
            and any(reader not in inside for reader in readers)
        )

    def remote_outputs(self, head: Collection[int]) -> tuple[str, ...]:
        """Graph outputs that are made outside `head`."""
        inside = set(head)
        return tuple(
            name
            for name in self.outputs
            if name in self.producer and self.producer[name] not in inside
        )


def quotient(graph: Graph, groups: Sequence[Sequence[int]]) -> Graph:
    """Contract groups of ops into single ops.

    Args:
        graph: the graph.
        groups: a partition of its ops whose quotient has no cycle, in topological order.

    Returns:
        A graph with one op per group, in the same order. Tensors that stay inside a group are gone
        unless they are graph outputs, so a downset of groups is a downset of ops.
    """
    group_of = {index: number for number, group in enumerate(groups) for index in group}
    wanted = set(graph.outputs)

    def leaves(name: str, number: int) -> bool:
        return name in wanted or any(group_of[i] != number for i in graph.readers[name])

    ops = []
    for number, group in enumerate(groups):
        members = [graph.ops[index] for index in sorted(group)]
        made = {name for op in members for name in op.writes}
        reads = dict.fromkeys(name for op in members for name in op.reads if name not in made)
        writes = tuple(name for op in members for name in op.writes if leaves(name, number))
        ops.append(
            Op(
                index=number,
                name=members[0].name,
                op_type="+".join(op.op_type for op in members),
                reads=tuple(reads),
                writes=writes,
                weight_bytes=sum(op.weight_bytes for op in members),
            )
        )
    kept = {*graph.inputs, *(name for op in ops for name in op.writes)}
    tensors = {name: info for name, info in graph.tensors.items() if name in kept}
    return Graph(tuple(ops), tensors, graph.inputs, graph.outputs)


def expand(groups: Sequence[Sequence[int]], chosen: Iterable[int]) -> frozenset[int]:
    """Ops of the chosen groups."""
    return frozenset(index for number in chosen for index in groups[number])
