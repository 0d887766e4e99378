"""A small real bundle, made by hand with the onnx package in well under a second.

Three segments with everything a bundle can hold: a tensor that jumps over a segment (`a`), an
output made in the head (`brightness`), a weight that two segments share, a symbolic batch, an
image input and calibrated int8 tables.

    s0: x -> Conv, Relu -> a;  x -> mean over pixels -> brightness
    s1: a -> Conv, Relu -> b
    s2: b -> Conv (the weight of s1), + a, Relu, pool, MatMul -> scores
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from dovetail.bundle import (
    Bundle,
    BundleConfig,
    BundleWriter,
    ModelInfo,
    RungSpec,
    Segment,
    WeightGroup,
    rung_id,
)
from dovetail.codecs import CodecSet
from dovetail.encoding import Affine, Image
from dovetail.ladder import CodecCost, CostProfile, Ladder
from dovetail.layout import canonical_json, digest_of
from dovetail.plan import Plan
from dovetail.runtime import SegmentRuntime
from dovetail.tensor import Array, TensorSpec

CLASSES = 10
_OPSETS = [helper.make_opsetid("", 18)]
_IR = 9
_RUNGS = ((0, "raw"), (0, "uint8"), (1, "raw"), (1, "int8"), (2, "raw"), (2, "int8-zstd"))


@dataclass(frozen=True)
class TinyBundle:
    """A bundle, the uncut model it was made from, and its times."""

    bundle: Bundle
    model: bytes
    costs: CostProfile

    def whole(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Answers of the uncut model, graph optimisation off."""
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))

    def plan(
        self,
        default: str = "cut1-int8",
        *,
        generation: int = 1,
        deployment: str = "default/tiny",
        device_class: str = "camera",
        **more: object,
    ) -> Plan:
        """A plan that allows every rung of the bundle."""
        ladder = Ladder.of(self.bundle.config, self.costs)
        return Plan.model_validate(
            {
                "generation": generation,
                "deployment": deployment,
                "bundle": self.bundle.digest,
                "device_class": device_class,
                "default": default,
                "ladder": ladder.rungs,
                **more,
            }
        )


