"""Segments run as the whole model does, whatever the cut."""

import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.tiny_bundle import TinyBundle, rows, segments_of, write_tiny_bundle

from dovetail.bundle import Bundle
from dovetail.errors import BundleError, InvalidTensor
from dovetail.runtime import SegmentRuntime, assemble, unit_tensors


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def same_bits(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        assert got[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "cuts", [cuts for size in range(3) for cuts in itertools.combinations((1, 2), size)]
)
def test_however_units_are_joined_the_answer_is_the_wholes(tiny, cuts, batch):
    """Verify bits, optimisation off, for joined and separate units and for a batch."""
    feed = rows(batch)
    runtime = SegmentRuntime(tiny.bundle, cuts, optimize=False, whole=False)

    answer, _ = runtime.run(feed, 0, 3)

    assert len(runtime.units) == len(cuts) + 1
    same_bits(answer, tiny.whole(feed))


@pytest.mark.parametrize("cut", range(4))
def test_head_then_tail_is_the_whole_at_every_cut(tiny, cut):
    """Verify bits across a cut, with only the crossing tensors and early outputs handed on."""
    feed = rows(2, seed=3)
    head = SegmentRuntime(tiny.bundle, (cut,), last=cut, optimize=False) if cut else None
    env, _ = head.run(feed, 0, cut) if head else (feed, 0.0)
    crossing = {name: env[name] for name in tiny.bundle.config.crossing(cut)}
    early = {name: env[name] for name in ("brightness", "scores") if name in env}

    late = {}
    if cut < 3:
        tail = SegmentRuntime(tiny.bundle, (cut,), first=cut, optimize=False)
        late, _ = tail.run(crossing, cut, 3)

    same_bits({**early, **late}, tiny.whole(feed))


@pytest.mark.parametrize("whole", [True, False])
def test_optimised_segments_answer_as_the_whole_within_the_promise(tiny, whole):
    """Verify the 1e-4 of what the user gets, optimisation on, cut or not."""
    feed = rows(4)
    runtime = SegmentRuntime(tiny.bundle, (1, 2), whole=whole)

    answer, _ = runtime.run(feed, 0, 3)

    assert (runtime.whole is not None) == whole
    for name, want in tiny.whole(feed).items():
        assert np.abs(answer[name] - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize(
    ("cuts", "bounds"), [((), {}), ((1, 2), {"first": 1}), ((1, 2), {"last": 2})]
)
def test_the_whole_is_loaded_beside_its_segments_only(tiny, cuts, bounds):
    """Verify that nothing is loaded twice, and nothing that a runtime does not have."""
    assert SegmentRuntime(tiny.bundle, cuts, **bounds).whole is None


def test_a_request_that_is_not_cut_runs_in_one_piece(tiny):
    """Verify by the pace, which is told of every unit that ran."""
    ran = []
    runtime = SegmentRuntime(tiny.bundle, (1, 2), pace=ran.append)

    runtime.run(rows(1), 0, 3)
    assert len(ran) == 1

    live, _ = runtime.run(rows(1), 0, 2)
    runtime.run(live, 2, 3)
    assert len(ran) == 4


def test_a_tensor_is_freed_after_its_last_reader(tiny):
    """Verify what lives after each segment, the tensor that jumps over one included."""
    runtime, env, alive = segments_of(tiny), rows(1), []
    for cut in range(3):
        env, _ = runtime.run(env, cut, cut + 1)
        alive.append(sorted(env))

    assert alive == [["a", "brightness"], ["a", "b", "brightness"], ["brightness", "scores"]]


def test_the_callers_tensors_are_left_alone(tiny):
    """Verify that running does not change the mapping or the arrays it was given."""
    feed = rows(1)
    before = feed["x"].copy()

    segments_of(tiny).run(feed, 0, 3)

    assert list(feed) == ["x"]
    np.testing.assert_array_equal(feed["x"], before)


def test_read_only_and_unaligned_tensors_run(tiny):
    """Verify that views of a message's body can be fed as they are."""
    feed = rows(1)
    body = b"\0" + feed["x"].tobytes()
    view = np.frombuffer(body, np.uint8)[1:].view(np.float32).reshape(feed["x"].shape)

    answer, _ = segments_of(tiny).run({"x": view}, 0, 3)

    same_bits(answer, tiny.whole(feed))


def test_nothing_to_run_hands_everything_on(tiny):
    """Verify the cloud rung's head and the edge rung's tail."""
    feed = rows(1)

    answer, _ = segments_of(tiny).run(feed, 0, 0)

    assert answer == feed


def test_joined_units_declare_only_what_is_read_outside(tiny):
    """Verify that a tensor within a unit is no output of it."""
    config = tiny.bundle.config

    assert unit_tensors(config, 0, 3) == (["x"], ["brightness", "scores"])
    assert unit_tensors(config, 0, 2) == (["x"], ["a", "brightness", "b"])
    assert unit_tensors(config, 1, 3) == (["a"], ["scores"])


@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)])
def test_an_assembled_model_is_one_that_onnx_accepts(tiny, tmp_path, first, last):
    """Verify concatenated fragments with the checker, and that shared weights appear once."""
    blobs = Path(shutil.copytree(tiny.bundle.blob_dir, tmp_path / "blobs"))
    (blobs / "model.onnx").write_bytes(assemble(tiny.bundle, first, last))

    onnx.checker.check_model(str(blobs / "model.onnx"), full_check=True)

    model = onnx.load_model(blobs / "model.onnx", load_external_data=False)
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names))
    assert all(dim.dim_param == "N" for dim in first_dims(model))


