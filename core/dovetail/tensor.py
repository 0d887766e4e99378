"""Tensor declarations: the names, dtypes and shapes that every room exchanges.

Three vocabularies meet here and nowhere else: numpy dtype names (ours), ONNX `elem_type` numbers
(what a segment's inputs and outputs are declared with) and Open Inference Protocol datatypes (the
wire). A symbolic dimension is a string; only the batch dimension, axis 0, may be symbolic.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from dovetail.errors import InvalidTensor

Array = NDArray[Any]

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


class Document(BaseModel):
    """Base of every JSON document: frozen, camelCase outside, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )


class TensorSpec(Document):
    """A tensor's declaration.

    Attributes:
        name: name in the model's graph.
        dtype: numpy dtype name, one of `ONNX_TYPE`.
        shape: dimensions; a string is symbolic (the batch).
    """

    name: str
    dtype: str
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
        """Raise `InvalidTensor` unless dtype and shape fit this declaration."""
        if array.dtype.name != self.dtype:
            raise InvalidTensor(
                f"input {self.name!r} has dtype {array.dtype.name}, the model expects "
                f"{self.dtype}; convert it before sending"
            )
        fits = len(array.shape) == len(self.shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip(self.shape, array.shape, strict=True)
        )
        if not fits:
            raise InvalidTensor(
                f"input {self.name!r} has shape {list(array.shape)}, the model expects "
                f"{list(self.shape)}"
            )
        if 0 in array.shape:
            raise InvalidTensor(f"input {self.name!r} is empty: shape {list(array.shape)}")


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
