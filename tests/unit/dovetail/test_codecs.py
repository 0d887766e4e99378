"""Codecs: what crosses comes back within what the codec promises."""

import io
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as Pillow

from dovetail.bundle import BundleConfig, ModelInfo, Segment
from dovetail.codecs import CodecSet
from dovetail.encoding import Affine, Image
from dovetail.errors import InvalidTensor, RequestError, UnknownRung
from dovetail.layout import digest_of
from dovetail.tensor import TensorSpec
from dovetail.wire import WireTensor

BLOB = digest_of(b"")


def config(
    *tensors: TensorSpec,
    affine: dict[str, dict[str, Affine]] | None = None,
    image: Image | None = None,
    inputs: tuple[TensorSpec, ...] = (),
) -> BundleConfig:
    """A description with these crossing tensors; no bundle stands behind it."""
    names = tuple(spec.name for spec in tensors)
    return BundleConfig(
        model=ModelInfo(name="m", digest=BLOB, weight_bytes=0),
        header=BLOB,
        inputs=inputs,
        outputs=(),
        tensors=tensors,
        segments=(
            Segment(nodes=BLOB, reads=(), writes=names),
            Segment(nodes=BLOB, reads=names, writes=()),
        ),
        groups=(),
        image=image,
        affine=affine or {},
        rungs=(),
        proof=BLOB,
    )


def crossed(codecs: CodecSet, codec: str, env: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors after they were packed and unpacked."""
    names = tuple(env)
    return codecs.unpack(codec, names, tuple(codecs.pack(codec, env, names)))


def spec(dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name="t", dtype=dtype, shape=shape)


@st.composite
def quantised(draw, *, wide: bool = False):
    """A codec family, a table, a declaration with a batch axis anywhere, and an array of it."""
    family = draw(st.sampled_from(["int8", "int4"]))
    top = 255 if family == "int8" else 15
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=4))
    axes = list(range(len(shape)))
    batch = draw(st.sampled_from([None, *axes]))
    axis = draw(st.sampled_from([None, *(a for a in axes if a != batch)]))
    count = 1 if axis is None else shape[axis]
    floats = st.floats(2**-10, 2**9, width=32)
    scale = draw(st.lists(floats, min_size=count, max_size=count))
    zero = draw(st.lists(st.integers(0, top), min_size=count, max_size=count))
    along = [1] * len(shape)
    if axis is not None:
        along[axis] = count
    steps = np.array(scale).reshape(along)
    zeros = np.array(zero, float).reshape(along)
    reach = 3 * top if wide else 0
    codes = draw(hnp.arrays(np.float64, shape, elements=st.floats(-reach, top + reach)))
    dtype = draw(st.sampled_from(["float16", "float32", "float64"]))
    most = float(np.finfo(np.float16).max)
    array = np.asarray(np.clip((codes - zeros) * steps, -most, most)).astype(dtype)
    declared = spec(dtype, *("N" if a == batch else shape[a] for a in axes))
    table = Affine(axis=axis, scale=tuple(scale), zero=tuple(zero))
    return family, table, declared, array, steps, zeros, top


@given(quantised(), st.booleans())
def test_a_value_in_the_calibrated_range_comes_back_within_half_a_step(case, packed):
    """Verify the error bound for any shape, batch axis, channel axis and float type."""
    family, table, declared, array, steps, zeros, top = case
    codecs = CodecSet(config(declared, affine={family: {"t": table}}))

    got = crossed(codecs, f"{family}-zstd" if packed else family, {"t": array})["t"]

    # Half a step, and what arithmetic in the narrower of float32 and the tensor's type adds.
    real = array.astype(np.float64)
    rounding = 2**-10 if array.dtype == np.float16 else 2**-20
    bound = steps / 2 + rounding * (np.abs(real) + (zeros + top) * steps)
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert (np.abs(got.astype(np.float64) - real) <= bound).all()


@given(quantised(wide=True))
def test_a_value_out_of_range_saturates(case):
    """Verify that what comes back lies in the table's range, however far the value was out."""
    family, table, declared, array, steps, zeros, top = case
    codecs = CodecSet(config(declared, affine={family: {"t": table}}))

    got = crossed(codecs, family, {"t": array})["t"].astype(np.float64)

    slack = 1 + (2**-10 if array.dtype == np.float16 else 2**-20)
    assert (got <= (top - zeros) * steps * slack + 1e-6).all()
    assert (got >= -zeros * steps * slack - 1e-6).all()


TABLE = Affine(axis=None, scale=(0.5,), zero=(10,))
LOSSY = CodecSet(config(spec("float32", "N", 3), affine={"int8": {"t": TABLE}}))


def test_infinities_saturate_and_zero_is_exact():
    """Verify both ends of the range and the zero code."""
    array = np.array([[np.inf, -np.inf, 0.0], [3e38, -3e38, -0.0]], np.float32)

    got = crossed(LOSSY, "int8", {"t": array})["t"]

    np.testing.assert_array_equal(got, [[122.5, -5.0, 0.0]] * 2)


def test_halves_round_to_even():
    """Verify the rounding rule, which calibration relies on."""
    got = crossed(LOSSY, "int8", {"t": np.array([[0.25, 0.75, -0.25]], np.float32)})["t"]

    np.testing.assert_array_equal(got, [[0.0, 1.0, 0.0]])


@pytest.mark.parametrize("codec", ["raw", "raw-zstd", "fp16", "fp16-zstd", "int8", "int8-zstd"])
def test_nan_comes_back_as_nan_under_every_codec(codec):
    """Verify that a split answer cannot look right where the whole model's is NaN."""
    array = np.array([[1.0, np.nan, 2.0]], np.float32)

    np.testing.assert_array_equal(crossed(LOSSY, codec, {"t": array})["t"], array)


@given(
    st.sampled_from(["bool", "int8", "int64", "uint8", "uint64"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_side=4))
    ),
    st.sampled_from(["raw", "raw-zstd", "fp16", "int8", "int4-zstd"]),
)
def test_integers_and_booleans_cross_unchanged_under_every_codec(array, codec):
    """Verify that lossy codecs touch floats only."""
    codecs = CodecSet(config(spec(array.dtype.name, *array.shape)))

    np.testing.assert_array_equal(crossed(codecs, codec, {"t": array})["t"], array)


