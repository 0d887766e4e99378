"""Models of every form come out as one; models that cannot be used say why."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from dovetail.errors import (
    CalibrationError,
    ExternalDataError,
    ModelError,
    ModelLimitExceeded,
    ModelNotReadable,
    UnboundShape,
    UnsupportedModel,
)
from dovetail_partitioner.emit import emit
from dovetail_partitioner.importer import import_model
from dovetail_partitioner.sandbox import Limits
from dovetail_partitioner.search import search

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: list[str],
    weights: dict[str, np.ndarray] | None = None,
    *,
    dtype: int = FLOAT,
    domain: str = "",
) -> onnx.ModelProto:
    """A model of opset 17 whose outputs declare no shape."""
    graph = helper.make_graph(
        nodes,
        "tested",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def relu(shape: list[int | str]) -> bytes:
    """y = relu(x)."""
    return model([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, ["y"]).SerializeToString()


def add_weight(count: int) -> onnx.ModelProto:
    """y = x + w with `count` weights."""
    weights = {"w": np.arange(count, dtype=np.float32)}
    return model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [1, count]}, ["y"], weights)


def fill(count: int) -> bytes:
    """A kilobyte that asks for `count` float32."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["fill"]),
        helper.make_node("Add", ["x", "fill"], ["y"]),
    ]
    return model(nodes, {"x": [1]}, ["y"], {"shape": np.array([count])}).SerializeToString()


def endless() -> bytes:
    """A loop whose condition stays true."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", FLOAT, [1]),
        ],
    )
    loop = helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)
    return model([loop], {"x": [1]}, ["y"], {"true": np.array(True)}).SerializeToString()


def nodes_of(*nodes: onnx.NodeProto, domain: str = "") -> bytes:
    """A model of these nodes from x to y."""
    return model(list(nodes), {"x": [1, 4]}, ["y"], domain=domain).SerializeToString()


BAD = {
    "text": (b"this is no model " * 50, ModelNotReadable, "not an ONNX model"),
    "empty": (b"", ModelNotReadable, "no graph"),
    "truncated": (
        add_weight(300).SerializeToString()[:-200],
        ModelNotReadable,
        "truncated",
    ),
    "custom op": (
        nodes_of(helper.make_node("Secret", ["x"], ["y"], domain="acme"), domain="acme"),
        UnsupportedModel,
        "'Secret' of domain 'acme'",
    ),
    "unknown op": (
        nodes_of(helper.make_node("Secret", ["x"], ["y"])),
        UnsupportedModel,
        "Secret",
    ),
    "unbound": (relu(["n", "length"]), UnboundShape, "--dim length=SIZE"),
    "unnamed": (relu(["n", "?"]), UnboundShape, "--dim x:1=SIZE"),
    "cycle": (
        nodes_of(
            helper.make_node("Add", ["x", "b"], ["y"], name="first"),
            helper.make_node("Relu", ["y"], ["b"], name="second"),
        ),
        ModelNotReadable,
        "cycle through node 'first'",
    ),
    "dangling": (
        nodes_of(helper.make_node("Add", ["x", "nowhere"], ["y"])),
        ModelNotReadable,
        "'nowhere', which nothing makes",
    ),
    "does not run": (
        model(
            [helper.make_node("Reshape", ["x", "shape"], ["y"])],
            {"x": [1, 4]},
            ["y"],
            {"shape": np.array([7])},
        ).SerializeToString(),
        ModelError,
        "example inputs",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_is_refused_with_what_is_wrong(name: str, tmp_path: Path) -> None:
    """Verify the typed error and that its message names the fault."""
    data, kind, words = BAD[name]

    with pytest.raises(kind) as caught:
        import_model(data, tmp_path)

    assert words in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("count", [1 << 40, 3 << 30])
def test_a_kilobyte_that_asks_for_terabytes_is_refused(count: int, tmp_path: Path) -> None:
    """Verify that memory limits hold, whether or not the machine would have had the memory."""
    with pytest.raises(ModelLimitExceeded, match="memory"):
        import_model(fill(count), tmp_path)


def test_a_model_that_never_ends_is_stopped(tmp_path: Path) -> None:
    """Verify the limit on time."""
    with pytest.raises(ModelLimitExceeded, match=r"did not finish|processor time"):
        import_model(endless(), tmp_path, limits=Limits(cpu=20, wall=6.0))


def saved_with_external_data(folder: Path) -> Path:
    """A model whose weight lies in `weights.data` beside it."""
    path = folder / "model.onnx"
    onnx.save_model(
        add_weight(1000),
        path,
        save_as_external_data=True,
        location="weights.data",
        size_threshold=0,
    )
    return path


def test_external_data_is_read_and_no_longer_needed(tmp_path: Path) -> None:
    """Verify that the normalised model runs after the user's files are gone."""
    (tmp_path / "scratch").mkdir()
    path = saved_with_external_data(tmp_path)

    imported = import_model(path, tmp_path / "scratch")
    (tmp_path / "weights.data").unlink()

    session = ort.InferenceSession(str(imported.model))
    [answer] = session.run(None, {"x": np.ones((1, 1000), np.float32)})
    assert np.array_equal(answer, np.arange(1000, dtype=np.float32)[None] + 1)
    assert imported.weight_bytes == 4000