def rows(count: int, *, side: int = 16, seed: int = 7) -> dict[str, Array]:
    """Inputs made from random 8-bit pixels: {"x": float32 [count, 3, side, side]}."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, side, side))
    return {"x": (pixels / 255.0).astype(np.float32)}


def write_tiny_bundle(
    path: Path,
    *,
    seed: int = 0,
    side: int = 16,
    width: int = 8,
    dynamic: bool = False,
    batch: str | None = "N",
) -> TinyBundle:
    """Write the bundle to `path`.

    Args:
        path: folder of the OCI layout.
        seed: of the weights; another seed is another version.
        side: height and width of the image.
        width: channels of the inner tensors.
        dynamic: make the last MatMul dynamically quantised, so that a row's answer depends on
            its neighbours in a batch (`row_wise` is then false for s2).
        batch: name of the symbolic batch; None fixes it to 1.
    """
    weights = _weights(seed, width)
    nodes = _nodes(width, dynamic=dynamic)
    tensors = _specs(batch, side, width)
    model = _whole(nodes, weights, tensors)
    with BundleWriter(path) as writer:
        config = _config(writer, model, nodes, weights, tensors, dynamic=dynamic, batch=batch)
        writer.commit(config)
    bundle = Bundle(path)
    costs = CostProfile(
        model=config.model.digest,
        host="tests",
        threads=1,
        ops={},
        whole=0.003,
        bundle=bundle.digest,
        segments=(0.001, 0.001, 0.001),
        codecs={r.id: CodecCost(encode=1e-4, decode=1e-4) for r in config.rungs},
    )
    return TinyBundle(bundle, model, costs)


def _weights(seed: int, width: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        values: Array = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return values.astype(np.float32)

    return {
        "w0": normal(width, 3, 3, 3),
        "w1": normal(width, width, 3, 3),
        "w2": normal(width, CLASSES) * np.float32(4),
    }


def _nodes(width: int, *, dynamic: bool) -> list[list[onnx.NodeProto]]:
    node = helper.make_node
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    last = [node("MatMul", ["flat", "w2"], ["scores"])]
    if dynamic:
        last = [
            node("DynamicQuantizeLinear", ["flat"], ["flat_q", "flat_s", "flat_z"]),
            node("DynamicQuantizeLinear", ["w2"], ["w2_q", "w2_s", "w2_z"]),
            node("MatMulInteger", ["flat_q", "w2_q", "flat_z", "w2_z"], ["scores_q"]),
            node("Cast", ["scores_q"], ["scores_f"], to=TensorProto.FLOAT),
            node("Mul", ["flat_s", "w2_s"], ["both_s"]),
            node("Mul", ["scores_f", "both_s"], ["scores"]),
        ]
    return [
        [
            node("Conv", ["x", "w0"], ["a_raw"], strides=[2, 2], **conv),
            node("Relu", ["a_raw"], ["a"]),
            node("GlobalAveragePool", ["x"], ["x_mean"]),
            node("Flatten", ["x_mean"], ["brightness"]),
        ],
        [node("Conv", ["a", "w1"], ["b_raw"], **conv), node("Relu", ["b_raw"], ["b"])],
        [
            node("Conv", ["b", "w1"], ["c"], **conv),
            node("Add", ["a", "c"], ["sum"]),
            node("Relu", ["sum"], ["sum_relu"]),
            node("GlobalAveragePool", ["sum_relu"], ["mean"]),
            node("Flatten", ["mean"], ["flat"]),
            *last,
        ],
    ]


def _specs(batch: str | None, side: int, width: int) -> dict[str, TensorSpec]:
    n, half = batch or 1, side // 2

    def spec(name: str, *dims: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=(n, *dims))

    specs = (
        spec("x", 3, side, side),
        spec("a", width, half, half),
        spec("b", width, half, half),
        spec("brightness", 3),
        spec("scores", CLASSES),
    )
    return {one.name: one for one in specs}


def _info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape))


def _whole(
    nodes: list[list[onnx.NodeProto]], weights: dict[str, Array], specs: dict[str, TensorSpec]
) -> bytes:
    graph = helper.make_graph(
        [one for segment in nodes for one in segment],
        "tiny",
        [_info(specs["x"])],
        [_info(specs["brightness"]), _info(specs["scores"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=_OPSETS, ir_version=_IR)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _group(
    writer: BundleWriter, segments: tuple[int, ...], names: list[str], weights: dict[str, Array]
) -> WeightGroup:
    data = writer.add(b"".join(weights[name].tobytes() for name in names))
    fragment, offset = onnx.GraphProto(), 0
    for name in names:
        tensor = fragment.initializer.add()
        tensor.name, tensor.data_type = name, TensorProto.FLOAT
        tensor.dims.extend(weights[name].shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {
            "location": data.removeprefix("sha256:"),
            "offset": str(offset),
            "length": str(weights[name].nbytes),
        }
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        offset += weights[name].nbytes
    declared = writer.add(fragment.SerializeToString(deterministic=True))
    return WeightGroup(segments=segments, initializers=declared, data=data)


def _config(
    writer: BundleWriter,
    model: bytes,
    nodes: list[list[onnx.NodeProto]],
    weights: dict[str, Array],
    specs: dict[str, TensorSpec],
    *,
    dynamic: bool,
    batch: str | None,
) -> BundleConfig:
    header = onnx.ModelProto(ir_version=_IR, opset_import=_OPSETS)
    fragments = [writer.add(onnx.GraphProto(node=s).SerializeToString()) for s in nodes]
    outputs = (specs["brightness"], specs["scores"])
    calibration = _calibrate(model, specs)
    rungs = [*_RUNGS, (3, "raw")]
    config = BundleConfig(
        model=ModelInfo(
            name="tiny",
            digest=digest_of(model),
            weight_bytes=sum(w.nbytes for w in weights.values()),
        ),
        header=writer.add(header.SerializeToString(deterministic=True)),
        inputs=(specs["x"],),
        outputs=outputs,
        tensors=(specs["a"], specs["b"]),
        segments=(
            Segment(nodes=fragments[0], reads=("x",), writes=("a", "brightness")),
            Segment(nodes=fragments[1], reads=("a",), writes=("b",)),
            Segment(nodes=fragments[2], reads=("a", "b"), writes=("scores",), row_wise=not dynamic),
        ),
        groups=(
            _group(writer, (0,), ["w0"], weights),
            _group(writer, (1, 2), ["w1"], weights),
            _group(writer, (2,), ["w2"], weights),
        ),
        batch=batch,
        image=Image(input="x"),
        affine={"int8": {name: _table(calibration[name]) for name in ("a", "b")}},
        rungs=tuple(
            RungSpec(
                id=rung_id(cut, codec, 3),
                cut=cut,
                codec=codec,
                bytes_up=0.0,
                bytes_down=0,
                max_error=0.0,
                top1=1.0,
            )
            for cut, codec in rungs
        ),
        proof=writer.add(canonical_json({"made": "by hand, for tests"})),
    )
    return config.model_copy(update={"rungs": _measured(config, calibration)})


def _calibrate(model: bytes, specs: dict[str, TensorSpec]) -> dict[str, Array]:
    """Values of every crossing tensor and output over a few rows."""
    proto = onnx.load_from_string(model)
    proto.graph.output.extend([_info(specs["a"]), _info(specs["b"])])
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = ["a", "b", "brightness", "scores"]
    side = int(specs["x"].shape[-1])
    found = [
        {**feed, **dict(zip(names, session.run(names, feed), strict=True))}
        for feed in (rows(1, side=side, seed=index) for index in range(8))
    ]
    return {name: np.concatenate([row[name] for row in found]) for name in found[0]}


def _table(values: Array) -> Affine:
    low = np.minimum(values.min(axis=(0, 2, 3)), 0.0)
    scale = np.maximum((values.max(axis=(0, 2, 3)) - low) / 255.0, 1e-8)
    zero = np.rint(-low / scale).astype(int)
    return Affine(axis=1, scale=tuple(scale.tolist()), zero=tuple(zero.tolist()))


def _measured(config: BundleConfig, seen: dict[str, Array]) -> tuple[RungSpec, ...]:
    """The rungs with the bytes that the calibration rows really take."""
    codecs, count = CodecSet(config), len(seen["x"])
    measured = []
    for rung in config.rungs:
        names = config.crossing(rung.cut)
        sizes = [
            len(tensor.data)
            for index in range(count)
            for tensor in codecs.pack(
                rung.codec, {n: seen[n][index : index + 1] for n in names}, names
            )
        ]
        down = sum(spec.nbytes for spec in config.remote_outputs(rung.cut))
        measured.append(
            rung.model_copy(update={"bytes_up": sum(sizes) / count, "bytes_down": down})
        )
    return tuple(measured)


def segments_of(tiny: TinyBundle, *, optimize: bool = False) -> SegmentRuntime:
    """All segments, loaded one by one, and nothing else."""
    return SegmentRuntime(tiny.bundle, (0, 1, 2, 3), optimize=optimize, whole=False)