def first_dims(model: onnx.ModelProto) -> list[onnx.TensorShapeProto.Dimension]:
    values = (*model.graph.input, *model.graph.output)
    return [value.type.tensor_type.shape.dim[0] for value in values]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory map that Linux shows")
def test_two_sessions_map_the_one_file_of_a_shared_weight(tmp_path):
    """Verify in this process's memory map that both segments use the bundle's pages."""
    large = write_tiny_bundle(tmp_path / "large", side=4, width=256)
    shared = large.bundle.config.groups[1].data.removeprefix("sha256:")

    runtime = segments_of(large)

    assert len(runtime.units) == 3
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if shared in line]
    assert len(maps) == 2


def test_a_range_that_is_not_loaded_is_refused(tiny):
    """Verify the error for a cut within a joined unit and for segments left out."""
    joined = SegmentRuntime(tiny.bundle, (1,), optimize=False)
    tail = SegmentRuntime(tiny.bundle, (2,), first=2, optimize=False)

    with pytest.raises(BundleError, match="not loaded as whole units"):
        joined.run(rows(1), 0, 2)
    with pytest.raises(BundleError, match="not loaded as whole units"):
        tail.run(rows(1), 1, 3)


def test_tensors_that_do_not_fit_are_named(tiny):
    """Verify a missing tensor, a wrong shape and a wrong dtype."""
    runtime = segments_of(tiny)

    with pytest.raises(InvalidTensor, match="'x'"):
        runtime.run({}, 0, 3)
    with pytest.raises(InvalidTensor, match="segments 0 to 1"):
        runtime.run({"x": np.zeros((1, 4, 16, 16), np.float32)}, 0, 3)
    with pytest.raises(InvalidTensor, match="segments 0 to 1"):
        runtime.run({"x": np.zeros((1, 3, 16, 16), np.float64)}, 0, 3)


def test_a_paced_device_waits_after_each_unit_for_what_the_unit_took(tiny):
    """Verify the openly slow device: called once a unit, counted in the segments' seconds."""
    ticks, waited = itertools.count(), []
    paced = SegmentRuntime(tiny.bundle, (1, 2), optimize=False, whole=False, pace=waited.append)

    _, seconds = paced.run(rows(1), 0, 3, clock=lambda: float(next(ticks)))

    assert waited == [1.0, 1.0, 1.0]
    assert seconds == 7.0  # the clock is read at the start, twice a unit, and at the end


def test_a_fixed_batch_is_kept(tmp_path):
    """Verify a bundle whose batch could not stay symbolic."""
    fixed = write_tiny_bundle(tmp_path / "fixed", batch=None)

    same_bits(segments_of(fixed).run(rows(1), 0, 3)[0], fixed.whole(rows(1)))
    with pytest.raises(InvalidTensor):
        segments_of(fixed).run(rows(2), 0, 3)


def test_a_segment_whose_rows_touch_is_marked(tmp_path):
    """Verify that a dynamically quantised segment changes with its neighbours, as it says."""
    dynamic = write_tiny_bundle(tmp_path / "dynamic", dynamic=True)
    feed = rows(8)
    scaled = {"x": feed["x"] * np.linspace(0.05, 1, 8, dtype=np.float32).reshape(8, 1, 1, 1)}
    runtime = segments_of(dynamic)

    together = runtime.run(scaled, 0, 3)[0]["scores"]
    alone = np.concatenate(
        [runtime.run({"x": row[None]}, 0, 3)[0]["scores"] for row in scaled["x"]]
    )

    assert [segment.row_wise for segment in Bundle(dynamic.bundle.path).config.segments] == [
        True,
        True,
        False,
    ]
    assert not np.array_equal(together, alone)
