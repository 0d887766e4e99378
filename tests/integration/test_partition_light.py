"""The nine networks of the onnx wheel, with seeded random weights and as shipped."""

from pathlib import Path

import numpy as np
import pytest
from tests.proving import light

from dovetail.bundle import Bundle
from dovetail.errors import ProofVacuous
from dovetail_partitioner.partition import Options, partition

pytestmark = pytest.mark.models

# Half a gigabyte of weights each: minutes on two cores.
HEAVY = ("vgg19", "zfnet512", "bvlc_alexnet", "densenet121", "inception_v2")
ROWS = 4
EVERY = [
    pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in light.NAMES
]


def calibration(name: str) -> dict[str, np.ndarray]:
    rows = light.rows(name)[:ROWS]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


@pytest.mark.parametrize("name", EVERY)
def test_every_rung_passes_the_proof_and_weights_are_stored_once(name: str, tmp_path: Path) -> None:
    """Cuts are exact bit for bit, lossless rungs to rounding, weight blobs 1.01x at most."""
    made = partition(light.seeded(name), tmp_path / "bundle", calibration=calibration(name))

    assert made.proof.exact is not None
    assert made.proof.exact.worst == 0.0
    assert {"cloud", "edge"} < set(made.ladder.ids())
    for rung in made.config.rungs:
        lossless = rung.codec in ("raw", "raw-zstd")
        assert rung.max_error <= 1e-4 if lossless else (rung.top1 or 0.0) >= 0.98
    sizes = Bundle(made.path).blobs
    weights = sum(sizes[group.data] for group in made.config.groups if group.data)
    assert weights <= 1.01 * made.config.model.weight_bytes


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_a_network_that_answers_one_constant_is_refused(name: str, tmp_path: Path) -> None:
    """As shipped the networks cannot be proved, so no bundle is made."""
    with pytest.raises(ProofVacuous):
        partition(light.shipped(name), tmp_path / "bundle", options=Options())
    assert not list(tmp_path.iterdir())