@given(hnp.arrays("float32", hnp.array_shapes(max_side=5), elements=st.floats(width=32)))
def test_half_precision_rounds_once_and_saturates(array):
    """Verify fp16 against numpy's own, with infinity kept out."""
    codecs = CodecSet(config(spec("float32", *array.shape)))

    got = crossed(codecs, "fp16", {"t": array})["t"]

    want = np.clip(array, -65504, 65504).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(got, want)


@given(hnp.arrays("float32", (2, 3, 4)), st.permutations([0, 1, 2]))
def test_memory_layout_does_not_matter(array, order):
    """Verify that a transposed view crosses as the tensor it shows."""
    view = array.transpose(order)
    table = Affine(axis=2, scale=(0.1,) * view.shape[2], zero=(128,) * view.shape[2])
    codecs = CodecSet(config(spec("float32", *view.shape), affine={"int8": {"t": table}}))

    for codec in ("raw", "fp16", "int8"):
        plain = crossed(codecs, codec, {"t": np.ascontiguousarray(view)})["t"]
        np.testing.assert_array_equal(crossed(codecs, codec, {"t": view})["t"], plain)


X = TensorSpec(name="x", dtype="float32", shape=("N", 3, 6, 4))
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3), np.uint8)
IMAGES = {
    "NCHW": (X, Image(input="x", mean=(0.48, 0.45, 0.4), std=(0.22, 0.23, 0.24))),
    "NHWC": (
        TensorSpec(name="x", dtype="float32", shape=("N", 6, 4, 3)),
        Image(input="x", layout="NHWC", scale=1.0, mean=(127.0,), std=(128.0,)),
    ),
}


