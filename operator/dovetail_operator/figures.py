"""What was measured of a class, in the few figures that a person reads in a status.

A status is written to the API server, so figures are renewed rarely, and only where they tell
something new: a deployment whose traffic stays as it is causes no writes, and one without traffic
keeps what was measured last, with its time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dovetail.bundle import BundleConfig
from dovetail.decide import Decision, Estimate
from dovetail.ladder import Ladder
from dovetail.measure import PARTS, Window

EVERY: Final = 30.0  # seconds between two renewals
_ENOUGH: Final = 10  # requests on a new rung before it has figures of its own
_TELLING: Final = 0.1  # relative change of a latency that is worth a write
_POINTS: Final = 5  # per cent points of shares and regret that are


@dataclass(frozen=True, slots=True)
class Facts:
    """What a bundle says of one rung.

    Attributes:
        tensors: names of the tensors that cross.
        bytes_up: bytes of a row's crossing tensors.
        bytes_down: bytes of a row's answer.
        max_error: as proved, against the whole model.
        top1: as proved; None where no output is a score.
    """

    tensors: tuple[str, ...]
    bytes_up: int
    bytes_down: int
    max_error: float
    top1: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured lately.

    Attributes:
        at: when, seconds since the epoch.
        rung: the rung in use.
        shares: per cent of requests by rung.
        latency: median seconds of `total` and of each part, on the rung in use.
        best: the rung expected to be fastest, and its seconds.
        regret: per cent by which the rung in use is expected to be slower than that.
    """

    at: float
    rung: str
    shares: Mapping[str, int]
    latency: Mapping[str, float]
    best: Estimate
    regret: int


def facts(config: BundleConfig, ladder: Ladder) -> dict[str, Facts]:
    """What a bundle says of each rung of a ladder."""
    found: dict[str, Facts] = {}
    for rung in ladder:
        proved = config.rung(rung.id)
        found[rung.id] = Facts(
            config.crossing(rung.cut) if rung.crosses else (),
            round(proved.bytes_up) if rung.crosses else 0,
            proved.bytes_down if rung.crosses else 0,
            proved.max_error,
            proved.top1,
        )
    return found


def measured(window: Window, rung: str, decision: Decision, now: float) -> Figures | None:
    """Figures of a window; None where the rung in use answered nothing in it.

    Args:
        window: what was seen since the last figures.
        rung: the rung in use.
        decision: what the slow hand compared last.
        now: seconds since the epoch.
    """
    own = window.rungs.get(rung)
    if own is None or own.total.count < _ENOUGH:
        return None
    latency = {"total": own.total.quantile(0.5)}
    latency |= {n: own.parts[n].quantile(0.5) for n in PARTS if n in own.parts}
    shares = {
        name: round(100 * one.count / window.count) for name, one in sorted(window.rungs.items())
    }
    return Figures(
        now,
        rung,
        {name: share for name, share in shares.items() if share},
        latency,
        min(decision.estimates, key=lambda estimate: (estimate.seconds, estimate.rung != rung)),
        round(100 * decision.regret),
    )


def are_news(old: Figures | None, new: Figures) -> bool:
    """Whether new figures are worth a write."""
    if old is None or old.rung != new.rung:
        return True
    if new.at - old.at < EVERY:
        return False
    rungs = old.shares.keys() | new.shares.keys()
    shift = max(abs(old.shares.get(r, 0) - new.shares.get(r, 0)) for r in rungs)
    before, after = old.latency["total"], new.latency["total"]
    return (
        old.best.rung != new.best.rung
        or shift >= _POINTS
        or abs(old.regret - new.regret) >= _POINTS
        or abs(after - before) > _TELLING * before
    )
