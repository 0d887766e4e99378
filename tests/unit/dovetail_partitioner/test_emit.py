"""Segments equal the whole, bit for bit, on random models and random chains of cuts."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from tests.unit.dovetail_partitioner.onnx_dags import WIDTH, models

from dovetail.bundle import BundleWriter
from dovetail.runtime import SegmentRuntime, session_options
from dovetail_partitioner import importer
from dovetail_partitioner.emit import Emitted, emit
from dovetail_partitioner.importer import Imported, import_model
from dovetail_partitioner.partition import describe


def import_here(model: bytes, scratch: Path) -> Imported:
    """Import without the sandbox's child, whose start would be most of a property test."""
    path = scratch / "source.onnx"
    path.write_bytes(model)
    request = importer._Request(path, None, scratch, {}, None, None)
    return importer._imported(importer._read(request), scratch, ())


def downset(imported: Imported, chosen: set[int]) -> frozenset[int]:
    """The ops of `chosen` and everything they read from."""
    closed: set[int] = set()
    todo = list(chosen)
    while todo:
        index = todo.pop()
        if index not in closed:
            closed.add(index)
            todo += imported.graph.predecessors(index)
    return frozenset(closed)


def whole(imported: Imported, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Answers of the uncut normalised model."""
    names = [spec.name for spec in imported.outputs]
    session = ort.InferenceSession(str(imported.model), session_options(threads=1, optimize=False))
    return dict(zip(names, session.run(names, feed), strict=True))


def assert_every_cut_equals(
    imported: Imported, emitted: Emitted, feed: dict[str, np.ndarray], folder: Path
) -> None:
    """Run head, hand over only what crosses, run tail; for each cut and for all segments joined."""
    want = whole(imported, feed)
    with BundleWriter(folder / "bundle") as writer:
        config = describe(imported, emitted, writer, "random", None)
        bundle = writer.draft(config)
        count = len(config.segments)
        parted = SegmentRuntime(bundle, range(count), optimize=False)
        joined = SegmentRuntime(bundle, [], optimize=False)
        got = joined.run(feed, 0, count)[0]
        for name, value in want.items():
            assert got[name].tobytes() == value.tobytes()
        for cut in range(count + 1):
            head = parted.run(feed, 0, cut)[0]
            sent = {name: head[name] for name in config.crossing(cut)}
            tail = parted.run(sent, cut, count)[0]
            remote = {spec.name for spec in config.remote_outputs(cut)}
            for name, value in want.items():
                here = tail if name in remote else head
                assert here[name].tobytes() == value.tobytes(), (cut, name)


@settings(max_examples=60)
@given(models(), st.data())
def test_head_then_tail_equals_the_whole_bit_for_bit(model: bytes, data: st.DataObject) -> None:
    """Verify every cut of a random chain, alone and in a batch, with tensors that jump segments."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        imported = import_here(model, scratch)
        every = range(len(imported.graph.ops))
        picks = data.draw(st.lists(st.sampled_from(every), max_size=4))
        chain: list[frozenset[int]] = []
        for pick in picks:
            cut = downset(imported, {pick, *(chain[-1] if chain else ())})
            if cut not in chain and len(cut) < len(every):
                chain.append(cut)
        rows = 3 if imported.batch else 1
        rng = np.random.default_rng(1)
        feed = {
            spec.name: rng.standard_normal((rows, WIDTH)).astype(np.float32)
            for spec in imported.inputs
        }

        emitted = emit(imported, chain)

        assert_every_cut_equals(imported, emitted, feed, scratch)


def shared_weight_model() -> bytes:
    """Two MatMuls with one weight and a third with an equal one under another name."""
    weight = np.arange(WIDTH * WIDTH, dtype=np.float32).reshape(WIDTH, WIDTH) / 100
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("MatMul", ["a", "w"], ["b"]),
            helper.make_node("MatMul", ["b", "v"], ["y"]),
        ],
        "shared",
        [helper.make_tensor_value_info("x", 1, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", 1, ["n", WIDTH])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight.copy(), "v")],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


@pytest.fixture
def shared(tmp_path: Path) -> Imported:
    """The model whose weight is used by every segment."""
    return import_model(shared_weight_model(), tmp_path)


CUTS = (frozenset({0}), frozenset({0, 1}))


def test_a_weight_that_segments_share_is_stored_once(shared: Imported) -> None:
    """Verify one group, one blob, as many bytes as one weight has."""
    emitted = emit(shared, CUTS)

    stored = [b"".join(group.data()) for group in emitted.groups if group.data]
    assert [group.segments for group in emitted.groups] == [(0, 1, 2)]
    assert [len(blob) for blob in stored] == [WIDTH * WIDTH * 4]
    assert shared.weight_bytes == WIDTH * WIDTH * 4


def test_the_same_model_and_cuts_give_the_same_bytes(shared: Imported, tmp_path: Path) -> None:
    """Verify determinism across imports."""
    (tmp_path / "again").mkdir()
    again = import_model(shared_weight_model(), tmp_path / "again")
    first, second = emit(shared, CUTS), emit(again, CUTS)

    assert (first.header, first.segments, first.tensors) == (
        second.header,
        second.segments,
        second.tensors,
    )
    assert [group.initializers for group in first.groups] == [
        group.initializers for group in second.groups
    ]


def test_a_late_shape_read_does_not_make_the_tail_need_the_input(tmp_path: Path) -> None:
    """Verify that Shape(x) near the output is read off a crossing tensor, and batch stays free."""
    weight = np.eye(WIDTH, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Relu", ["a"], ["h"]),
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Gather", ["shape", "zero"], ["rows"]),
            helper.make_node("Concat", ["rows", "rest"], ["target"], axis=0),
            helper.make_node("Reshape", ["h", "target"], ["y"]),
        ],
        "late",
        [helper.make_tensor_value_info("x", 1, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", 1, None)],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.array([0]), "zero"),
            numpy_helper.from_array(np.array([4, 5]), "rest"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    imported = import_model(model.SerializeToString(), tmp_path)
    emitted = emit(imported, (frozenset({0, 1}),))

    assert imported.batch == "n"
    assert imported.outputs[0].shape == ("n", 4, 5)
    assert emitted.segments[1].reads == ("h",)
    feed = {"x": np.random.default_rng(0).standard_normal((7, WIDTH)).astype(np.float32)}
    assert_every_cut_equals(imported, emitted, feed, tmp_path)


def test_a_generator_is_kept_and_repeated_not_blown_up(tmp_path: Path) -> None:
    """Verify that a generated weight costs no bytes in any segment that uses it."""
    shape = numpy_helper.from_array(np.array([512, 512]), "shape")
    value = helper.make_tensor("v", 1, [1], [0.01])
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["w"], value=value),
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("MatMul", ["a", "w"], ["y"]),
        ],
        "generated",
        [helper.make_tensor_value_info("x", 1, [1, 512])],
        [helper.make_tensor_value_info("y", 1, None)],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    imported = import_model(model.SerializeToString(), tmp_path)
    emitted = emit(imported, (frozenset({0}),))

    kinds = [
        [node.op_type for node in onnx.GraphProto.FromString(segment.nodes).node]
        for segment in emitted.segments
    ]
    assert kinds == [["ConstantOfShape", "MatMul"], ["ConstantOfShape", "MatMul"]]
    assert imported.weight_bytes == 0
    assert [op.weight_bytes for op in imported.graph.ops] == [512 * 512 * 4] * 2
