"""Keeps a model's weights in one file on disk, each content once.

A protobuf message cannot exceed 2 GB and a parsed weight lives in memory twice, so weights leave
the model as soon as it is parsed: large ones go to a file that everything later maps, and the model
refers to them as ONNX external data. Copying them once, rather than reading a user's files later
again, means that what was checked is what is used.

Reference: ONNX external data format.
"""

import hashlib
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onnx import TensorProto

FILE: Final = "weights.bin"
INLINE: Final = 1024  # bytes up to which a constant stays inside the model
ALIGN: Final = 64  # a cache line, and what ONNX Runtime wants of mapped floats


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant in the weights file.

    Attributes:
        name: initializer name.
        elem_type: ONNX element type.
        dims: shape.
        offset: position in the file, bytes, a multiple of `ALIGN`.
        length: bytes.
    """

    name: str
    elem_type: int
    dims: tuple[int, ...]
    offset: int
    length: int

    def proto(self, location: str, offset: int) -> TensorProto:
        """Declare the weight as external data at `offset` of the file `location`."""
        tensor = TensorProto(name=self.name, data_type=self.elem_type, dims=self.dims)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", self.length)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        return tensor


class WeightWriter:
    """Appends weights to the file; the same bytes are written once.

    Args:
        folder: where the file is made.
    """

    def __init__(self, folder: Path) -> None:
        self._file = (folder / FILE).open("wb")
        self._places: dict[bytes, int] = {}
        self._end = 0

    def add(
        self, name: str, elem_type: int, dims: Sequence[int], data: bytes | memoryview
    ) -> Weight:
        """Store one weight's bytes, little-endian as ONNX has them."""
        key = hashlib.sha256(data).digest()
        if key not in self._places:
            self._file.write(bytes(-self._end % ALIGN))
            self._places[key] = self._end + -self._end % ALIGN
            self._file.write(data)
            self._end = self._places[key] + len(data)
        return Weight(name, elem_type, tuple(dims), self._places[key], len(data))

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def map_file(folder: Path) -> memoryview:
    """Map the weights file for reading; an empty view where the model has no large weights."""
    path = folder / FILE
    if path.stat().st_size == 0:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