def image_of(layout: str) -> np.ndarray:
    declared = IMAGES[layout][1]
    real = (PIXELS * np.float32(declared.scale) - np.float32(declared.mean)) / np.float32(
        declared.std
    )
    return np.ascontiguousarray(real.transpose(0, 3, 1, 2) if layout == "NCHW" else real)


def image_set(layout: str) -> CodecSet:
    declared, image = IMAGES[layout]
    return CodecSet(config(inputs=(declared,), image=image))


@pytest.mark.parametrize("layout", sorted(IMAGES))
def test_an_image_crosses_as_its_own_pixels(layout):
    """Verify that uint8 sends exactly the 8-bit pixels and gives the input back bit for bit."""
    codecs, array = image_set(layout), image_of(layout)

    [sent] = codecs.pack("uint8", {"x": array}, ("x",))

    assert bytes(sent.data) == PIXELS.tobytes()
    np.testing.assert_allclose(crossed(codecs, "uint8", {"x": array})["x"], array, atol=1e-6)


@pytest.mark.parametrize("layout", sorted(IMAGES))
def test_a_flat_image_survives_jpeg(layout):
    """Verify layout and colour order through JPEG, where it loses next to nothing."""
    codecs = image_set(layout)
    declared = IMAGES[layout][1]
    flat = np.broadcast_to(np.float32([200, 40, 90]), (2, 6, 4, 3)) * np.float32(declared.scale)
    flat = (flat - np.float32(declared.mean)) / np.float32(declared.std)
    array = np.ascontiguousarray(flat.transpose(0, 3, 1, 2) if layout == "NCHW" else flat)

    got = crossed(codecs, "jpeg90", {"x": array})["x"]

    step = declared.scale / min(declared.std)
    assert np.abs(got - array).max() <= 4 * step


def test_a_gray_image_survives_jpeg():
    """Verify one channel."""
    declared = TensorSpec(name="x", dtype="float32", shape=("N", 1, 8, 8))
    codecs = CodecSet(config(inputs=(declared,), image=Image(input="x")))
    array = np.full((3, 1, 8, 8), 0.5, np.float32)

    assert np.abs(crossed(codecs, "jpeg75", {"x": array})["x"] - array).max() < 0.02


def test_input_codecs_touch_only_the_image():
    """Verify that a mask beside the image crosses raw under uint8 and JPEG."""
    mask = TensorSpec(name="mask", dtype="float32", shape=("N", 2))
    codecs = CodecSet(config(inputs=(X, mask), image=IMAGES["NCHW"][1]))

    assert codecs.effective("jpeg90", "mask") == "raw"
    assert codecs.effective("uint8-zstd", "mask") == "raw-zstd"
    assert codecs.effective("uint8-zstd", "x") == "uint8-zstd"


@pytest.mark.parametrize("codec", ["int8", "int4", "uint8", "int8-lz4", ""])
def test_a_codec_the_bundle_has_no_table_for_is_refused(codec):
    """Verify the typed error for each family."""
    codecs = CodecSet(config(spec("float32", "N", 3)))

    with pytest.raises(UnknownRung):
        codecs.pack(codec, {"t": np.zeros((1, 3), np.float32)}, ("t",))


def sent(data: bytes, *, shape: object, codec: str = "int8", dtype: str = "float32") -> WireTensor:
    parameters = {"codec": codec, "dtype": dtype, "shape": shape}
    return WireTensor("t", "UINT8", (len(data),), data, parameters)