def _missing(path: Path) -> None:
    path.unlink()


def _short(path: Path) -> None:
    path.write_bytes(b"short")


def _linked_outside(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_missing, "is missing"), (_short, "needs 4000 bytes"), (_linked_outside, "outside")],
)
def test_external_data_that_cannot_be_used_is_refused(
    spoil: object, words: str, tmp_path: Path
) -> None:
    """Verify missing, short and linked files."""
    (tmp_path / "scratch").mkdir()
    path = saved_with_external_data(tmp_path)
    assert callable(spoil)
    spoil(tmp_path / "weights.data")

    with pytest.raises(ExternalDataError, match=words):
        import_model(path, tmp_path / "scratch")


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    """Verify that a location with `..` is never opened."""
    (tmp_path / "scratch").mkdir()
    path = saved_with_external_data(tmp_path)
    spoilt = onnx.load_model(path, load_external_data=False)
    spoilt.graph.initializer[0].external_data[0].value = "../../etc/hostname"
    path.write_bytes(spoilt.SerializeToString())

    with pytest.raises(ExternalDataError, match="outside the model's folder"):
        import_model(path, tmp_path / "scratch")


def test_weights_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    """Verify IR 3, where every weight had to be an input."""
    old = add_weight(1000)
    old.ir_version = 3
    old.opset_import[0].version = 8
    old.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [1000]))

    imported = import_model(old.SerializeToString(), tmp_path)

    assert [spec.name for spec in imported.inputs] == ["x"]
    assert imported.proto.opset_import[0].version == 8


def test_batch_stays_symbolic_where_rows_can_be_stacked(tmp_path: Path) -> None:
    """Verify a common leading dimension."""
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    data = model(nodes, {"x": ["n", 4], "z": ["n", 4]}, ["y"]).SerializeToString()

    imported = import_model(data, tmp_path)

    assert imported.batch == "n"
    assert imported.outputs[0].shape == ("n", 4)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            model(
                [helper.make_node("Mul", ["x", "gain"], ["y"])],
                {"x": ["n", 4], "gain": []},
                ["y"],
            ).SerializeToString(),
            "'gain' is not the batch",
        ),
        (
            model(
                [helper.make_node("Reshape", ["x", "shape"], ["y"])],
                {"x": ["n", 4]},
                ["y"],
                {"shape": np.array([1, 2, 2])},
            ).SerializeToString(),
            "bound to 1",
        ),
        (
            model(
                [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0])], {"x": ["n", 4]}, ["y"]
            ).SerializeToString(),
            "axis 0 of output 'y'",
        ),
    ],
)
def test_batch_is_bound_and_said_so_where_rows_cannot_be_stacked(
    data: bytes, words: str, tmp_path: Path
) -> None:
    """Verify a scalar input, an inner shape that fixes batch, an output without batch."""
    imported = import_model(data, tmp_path)

    assert imported.batch is None
    assert words in imported.notes[0]
    assert imported.inputs[0].shape[0] == 1


