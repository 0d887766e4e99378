"""Ratios that mean something on a shared machine.

A machine that other work runs on is slow for seconds at a time. Two things that are timed one after
the other are then compared with the weather. So variants are timed in *rounds*: every variant once
a round, in an order that turns, and whatever slows a round slows all of it. A figure is a ratio of
medians over rounds; its interval comes from drawing rounds with replacement, the same rounds for
both sides.

The trade-off: caches are colder than in a loop over one variant, for both sides alike.

Reference: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13
(percentile interval).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Samples = dict[str, Floats]
Statistic = Callable[[Floats], float]

_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Interval":
        """A figure that was counted, not sampled."""
        return cls(value, value, value)


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """A variant for `interleave`: seconds that one call takes."""

    def once() -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    return once


def interleave(
    variants: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    warmup: int = 1,
    repeat: int = 1,
) -> Samples:
    """Measure every variant once a round, each round in another order.

    Args:
        variants: name -> a call that gives its own figure, seconds by custom.
        rounds: rounds that count.
        warmup: rounds before them that do not.
        repeat: calls a round; their median is the round's figure.

    Returns:
        Name -> float64 [rounds], row i of every variant from the same round.
    """
    names = list(variants)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            value = float(np.median([variants[name]() for _ in range(repeat)]))
            if number >= 0:
                found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


def median(values: Floats) -> float:
    """The median as a plain float."""
    return float(np.median(values))


def interval(values: Floats, statistic: Statistic = median) -> Interval:
    """A statistic of one variant over rounds, with its interval."""
    draws = [statistic(values[pick]) for pick in _picks(len(values))]
    return _of(statistic(values), draws)


def ratio(over: Floats, under: Floats, statistic: Statistic = median) -> Interval:
    """statistic(over) / statistic(under), both measured in the same rounds.

    Args:
        over: float64 [rounds].
        under: float64 [rounds], row i from the same round as row i of `over`.
        statistic: what of each side is compared.
    """
    if len(over) != len(under):
        raise ValueError(f"{len(over)} rounds against {len(under)}: they were not interleaved")
    draws = [statistic(over[pick]) / statistic(under[pick]) for pick in _picks(len(over))]
    return _of(statistic(over) / statistic(under), draws)


def mean_of_ratios(pairs: list[tuple[Floats, Floats]]) -> Interval:
    """Mean over conditions of each condition's ratio of medians.

    Rounds are drawn anew within each condition, so the interval holds the measuring error and not
    the spread between conditions, which are chosen and not drawn.
    """
    rng = np.random.default_rng(0)

    def draw() -> float:
        total = 0.0
        for over, under in pairs:
            pick = rng.integers(0, len(over), len(over))
            total += median(over[pick]) / median(under[pick])
        return total / len(pairs)

    value = float(np.mean([median(over) / median(under) for over, under in pairs]))
    return _of(value, [draw() for _ in range(_RESAMPLES)])


def _picks(rounds: int) -> NDArray[np.int64]:
    """Rounds drawn with replacement, the same for whoever asks: int64 [resamples, rounds]."""
    return np.random.default_rng(0).integers(0, rounds, (_RESAMPLES, rounds))


def _of(value: float, draws: list[float]) -> Interval:
    low, high = np.percentile(np.array(draws), [2.5, 97.5])
    return Interval(value, min(float(low), value), max(float(high), value))