@pytest.mark.parametrize(
    "tensor",
    [
        sent(b"123", shape=[1, 4]),
        sent(b"12", shape=[1, 3]),
        sent(b"1234", shape=[1, 3]),
        sent(b"", shape=[0, 3]),
        sent(b"123", shape=[-1, -3]),
        sent(b"123", shape=[10**30, 3]),
        sent(b"123", shape=[2**39, 3]),
        sent(b"123", shape=[True, 3]),
        sent(b"123", shape="13"),
        sent(b"123", shape=None),
        sent(b"123", shape=[1, 3], codec="int4"),
        sent(b"123", shape=[1, 3], dtype="float64"),
        sent(b"123", shape=[1, 3], codec="raw"),
        WireTensor("u", "UINT8", (3,), b"123", {}),
    ],
    ids=range(14),
)
def test_a_crossing_tensor_that_is_not_as_declared_is_refused(tensor):
    """Verify shapes, sizes, codecs and names that a peer may send."""
    with pytest.raises(InvalidTensor):
        LOSSY.unpack("int8", ("t",), (tensor,))


@given(st.binary(max_size=60), st.sampled_from(["int8-zstd", "raw-zstd", "fp16-zstd"]))
def test_arbitrary_zstd_bytes_are_refused_and_nothing_else(data, codec):
    """Verify that a broken frame raises a request error or decodes to the declared shape."""
    try:
        got = LOSSY.unpack(codec, ("t",), (sent(data, shape=[1, 3], codec=codec),))["t"]
    except RequestError:
        return
    assert got.shape == (1, 3)


@pytest.mark.parametrize(
    "data",
    [
        zstandard.ZstdCompressor().compress(bytes(1 << 24)),
        b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + b"\x01\x00\x00",
        zstandard.ZstdCompressor().compress(b"123") + b"more",
        zstandard.ZstdCompressor(write_content_size=False).compress(b"123"),
        b"",
    ],
    ids=["bomb", "claims a terabyte", "trailing bytes", "unknown size", "empty"],
)
def test_a_zstd_frame_that_is_not_the_tensors_is_refused(data):
    """Verify that a frame's claim is checked before memory is given to it."""
    with pytest.raises(InvalidTensor):
        LOSSY.unpack("int8-zstd", ("t",), (sent(data, shape=[1, 3], codec="int8-zstd"),))


def jpeg(width: int, height: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Pillow.new(mode, (width, height)).save(out, "JPEG")
    return len(out.getvalue()).to_bytes(4, "little") + out.getvalue()


def claiming(width: int, height: int) -> bytes:
    data = bytearray(jpeg(4, 6))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        jpeg(6, 4),
        jpeg(4, 6, "L"),
        jpeg(4, 6, "CMYK"),
        claiming(20_000, 20_000),
        claiming(65_000, 65_000),
        jpeg(4, 6)[:-40],
        jpeg(4, 6) + b"x",
        b"\xff\xff\xff\xff" + jpeg(4, 6),
        b"\x04\0\0\0GIF8",
        b"",
    ],
    ids=range(10),
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_jpeg_that_is_not_the_images_is_refused(data):
    """Verify wrong sizes, modes, vast claims, truncation and bytes that are no JPEG."""
    parameters = {"codec": "jpeg90", "dtype": "float32", "shape": [1, 3, 6, 4]}
    tensor = WireTensor("x", "UINT8", (len(data),), data, parameters)

    with pytest.raises(InvalidTensor):
        image_set("NCHW").unpack("jpeg90", ("x",), (tensor,))


def test_crossing_tensors_agree_on_the_batch():
    """Verify that two batches in one call are refused."""
    both = (
        TensorSpec(name="t", dtype="float32", shape=("N", 3)),
        TensorSpec(name="h", dtype="float32", shape=(2, "N")),
    )
    codecs = CodecSet(config(*both))
    env = {"t": np.zeros((2, 3), np.float32), "h": np.zeros((2, 3), np.float32)}

    with pytest.raises(InvalidTensor, match="batch"):
        crossed(codecs, "raw", env)
    crossed(codecs, "raw", {**env, "h": np.zeros((2, 2), np.float32)})