def test_dimensions_are_bound_by_name_by_axis_and_by_example(tmp_path: Path) -> None:
    """Verify the three ways, and that a name nobody has is refused."""
    for index, (shape, arguments) in enumerate(
        [
            (["n", "length"], {"bind": {"length": 6}}),
            (["n", None], {"bind": {"x:1": 6}}),
            (["n", "length"], {"sample": {"x": np.ones((1, 6), np.float32)}}),
        ]
    ):
        folder = tmp_path / str(index)
        folder.mkdir()
        assert import_model(relu(shape), folder, **arguments).inputs[0].shape == ("n", 6)

    with pytest.raises(UnboundShape, match=r"no dimension is called 'size'.*\['length', 'n'\]"):
        import_model(relu(["n", "length"]), tmp_path, bind={"size": 6})


def test_an_example_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Verify dtype and shape of the example row."""
    with pytest.raises(CalibrationError, match="float64"):
        import_model(relu(["n", 4]), tmp_path, sample={"x": np.ones((1, 4))})


@pytest.mark.parametrize(
    "nodes",
    [
        [
            helper.make_node("RandomNormalLike", ["x"], ["noise"], seed=1.0),
            helper.make_node("Add", ["x", "noise"], ["y"]),
        ],
        [
            helper.make_node("SequenceConstruct", ["x", "x"], ["both"]),
            helper.make_node("ConcatFromSequence", ["both"], ["y"], axis=1),
        ],
    ],
)
def test_what_cannot_be_cut_is_one_segment_and_says_why(
    nodes: list[onnx.NodeProto], tmp_path: Path
) -> None:
    """Verify random ops and sequences."""
    imported = import_model(nodes_of(*nodes), tmp_path)
    seconds = [1.0] * len(imported.graph.ops)
    chain = search(
        imported.graph, seconds, seconds, lambda t: t.nbytes / 4, cuttable=imported.cuttable
    )

    assert not imported.cuttable
    assert any(note.startswith("edge and cloud only") for note in imported.notes)
    assert len(emit(imported, chain.cuts).segments) == 1


def test_a_size_that_depends_on_data_never_crosses(tmp_path: Path) -> None:
    """Verify that what NonZero makes is no crossing tensor, though a run showed its size."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["real"], to=FLOAT),
        helper.make_node("ReduceSum", ["real"], ["total"], keepdims=0),
        helper.make_node("Add", ["x", "total"], ["y"]),
    ]

    tensors = import_model(nodes_of(*nodes), tmp_path).graph.tensors

    crossable = {name: info.crossable for name, info in tensors.items()}
    assert crossable == {"x": True, "places": False, "real": False, "total": True, "y": True}


def test_large_weights_inside_a_body_become_shared_weights(tmp_path: Path) -> None:
    """Verify that both branches of an If may carry a weight of the same name."""
    weight = np.ones((30, 30), np.float32)

    def body(scale: float) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["inner"])],
            "body",
            [],
            [helper.make_tensor_value_info("inner", FLOAT, None)],
            [numpy_helper.from_array(weight * scale, "w")],
        )

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["condition"]),
        helper.make_node("If", ["condition"], ["y"], then_branch=body(1), else_branch=body(2)),
    ]
    made = model(nodes, {"x": [1, 30]}, ["y"], {"limit": np.array(0, np.float32)})

    imported = import_model(made.SerializeToString(), tmp_path)

    assert imported.weight_bytes == 2 * weight.nbytes
    assert imported.graph.ops[-1].reads == ("condition", "x")
    session = ort.InferenceSession(str(imported.model))
    for sign, factor in ((1.0, 1), (-1.0, 2)):
        feed = np.full((1, 30), sign, np.float32)
        [want] = ort.InferenceSession(made.SerializeToString()).run(None, {"x": feed})
        [got] = session.run(None, {"x": feed})
        assert got.tobytes() == want.tobytes()
        assert want[0, 0] == sign * factor * 30


def test_float16_and_local_functions_are_read(tmp_path: Path) -> None:
    """Verify fp16 weights, and a function that is inlined."""
    function = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    made = model(
        [
            helper.make_node("Twice", ["x"], ["d"], domain="local"),
            helper.make_node("MatMul", ["d", "w"], ["y"]),
        ],
        {"x": ["n", 32]},
        ["y"],
        {"w": np.eye(32, dtype=np.float16)},
        dtype=TensorProto.FLOAT16,
        domain="local",
    )
    made.functions.append(function)

    imported = import_model(made.SerializeToString(), tmp_path)

    assert [op.op_type for op in imported.graph.ops] == ["Add", "MatMul"]
    assert imported.outputs[0].dtype == "float16"
    assert imported.weight_bytes == 32 * 32 * 2
