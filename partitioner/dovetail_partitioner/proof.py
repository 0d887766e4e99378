"""Shows that a cut is right, and what a codec does to the answers.

Two different questions, so two parts. *Is the cut right?* With graph optimisation off the segments
must give the whole model's bits at every cut: any difference is a bug, not rounding. *What does the
user get?* With optimisation on, the way it is served, each rung's answers are compared with the
uncut model's, alone and in a batch. Rungs that change nothing but rounding must stay within 1e-4 in
a float32 model; a lossy rung is held to the user's `quality`. Equality is worth nothing for a model
whose outputs do not depend on the input, so such a proof is refused (`ProofVacuous`).

What a proof holds: docs/concepts.md, "The proof".
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import ValidationError

from dovetail.api import Quality
from dovetail.bundle import Bundle, BundleConfig
from dovetail.errors import BundleError, InvalidTensor, ProofError, ProofVacuous
from dovetail.runtime import SegmentRuntime
from dovetail.tensor import FLOATS, Array, Document, TensorSpec
from dovetail_partitioner.calibrate import walk
from dovetail_partitioner.compare import BATCH, Effect, difference, largest, stacks
from dovetail_partitioner.graph import Graph
from dovetail_partitioner.progress import Report
from dovetail_partitioner.rows import Rows, stack
from dovetail_partitioner.whole import Answers, Model, Row

Precision = Literal["fp32", "fp16", "quantised"]

ROUNDING = 1e-4  # of a float32 model's largest answer: what another order of summing may change
_HALF = 1e-3
_EXACT_ROWS = 2  # bits differ on every row or, for a wrong cut, on none
_VARIES = 1e-6


class Exact(Document):
    """Segments against the whole, graph optimisation off.

    Attributes:
        rows: how many rows were compared, at every cut.
        tolerance: what was allowed; 0 means equal bit for bit.
        worst: the largest max|a-b| / max|a| that was seen.
    """

    rows: int
    tolerance: float
    worst: float


class Proof(Document):
    """The proof as the bundle stores it.

    Attributes:
        format: format version.
        model: digest of the model.
        rows: digest of the calibration rows.
        count: how many there are.
        generated: whether they were made up.
        precision: which tolerance applies to rungs without loss.
        quality: what lossy rungs are held to.
        exact: part one; None where the model gives another answer each time it is asked.
        row_wise: per segment, whether a row's answer is independent of its neighbours.
        rungs: part two, by rung id.
        dropped: rungs that would be best somewhere but are beyond `quality`, with the reason.
        regret: the most that is lost, over the sweep's conditions, by the cuts and rungs that were
            not kept.
    """

    format: Literal["dovetail.dev/proof.v1"] = "dovetail.dev/proof.v1"
    model: str
    rows: str
    count: int
    generated: bool
    precision: Precision
    quality: Quality
    exact: Exact | None
    row_wise: tuple[bool, ...]
    rungs: Mapping[str, Effect]
    dropped: Mapping[str, str]
    regret: float


def read_proof(bundle: Bundle) -> Proof:
    """Read a bundle's proof.

    Raises:
        BundleCorrupt: the blob does not have the digest it is named by.
        BundleError: the blob is no proof, or not of this bundle's model and rungs.
    """
    try:
        proof = Proof.model_validate_json(bundle.read(bundle.config.proof))
    except ValidationError as error:
        raise BundleError(f"{bundle.path}: the proof is damaged: {error.errors()[0]}") from error
    rungs = {rung.id for rung in bundle.config.rungs}
    if proof.model != bundle.config.model.digest or proof.rungs.keys() != rungs:
        raise BundleError(f"{bundle.path}: the proof is not of this bundle's model and rungs")
    return proof


def precision_of(graph: Graph) -> Precision:
    """Which tolerance a model's rungs without loss are held to."""
    marks = ("Quantize", "QLinear", "Integer", "QAttention", "QGemm")
    if any(mark in op.op_type for op in graph.ops for mark in marks):
        return "quantised"
    half = any(tensor.dtype == "float16" for tensor in graph.tensors.values())
    return "fp16" if half else "fp32"


def refuse_vacuous(answers: Sequence[Answers], outputs: Sequence[TensorSpec]) -> None:
    """Raise `ProofVacuous` unless some output varies from row to row."""
    if not any(_spread([answer[spec.name] for answer in answers]) > _VARIES for spec in outputs):
        raise ProofVacuous(
            f"the model answers the same to all {len(answers)} calibration rows, so equal answers "
            "would prove nothing; give rows with different answers (--calibration), or a model "
            "with trained weights"
        )


def repeats(model: Model, row: Row) -> bool:
    """Whether the model gives the same bits when asked twice; random ops do not."""
    first, second = model(row), model(row)
    return all(first[name].tobytes() == second[name].tobytes() for name in first)


