"""Trained networks with real inputs: control flow, quantised, several outputs, recurrent."""

from pathlib import Path

import numpy as np
import pytest
from tests.proving import models

from dovetail_partitioner.partition import Options, partition

pytestmark = pytest.mark.models

ROWS = 8
NAMES = (
    "page-orientation",
    "efficientnet-lite0",
    "ppocr-cls",
    "silero-vad",
    "silero-vad-sequence",
    "magika",
    "minilm-int8",
    "paraphrase-minilm",
    "page-orientation-qdq",
    "paraphrase-minilm-dynamic",
    "ppocr-cls-half",
)
TRAITS = {"if", "quantised", "half", "outputs", "recurrent"}
PRECISION = {
    "page-orientation-qdq": "quantised",
    "paraphrase-minilm-dynamic": "quantised",
    "ppocr-cls-half": "fp16",
}


def test_the_hard_kinds_are_among_them() -> None:
    """An If, quantised, float16, several-output and recurrent networks are proved."""
    assert set().union(*(models.get(name).traits for name in NAMES)) >= TRAITS


@pytest.mark.parametrize("name", NAMES)
def test_every_rung_passes_the_proof_on_real_inputs(name: str, tmp_path: Path) -> None:
    """Cuts are exact, and each rung that is offered is within what it is held to."""
    model = models.get(name)
    rows = model.rows()[:ROWS]
    made = partition(
        model.path(),
        tmp_path / "bundle",
        calibration={key: np.stack([row[key] for row in rows]) for key in rows[0]},
        options=Options(bind=model.bind, image=model.image),
    )

    quality, precision = made.proof.quality, made.proof.precision
    assert precision == PRECISION.get(name, "fp32")
    assert made.proof.exact is not None
    assert made.proof.exact.worst <= (1e-3 if precision == "fp16" else 0.0)
    for rung, effect in made.proof.rungs.items():
        codec = made.config.rung(rung).codec
        if codec in ("raw", "raw-zstd") and precision == "fp32":
            assert effect.worst <= 1e-4
        elif effect.top1 is not None:
            assert effect.top1 >= quality.min_top1_agreement


def test_a_dynamically_quantised_segment_is_served_one_row_at_a_time(tmp_path: Path) -> None:
    """A scale taken over a whole batch makes rows depend on neighbours; the proof finds where."""
    model = models.get("paraphrase-minilm-dynamic")
    rows = model.rows()[:ROWS]
    made = partition(
        model.path(),
        tmp_path / "bundle",
        calibration={key: np.concatenate([row[key] for row in rows]) for key in rows[0]},
        options=Options(bind=model.bind),
    )

    assert made.config.batch is not None
    assert not all(made.proof.row_wise)
    assert [segment.row_wise for segment in made.config.segments] == list(made.proof.row_wise)
    assert all(effect.batch is None for effect in made.proof.rungs.values())
