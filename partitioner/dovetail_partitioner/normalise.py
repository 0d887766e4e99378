"""Brings any accepted ONNX model into one form, so that everything behind it sees one kind.

The form: no functions, nothing that no output comes from, no weights among the inputs, constants as
initializers, large ones in the weights file with equal ones under one name and those of
control-flow bodies lifted out, nodes in topological order with unique names, and no stale shapes.
No operator is changed or folded: the whole model computes what it did.

References: ONNX IR specification (before IR 4, initializers had to be listed as inputs).
"""

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Final

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    inliner,
    numpy_helper,
)

from dovetail.errors import ModelNotReadable, UnsupportedModel
from dovetail_partitioner.onnx_read import (
    all_graphs,
    bodies,
    captured,
    tensor_bytes,
    tensor_data,
)
from dovetail_partitioner.weights import FILE, INLINE, Weight, WeightWriter

# ONNX's own operators, and those every ONNX Runtime build carries without a custom-op library.
_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_EXTERNAL_IR: Final = 4  # first IR version in which weights need not be inputs


def normalise(model: ModelProto, folder: Path | None, scratch: Path) -> tuple[Weight, ...]:
    """Normalise `model` in place; its large weights go to the weights file in `scratch`.

    Args:
        model: the parsed model, external data not loaded.
        folder: the model's folder; None for a model given as bytes.
        scratch: an existing folder.

    Returns:
        The weights in the file, in order of name.

    Raises:
        UnsupportedModel: a custom operator domain, a sparse weight, a type without size.
        ExternalDataError: external data missing, too short or outside the folder.
        ModelNotReadable: the graph is not a graph: a tensor nobody makes, a cycle, a name twice.
    """
    if model.functions:
        model.CopyFrom(inliner.inline_local_functions(model))
    _check_domains(model)
    model.ir_version = max(model.ir_version, _EXTERNAL_IR)
    graph = model.graph
    _lift_constants(graph)
    _drop_unused(graph)
    weights = _store(graph, folder, scratch)
    constant = {tensor.name for tensor in graph.initializer}
    for value in [value for value in graph.input if value.name in constant]:
        graph.input.remove(value)
    _name_constant_outputs(graph, constant)
    _sort(graph)
    for inner in all_graphs(graph):
        del inner.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    return weights


def _check_domains(model: ModelProto) -> None:
    for graph in all_graphs(model.graph):
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise UnsupportedModel(
                f"weight {name!r} is sparse, which is not supported; export it dense"
            )
        for node in graph.node:
            if node.domain not in _DOMAINS:
                raise UnsupportedModel(
                    f"{_label(node)} uses operator {node.op_type!r} of domain "
                    f"{node.domain!r}; operators that need a custom-op library are never loaded, "
                    f"only those of {sorted(_DOMAINS - {''})}"
                )


def _label(node: NodeProto) -> str:
    """How to call a node to people; many have no name."""
    return f"node {node.name!r}" if node.name else f"the node that makes {list(node.output)}"


def _lift_constants(graph: GraphProto) -> None:
    """Turn Constant nodes into initializers, and lift large weights out of bodies.

    Without lifting, every segment that holds the control-flow node would carry them in its nodes,
    where nothing can be shared or mapped.
    """
    taken = all_names(graph)
    for index, owner in enumerate(all_graphs(graph)):
        kept = []
        outputs = {value.name for value in owner.output} if index else set()
        for node in owner.node:
            tensor = None if outputs.intersection(node.output) else _constant(node)
            if tensor is None:
                kept.append(node)
            else:
                owner.initializer.append(tensor)
        if len(kept) != len(owner.node):
            _replace(owner, kept)
        if index:
            _lift_weights(owner, graph, taken)


def _lift_weights(body: GraphProto, outer: GraphProto, taken: set[str]) -> None:
    outputs = {value.name for value in body.output}
    renames = {}
    for tensor in list(body.initializer):
        outside = tensor.data_location == TensorProto.EXTERNAL
        if tensor.name in outputs or (tensor_bytes(tensor) <= INLINE and not outside):
            continue
        if tensor.name in {value.name for value in body.input}:
            continue  # a default the caller may override is no constant
        new = _fresh(tensor.name, taken)
        renames[tensor.name] = new
        outer.initializer.append(tensor)
        outer.initializer[-1].name = new
        body.initializer.remove(tensor)
    if renames:
        for node in body.node:
            rename_reads(node, renames)


def _drop_unused(graph: GraphProto) -> None:
    """Drop nodes and weights that no output comes from: they would make segments for nobody."""
    maker = {name: node for node in graph.node for name in node.output}
    todo = [value.name for value in graph.output]
    wanted: set[str] = set()
    while todo:
        name = todo.pop()
        if name in wanted:
            continue
        wanted.add(name)
        if name in maker:
            todo.extend(_reads(maker[name]))
    if any(wanted.isdisjoint(node.output) for node in graph.node):
        _replace(graph, [node for node in graph.node if not wanted.isdisjoint(node.output)])
    kept = [tensor for tensor in graph.initializer if tensor.name in wanted]
    unused = {tensor.name for tensor in graph.initializer} - wanted
    for value in [value for value in graph.input if value.name in unused]:
        graph.input.remove(value)
    if unused:
        del graph.initializer[:]
        graph.initializer.extend(kept)


def all_names(graph: GraphProto) -> set[str]:
    """Every tensor name of the graph and its bodies."""
    names: set[str] = set()
    for inner in all_graphs(graph):
        names.update(value.name for value in inner.input)
        names.update(tensor.name for tensor in inner.initializer)
        names.update(name for node in inner.node for name in (*node.input, *node.output))
    return names


