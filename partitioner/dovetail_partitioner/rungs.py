"""Which rungs are worth a place on the ladder.

A rung is a cut and a codec. Six segments and eight codecs make fifty of them, and most are never
the best choice for anyone, or by so little that nobody could measure it. What is kept is a small
set that leaves nobody worse off by more than 2 %: whether they want least latency or most
throughput, and whether or not raw input may leave the device. Fewer rungs are faster ones, too:
segments that no rung separates run as one session.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dovetail.bundle import BundleConfig, rung_id
from dovetail.codecs import ACTIVATION_FAMILIES, IMAGE_FAMILIES, INPUT_FAMILIES, CodecSet
from dovetail.ladder import Conditions, Ladder, RungCost, sweep
from dovetail.tensor import FLOATS
from dovetail_partitioner.calibrate import Walks
from dovetail_partitioner.progress import Report

Times = NDArray[np.float64]

_NEAR = 0.02  # a rung that gains less for anyone is not worth its line, its proof and its choice


def candidates(config: BundleConfig, allowed: Collection[str] | None) -> dict[str, tuple[int, str]]:
    """Every cut with every codec that changes something there, by rung id.

    Args:
        config: the bundle's description, with codec tables.
        allowed: codecs that may be used; None for all. `raw` on `cloud` and `edge` always is.
    """
    last = len(config.segments)
    found = {rung_id(0, "raw", last): (0, "raw"), rung_id(last, "raw", last): (last, "raw")}
    for cut in range(last):
        for codec in _codecs(config, cut):
            if allowed is None or codec in allowed:
                found[rung_id(cut, codec, last)] = (cut, codec)
    return found


def coded_bytes(
    config: BundleConfig,
    walks: Walks,
    rungs: Mapping[str, tuple[int, str]],
    *,
    report: Report,
) -> dict[str, float]:
    """Mean bytes of one row's crossing tensors, coded, by rung id; 0 for the edge rung."""
    codecs = CodecSet(config)
    sizes: dict[str, list[int]] = {rung: [] for rung in rungs}
    for done, steps in enumerate(walks):
        report("measuring coded sizes", done, walks.rows.count)
        for at, env in steps:
            for rung, (cut, codec) in rungs.items():
                varies = codec.endswith("-zstd") or codec in IMAGE_FAMILIES
                if cut == at and (varies or not sizes[rung]):
                    sent = codecs.pack(codec, env, config.crossing(cut))
                    sizes[rung].append(sum(len(tensor.data) for tensor in sent))
    return {rung: float(np.mean(one)) for rung, one in sizes.items()}


@dataclass(frozen=True, slots=True)
class Choice:
    """Rungs worth offering.

    Attributes:
        rungs: their ids.
        regret: the most that is lost for anyone, anywhere in the sweep, by offering no others.
    """

    rungs: frozenset[str]
    regret: float


def choose(ladder: Ladder, always: Collection[str], raw: Collection[int]) -> Choice:
    """Choose few rungs that are within 2 % of the best for everyone, everywhere in the sweep.

    Everyone: least latency or most throughput; raw input that may or may not leave the device.

    Args:
        ladder: every rung that may be offered.
        always: rungs that are offered whatever they cost.
        raw: cuts that raw input crosses at.
    """
    losses = _losses(ladder, raw)
    near = losses <= _NEAR
    picked = [i for i, rung in enumerate(ladder.rungs) if rung.id in always]
    open_points = ~near[picked].any(axis=0)
    # Greedy set cover: at most ln(n) times the fewest, and in practice the fewest.
    while open_points.any():
        gain = (near & open_points).sum(axis=1)
        picked.append(int(gain.argmax()))
        open_points &= ~near[picked[-1]]
    regret = float(losses[picked].min(axis=0).max())
    return Choice(frozenset(ladder.rungs[i].id for i in picked), regret)


def _losses(ladder: Ladder, raw: Collection[int]) -> Times:
    """[rungs, points] how much worse than the point's best a rung is; infinite if not allowed.

    A point is a goal, whether raw input may leave the device, and conditions.
    """
    conditions = tuple(sweep())
    leaks = np.array([rung.cut in raw for rung in ladder.rungs])
    points = []
    for score in (_latency, _period):
        times = np.array([[score(rung, at) for at in conditions] for rung in ladder.rungs])
        for barred in (np.zeros_like(leaks), leaks):
            allowed = np.where(barred[:, None], np.inf, times)
            points.append(allowed / allowed.min(axis=0) - 1.0)
    return np.concatenate(points, axis=1)


@dataclass(frozen=True, slots=True)
class BestAt:
    """Where in the sweep a rung has the least latency, over all rungs of its ladder.

    Attributes:
        share: part of the sweep's conditions, 0 to 1.
        bandwidth: least and most bytes per second; None where it is best nowhere.
        edge: least and most edge seconds per profiled second; None where it is best nowhere.
    """

    share: float
    bandwidth: tuple[float, float] | None
    edge: tuple[float, float] | None


def best_at(ladder: Ladder) -> dict[str, BestAt]:
    """For each rung, the conditions under which it is the fastest."""
    conditions = tuple(sweep())
    won: dict[str, list[Conditions]] = {rung.id: [] for rung in ladder.rungs}
    for at in conditions:
        won[ladder.best(at).id].append(at)
    return {rung: _range(points, len(conditions)) for rung, points in won.items()}


def _range(points: list[Conditions], count: int) -> BestAt:
    if not points:
        return BestAt(0.0, None, None)
    bandwidths = [at.bandwidth for at in points]
    edges = [at.edge for at in points]
    return BestAt(len(points) / count, (min(bandwidths), max(bandwidths)), (min(edges), max(edges)))


def _codecs(config: BundleConfig, cut: int) -> list[str]:
    specs = [config.spec(name) for name in config.crossing(cut)]
    floats = {spec.dtype for spec in specs if spec.dtype in FLOATS}
    names = {spec.name for spec in specs}
    found = []
    for family in (INPUT_FAMILIES if cut == 0 else ACTIVATION_FAMILIES) if floats else ("raw",):
        halved = family == "fp16" and floats == {"float16"}
        pixels = family == "uint8" and config.image is not None and config.image.input in names
        missing = family in ("int8", "int4", "uint8") and family not in config.affine
        if not halved and (pixels or not missing):
            found += [family, f"{family}-zstd"]
    if cut == 0 and config.image is not None:
        found += IMAGE_FAMILIES
    return found


def _latency(rung: RungCost, at: Conditions) -> float:
    return rung.predict(at).total


def _period(rung: RungCost, at: Conditions) -> float:
    """Seconds between two answers when device, wire and cloud work on different requests."""
    parts = rung.predict(at)
    wire = parts.network - at.rtt if rung.crosses else 0.0
    return max(parts.head + parts.encode, wire, parts.decode + parts.tail)
