"""Learns the type and shape of every tensor: by inference where it is certain, else by running.

Shape inference knows nothing of contrib operators, bodies of control flow and many late shape
computations. Running knows everything, for one size. So the model is run once at batch 1 and, where
batch is symbolic, once at batch 3: a size that triples follows the batch, one that stays is fixed.
(3 rather than 2: `min(batch, 2)` must not look proportional.) Only tensors that inference leaves
open, and values that depend on shapes, are asked for, so the run needs little memory.

This is the first run of an untrusted model: call it in the sandbox only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, ValueInfoProto

from dovetail.errors import CalibrationError, ModelError, ModelLimitExceeded, UnsupportedModel
from dovetail.tensor import FROM_ONNX, Array

BATCH: Final = 3  # the second batch size a model with a symbolic batch is run at
_VALUE_BYTES: Final = 65536  # values that depend on shapes are kept up to this size
_WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"
Dims = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Probe:
    """What is known of a model's tensors.

    Attributes:
        dtypes: numpy dtype name; the ONNX type name where numpy has none.
        static: dimensions that inference is sure of: a size, the batch symbol, or None.
        measured: shapes seen at batch 1.
        stacked: shapes seen at batch `BATCH`; empty where batch is bound.
        values: small values seen at batch 1.
        stacked_values: small values seen at batch `BATCH`.
    """

    dtypes: Mapping[str, str]
    static: Mapping[str, Dims]
    measured: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    stacked: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: Mapping[str, Array] = field(default_factory=dict)
    stacked_values: Mapping[str, Array] = field(default_factory=dict)


class BatchFixed(Exception):  # not a failure: it says which way to go on
    """The model cannot run at another batch than 1, though it declares a symbolic one."""


def probe(
    model: ModelProto,
    scratch: Path,
    symbol: str | None,
    values: frozenset[str],
    sample: Mapping[str, Array] | None,
) -> Probe:
    """Infer, then run.

    Args:
        model: a normalised model with bound inputs; its weights file is in `scratch`.
        scratch: the folder of the weights file.
        symbol: name of the batch dimension; None where it is bound.
        values: tensors whose values are wanted as well.
        sample: one row of example inputs by name; generated where None.

    Returns:
        Types, shapes and values.

    Raises:
        BatchFixed: the model runs at batch 1 only.
        UnsupportedModel: ONNX Runtime does not load the model.
        ModelError: it does not run.
        ModelLimitExceeded: it runs out of memory.
        CalibrationError: `sample` does not fit the model's inputs.
    """
    dtypes, static = _infer(model, symbol)
    names = [name for node in model.graph.node for name in node.output if name]
    wanted = [n for n in names if n in values or None in static.get(n, (None,)) or n not in dtypes]
    wanted = list(dict.fromkeys([*wanted, *(output.name for output in model.graph.output)]))
    feed = _feed(model, sample)
    session = _session(model, scratch, wanted)
    one = _run(session, wanted, feed)
    many: dict[str, Array] = {}
    if symbol is not None:
        try:
            many = _run(session, wanted, {k: np.repeat(v, BATCH, axis=0) for k, v in feed.items()})
        except ModelLimitExceeded:
            raise
        except ModelError as error:
            raise BatchFixed(str(error)) from error
    for name, array in one.items():
        dtypes.setdefault(name, array.dtype.name)
    return Probe(
        dtypes=dtypes,
        static=static,
        measured={name: array.shape for name, array in one.items()},
        stacked={name: array.shape for name, array in many.items()},
        values=_small(one, values),
        stacked_values=_small(many, values),
    )


def _small(arrays: Mapping[str, Array], names: frozenset[str]) -> dict[str, Array]:
    return {k: v for k, v in arrays.items() if k in names and v.nbytes <= _VALUE_BYTES}


def _infer(model: ModelProto, symbol: str | None) -> tuple[dict[str, str], dict[str, Dims]]:
    try:
        # Without data propagation, which builds a fill of a trillion elements one by one; what it
        # would have found, the run shows.
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = model  # what inference chokes on, the run answers
    graph = inferred.graph
    dtypes = {tensor.name: _dtype(tensor.data_type) for tensor in graph.initializer}
    static: dict[str, Dims] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.elem_type:
            continue
        dtypes[value.name] = _dtype(value.type.tensor_type.elem_type)
        if value.type.tensor_type.HasField("shape"):
            static[value.name] = _dims(value, symbol)
    return dtypes, static


def _dtype(elem_type: int) -> str:
    return FROM_ONNX.get(elem_type) or str(TensorProto.DataType.Name(elem_type)).lower()


def _dims(value: ValueInfoProto, symbol: str | None) -> Dims:
    return tuple(
        dim.dim_value
        if dim.HasField("dim_value")
        else symbol
        if symbol is not None and dim.dim_param == symbol
        else None
        for dim in value.type.tensor_type.shape.dim
    )


def _feed(model: ModelProto, sample: Mapping[str, Array] | None) -> dict[str, Array]:
    """One row of inputs: the sample, or noise for floats and ones for the rest.

    Ones are valid token ids, masks and flags in nearly every model; zeros are often padding.
    """
    rng = np.random.default_rng(0)
    feed = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        dtype = FROM_ONNX.get(kind.elem_type)
        if dtype is None:
            raise UnsupportedModel(
                f"input {value.name!r} has type {_dtype(kind.elem_type)}, which cannot be sent"
            )
        shape = tuple(dim.dim_value or 1 for dim in kind.shape.dim)
        if sample is not None:
            feed[value.name] = _sampled(sample, value.name, dtype, shape)
        elif dtype.startswith("float"):
            feed[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feed[value.name] = np.ones(shape, dtype)
    return feed


def _sampled(sample: Mapping[str, Array], name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    if name not in sample:
        raise CalibrationError(f"the example has no input {name!r}; it has {sorted(sample)}")
    array = sample[name]
    if array.dtype.name != dtype or array.shape != shape:
        raise CalibrationError(
            f"example input {name!r} is {array.dtype.name} {list(array.shape)}; one row of the "
            f"model's input is {dtype} {list(shape)}"
        )
    return array


def _session(model: ModelProto, scratch: Path, wanted: list[str]) -> ort.InferenceSession:
    asked = ModelProto()
    asked.CopyFrom(model)
    have = {output.name for output in asked.graph.output}
    asked.graph.output.extend(ValueInfoProto(name=name) for name in wanted if name not in have)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(scratch.resolve()))
    try:
        return ort.InferenceSession(
            asked.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except MemoryError:
        raise
    except Exception as error:
        _raise_if_memory(error)
        raise UnsupportedModel(f"ONNX Runtime does not load the model: {error}") from error


def _run(
    session: ort.InferenceSession, wanted: list[str], feed: Mapping[str, Array]
) -> dict[str, Array]:
    try:
        results = session.run(wanted, feed)
    except MemoryError:
        raise
    except Exception as error:
        _raise_if_memory(error)
        raise ModelError(
            f"the model does not run on one row of example inputs: {error}; if it needs "
            "particular values, give them as calibration rows"
        ) from error
    pairs = zip(wanted, results, strict=True)
    return {name: value for name, value in pairs if isinstance(value, np.ndarray)}


def _raise_if_memory(error: Exception) -> None:
    text = str(error).lower()
    if any(word in text for word in ("bad_alloc", "bad alloc", "failed to allocate", "memory")):
        raise ModelLimitExceeded(
            f"the model asks for more memory than an untrusted model is given: {error}"
        ) from error
