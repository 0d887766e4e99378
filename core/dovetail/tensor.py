"""Tensor declarations: the names, dtypes and shapes that every room exchanges.

Three vocabularies meet here and nowhere else: numpy dtype names (ours), ONNX `elem_type` numbers
(what a segment's inputs and outputs are declared with) and Open Inference Protocol datatypes (the
wire). A symbolic dimension is a string; only the batch dimension may be symbolic. It is axis 0 of
most tensors, though a recurrent network's state may have it elsewhere.

What arrives from a peer is checked here before numpy sees it: numpy answers an absurd shape with
errors of its own, and believes any byte of a bool.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from dovetail.errors import InvalidTensor

Array = NDArray[Any]
Buffer = bytes | bytearray | memoryview

# numpy dtype, ONNX elem_type, Open Inference Protocol datatype.
_DTYPES: tuple[tuple[str, int, str], ...] = (
    ("float32", 1, "FP32"),
    ("uint8", 2, "UINT8"),
    ("int8", 3, "INT8"),
    ("uint16", 4, "UINT16"),
    ("int16", 5, "INT16"),
    ("int32", 6, "INT32"),
    ("int64", 7, "INT64"),
    ("bool", 9, "BOOL"),
    ("float16", 10, "FP16"),
    ("float64", 11, "FP64"),
    ("uint32", 12, "UINT32"),
    ("uint64", 13, "UINT64"),
)
ONNX_TYPE: Mapping[str, int] = {name: onnx for name, onnx, _ in _DTYPES}
FROM_ONNX: Mapping[int, str] = {onnx: name for name, onnx, _ in _DTYPES}
OIP_TYPE: Mapping[str, str] = {name: oip for name, _, oip in _DTYPES}
FROM_OIP: Mapping[str, str] = {oip: name for name, _, oip in _DTYPES}
FLOATS = frozenset({"float16", "float32", "float64"})


DOCUMENT: Final = ConfigDict(
    extra="forbid",
    alias_generator=to_camel,
    populate_by_name=True,
    allow_inf_nan=False,  # one NaN among costs and every comparison of rungs is undefined
)


class Document(BaseModel):
    """Base of every JSON document: frozen, camelCase outside, unknown fields and NaN refused."""

    model_config = ConfigDict(frozen=True, **DOCUMENT)


def _known_dtype(name: str) -> str:
    if name not in ONNX_TYPE:
        raise ValueError(f"dtype {name!r} is not one of {sorted(ONNX_TYPE)}")
    return name


class TensorSpec(Document):
    """A tensor's declaration.

    Attributes:
        name: name in the model's graph.
        dtype: numpy dtype name, one of `ONNX_TYPE`.
        shape: dimensions; a string is symbolic (the batch).
    """

    name: str
    dtype: Annotated[str, AfterValidator(_known_dtype)]
    shape: tuple[Annotated[int, Field(ge=0)] | str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of one row: symbolic dimensions count as 1."""
        return self.dims_bytes(1)

    def dims_bytes(self, batch: int) -> int:
        """Bytes with every symbolic dimension set to `batch`."""
        count = 1
        for dim in self.shape:
            count *= batch if isinstance(dim, str) else dim
        return count * np.dtype(self.dtype).itemsize

    def check(self, array: Array) -> None:
        """Raise `InvalidTensor` unless dtype, byte order and shape fit this declaration."""
        if array.dtype != np.dtype(self.dtype):
            raise InvalidTensor(
                f"tensor {self.name!r} has dtype {array.dtype}, the model expects "
                f"{self.dtype}; convert it before sending"
            )
        self.check_shape(array.shape)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `InvalidTensor` unless a shape fits this declaration and is not empty."""
        fits = len(shape) == len(self.shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip(self.shape, shape, strict=True)
        )
        if not fits or any(dim < 1 for dim in shape):
            raise InvalidTensor(
                f"tensor {self.name!r} has shape {list(shape)}, the model expects "
                f"{list(self.shape)}, no dimension of it 0"
            )


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """A dtype's name, remembered: numpy spells it anew each time it is asked."""
    return str(dtype.name)


def from_bytes(name: str, data: Buffer, dtype: str, shape: Sequence[int]) -> Array:
    """View little-endian bytes as an array; they are copied only where they are not aligned.

    Raises:
        InvalidTensor: the byte count is not shape x dtype, a bool is neither 0 nor 1, or the
            shape is one that no array can have.
    """
    want = math.prod(shape) * np.dtype(dtype).itemsize
    if len(data) != want:
        raise InvalidTensor(
            f"tensor {name!r} has {len(data)} bytes, {dtype}{list(shape)} needs {want}"
        )
    flat = np.frombuffer(data, np.uint8)
    if dtype == "bool" and flat.size and flat.max() > 1:
        raise InvalidTensor(f"tensor {name!r} is bool and has bytes other than 0 and 1")
    try:
        array = flat.view(dtype).reshape(shape)
    except ValueError as error:  # an empty array may still claim a shape beyond the address space
        raise InvalidTensor(f"tensor {name!r}: {list(shape)} is not a shape: {error}") from error
    return array if array.flags.aligned else array.copy()


def check_inputs(specs: Sequence[TensorSpec], feed: Mapping[str, Array]) -> int:
    """Check a request's inputs against the declarations.

    Args:
        specs: the model's declared inputs.
        feed: arrays by input name.

    Returns:
        The batch size: the value of the symbolic dimension, 1 where none is symbolic.

    Raises:
        InvalidTensor: an input is missing, unknown, of the wrong dtype or shape, or two inputs
            disagree on the batch.
    """
    known = {spec.name for spec in specs}
    for name in feed:
        if name not in known:
            raise InvalidTensor(f"unknown input {name!r}; the model's inputs are {sorted(known)}")
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name not in feed:
            raise InvalidTensor(f"input {spec.name!r} is missing; the inputs are {sorted(known)}")
        spec.check(feed[spec.name])
        for dim, size in zip(spec.shape, feed[spec.name].shape, strict=True):
            if not isinstance(dim, str):
                continue
            seen, where = sizes.setdefault(dim, (size, spec.name))
            if seen != size:
                raise InvalidTensor(
                    f"inputs disagree on dimension {dim!r}: {where!r} has {seen}, "
                    f"{spec.name!r} has {size}"
                )
    return next(iter(sizes.values()))[0] if sizes else 1
