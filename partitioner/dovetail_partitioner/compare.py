"""Compares a rung's answers with the whole model's, the way they are served.

Two measures, because answers are of two kinds. A vector of scores is read by its largest entry, so
what counts is on how many rows that entry stays the same; anything else is a quantity, so what
counts is how far it moves, against the largest value the output takes.

Every rung of a row shares the work before its cut: a row goes through the segments once, and at
each cut the tails of that cut's rungs branch off.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dovetail.bundle import BundleConfig
from dovetail.codecs import CodecSet
from dovetail.errors import InvalidTensor
from dovetail.runtime import SegmentRuntime
from dovetail.tensor import FLOATS, Array, TensorSpec
from dovetail_partitioner.calibrate import Walks, walk
from dovetail_partitioner.progress import Report
from dovetail_partitioner.rows import stack
from dovetail_partitioner.whole import Answers

Rungs = Mapping[str, tuple[int, str]]

BATCH = 8


@dataclass(frozen=True)
class Agreement:
    """How close a rung's answers are to the whole model's, over all rows.

    Attributes:
        errors: max|a-b| / max|a| by float output.
        agree: by output that is a score vector, the share of rows with the same argmax; by integer
            output, the share of rows that are equal.
    """

    errors: Mapping[str, float]
    agree: Mapping[str, float]


@dataclass(frozen=True)
class Effect:
    """What a rung does to the answers.

    Attributes:
        alone: rows one by one.
        batch: rows in batches of 8; None where batch is fixed, or rows are served one by one
            because a segment's answers change with their neighbours.
    """

    alone: Agreement
    batch: Agreement | None

    @property
    def worst(self) -> float:
        """The largest error, alone or in a batch; 0 where no output is a float."""
        both = [self.alone, *([self.batch] if self.batch else [])]
        return max((error for one in both for error in one.errors.values()), default=0.0)

    @property
    def top1(self) -> float | None:
        """The least agreement, alone or in a batch; None where no output has one."""
        both = [self.alone, *([self.batch] if self.batch else [])]
        return min((share for one in both for share in one.agree.values()), default=None)


@dataclass(frozen=True)
class Trial:
    """What rungs are compared on.

    Attributes:
        config: the bundle's description, with codec tables.
        runtime: its segments, every cut loaded, graph optimisation on.
        walks: the calibration rows' tensors at every cut, through that runtime.
        answers: the whole model's answers to them, in order.
    """

    config: BundleConfig
    runtime: SegmentRuntime
    walks: Walks
    answers: Sequence[Answers]


def effects(trial: Trial, rungs: Rungs, *, report: Report) -> dict[str, Effect]:
    """Compare each rung's answers with the whole model's.

    Args:
        trial: model, rows and the answers wanted.
        rungs: cut and codec by rung id.
        report: told of progress.
    """
    config, rows, answers = trial.config, trial.walks.rows, trial.answers
    alone = _Comparison(config, trial.runtime, rungs)
    batch = _Comparison(config, trial.runtime, rungs)
    together = _in_batches(config)
    total = rows.count * (2 if together else 1)
    for done, (steps, want) in enumerate(zip(trial.walks, answers, strict=True)):
        report("proving rungs", done, total)
        alone.add(dict(steps), want)
    done = 0
    for group in rows.batches(BATCH) if together else ():
        report("proving rungs", rows.count + done, total)
        joined = stack(group, config.inputs)
        if joined is None:
            together = False
            break
        envs = dict(walk(config, trial.runtime, joined))
        batch.add(envs, _stacked(answers[done : done + len(group)]))
        done += len(group)
    return {
        rung: Effect(alone=alone.of(rung), batch=batch.of(rung) if together else None)
        for rung in rungs
    }


def difference(want: Array, got: Array) -> float:
    """max|a-b|; equal infinities and two NaNs are equal, anything else not finite is infinite."""
    a, b = want.astype(np.float64), got.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(a - b))
    return float(apart.max(initial=0.0)) if np.isfinite(apart).all() else math.inf


def largest(array: Array) -> float:
    """max|a| over the finite values; 0 where there are none."""
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    return float(finite.max(initial=0.0))


def stacks(spec: TensorSpec, batch: str | None) -> bool:
    """Whether axis 0 is the symbolic batch."""
    return batch is not None and spec.shape[:1] == (batch,)


class _Comparison:
    """Rungs' answers against the whole model's, summed over rows."""

    def __init__(self, config: BundleConfig, runtime: SegmentRuntime, rungs: Rungs) -> None:
        self._config, self._runtime = config, runtime
        self._codecs = CodecSet(config)
        self._at: dict[int, list[tuple[str, str]]] = {}
        for rung, (cut, codec) in rungs.items():
            self._at.setdefault(cut, []).append((rung, codec))
        self._tallies = {
            rung: [_Tally(spec, config.batch) for spec in config.outputs] for rung in rungs
        }

    def add(self, envs: Mapping[int, Mapping[str, Array]], want: Answers) -> None:
        whole = envs[len(self._config.segments)]
        for cut, rungs in self._at.items():
            names = self._config.crossing(cut)
            # The same tensors through the same sessions give the same answers: a tail runs once
            # for codecs that differ in their packing only, and not at all where nothing is lost.
            tried = [({name: envs[cut][name] for name in names}, whole)]
            for rung, codec in rungs:
                sent = tuple(self._codecs.pack(codec, envs[cut], names))
                received = self._codecs.unpack(codec, names, sent)
                known = (made for seen, made in tried if _equal(seen, received))
                got = next(known, None) or self._answers(envs[cut], cut, received)
                tried.append((received, got))
                for tally in self._tallies[rung]:
                    tally.add(want[tally.spec.name], got.get(tally.spec.name))

    def of(self, rung: str) -> Agreement:
        tallies = self._tallies[rung]
        return Agreement(
            errors={t.spec.name: t.error for t in tallies if t.spec.dtype in FLOATS},
            agree={t.spec.name: t.share for t in tallies if t.compared},
        )

    def _answers(
        self, env: Mapping[str, Array], cut: int, received: Mapping[str, Array]
    ) -> Answers:
        made = {spec.name: env[spec.name] for spec in self._config.outputs if spec.name in env}
        try:
            tail, _ = self._runtime.run(received, cut, len(self._config.segments))
        except InvalidTensor:
            return {}  # changed values led the tail astray, such as an index out of its table
        return {**made, **tail}


def _equal(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return all(one[name].tobytes() == array.tobytes() for name, array in other.items())


class _Tally:
    """One output of one rung, over all rows."""

    def __init__(self, spec: TensorSpec, batch: str | None) -> None:
        self.spec = spec
        self._stacks = stacks(spec, batch)
        self._difference = self._largest = 0.0
        self._agreed = self._rows = 0
        self._scores = is_scores(spec, batch)
        self.compared = self._scores or spec.dtype not in FLOATS

    def add(self, want: Array, got: Array | None) -> None:
        rows = len(want) if self._stacks else 1
        self._rows += rows
        if got is None or got.shape != want.shape:
            self._difference = math.inf
            return
        if self.spec.dtype in FLOATS:
            self._difference = max(self._difference, difference(want, got))
            self._largest = max(self._largest, largest(want))
        if self.compared:
            a, b = want.reshape(rows, -1), got.reshape(rows, -1)
            same = a.argmax(1) == b.argmax(1) if self._scores else (a == b).all(axis=1)
            self._agreed += int(same.sum())

    @property
    def error(self) -> float:
        return self._difference / self._largest if self._largest else self._difference

    @property
    def share(self) -> float:
        return self._agreed / self._rows


def is_scores(spec: TensorSpec, batch: str | None) -> bool:
    """Whether an output is a vector of scores a row: floats along one axis beside the batch."""
    sizes = spec.shape[1:] if stacks(spec, batch) else spec.shape
    return spec.dtype in FLOATS and sum(size != 1 for size in sizes) == 1


def _in_batches(config: BundleConfig) -> bool:
    """Whether rows of a batch are answered together, with the batch as each output's axis 0."""
    return (
        config.batch is not None
        and all(segment.row_wise for segment in config.segments)
        and all(stacks(spec, config.batch) for spec in config.outputs)
    )


def _stacked(answers: Sequence[Answers]) -> Answers:
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
