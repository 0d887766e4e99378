"""Codecs: how a crossing tensor becomes bytes, and tensors again.

A codec is what makes a cut pay: with raw fp32 a middle cut of an image classifier is almost never
the fastest rung, with calibrated int8 it often is. All tables are fitted at partition time and
live in the bundle, so nothing but codes crosses and head and tail cannot disagree about scales.

    raw            the tensor's own bytes
    fp16           IEEE half precision
    int8, int4     affine per channel, `code = round(x / scale + zero)`, clipped to 8 or 4 bits
    uint8          raw input only: the 8-bit pixels themselves where the input is an image, else
                   affine over the whole tensor
    jpeg90, jpeg75 raw input only, and only where it is declared an image
    …-zstd         any of them but jpeg, compressed without further loss

Integer and boolean tensors are never made lossy: under every codec they cross as they are. What is
out of a codec's range saturates. A tensor that holds NaN, for which codes and pixels have no place,
crosses raw: the split answer must be as wrong as the whole model's, not a plausible number.

References: Jacob et al., CVPR 2018 (affine quantisation); RFC 8878 (Zstandard); ITU-T T.81 (JPEG).
"""

import io
import math
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from dovetail.bundle import BundleConfig
from dovetail.encoding import Affine, Image
from dovetail.errors import InvalidTensor, MissingTool, UnknownRung
from dovetail.tensor import FLOATS, Array, Buffer, TensorSpec, dtype_name, from_bytes
from dovetail.wire import WireTensor, shape_of

_ZSTD_LEVEL = 1
_HALF_MAX = np.finfo(np.float16).max
_LENGTH = 4  # bytes of the length before each JPEG row

# Families, in the order in which their tables and proofs are made.
ACTIVATION_FAMILIES = ("raw", "fp16", "int8", "int4")
INPUT_FAMILIES = ("raw", "fp16", "uint8", "int8")
IMAGE_FAMILIES = ("jpeg90", "jpeg75")


class Codec(Protocol):
    """Turns one float tensor into bytes and back. Implementations are stateless.

    Attributes:
        carries_nan: whether NaN comes out as NaN.
    """

    carries_nan: bool

    def encode(self, array: Array) -> Buffer:
        """Bytes of a tensor, of any batch size."""

    def decode(self, data: Buffer, shape: tuple[int, ...]) -> Array:
        """The float array of that shape; raises `InvalidTensor` on the wrong byte count."""


class _Raw:
    carries_nan = True

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def encode(self, array: Array) -> Buffer:
        return _bytes_of(array)

    def decode(self, data: Buffer, shape: tuple[int, ...]) -> Array:
        return from_bytes("raw", data, self._dtype, shape)


class _Half:
    carries_nan = True

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def encode(self, array: Array) -> Buffer:
        # Saturate: an overflow to infinity would spread.
        return _bytes_of(np.clip(array, -_HALF_MAX, _HALF_MAX).astype(np.float16))

    def decode(self, data: Buffer, shape: tuple[int, ...]) -> Array:
        _expect(data, math.prod(shape) * 2)
        return np.frombuffer(data, np.float16).reshape(shape).astype(self._dtype)


