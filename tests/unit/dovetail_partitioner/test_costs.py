"""The cost profile: every op has a time, and fused kernels have an owner."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.tiny_bundle import TinyBundle, rows, segments_of, write_tiny_bundle

from dovetail.errors import CostsError
from dovetail.ladder import CostProfile
from dovetail_partitioner.calibrate import walk
from dovetail_partitioner.costs import (
    check_costs,
    check_cuts,
    cuts_of,
    measure_codecs,
    measure_ops,
    measure_segments,
)
from dovetail_partitioner.importer import Imported, import_model
from dovetail_partitioner.progress import silent
from dovetail_partitioner.rows import given_rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """HardSwish (which ONNX Runtime inlines into nameless nodes), a large MatMul, a Tanh."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(1024, 1024)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("HardSwish", ["x"], ["a"], name="swish"),
            helper.make_node("MatMul", ["a", "w"], ["b"], name="heavy"),
            helper.make_node("Tanh", ["b"], ["y"], name="light"),
        ],
        "lopsided",
        [helper.make_tensor_value_info("x", 1, [16, 1024])],
        [helper.make_tensor_value_info("y", 1, [16, 1024])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return import_model(data, tmp_path_factory.mktemp("scratch"))


def measured(imported: Imported) -> tuple[dict[str, float], float]:
    row = {"x": np.random.default_rng(1).normal(size=(16, 1024)).astype(np.float32)}
    return measure_ops(imported.model, imported.graph, row, threads=1, report=silent)


def test_the_times_of_all_ops_add_up_to_the_whole(lopsided: Imported) -> None:
    """Every op has an entry, and together they take what the uncut model takes."""
    ops, whole = measured(lopsided)

    assert ops.keys() == {op.name for op in lopsided.graph.ops}
    assert sum(ops.values()) == pytest.approx(whole, rel=1e-3)
    assert min(ops.values()) >= 0.0


def test_kernels_without_a_name_are_charged_to_the_op_they_came_from(lopsided: Imported) -> None:
    """Inlined HardSwish has its time, and the MatMul of 17 million products the most."""
    ops, _ = measured(lopsided)

    by_type = {op.op_type: ops[op.name] for op in lopsided.graph.ops}
    assert by_type["HardSwish"] > 0.0
    assert by_type["Tanh"] > 0.0
    assert max(by_type, key=lambda kind: by_type[kind]) == "MatMul"


def test_a_fused_kernel_is_charged_within_its_group(tmp_path: Path) -> None:
    """Conv and Relu run as one kernel; the pair has a time and the graph's sum is kept."""
    tiny = write_tiny_bundle(tmp_path / "tiny")
    imported = import_model(tiny.model, _made(tmp_path / "scratch"))
    row = rows(1)

    ops, whole = measure_ops(imported.model, imported.graph, row, threads=1, report=silent)

    convs = [op for op in imported.graph.ops if op.op_type == "Conv"]
    assert len(convs) == 3
    for conv in convs[:2]:
        relu = imported.graph.readers[conv.writes[0]][0]
        assert ops[conv.name] + ops[imported.graph.ops[relu].name] > 0.0
    assert sum(ops.values()) == pytest.approx(whole, rel=1e-3)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_every_segment_and_every_codec_has_a_time(tiny: TinyBundle) -> None:
    """One positive time a segment, and encode and decode for each rung asked for."""
    config = tiny.bundle.config
    [row] = given_rows(rows(1), config.inputs)
    envs = dict(walk(config, segments_of(tiny), row))
    rungs = {rung.id: (rung.cut, rung.codec) for rung in config.rungs}

    segments = measure_segments(tiny.bundle, row, threads=1, report=silent)
    codecs = measure_codecs(config, envs, rungs, report=silent)

    assert len(segments) == len(config.segments)
    assert all(seconds > 0 for seconds in segments)
    assert codecs.keys() == rungs.keys()
    assert all(cost.encode > 0 for rung, cost in codecs.items() if rung != "edge")


def profile(imported: Imported) -> CostProfile:
    return CostProfile(
        model=imported.digest,
        host="here",
        threads=1,
        ops={op.name: 1e-3 for op in imported.graph.ops},
        whole=1e-3,
    )


def test_a_profile_of_another_model_is_refused(lopsided: Imported) -> None:
    """The digest must be the model's, and every op must have a time."""
    costs = profile(lopsided)
    check_costs(costs, lopsided.digest, lopsided.graph)

    with pytest.raises(CostsError, match="measured on model"):
        check_costs(costs, "sha256:other", lopsided.graph)
    with pytest.raises(CostsError, match="no time for 3 ops"):
        check_costs(costs.model_copy(update={"ops": {}}), lopsided.digest, lopsided.graph)


def test_times_of_other_segments_are_refused(tiny: TinyBundle) -> None:
    """The profile's cuts must be the bundle's, and cover the rungs."""
    config = tiny.bundle.config
    fits = tiny.costs.model_copy(update={"cuts": cuts_of(config)})
    check_cuts(fits, config, [])

    with pytest.raises(CostsError, match="other segments"):
        check_cuts(fits.model_copy(update={"cuts": (("b",),)}), config, [])
    with pytest.raises(CostsError, match="other options"):
        check_cuts(fits, config, ["cut1-int4"])


def test_the_model_is_left_as_it_was(lopsided: Imported) -> None:
    """Measuring writes nothing into the model or its folder."""
    before = {p.name: p.stat().st_mtime_ns for p in lopsided.scratch.iterdir()}

    measured(lopsided)

    assert {p.name: p.stat().st_mtime_ns for p in lopsided.scratch.iterdir()} == before
    onnx.load(lopsided.model, load_external_data=False)
