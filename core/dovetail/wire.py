"""Open Inference Protocol v2 messages with the binary tensor extension.

One message format on both hops, application to edge and edge to tail, so that any Triton or KServe
client can call either. A message is a JSON header, then the tensors' bytes one behind the other;
the HTTP header `Inference-Header-Content-Length` says where the JSON ends. Without it the whole
body is JSON and tensors are lists.

References: Open Inference Protocol v2 (REST); Triton "binary tensor data extension".
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from dovetail.errors import DovetailError, InvalidMessage, InvalidTensor
from dovetail.tensor import FROM_OIP, OIP_TYPE, Array, Buffer, dtype_name, from_bytes

HEADER_LENGTH = "Inference-Header-Content-Length"
PLAN_HEADER = "Dovetail-Plan"
DEVICE_CLASS_HEADER = "Dovetail-Device-Class"
DEVICE_HEADER = "Dovetail-Device"
ERROR_HEADER = "Dovetail-Error"
TIMEOUT_HEADER = "x-request-timeout-seconds"
TIMING_HEADER = "Server-Timing"
BINARY_TYPE = "application/octet-stream"

_ALIGN = 16  # the header is padded with spaces, so that the first tensor can be used in place
_MAX_RANK = 32
_MAX_DIGITS = 18
_MAX_HEADER = 4 << 20
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode  # built once: `dumps` builds one a call


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A tensor as it travels: declared shape and datatype, raw little-endian bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, array: Array, **parameters: object) -> "WireTensor":
        """Wrap an array without copying it where it is contiguous."""
        datatype = OIP_TYPE.get(dtype_name(array.dtype))
        if datatype is None:
            raise InvalidTensor(f"tensor {name!r}: dtype {array.dtype.name} cannot be sent")
        flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        return cls(name, datatype, array.shape, flat.reshape(-1).view(np.uint8).data, parameters)

    def array(self) -> Array:
        """The tensor as an array that shares the message's memory.

        Raises:
            InvalidTensor: unknown datatype, a byte count that is not shape x dtype, or a bool that
                is neither 0 nor 1.
        """
        return from_bytes(self.name, self.data, _dtype(self.name, self.datatype), self.shape)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An inference request.

    Attributes:
        inputs: the tensors.
        id: echoed in the answer.
        outputs: requested output names -> whether as binary; empty for all.
        binary: whether outputs that are not listed come as binary.
        parameters: request parameters.
    """

    inputs: tuple[WireTensor, ...]
    id: str = ""
    outputs: Mapping[str, bool] = field(default_factory=dict)
    binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def arrays(self) -> dict[str, Array]:
        """The inputs by name; raises `InvalidTensor` on one that repeats."""
        found = {tensor.name: tensor.array() for tensor in self.inputs}
        if len(found) != len(self.inputs):
            raise InvalidTensor("an input is given twice")
        return found


@dataclass(frozen=True, slots=True)
class InferResponse:
    """An inference answer."""

    model: str
    version: str
    outputs: tuple[WireTensor, ...]
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def arrays(self) -> dict[str, Array]:
        """The outputs by name."""
        return {tensor.name: tensor.array() for tensor in self.outputs}


def build_request(request: InferRequest) -> tuple[bytes, dict[str, str]]:
    """Serialise a request, all tensors binary; returns the body and its HTTP headers."""
    parts, headers = request_parts(request)
    return b"".join(parts), headers


def request_parts(request: InferRequest) -> tuple[list[Buffer], dict[str, str]]:
    """What `build_request` joins: a sender that takes several buffers need not copy them."""
    head: dict[str, Any] = {
        "inputs": [_binary_entry(tensor) for tensor in request.inputs],
        "parameters": {"binary_data_output": True, **request.parameters},
    }
    if request.id:
        head["id"] = request.id
    if request.outputs:
        head["outputs"] = [
            {"name": name, "parameters": {"binary_data": binary}}
            for name, binary in request.outputs.items()
        ]
    return _parts(head, request.inputs)


