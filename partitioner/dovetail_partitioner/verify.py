"""Checks a finished bundle again: every digest, and every rung against the whole model.

The model's file may be gone, so by default the whole is all segments joined into one session, which
shares no boundary with any rung. Calibration rows are not in a bundle (they may be private); rows
that were made up are made up again from the model's digest. Where a bundle was proved on given
rows and none are given now, lossy rungs are run but not judged: their tables were fitted to data
that is not here.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dovetail.bundle import Bundle
from dovetail.errors import BundleError
from dovetail.runtime import SegmentRuntime
from dovetail_partitioner.calibrate import Walks
from dovetail_partitioner.compare import Effect, Trial, effects
from dovetail_partitioner.importer import import_model
from dovetail_partitioner.progress import Report, silent
from dovetail_partitioner.proof import Proof, fault, prove_cuts, read_proof, refuse_vacuous
from dovetail_partitioner.rows import Calibration, Rows, first_row, generated_rows, given_rows
from dovetail_partitioner.whole import Model, joined, load_whole


@dataclass(frozen=True)
class RungCheck:
    """One rung, checked.

    Attributes:
        id: the rung.
        holds: whether its answers are within what it is held to; None where it was not judged.
        max_error: worst max|a-b| / max|a| over float outputs.
        top1: least share of rows whose top answer is the whole model's; None where none is a score.
        why: what does not hold.
    """

    id: str
    holds: bool | None
    max_error: float
    top1: float | None
    why: str | None


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        digest: the bundle's version.
        blobs: how many blobs have the digests they are named by.
        rows: how many rows every rung was run on.
        generated: whether they were made up.
        rungs: by ladder order.
    """

    digest: str
    blobs: int
    rows: int
    generated: bool
    rungs: tuple[RungCheck, ...]


def verify(
    path: Path,
    *,
    model: Path | None = None,
    calibration: Calibration | None = None,
    bind: Mapping[str, int] | None = None,
    report: Report = silent,
) -> Verification:
    """Check a bundle.

    Args:
        path: the bundle.
        model: the ONNX file it was made from, to compare with; all segments joined where None.
        calibration: rows to run; made up where None.
        bind: dynamic dimensions, as they were bound when the bundle was made.
        report: told of progress.

    Raises:
        BundleCorrupt: a blob does not have the digest it is named by.
        BundleError: not a bundle, or not made from `model`.
        ProofError: with graph optimisation off the segments are not the whole model.
        ProofVacuous: the answers do not vary over the rows.
        CalibrationError: the rows do not fit the model.
    """
    bundle = Bundle(path)
    report("checking digests", 0, 1)
    bundle.verify()
    proof = read_proof(bundle)
    with tempfile.TemporaryDirectory(prefix="dovetail-") as scratch:
        whole, plain = _wholes(bundle, model, bind, calibration, Path(scratch))
        rows = _rows(bundle, calibration, whole)
        answers = [whole(row) for row in rows]
        if proof.exact is not None:
            refuse_vacuous(answers, bundle.config.outputs)
            prove_cuts(bundle, plain, rows, proof.precision, report=report)
        runtime = SegmentRuntime(bundle, range(len(bundle.config.segments)))
        rungs = {rung.id: (rung.cut, rung.codec) for rung in bundle.config.rungs}
        trial = Trial(bundle.config, runtime, Walks(bundle.config, runtime, rows), answers)
        found = effects(trial, rungs, report=report)
    judged = calibration is not None or rows.digest == proof.rows
    return Verification(
        digest=bundle.digest,
        blobs=len(bundle.blobs),
        rows=rows.count,
        generated=rows.generated,
        rungs=tuple(
            _check(rung.id, rung.codec, found[rung.id], proof, judged=judged)
            for rung in bundle.config.rungs
        ),
    )


def _wholes(
    bundle: Bundle,
    model: Path | None,
    bind: Mapping[str, int] | None,
    calibration: Calibration | None,
    scratch: Path,
) -> tuple[Model, Model]:
    """The whole model as it is served, and with graph optimisation off."""
    if model is None:
        return joined(bundle, optimize=True), joined(bundle, optimize=False)
    sample = None if calibration is None else first_row(calibration)
    imported = import_model(model, scratch, bind=bind, sample=sample)
    if imported.digest != bundle.config.model.digest:
        raise BundleError(
            f"{bundle.path} was made from model {bundle.config.model.digest}, {model.name} is "
            f"{imported.digest}"
        )
    outputs = bundle.config.outputs
    return (
        load_whole(imported.model, outputs, threads=1),
        load_whole(imported.model, outputs, threads=1, optimize=False),
    )


def _rows(bundle: Bundle, calibration: Calibration | None, whole: Model) -> Rows:
    config = bundle.config
    if calibration is not None:
        return given_rows(calibration, config.inputs)
    return generated_rows(config.inputs, config.image, config.model.digest, whole)


def _check(rung: str, codec: str, effect: Effect, proof: Proof, *, judged: bool) -> RungCheck:
    holds, why = None, None
    if judged or codec in ("raw", "raw-zstd"):
        repeatable = proof.exact is not None
        why = fault(effect, codec, proof.precision, proof.quality) if repeatable else None
        holds = why is None
    return RungCheck(rung, holds, effect.worst, effect.top1, why)
