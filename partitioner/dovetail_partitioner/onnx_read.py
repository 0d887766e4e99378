"""Reads an ONNX file and its weights, trusting neither.

External data is where a model can reach for files of its reader: a location is accepted only if it
lies in the model's folder after links are followed, and holds the bytes the tensor declares. All
forms a weight can have (raw, typed fields, external) become one: bytes in the weights file.

References: ONNX IR specification, "Serializing external data"; CVE-2022-25882 and CVE-2024-27318
(external data outside the model's folder).
"""

import hashlib
import math
import mmap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from dovetail.errors import ExternalDataError, ModelNotReadable, UnsupportedModel

_MAX_PROTO: Final = 1 << 31
# Bits of element types that numpy has no name for; the rest is asked of onnx.
_BITS: Final = {
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.FLOAT4E2M1: 4,
}


def read_model(path: Path) -> ModelProto:
    """Parse an ONNX file without its external data.

    Raises:
        ModelNotReadable: missing, not ONNX, truncated, or without a graph.
    """
    try:
        size = path.stat().st_size
        if size >= _MAX_PROTO:
            raise ModelNotReadable(
                f"{path.name} is {size} bytes; a protobuf message ends at 2 GiB. Save it with its "
                "weights as external data"
            )
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelNotReadable(
            f"{path.name} is not an ONNX model, or it is truncated: its {size} bytes do not parse "
            "as a ModelProto"
        ) from error
    except OSError as error:
        raise ModelNotReadable(f"{path.name} cannot be read: {error.strerror}") from error
    if not model.HasField("graph") or not model.opset_import or not model.graph.output:
        raise ModelNotReadable(
            f"{path.name} is not an ONNX model: it declares no graph with outputs and opset"
        )
    return model


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """Graphs that a control-flow node carries."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every body below it, outermost first."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from all_graphs(body)


def captured(node: NodeProto) -> list[str]:
    """Outer tensors that a node's bodies read, each once, in order of first use."""
    found: dict[str, None] = {}
    for body in bodies(node):
        inside = {value.name for value in body.input}
        inside.update(tensor.name for tensor in body.initializer)
        for inner in body.node:
            for name in (*inner.input, *captured(inner)):
                if name and name not in inside:
                    found[name] = None
            inside.update(inner.output)
        found.update((out.name, None) for out in body.output if out.name not in inside)
    return list(found)


def tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's values as its type and shape declare them.

    Raises:
        UnsupportedModel: an element type of no fixed size.
    """
    count: int = math.prod(tensor.dims)
    if tensor.data_type in _BITS:
        return (count * _BITS[tensor.data_type] + 7) // 8
    if tensor.data_type == TensorProto.STRING:
        size: int = sum(len(text) for text in tensor.string_data)
        return size
    try:
        return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError as error:
        raise UnsupportedModel(
            f"weight {tensor.name!r} has element type {tensor.data_type}, which ONNX does not name"
        ) from error


def tensor_data(tensor: TensorProto, folder: Path | None) -> bytes | memoryview:
    """Bytes of a weight, little-endian, wherever they are.

    Args:
        tensor: the weight.
        folder: the model's folder; None for a model given as bytes, which has none.

    Raises:
        ExternalDataError: external data missing, too short or outside the folder.
        ModelNotReadable: the tensor holds other bytes than its shape says.
    """
    want = tensor_bytes(tensor)
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external(tensor, folder, want)
    if tensor.HasField("raw_data"):
        data: bytes = tensor.raw_data
    else:
        try:
            data = np.ascontiguousarray(numpy_helper.to_array(tensor)).tobytes()
        except (ValueError, TypeError):
            data = b""  # fewer or more values than the shape says
    if len(data) != want:
        raise ModelNotReadable(
            f"weight {tensor.name!r} has {len(data)} bytes, its type and shape "
            f"{list(tensor.dims)} need {want}; the file is truncated or damaged"
        )
    return data


def _external(tensor: TensorProto, folder: Path | None, want: int) -> memoryview:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    if folder is None:
        raise ExternalDataError(
            f"weight {tensor.name!r} is in the file {location!r}, but the model was given as "
            "bytes; give its path instead"
        )
    path = (folder / location).resolve()
    if not location or not path.is_relative_to(folder.resolve()):
        raise ExternalDataError(
            f"weight {tensor.name!r} points to {location!r}, outside the model's folder; "
            "external data must lie beside the model"
        )
    try:
        offset, length = int(fields.get("offset", 0)), int(fields.get("length", want))
        size = path.stat().st_size if path.is_file() else -1
    except ValueError as error:
        raise ExternalDataError(f"weight {tensor.name!r}: offset or length is no number") from error
    if size < 0:
        raise ExternalDataError(
            f"weight {tensor.name!r} needs the file {location!r}, which is missing from the "
            "model's folder"
        )
    if length != want or offset < 0 or offset + length > size:
        raise ExternalDataError(
            f"weight {tensor.name!r} needs {want} bytes, but {location!r} ({size} bytes) is "
            f"declared to hold {length} at offset {offset}"
        )
    if want == 0:
        return memoryview(b"")
    return _map(path)[offset : offset + length]


@lru_cache(maxsize=64)  # a map a file, not a weight: maps count against the address space
def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def model_digest(path: Path, graph: GraphProto, folder: Path | None) -> str:
    """`sha256:…` of the file's bytes, then of its external weights' bytes in order of name.

    Raises:
        ExternalDataError: external data missing, too short or outside the folder.
    """
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    outside = [
        tensor
        for inner in all_graphs(graph)
        for tensor in inner.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    for tensor in sorted(outside, key=lambda tensor: tensor.name):
        sha.update(tensor_data(tensor, folder))
    return "sha256:" + sha.hexdigest()