def build_response(
    response: InferResponse, wanted: InferRequest | None = None
) -> tuple[bytes, dict[str, str]]:
    """Serialise an answer as `wanted` asked for it (names, binary or JSON); binary by default."""
    asked = wanted.outputs if wanted else {}
    default = wanted.binary if wanted else True
    chosen = [t for t in response.outputs if not asked or t.name in asked]
    binary = [tensor for tensor in chosen if asked.get(tensor.name, default)]
    entries = [
        _binary_entry(tensor) if asked.get(tensor.name, default) else _json_entry(tensor)
        for tensor in chosen
    ]
    head: dict[str, Any] = {
        "model_name": response.model,
        "model_version": response.version,
        "outputs": entries,
    }
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = dict(response.parameters)
    parts, headers = _parts(head, binary)
    return b"".join(parts), headers


def parse_request(body: Buffer, header_length: str | None) -> InferRequest:
    """Read a request.

    Args:
        body: the whole HTTP body.
        header_length: value of `Inference-Header-Content-Length`, None where absent.

    Raises:
        InvalidMessage: not JSON, or not a request.
        InvalidTensor: a tensor's datatype, shape or byte count is wrong.
    """
    head, rest = _split(body, header_length)
    parameters = _object(head.get("parameters", {}), "parameters")
    outputs: dict[str, bool] = {}
    binary = bool(parameters.get("binary_data_output", False))
    for entry in _entries(head.get("outputs", []), "outputs"):
        asked = _object(entry.get("parameters", {}), "parameters of an output")
        outputs[_name(entry)] = bool(asked.get("binary_data", binary))
    if "inputs" not in head:
        raise InvalidMessage('the request has no "inputs"')
    return InferRequest(
        _tensors(head["inputs"], rest, "inputs"),
        id=str(head.get("id", "")),
        outputs=outputs,
        binary=binary,
        parameters=parameters,
    )


def parse_response(body: Buffer, header_length: str | None) -> InferResponse:
    """Read an answer; raises `InvalidMessage` or `InvalidTensor`."""
    head, rest = _split(body, header_length)
    return InferResponse(
        str(head.get("model_name", "")),
        str(head.get("model_version", "")),
        _tensors(head.get("outputs", []), rest, "outputs"),
        id=str(head.get("id", "")),
        parameters=_object(head.get("parameters", {}), "parameters"),
    )


def error_body(error: DovetailError) -> tuple[bytes, dict[str, str]]:
    """The JSON body and headers of an error answer, as the protocol spells errors."""
    headers = {ERROR_HEADER: error.code, "Content-Type": "application/json"}
    if error.retryable:
        headers["Retry-After"] = "1"
    return json.dumps({"error": str(error)}).encode(), headers


def format_timing(seconds: Mapping[str, float]) -> str:
    """A `Server-Timing` value; durations in milliseconds, as the header defines them."""
    return ", ".join(f"{name};dur={value * 1e3:.3f}" for name, value in seconds.items())


def parse_timing(value: str) -> dict[str, float]:
    """Seconds by name from a `Server-Timing` value; what is not a duration is left out."""
    found: dict[str, float] = {}
    for entry in value.split(","):
        name, _, fields = entry.partition(";")
        for item in fields.split(";"):
            key, _, number = item.partition("=")
            if key.strip() != "dur":
                continue
            try:
                seconds = float(number) / 1e3
            except ValueError:
                continue
            # NaN or a negative time from a peer would poison every average it enters.
            if 0 <= seconds < math.inf:
                found[name.strip()] = seconds
    return found


def shape_of(name: object, value: object) -> tuple[int, ...]:
    """Read a shape that a peer declared; raises `InvalidTensor` unless it is a list of sizes."""
    good = (
        isinstance(value, list)
        and len(value) <= _MAX_RANK
        and all(isinstance(d, int) and not isinstance(d, bool) and 0 <= d < 2**40 for d in value)
    )
    if not good:
        raise InvalidTensor(f"tensor {name!r}: {str(value)[:80]} is not a shape")
    return tuple(cast("list[int]", value))


def _dtype(name: str, datatype: str) -> str:
    if datatype not in FROM_OIP:
        raise InvalidTensor(
            f"tensor {name!r} has datatype {datatype!r}; supported are {sorted(FROM_OIP)}"
        )
    return FROM_OIP[datatype]


def _binary_entry(tensor: WireTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "datatype": tensor.datatype,
        "parameters": {**tensor.parameters, "binary_data_size": len(tensor.data)},
    }


def _json_entry(tensor: WireTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "datatype": tensor.datatype,
        "parameters": dict(tensor.parameters),
        "data": tensor.array().reshape(-1).tolist(),
    }