def _fresh(name: str, taken: set[str]) -> str:
    number = 0
    while (new := f"{name}.{number}") in taken:
        number += 1
    taken.add(new)
    return new


def _constant(node: NodeProto) -> TensorProto | None:
    """The tensor a Constant node makes; None for other nodes."""
    if node.op_type != "Constant" or node.domain not in {"", "ai.onnx"}:
        return None
    [attribute] = node.attribute
    tensor = TensorProto()
    if attribute.type == AttributeProto.TENSOR:
        tensor.CopyFrom(attribute.t)
    elif attribute.type in {AttributeProto.FLOAT, AttributeProto.FLOATS}:
        number = attribute.f if attribute.type == AttributeProto.FLOAT else list(attribute.floats)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(number, dtype=np.float32)))
    elif attribute.type in {AttributeProto.INT, AttributeProto.INTS}:
        number = attribute.i if attribute.type == AttributeProto.INT else list(attribute.ints)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(number, dtype=np.int64)))
    else:
        return None
    tensor.name = node.output[0]
    return tensor


def _store(graph: GraphProto, folder: Path | None, scratch: Path) -> tuple[Weight, ...]:
    """Move large initializers to the weights file; equal ones get one name."""
    writer = WeightWriter(scratch)
    first: dict[tuple[int, tuple[int, ...], int], Weight] = {}
    same: dict[str, str] = {}
    small = []
    for tensor in sorted(graph.initializer, key=lambda tensor: tensor.name):
        data = tensor_data(tensor, folder) if tensor.data_type != TensorProto.STRING else b""
        if len(data) <= INLINE or tensor.data_type == TensorProto.STRING:
            small.append(_inlined(tensor, data))
            continue
        weight = writer.add(tensor.name, tensor.data_type, tensor.dims, data)
        known = first.setdefault((weight.elem_type, weight.dims, weight.offset), weight)
        if known is not weight:
            same[weight.name] = known.name
    writer.close()
    del graph.initializer[:]
    graph.initializer.extend(small)
    graph.initializer.extend(weight.proto(FILE, weight.offset) for weight in first.values())
    if same:
        for node in graph.node:
            rename_reads(node, same)
    outputs = sorted({value.name for value in graph.output} & same.keys())
    graph.node.extend(
        NodeProto(op_type="Identity", input=[same[name]], output=[name]) for name in outputs
    )
    return tuple(first.values())


def _inlined(tensor: TensorProto, data: bytes | memoryview) -> TensorProto:
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    return TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=bytes(data)
    )


def _name_constant_outputs(graph: GraphProto, constant: set[str]) -> None:
    """Give a weight that is also a graph output a node that makes the output."""
    taken = all_names(graph)
    outputs = {value.name for value in graph.output} & constant
    renames = {name: _fresh(name, taken) for name in sorted(outputs)}
    for tensor in graph.initializer:
        tensor.name = renames.get(tensor.name, tensor.name)
    for node in graph.node:
        rename_reads(node, renames)
    graph.node.extend(
        NodeProto(op_type="Identity", input=[new], output=[name]) for name, new in renames.items()
    )


def rename_reads(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename what a node reads, in its bodies too, where a name is not made inside."""
    for position, name in enumerate(node.input):
        if name in names:
            node.input[position] = names[name]
    for body in bodies(node):
        inside = {value.name for value in body.input}
        inside.update(tensor.name for tensor in body.initializer)
        inside.update(name for inner in body.node for name in inner.output)
        visible = {old: new for old, new in names.items() if old not in inside}
        if not visible:
            continue
        for inner in body.node:
            rename_reads(inner, visible)
        for output in body.output:
            if output.name in visible:
                output.name = visible[output.name]


def _sort(graph: GraphProto) -> None:
    """Order nodes topologically, keeping the file's order where it is one; name every node."""
    known = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    maker: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in maker or name in known:
                raise ModelNotReadable(f"tensor {name!r} is made twice; ONNX names are unique")
            maker[name] = index
    reads = [list(_reads(node)) for node in graph.node]
    _check_reads(graph, reads, known | maker.keys())
    order = _topological([[maker[name] for name in names if name in maker] for names in reads])
    if len(order) != len(graph.node):
        stuck = graph.node[min(set(range(len(graph.node))) - set(order))]
        raise ModelNotReadable(f"the graph has a cycle through {_label(stuck)}")
    taken: set[str] = set()
    nodes = [graph.node[index] for index in order]
    for node in nodes:
        name = node.name or f"{node.op_type}_{node.output[0] if node.output else ''}"
        node.name = name if name not in taken else _fresh(name, taken)
        taken.add(node.name)
    _replace(graph, nodes)


def _check_reads(graph: GraphProto, reads: list[list[str]], known: set[str]) -> None:
    for node, names in zip(graph.node, reads, strict=True):
        for name in names:
            if name not in known:
                raise ModelNotReadable(
                    f"{_label(node)} ({node.op_type}) reads {name!r}, which nothing makes"
                )
    for output in graph.output:
        if output.name not in known:
            raise ModelNotReadable(f"output {output.name!r} is made by no node")


def _reads(node: NodeProto) -> Iterator[str]:
    yield from filter(None, node.input)
    yield from captured(node)


def _topological(before: list[list[int]]) -> list[int]:
    after: list[list[int]] = [[] for _ in before]
    waiting = [len(set(makers)) for makers in before]
    for index, makers in enumerate(before):
        for maker in set(makers):
            after[maker].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    heapify(ready)
    order = []
    while ready:
        index = heappop(ready)
        order.append(index)
        for later in after[index]:
            waiting[later] -= 1
            if waiting[later] == 0:
                heappush(ready, later)
    return order


def _replace(graph: GraphProto, nodes: list[NodeProto]) -> None:
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
