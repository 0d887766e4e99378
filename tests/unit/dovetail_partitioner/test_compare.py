"""How far a rung's answers are from the whole model's."""

import pytest
from tests.tiny_bundle import TinyBundle, rows, segments_of, write_tiny_bundle

from dovetail.tensor import TensorSpec
from dovetail_partitioner.calibrate import Walks, fit_tables
from dovetail_partitioner.compare import Effect, Trial, effects, is_scores
from dovetail_partitioner.progress import silent
from dovetail_partitioner.rows import given_rows
from dovetail_partitioner.whole import Answers, joined

RUNGS = {
    "cloud": (0, "raw"),
    "cut1": (1, "raw"),
    "cut1-raw-zstd": (1, "raw-zstd"),
    "cut1-int8": (1, "int8"),
    "cut1-int4": (1, "int4"),
    "edge": (3, "raw"),
}


def tried(tiny: TinyBundle, answers: list[Answers] | None = None) -> dict[str, Effect]:
    config, runtime = tiny.bundle.config, segments_of(tiny, optimize=True)
    calibration = given_rows(rows(12), config.inputs)
    walks = Walks(config, runtime, calibration)
    tables = fit_tables(config, walks, report=silent)
    config = config.model_copy(update={"affine": tables})
    wanted = answers or [tiny.whole(dict(row)) for row in calibration]
    return effects(Trial(config, runtime, walks, wanted), RUNGS, report=silent)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def test_rungs_without_loss_differ_by_rounding_only(tiny: TinyBundle) -> None:
    """raw, packed or not, and the edge rung stay within 1e-4, alone and in a batch."""
    found = tried(tiny)

    for rung in ("cloud", "cut1", "cut1-raw-zstd", "edge"):
        assert found[rung].worst < 1e-4
        assert found[rung].top1 == 1.0
        assert found[rung].batch is not None


def test_fewer_bits_cost_more_of_the_answer(tiny: TinyBundle) -> None:
    """int4 is further off than int8, which is further off than raw."""
    found = tried(tiny)

    assert found["cut1"].worst < found["cut1-int8"].worst < found["cut1-int4"].worst


def test_only_what_crosses_is_changed(tiny: TinyBundle) -> None:
    """An output made in the head is exact whatever the codec."""
    found = tried(tiny)

    assert found["cut1-int4"].alone.errors["brightness"] < 1e-6
    assert found["cut1-int4"].alone.errors["scores"] > 1e-4


@pytest.mark.parametrize(
    ("dtype", "shape", "want"),
    [
        pytest.param("float32", ("N", 10), True, id="scores"),
        pytest.param("float32", ("N", 1000, 1, 1), True, id="scores of a convolution"),
        pytest.param("float32", (1, 10), True, id="scores of a fixed batch"),
        pytest.param("float32", ("N", 1), False, id="one number"),
        pytest.param("float32", ("N",), False, id="one number a row"),
        pytest.param("float32", ("N", 20, 10), False, id="a sequence"),
        pytest.param("float32", ("found", 6), False, id="as many boxes as the data has"),
        pytest.param("int64", ("N", 10), False, id="indices"),
    ],
)
def test_a_score_vector_is_one_axis_of_floats(
    dtype: str, shape: tuple[int | str, ...], want: bool
) -> None:
    """Only there does the largest entry mean something."""
    spec = TensorSpec(name="y", dtype=dtype, shape=shape)

    assert is_scores(spec, "N") == want


def test_agreement_counts_rows_whose_top_answer_is_another(tiny: TinyBundle) -> None:
    """With three of twelve wanted answers turned round, 9 of 12 agree."""
    calibration = given_rows(rows(12), tiny.bundle.config.inputs)
    answers = [tiny.whole(dict(row)) for row in calibration]
    for answer in answers[:3]:
        answer["scores"] = -answer["scores"]

    found = tried(tiny, answers)

    assert found["cut1"].top1 == pytest.approx(0.75)


def test_a_model_served_one_by_one_is_not_compared_in_batches(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Where a row's answer depends on its neighbours a batch has no right answer."""
    dynamic = write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", dynamic=True)

    assert tried(dynamic)["cut1"].batch is None


def test_all_segments_joined_answer_as_the_uncut_model(tiny: TinyBundle) -> None:
    """The stand-in for a file that is gone gives the file's bits."""
    whole = joined(tiny.bundle, optimize=False)
    feed = rows(2)

    want, got = tiny.whole(feed), whole(feed)

    assert {name: got[name].tobytes() for name in got} == {
        name: want[name].tobytes() for name in want
    }
