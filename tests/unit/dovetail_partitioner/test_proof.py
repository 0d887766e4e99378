"""The proof: what it lets through and what it refuses."""

import math
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_bundle import TinyBundle, rows, segments_of, write_tiny_bundle

from dovetail.api import Quality
from dovetail.errors import BundleError, ProofError, ProofVacuous
from dovetail.tensor import TensorSpec
from dovetail_partitioner.compare import Agreement, Effect
from dovetail_partitioner.graph import Graph, Op, TensorInfo
from dovetail_partitioner.progress import silent
from dovetail_partitioner.proof import (
    fault,
    precision_of,
    prove_cuts,
    read_proof,
    refuse_vacuous,
    repeats,
    row_wise,
)
from dovetail_partitioner.rows import Rows, given_rows

SCORES = TensorSpec(name="scores", dtype="float32", shape=("N", 3))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def calibration(tiny: TinyBundle) -> Rows:
    return given_rows(rows(6), tiny.bundle.config.inputs)


def effect(
    *, error: float = 0.0, agree: float | None = None, batch: Agreement | None = None
) -> Effect:
    shares = {} if agree is None else {"y": agree}
    return Effect(alone=Agreement(errors={"y": error}, agree=shares), batch=batch)


def test_segments_equal_the_whole_bit_for_bit(tiny: TinyBundle) -> None:
    """With graph optimisation off no cut changes a bit."""
    exact = prove_cuts(tiny.bundle, tiny.whole, calibration(tiny), "fp32", report=silent)

    assert exact.tolerance == 0.0
    assert exact.worst == 0.0


def test_segments_of_another_model_are_caught(tiny: TinyBundle, tmp_path: Path) -> None:
    """A bundle whose weights differ in the seed alone is not the model's."""
    other = write_tiny_bundle(tmp_path / "other", seed=1)

    with pytest.raises(ProofError, match="graph optimisation off"):
        prove_cuts(other.bundle, tiny.whole, calibration(tiny), "fp32", report=silent)


def test_a_single_changed_bit_is_caught(tiny: TinyBundle) -> None:
    """Not even the last bit of one score may differ in a float32 model; in fp16 it may."""

    def whole(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        answer = tiny.whole(dict(row))
        flat = answer["scores"].reshape(-1)
        flat[0] = np.nextafter(flat[0], np.float32(9))
        return answer

    with pytest.raises(ProofError, match="scores"):
        prove_cuts(tiny.bundle, whole, calibration(tiny), "fp32", report=silent)
    assert prove_cuts(tiny.bundle, whole, calibration(tiny), "fp16", report=silent).worst > 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_segments_whose_rows_change_with_their_neighbours_are_found(
    tmp_path: Path, dynamic: bool
) -> None:
    """Dynamic quantisation in s2 makes s2, and only it, not row-wise."""
    tiny = write_tiny_bundle(tmp_path / "tiny", dynamic=dynamic)

    found = row_wise(
        tiny.bundle.config, segments_of(tiny, optimize=True), calibration(tiny), report=silent
    )

    assert found == (True, True, not dynamic)


def test_a_fixed_batch_has_no_neighbours(tmp_path: Path) -> None:
    """Where batch is 1 every segment counts as row-wise."""
    tiny = write_tiny_bundle(tmp_path / "tiny", dynamic=True, batch=None)

    found = row_wise(tiny.bundle.config, segments_of(tiny), calibration(tiny), report=silent)

    assert found == (True, True, True)


def test_outputs_that_do_not_vary_are_refused() -> None:
    """The same answer to every row, NaN included, proves nothing; one varying output is enough."""
    same = [{"scores": np.array([[0.2, 0.3, 0.5]], np.float32)} for _ in range(4)]
    lost = [{"scores": np.full((1, 3), np.nan, np.float32)} for _ in range(4)]
    varied = [*same[:3], {"scores": np.array([[0.5, 0.3, 0.2]], np.float32)}]

    for answers in (same, lost, same[:1]):
        with pytest.raises(ProofVacuous, match="calibration"):
            refuse_vacuous(answers, [SCORES])
    refuse_vacuous(varied, [SCORES])


@pytest.mark.parametrize(
    ("found", "codec", "precision", "fails"),
    [
        pytest.param(effect(error=9e-5), "raw", "fp32", False, id="raw within rounding"),
        pytest.param(effect(error=2e-4), "raw", "fp32", True, id="raw beyond rounding"),
        pytest.param(effect(error=2e-4), "raw-zstd", "fp32", True, id="packed raw as raw"),
        pytest.param(effect(error=2e-4), "raw", "quantised", False, id="quantised raw"),
        pytest.param(effect(error=0.04), "int8", "fp32", False, id="int8 within quality"),
        pytest.param(effect(error=0.06), "int8", "fp32", True, id="int8 beyond quality"),
        pytest.param(effect(error=0.4, agree=0.99), "int8", "fp32", False, id="top answers stay"),
        pytest.param(effect(error=0.4, agree=0.97), "int8", "fp32", True, id="top answers change"),
        pytest.param(effect(error=math.inf, agree=1.0), "int8", "fp32", True, id="not finite"),
        pytest.param(
            effect(batch=Agreement(errors={"y": 0.5}, agree={})), "int8", "fp32", True, id="batch"
        ),
    ],
)
def test_quality_decides_what_may_be_offered(
    found: Effect, codec: str, precision: str, fails: bool
) -> None:
    """Rungs without loss are held to rounding, lossy ones to `quality`."""
    why = fault(found, codec, precision, Quality(min_top1_agreement=0.98, max_error=0.05))

    assert (why is not None) == fails


def test_a_model_that_draws_at_random_is_known_by_asking_twice() -> None:
    """Equal bits twice is a model that repeats."""
    rng = np.random.default_rng(0)

    assert repeats(lambda row: {"y": row["x"] * 2}, rows(1))
    assert not repeats(lambda _: {"y": rng.normal(size=3)}, rows(1))


@pytest.mark.parametrize(
    ("op_type", "dtype", "want"),
    [
        ("Conv", "float32", "fp32"),
        ("Conv", "float16", "fp16"),
        ("MatMulInteger", "float32", "quantised"),
        ("DynamicQuantizeLinear", "float32", "quantised"),
        ("QLinearConv", "float16", "quantised"),
    ],
)
def test_the_precision_is_read_off_the_graph(op_type: str, dtype: str, want: str) -> None:
    """Quantised ops decide before the dtype does."""
    tensors = {name: TensorInfo(name, dtype, (1, 4), 16) for name in ("x", "y")}
    graph = Graph((Op(0, "n", op_type, ("x",), ("y",)),), tensors, ("x",), ("y",))

    assert precision_of(graph) == want


def test_a_bundle_whose_proof_is_no_proof_is_refused(tiny: TinyBundle) -> None:
    """The proof blob must be a proof of the bundle's own model and rungs."""
    with pytest.raises(BundleError, match="proof"):
        read_proof(tiny.bundle)
