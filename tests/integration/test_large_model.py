"""A model of more than 2 GB, which no protobuf message can hold."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from dovetail.bundle import Bundle
from dovetail_cli.in_process import run_rung
from dovetail_partitioner.partition import partition

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WIDE, NARROW, LAYERS = 16384, 8448, 4


def write_model(folder: Path) -> Path:
    """Layers of one matrix each, wide to narrow and back, with their weights in one file."""
    rng, nodes, weights, offset = np.random.default_rng(7), [], [], 0
    name = "x"
    with (folder / "weights.data").open("wb") as data:
        for layer in range(LAYERS):
            rows, columns = (WIDE, NARROW) if layer % 2 == 0 else (NARROW, WIDE)
            values = rng.standard_normal((rows, columns), np.float32)
            values /= np.float32(np.sqrt(rows))
            data.write(values.data)
            weight = TensorProto(
                name=f"w{layer}",
                data_type=TensorProto.FLOAT,
                dims=[rows, columns],
                data_location=TensorProto.EXTERNAL,
            )
            place = {"location": "weights.data", "offset": offset, "length": values.nbytes}
            for key, value in place.items():
                weight.external_data.add(key=key, value=str(value))
            offset += values.nbytes
            weights.append(weight)
            nodes.append(helper.make_node("MatMul", [name, f"w{layer}"], [f"m{layer}"]))
            name = f"y{layer}"
            nodes.append(helper.make_node("Tanh", [f"m{layer}"], [name]))
    assert offset > 2 << 30
    shape = ["N", WIDE]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "large.onnx"
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    return path


def test_a_model_over_two_gigabytes_is_cut_and_answers_as_the_whole(tmp_path: Path) -> None:
    """Every rung equals the user's own file, and the weights are stored once."""
    path = write_model(tmp_path)
    rows = np.random.default_rng(1).standard_normal((3, WIDE), np.float32)

    made = partition(path, tmp_path / "bundle", calibration={"x": rows})

    bundle = Bundle(made.path)
    assert len(made.config.segments) > 1
    assert sum(bundle.blobs.values()) <= 1.01 * made.config.model.weight_bytes
    [want] = ort.InferenceSession(str(path)).run(None, {"x": rows[:1]})
    for rung in made.config.rungs:
        if rung.codec == "raw":
            [got] = run_rung(bundle, rung.id, {"x": rows[:1]}).outputs.values()
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