def prove_cuts(
    bundle: Bundle, whole: Model, rows: Rows, precision: Precision, *, report: Report
) -> Exact:
    """Compare segments with the whole at every cut, graph optimisation off.

    Args:
        bundle: the bundle.
        whole: the whole model, graph optimisation off.
        rows: calibration rows.
        precision: `fp16` allows 1e-3, anything else nothing.
        report: told of progress.

    Raises:
        ProofError: some output differs by more; the message names output and difference.
    """
    count = min(rows.count, _EXACT_ROWS)
    tolerance = _HALF if precision == "fp16" else 0.0
    last = len(bundle.config.segments)
    # Apart, every boundary is a real one; joined, the fragments must merge into the same model.
    # One way at a time, since each holds the whole model.
    ways = {f"the cuts 1 to {last - 1}": range(1, last), "all segments joined": range(0)}
    few = list(itertools.islice(rows, count))
    wanted = [whole(row) for row in few]
    worst, done = 0.0, itertools.count()
    for where, cuts in ways.items():
        runtime = SegmentRuntime(bundle, cuts, optimize=False, whole=False)
        for row, want in zip(few, wanted, strict=True):
            report("proving cuts", next(done), len(ways) * count)
            got = _through(bundle.config, runtime, row)
            worst = max(worst, _same(want, got, where, tolerance))
    return Exact(rows=count, tolerance=tolerance, worst=worst)


def row_wise(
    config: BundleConfig, runtime: SegmentRuntime, rows: Rows, *, report: Report
) -> tuple[bool, ...]:
    """Find the segments whose answers for a row depend on the row's neighbours in a batch.

    Dynamic quantisation takes one scale for a whole batch, so there a row's answer changes with
    its neighbours. Each segment gets the rows' own tensors, so that only its own effect counts.

    Returns:
        One value a segment; all true where batch is fixed, since there are no neighbours then.
    """
    count = len(config.segments)
    group = next(rows.batches(BATCH))
    if config.batch is None or len(group) < 2:
        return (True,) * count
    walks = [walk(config, runtime, row) for row in group]
    _, envs = zip(*(next(steps) for steps in walks), strict=True)
    found = []
    for index in range(count):
        report("comparing rows with their neighbours", index, count)
        names = config.segments[index].reads
        specs = [config.spec(name) for name in names]
        batch = stack([{name: env[name] for name in names} for env in envs], specs)
        _, envs = zip(*(next(steps) for steps in walks), strict=True)
        found.append(batch is not None and _keeps_rows(config, runtime, index, batch, envs))
    return tuple(found)


def fault(effect: Effect, codec: str, precision: Precision, quality: Quality) -> str | None:
    """Why a rung may not be offered; None where it may."""
    lossless = codec in ("raw", "raw-zstd") and precision == "fp32"
    for where, agreement in (("alone", effect.alone), ("in a batch", effect.batch)):
        if agreement is None:
            continue
        for name, share in agreement.agree.items():
            if share < quality.min_top1_agreement:
                return (
                    f"output {name!r} agrees on {share:.1%} of rows {where}, "
                    f"at least {quality.min_top1_agreement:.1%} wanted"
                )
        for name, error in agreement.errors.items():
            limit = ROUNDING if lossless else quality.max_error
            held = lossless or name not in agreement.agree
            if not math.isfinite(error) or (held and error > limit):
                return f"output {name!r} is off by {error:.2g} {where}, at most {limit:g} wanted"
    return None


def _through(config: BundleConfig, runtime: SegmentRuntime, row: Row) -> Answers:
    """The answers, with no more than what crosses handed on where one unit ends and another begins.

    One such walk shows every cut: from any of them on, its segments get the very tensors that the
    tail of that cut gets.
    """
    env: Mapping[str, Array] = row
    outputs: dict[str, Array] = {}
    for unit in runtime.units:
        live, _ = runtime.run(env, unit.first, unit.last)
        outputs |= {spec.name: live[spec.name] for spec in config.outputs if spec.name in live}
        env = {name: live[name] for name in config.crossing(unit.last)}
    return outputs


def _same(want: Answers, got: Answers, where: str, tolerance: float) -> float:
    worst = 0.0
    for name, expected in want.items():
        array = got[name]
        if array.shape == expected.shape and array.tobytes() == expected.tobytes():
            continue
        error = math.inf
        if array.shape == expected.shape and expected.dtype.name in FLOATS:
            error = difference(expected, array) / (largest(expected) or 1.0)
        if error > tolerance or tolerance == 0.0:
            raise ProofError(
                f"{where}: output {name!r} differs from the whole model's by {error:.3g} with "
                f"graph optimisation off, at most {tolerance:g} allowed; please report this model"
            )
        worst = max(worst, error)
    return worst


def _keeps_rows(
    config: BundleConfig,
    runtime: SegmentRuntime,
    index: int,
    batch: Row,
    alone: Sequence[Mapping[str, Array]],
) -> bool:
    try:
        made, _ = runtime.run(batch, index, index + 1)
    except InvalidTensor:
        return False
    for name in config.segments[index].writes:
        spec = config.spec(name)
        if name not in made or not stacks(spec, config.batch):
            continue
        want = np.concatenate([env[name] for env in alone])
        limit = {"float16": 5e-3, "float32": ROUNDING, "float64": ROUNDING}.get(spec.dtype, 0.0)
        if want.shape != made[name].shape:
            return False
        if difference(want, made[name]) > limit * largest(want):
            return False
    return True


def _spread(arrays: Sequence[Array]) -> float:
    """How far rows' answers lie apart, against the largest answer."""
    first = arrays[0]
    if any(array.shape != first.shape for array in arrays):
        return math.inf
    top = max(largest(array) for array in arrays) or 1.0
    apart = max(difference(first, array) for array in arrays)
    return apart / top if math.isfinite(apart) else 0.0
