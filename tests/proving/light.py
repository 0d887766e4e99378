"""The nine networks inside the onnx wheel, as shipped and with seeded random weights.

As shipped, every weight is 0.02 made by a ConstantOfShape: real topologies, but eight of the nine
answer the same constant for any input, so equality on them would prove nothing. `seeded` puts
random weights where the generators were:

- Conv and Gemm: normal with variance 2 / fan_in (He et al., 2015), so that signals neither die nor
  explode on the way through 100 rectified layers; biases small.
- BatchNormalization: scale and variance near 1, mean and bias small.
- the last weighted layer is then centred and scaled on real photos. Without that, a random network
  gives every photo nearly the same answer, for its features differ little around a large mean.

The old form is kept: IR version 3, weights listed among the graph's inputs.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from examples.registry import cache_root
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from tests.proving import photos

from dovetail.tensor import Array

NAMES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
_RECIPE = 1  # raised when the seeded weights change, so that cached files are made anew
_CALIBRATED_ON = 8  # photos
_LOGIT_STD = 3.0  # spread of the last layer's outputs over the photos

Floats = NDArray[np.float32]


def shipped(name: str) -> Path:
    """Path of the network as the onnx wheel carries it."""
    return Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx"


def seeded(name: str) -> Path:
    """Path of the network with seeded random weights, made on the first call.

    Raises:
        Unavailable: the photos it is calibrated on cannot be fetched.
    """
    path = cache_root() / "light" / f"{name}-{onnx.__version__}-{_RECIPE}.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".part-{os.getpid()}")
        model = _with_weights(onnx.load(shipped(name)), name)
        part.write_bytes(_calibrated(model, name))
        part.replace(path)
    return path


@cache
def input_name(name: str) -> str:
    """Name of the one input that is no weight: float32 [1, 3, 224, 224]."""
    graph = onnx.load(shipped(name)).graph
    weights = {tensor.name for tensor in graph.initializer}
    (real,) = (value.name for value in graph.input if value.name not in weights)
    return str(real)


def rows(name: str) -> list[dict[str, Array]]:
    """20 photo crops as the network takes them."""
    return [{input_name(name): photos.nchw(crop)} for crop in photos.crops(224)]


def _roles(model: ModelProto) -> Iterator[tuple[str, NodeProto, int]]:
    """Each tensor that a node reads in a weight's place, seen through Reshape and Unsqueeze."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm", "BatchNormalization", "Mul", "Add"}:
            continue
        for place, tensor in enumerate(node.input[1:], start=1):
            source = tensor
            while source in made_by and made_by[source].op_type in {"Reshape", "Unsqueeze"}:
                source = made_by[source].input[0]
            yield source, node, place


def _draw(node: NodeProto, place: int, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Random values for the weight that a node reads at a place."""
    if node.op_type in {"Conv", "Gemm"} and place == 1:
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        fan_in = shape[0] if node.op_type == "Gemm" and not transposed else np.prod(shape[1:])
        wide = rng.standard_normal(shape, np.float32)
        wide *= np.float32(np.sqrt(2 / fan_in))
        return wide
    near_one = node.op_type == "Mul" or (node.op_type == "BatchNormalization" and place in {1, 4})
    drawn = rng.uniform(0.8, 1.2, shape) if near_one else rng.normal(0, 0.1, shape)
    return drawn.astype(np.float32)


def _with_weights(model: ModelProto, name: str) -> ModelProto:
    """Replace every generated or stored float weight by a drawn one."""
    graph = model.graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = {
        node.output[0]: (tuple(int(d) for d in stored[node.input[0]]), node.input[0])
        for node in graph.node
        if node.op_type == "ConstantOfShape"
    }
    rng = np.random.default_rng(NAMES.index(name))
    drawn: dict[str, Floats] = {}
    for tensor, node, place in _roles(model):
        if tensor not in drawn and (tensor in shapes or tensor in stored):
            shape = shapes[tensor][0] if tensor in shapes else stored[tensor].shape
            drawn[tensor] = _draw(node, place, shape, rng)
    gone = set(drawn) | {shapes[tensor][1] for tensor in drawn if tensor in shapes}
    _keep(graph.node, [n for n in graph.node if n.output[0] not in drawn])
    _keep(graph.initializer, [t for t in graph.initializer if t.name not in gone])
    _keep(graph.input, [v for v in graph.input if v.name not in gone])
    for tensor, value in drawn.items():
        graph.initializer.append(numpy_helper.from_array(value, tensor))
        graph.input.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, value.shape))
    return model


def _calibrated(model: ModelProto, name: str) -> bytes:
    """Centre and scale the last weighted layer on real photos, and serialise the model."""
    graph = model.graph
    last = [node for _, node, place in _roles(model) if place == 2 and node.op_type != "Add"][-1]
    logits = _outputs_of(model, last.output[0], rows(name)[:_CALIBRATED_ON])
    mean = logits.mean(axis=(0, *range(2, logits.ndim)))
    factor = _LOGIT_STD / (logits - logits.mean(axis=0)).std()
    stored = {tensor.name: tensor for tensor in graph.initializer}
    sources = {
        place: stored[tensor]
        for tensor, node, place in _roles(model)
        if node.output[0] == last.output[0]
    }
    weights, biases = (numpy_helper.to_array(sources[place]) for place in (1, 2))
    for tensor, value in ((sources[1], weights * factor), (sources[2], (biases - mean) * factor)):
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return bytes(model.SerializeToString())


def _outputs_of(model: ModelProto, tensor: str, inputs: list[dict[str, Array]]) -> Floats:
    """Run the model up to one of its inner tensors: float32 [rows, ...]."""
    model.graph.output.append(helper.make_empty_tensor_value_info(tensor))
    session = ort.InferenceSession(model.SerializeToString())
    model.graph.output.pop()
    answers: list[Floats] = [session.run([tensor], row)[0] for row in inputs]
    return np.concatenate(answers)


def _keep(field: Any, kept: list[Any]) -> None:
    """Shrink a repeated protobuf field to some of its own items."""
    copies = list(kept)
    del field[:]
    field.extend(copies)