def _parts(
    head: Mapping[str, Any], tensors: Iterable[WireTensor]
) -> tuple[list[Buffer], dict[str, str]]:
    buffers = [tensor.data for tensor in tensors]
    text = _ENCODE(head).encode()
    if not buffers:
        return [text], {"Content-Type": "application/json"}
    text += b" " * (-len(text) % _ALIGN)
    headers = {HEADER_LENGTH: str(len(text)), "Content-Type": BINARY_TYPE}
    return [text, *buffers], headers


def _split(body: Buffer, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    view = memoryview(body)
    if header_length is None:
        length = len(view)
    elif (
        header_length.isascii()
        and header_length.isdigit()
        and len(header_length) <= _MAX_DIGITS  # int() refuses thousands of digits in its own way
        and int(header_length) <= len(view)
    ):
        length = int(header_length)
    else:
        raise InvalidMessage(
            f"{HEADER_LENGTH} is {header_length[:40]!r}; expected a number up to {len(view)}"
        )
    if header_length is not None and length > _MAX_HEADER:
        raise InvalidMessage(f"the JSON header has {length} bytes; at most {_MAX_HEADER} are read")
    try:
        head = json.loads(str(view[:length], "utf-8"))  # of bytes it would guess the encoding
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"the message's JSON header does not parse: {error}") from error
    return _object(head, "the message"), view[length:]


def _tensors(entries: object, rest: memoryview, what: str) -> tuple[WireTensor, ...]:
    tensors, offset = [], 0
    for entry in _entries(entries, what):
        name, shape, datatype = (
            _name(entry),
            shape_of(entry.get("name"), entry.get("shape")),
            str(entry.get("datatype")),
        )
        parameters = dict(_object(entry.get("parameters", {}), f"parameters of {name!r}"))
        size = parameters.pop("binary_data_size", None)
        if size is None:
            tensors.append(_from_json(name, datatype, shape, entry, parameters))
            continue
        if (
            not isinstance(size, int)
            or isinstance(size, bool)
            or not 0 <= size <= len(rest) - offset
        ):
            raise InvalidTensor(
                f"tensor {name!r}: binary_data_size is {size!r}, "
                f"the body has {len(rest) - offset} bytes left"
            )
        data = rest[offset : offset + size]
        tensors.append(WireTensor(name, datatype, shape, data, parameters))
        offset += size
    if offset != len(rest):
        raise InvalidMessage(f"{len(rest) - offset} bytes follow the last tensor; expected none")
    return tuple(tensors)


def _from_json(
    name: str,
    datatype: str,
    shape: tuple[int, ...],
    entry: Mapping[str, Any],
    parameters: Mapping[str, Any],
) -> WireTensor:
    dtype = np.dtype(_dtype(name, datatype))
    if "data" not in entry:
        raise InvalidTensor(f"tensor {name!r} has neither data nor binary_data_size")
    try:
        with np.errstate(over="ignore"):  # what a float cannot hold is infinite, as in a binary one
            array = np.asarray(entry["data"], dtype).reshape(-1)
            plain = np.asarray(entry["data"]).reshape(-1)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidTensor(f"tensor {name!r}: data is not {datatype}: {error}") from error
    # numpy reads "1" and null as numbers and cuts 1.5 to 1; a caller's slip must not pass as data.
    if array.size and (plain.dtype.kind not in "biuf" or not _holds(array, plain)):
        raise InvalidTensor(f"tensor {name!r}: data is not {datatype}: a value does not fit")
    if array.size != math.prod(shape):
        raise InvalidTensor(
            f"tensor {name!r} has {array.size} values, shape {list(shape)} needs {math.prod(shape)}"
        )
    return WireTensor(name, datatype, shape, array.view(np.uint8).data, parameters)


def _holds(array: Array, plain: Array) -> bool:
    """Whether integers and booleans came through whole; floats are rounded as they must be."""
    return array.dtype.kind == "f" or bool((array == plain).all())


def _entries(value: object, what: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list):
        raise InvalidMessage(f'"{what}" is not a list')
    return [_object(entry, f'an entry of "{what}"') for entry in value]


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidMessage(f"{what} is not a JSON object")
    return cast("dict[str, Any]", value)


def _name(entry: Mapping[str, Any]) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidMessage(f"a tensor has no name; it has {sorted(entry)[:8]}")
    return name
