"""Reads an ONNX model into a form that is ready to cut.

What a user's file holds is untrusted: everything that parses it, infers its shapes or runs it
happens in the sandbox (see `dovetail_partitioner.sandbox`). This process sees only the normalised
model, which the child wrote and which holds no weights, and one file of weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from dovetail.errors import UnsupportedModel
from dovetail.tensor import ONNX_TYPE, Array, TensorSpec
from dovetail_partitioner import sandbox
from dovetail_partitioner.bind import bind_inputs, fix_batch
from dovetail_partitioner.graph import Graph
from dovetail_partitioner.normalise import normalise
from dovetail_partitioner.onnx_read import all_graphs, bodies, model_digest, read_model
from dovetail_partitioner.probe import BatchFixed, probe
from dovetail_partitioner.roles import RANDOM, Roles, assign, shape_values
from dovetail_partitioner.sandbox import Limits
from dovetail_partitioner.weights import Weight

MODEL_FILE: Final = "model.onnx"
_SOURCE_FILE: Final = "source.onnx"
_NOT_TENSORS: Final = frozenset(
    {
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceAt",
        "SequenceInsert",
        "SequenceErase",
        "SequenceLength",
        "SequenceMap",
        "SplitToSequence",
        "ConcatFromSequence",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "ZipMap",
        "DictVectorizer",
        "CastMap",
    }
)
_TRAINING_OPSET: Final = 12  # from here on Dropout's training mode is an input
_NOT_OFFLINE: Final = (
    "the sandbox could not be cut off from the network: the kernel did not permit it"
)


@dataclass(frozen=True)
class Imported:
    """A model ready to cut.

    Attributes:
        scratch: folder of the normalised model and its weights file; the caller's.
        digest: `sha256:…` of the file's bytes and its external weights.
        weights: constants over `weights.INLINE` bytes; they are in the weights file.
        weight_bytes: bytes of the weights file: every content once.
        batch: name of the symbolic batch dimension; None where batch is bound.
        cuttable: whether a cut other than all-edge and all-cloud may exist.
        notes: what people should know, such as why batch is bound.
        roles: what moves with the cut and how the rest is made.
        inputs: declarations of the graph inputs, in order.
        outputs: declarations of the graph outputs, in order; a size that depends on data is a
            string of its own.
    """

    scratch: Path
    digest: str
    weights: tuple[Weight, ...]
    weight_bytes: int
    batch: str | None
    cuttable: bool
    notes: tuple[str, ...]
    roles: Roles
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def graph(self) -> Graph:
        """The search graph."""
        return self.roles.graph

    @property
    def model(self) -> Path:
        """The whole normalised model, which ONNX Runtime loads as it is."""
        return self.scratch / MODEL_FILE

    @cached_property
    def proto(self) -> ModelProto:
        """The whole normalised model, weights referred to as external data."""
        return ModelProto.FromString(self.model.read_bytes())


def import_model(
    source: Path | bytes,
    scratch: Path,
    *,
    bind: Mapping[str, int] | None = None,
    batch: int | None = None,
    sample: Mapping[str, Array] | None = None,
    limits: Limits | None = None,
) -> Imported:
    """Read an ONNX model in a sandbox.

    Args:
        source: the file, or its bytes where it has no external data.
        scratch: an existing, empty folder for the normalised model and its weights. The caller
            owns it, and keeps it as long as the result is used.
        bind: sizes of dynamic dimensions by symbolic name, or by `input:axis`.
        batch: size to bind the batch to; None leaves it symbolic where requests can be stacked.
        sample: one row of example inputs for the first run, whose shapes bind what `bind` does
            not; an input may have an axis of size 1 more, in front. Generated where None.
        limits: what reading the model may use; in proportion to its size where None.

    Returns:
        The model, ready to cut.

    Raises:
        ModelNotReadable: not ONNX, truncated, or not a graph.
        ExternalDataError: external data missing, too short or outside the model's folder.
        UnsupportedModel: an operator, domain or type that is never loaded.
        UnboundShape: a dynamic dimension other than the batch is not bound.
        ModelLimitExceeded: the model asks for more than `limits`.
        ModelError: the model does not run.
        CalibrationError: `sample` does not fit the model's inputs.
    """
    path, folder = _on_disk(source, scratch)
    chosen = limits or Limits.for_model(_size(path))
    request = _Request(path, folder, scratch, bind or {}, batch, sample)
    found, offline = sandbox.run(_read, request, limits=chosen)
    return _imported(found, scratch, () if offline else (_NOT_OFFLINE,))


def _imported(found: "_Found", scratch: Path, notes: tuple[str, ...]) -> Imported:
    graph = found.roles.graph
    return Imported(
        scratch=scratch,
        digest=found.digest,
        weights=found.weights,
        weight_bytes=sum({weight.offset: weight.length for weight in found.weights}.values()),
        batch=found.batch,
        cuttable=found.cuttable,
        notes=(*found.notes, *notes),
        roles=found.roles,
        inputs=tuple(_spec(graph, name, "input") for name in graph.inputs),
        outputs=tuple(_spec(graph, name, "output") for name in graph.outputs),
    )


@dataclass(frozen=True, slots=True)
class _Request:
    """What the sandbox is asked to read; `import_model` says what each is."""

    path: Path
    folder: Path | None
    scratch: Path
    bind: Mapping[str, int]
    batch: int | None
    sample: Mapping[str, Array] | None


@dataclass(frozen=True, slots=True)
class _Found:
    """What the sandbox found; `Imported` says what each is."""

    digest: str
    weights: tuple[Weight, ...]
    batch: str | None
    cuttable: bool
    notes: tuple[str, ...]
    roles: Roles


def _on_disk(source: Path | bytes, scratch: Path) -> tuple[Path, Path | None]:
    if isinstance(source, Path):
        return source, source.parent
    path = scratch / _SOURCE_FILE
    path.write_bytes(source)
    return path, None


def _size(path: Path) -> int:
    """Bytes of the model's file and of all that lies beside it, which may be its weights."""
    beside = path.parent.iterdir() if path.is_file() else ()
    return sum(file.stat().st_size for file in beside if file.is_file())