class _Quantised:
    """Affine codes of 8 or 4 bits; two 4-bit codes share a byte, the first in the low half."""

    carries_nan = False

    def __init__(self, table: Affine, rank: int, dtype: str, bits: int) -> None:
        shape = [1] * rank
        if table.axis is not None:
            shape[table.axis] = len(table.scale)
        scale = np.asarray(table.scale, np.float32).reshape(shape)
        self._scale = scale
        self._inverse = (1.0 / scale).astype(np.float32)
        self._zero = np.asarray(table.zero, np.float32).reshape(shape)
        self._top, self._bits, self._dtype = (1 << bits) - 1, bits, dtype

    def encode(self, array: Array) -> Buffer:
        codes = np.empty(array.shape, np.float32)
        with np.errstate(over="ignore"):  # what overflows saturates, as anything out of range
            np.multiply(array, self._inverse, out=codes)
        np.add(codes, self._zero, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, 0, self._top, out=codes)
        flat = codes.astype(np.uint8).reshape(-1)
        if self._bits == 8:
            return _bytes_of(flat)
        if flat.size % 2:
            flat = np.append(flat, np.uint8(0))
        return _bytes_of(flat[0::2] | (flat[1::2] << 4))

    def decode(self, data: Buffer, shape: tuple[int, ...]) -> Array:
        count = math.prod(shape)
        _expect(data, count if self._bits == 8 else (count + 1) // 2)
        codes = np.frombuffer(data, np.uint8)
        if self._bits == 4:
            pairs = np.empty((codes.size, 2), np.uint8)
            np.bitwise_and(codes, 15, out=pairs[:, 0])
            np.right_shift(codes, 4, out=pairs[:, 1])
            codes = pairs.reshape(-1)[:count]
        real = codes.reshape(shape).astype(np.float32)
        real -= self._zero
        real *= self._scale
        if self._dtype == "float16":  # the outermost codes may stand for more than it holds
            np.clip(real, -_HALF_MAX, _HALF_MAX, out=real)
        return real.astype(self._dtype, copy=False)


class _Pixels:
    """The 8-bit pixels an image input was made from, [N, H, W, C] uint8 on the wire."""

    carries_nan = False

    def __init__(self, image: Image, dtype: str) -> None:
        self._mean = np.asarray(image.mean, np.float32)
        self._std = np.asarray(image.std, np.float32)
        self._scale, self._dtype = np.float32(image.scale), dtype
        self._channels_first = image.layout == "NCHW"

    def encode(self, array: Array) -> Buffer:
        return _bytes_of(self.to_pixels(array))

    def decode(self, data: Buffer, shape: tuple[int, ...]) -> Array:
        _expect(data, math.prod(shape))
        pixels = np.frombuffer(data, np.uint8).reshape(self.pixel_shape(shape))
        return self.from_pixels(pixels)

    def pixel_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        if self._channels_first:
            n, c, h, w = shape
        else:
            n, h, w, c = shape
        return n, h, w, c

    def to_pixels(self, array: Array) -> NDArray[np.uint8]:
        last = array.transpose(0, 2, 3, 1) if self._channels_first else array
        real = (last.astype(np.float32) * self._std + self._mean) / self._scale
        pixels: NDArray[np.uint8] = np.clip(np.rint(real), 0, 255).astype(np.uint8)
        return pixels

    def from_pixels(self, pixels: NDArray[np.uint8]) -> Array:
        real = (pixels.astype(np.float32) * self._scale - self._mean) / self._std
        last = real.transpose(0, 3, 1, 2) if self._channels_first else real
        return np.ascontiguousarray(last.astype(self._dtype, copy=False))


class _Jpeg:
    """One JPEG a row, each behind its length as a little-endian uint32."""

    carries_nan = False

    def __init__(self, image: Image, dtype: str, quality: int) -> None:
        self._pixels, self._quality = _Pixels(image, dtype), quality

    def encode(self, array: Array) -> Buffer:
        from PIL import Image as Pillow  # noqa: PLC0415  only image inputs need Pillow

        out = io.BytesIO()
        for row in self._pixels.to_pixels(array):
            one = io.BytesIO()
            plain = row[:, :, 0] if row.shape[2] == 1 else row
            Pillow.fromarray(plain).save(one, "JPEG", quality=self._quality)
            out.write(len(one.getvalue()).to_bytes(_LENGTH, "little"))
            out.write(one.getvalue())
        return out.getvalue()

    def decode(self, data: Buffer, shape: tuple[int, ...]) -> Array:
        view, offset = memoryview(data), 0
        want = self._pixels.pixel_shape(shape)
        rows = np.empty(want, np.uint8)
        for index in range(want[0]):
            size = int.from_bytes(view[offset : offset + _LENGTH], "little")
            rows[index] = self._row(bytes(view[offset + _LENGTH : offset + _LENGTH + size]), want)
            offset += _LENGTH + size
        _expect(data, offset)
        return self._pixels.from_pixels(rows)

    @staticmethod
    def _row(data: bytes, want: tuple[int, int, int, int]) -> Array:
        from PIL import Image as Pillow  # noqa: PLC0415  only image inputs need Pillow

        mode = "L" if want[3] == 1 else "RGB"
        try:
            image = Pillow.open(io.BytesIO(data), formats=("JPEG",))
            # The header's size is checked before any pixel is decoded: a small file that claims
            # to be huge must cost nothing.
            if image.size != (want[2], want[1]) or image.mode != mode:
                raise InvalidTensor(
                    f"JPEG is {image.mode} {image.size}, expected {mode} {(want[2], want[1])}"
                )
            return np.asarray(image).reshape(want[1:])
        except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
            raise InvalidTensor(f"the JPEG does not decode: {error}") from error


class _Zstd:
    """Another codec, compressed. Contexts are kept a thread each; they are not thread-safe."""

    _local = threading.local()

    def __init__(self, inner: Codec, itemsize: int) -> None:
        self._inner, self._itemsize = inner, itemsize
        self.carries_nan = inner.carries_nan

    def encode(self, array: Array) -> Buffer:
        if not hasattr(self._local, "compress"):
            self._local.compress = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        compressed: bytes = self._local.compress.compress(self._inner.encode(array))
        return compressed

    def decode(self, data: Buffer, shape: tuple[int, ...]) -> Array:
        if not hasattr(self._local, "expand"):
            self._local.expand = zstandard.ZstdDecompressor()
        try:
            size = zstandard.frame_content_size(data)
            # The frame says how much it expands to; more than the raw tensor is never right, and
            # nothing is allocated for a frame that says so.
            if not 0 <= size <= math.prod(shape) * self._itemsize:
                raise InvalidTensor(f"the zstd frame claims {size} bytes for shape {list(shape)}")
            plain: bytes = self._local.expand.decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise InvalidTensor(f"the zstd frame does not decode: {error}") from error
        return self._inner.decode(plain, shape)


class CodecSet:
    """All codecs of one bundle, built once from its calibrated tables.

    Args:
        config: the bundle's description.
    """

    def __init__(self, config: BundleConfig) -> None:
        self._config = config
        self._built: dict[tuple[str, str], Codec] = {}

    def pack(
        self, codec: str, env: Mapping[str, Array], names: tuple[str, ...]
    ) -> list[WireTensor]:
        """Encode crossing tensors for the wire: UINT8 [n bytes] with {codec, dtype, shape}.

        Raises:
            UnknownRung: the bundle has no such codec for one of the tensors.
        """
        packed = []
        for name in names:
            array, used = env[name], self.effective(codec, name)
            if not self.of(used, name).carries_nan and np.isnan(array.max(initial=0)):
                used = "raw"
            data = memoryview(self.of(used, name).encode(array))
            parameters = {
                "codec": used,
                "dtype": dtype_name(array.dtype),
                "shape": list(array.shape),
            }
            packed.append(WireTensor(name, "UINT8", (len(data),), data, parameters))
        return packed

    def unpack(
        self, codec: str, names: tuple[str, ...], sent: tuple[WireTensor, ...]
    ) -> dict[str, Array]:
        """Decode a rung call's tensors and check each against its declaration.

        Raises:
            InvalidTensor: a tensor is missing, unexpected, or not as declared.
        """
        if sorted(tensor.name for tensor in sent) != sorted(names):
            raise InvalidTensor(
                f"the crossing tensors are {sorted(t.name for t in sent)}, "
                f"this rung takes {sorted(names)}"
            )
        env = {tensor.name: self._unpack_one(codec, tensor) for tensor in sent}
        batches = {
            env[name].shape[axis]
            for name in names
            for axis, dim in enumerate(self._config.spec(name).shape)
            if isinstance(dim, str)
        }
        if len(batches) > 1:
            raise InvalidTensor(f"the crossing tensors disagree on the batch: {sorted(batches)}")
        return env

    def effective(self, codec: str, name: str) -> str:
        """The codec a tensor really crosses with under the rung's codec.

        Integer and boolean tensors stay lossless, and input codecs touch only the image input.
        """
        family, _, packing = codec.partition("-")
        spec = self._config.spec(name)
        image = self._config.image
        lossless = spec.dtype not in FLOATS
        if family.startswith("jpeg") or (family == "uint8" and image is not None):
            lossless |= image is None or name != image.input
        if not lossless:
            return codec
        return "raw-zstd" if packing else "raw"

    def of(self, codec: str, name: str) -> Codec:
        """The codec object of one tensor; raises `UnknownRung` where the bundle has no table."""
        key = (codec, name)
        if key not in self._built:
            self._built[key] = self._build(codec, self._config.spec(name))
        return self._built[key]

    def _unpack_one(self, codec: str, tensor: WireTensor) -> Array:
        spec, used = self._config.spec(tensor.name), self.effective(codec, tensor.name)
        sent = (tensor.parameters.get("codec"), tensor.parameters.get("dtype"))
        if sent not in ((used, spec.dtype), ("raw", spec.dtype)):
            raise InvalidTensor(
                f"crossing tensor {tensor.name!r} is {sent[0]}/{sent[1]}, "
                f"this rung takes {used}/{spec.dtype}"
            )
        # A declared shape is checked before bytes are decoded: it bounds what they may become.
        shape = shape_of(tensor.name, tensor.parameters.get("shape"))
        spec.check_shape(shape)
        return self.of(str(sent[0]), tensor.name).decode(tensor.data, shape)

    def _build(self, codec: str, spec: TensorSpec) -> Codec:
        family, _, packing = codec.partition("-")
        if packing not in ("", "zstd"):
            raise UnknownRung(f"unknown codec {codec!r}")
        plain = self._family(family, spec)
        return _Zstd(plain, np.dtype(spec.dtype).itemsize) if packing else plain

    def _family(self, family: str, spec: TensorSpec) -> Codec:
        image = self._config.image
        if family == "raw":
            return _Raw(spec.dtype)
        if family == "fp16":
            return _Half(spec.dtype)
        if image is not None and image.input == spec.name:
            if family == "uint8":
                return _Pixels(image, spec.dtype)
            if family in IMAGE_FAMILIES:
                _require_pillow()
                return _Jpeg(image, spec.dtype, int(family[4:]))
        table = self._config.affine.get(family, {}).get(spec.name)
        if table is None:
            raise UnknownRung(f"the bundle has no {family!r} table for tensor {spec.name!r}")
        return _Quantised(table, len(spec.shape), spec.dtype, 4 if family == "int4" else 8)


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401, PLC0415  asked for before the first request needs it
    except ImportError as error:
        raise MissingTool("a JPEG rung needs Pillow: pip install 'dovetail[edge]'") from error


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _expect(data: Buffer, want: int) -> None:
    if len(data) != want:
        raise InvalidTensor(f"the coded tensor has {len(data)} bytes, {want} expected")