def _read(ask: _Request) -> _Found:
    """What happens in the sandbox."""
    model = read_model(ask.path)
    digest = model_digest(ask.path, model.graph, ask.folder)
    weights = normalise(model, ask.folder, ask.scratch)
    ask = replace(ask, sample=_without_row_axis(model, ask.sample))
    shapes = {name: array.shape for name, array in (ask.sample or {}).items()}
    free = [ValueInfoProto.FromString(value.SerializeToString()) for value in model.graph.input]
    symbol, notes = bind_inputs(model, ask.bind, ask.batch, shapes)
    why = _why_not_cuttable(model)
    if why is not None:
        notes = (*notes, f"edge and cloud only: {why}")
    try:
        roles = _roles(model, ask, symbol, why)
    except BatchFixed as error:
        assert symbol is not None
        fix_batch(model, symbol)
        notes = (*notes, f"batch dimension {symbol!r} is bound to 1: {error}")
        symbol = None
        roles = _roles(model, ask, symbol, why)
    if any(True for node in model.graph.node for _ in bodies(node)):
        # A branch that is never run may fit other sizes than the bound ones: see runtime._load.
        for value, declared in zip(model.graph.input, free, strict=True):
            value.CopyFrom(declared)
    (ask.scratch / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
    return _Found(digest, weights, symbol, why is None, notes, roles)


def _without_row_axis(
    model: ModelProto, sample: Mapping[str, Array] | None
) -> Mapping[str, Array] | None:
    """The example as the model takes it: without an axis in front that counts rows."""
    if sample is None:
        return None
    rank = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.input}
    return {
        name: np.asarray(array[0]) if array.ndim == rank.get(name, array.ndim) + 1 else array
        for name, array in sample.items()
    }


def _roles(model: ModelProto, ask: _Request, symbol: str | None, why: str | None) -> Roles:
    found = probe(model, ask.scratch, symbol, shape_values(model.graph), ask.sample)
    roles = assign(model.graph, found, symbol, opset=_opset(model), cuttable=why is None)
    if not roles.graph.ops:
        raise UnsupportedModel(
            "the model computes nothing from its inputs; there is nothing to run"
        )
    for name in roles.graph.outputs if symbol is not None else ():
        if roles.graph.tensors[name].shape[:1] != (symbol,):
            raise BatchFixed(
                f"axis 0 of output {name!r} is not the batch, so answers cannot be taken apart"
            )
    return roles


def _opset(model: ModelProto) -> int:
    """Version of ONNX's own operators."""
    return next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 1)


def _spec(graph: Graph, name: str, what: str) -> TensorSpec:
    info = graph.tensors[name]
    if info.dtype not in ONNX_TYPE:
        raise UnsupportedModel(
            f"{what} {name!r} has type {info.dtype}, which cannot be sent; supported are "
            f"{sorted(ONNX_TYPE)}"
        )
    return TensorSpec(name=name, dtype=info.dtype, shape=info.shape)


def _why_not_cuttable(model: ModelProto) -> str | None:
    """Why the parts of a model could not equal the whole, or could not be joined."""
    for graph in all_graphs(model.graph):
        constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type in RANDOM or _trains(node, constants, _opset(model)):
                return f"node {node.name!r} ({node.op_type}) is random, so no two runs agree"
            if node.op_type in _NOT_TENSORS:
                return f"node {node.name!r} ({node.op_type}) makes or reads what is no tensor"
    return None


def _trains(node: NodeProto, constants: Mapping[str, TensorProto], opset: int) -> bool:
    """Whether a Dropout may be in training mode."""
    if node.op_type != "Dropout" or opset < _TRAINING_OPSET or len(node.input) < 3:
        return False
    mode = constants.get(node.input[2])
    return bool(node.input[2]) and (mode is None or bool(numpy_helper.to_array(mode).any()))
