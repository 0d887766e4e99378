"""Samples, and estimators that merge.

An edge makes one `Sample` a request. Nobody ships samples: they are folded into `Window`s, whose
histograms merge by adding buckets, so an edge, a replica and the ledger can each add up what they
saw, in any order, and the operator reads one window for a whole pool.

The link is estimated at the edge, where every crossing request is already a measurement of it:
network seconds = round trip + bytes x seconds per byte. Round trips come from tiny plan polls,
seconds per byte from what a request took beyond that.

Reference: Masson, Rim, Lee, "DDSketch", VLDB 2019 (relative-error quantiles, fully mergeable).
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from dovetail.ladder import Parts

Outcome = Literal["ok", "degraded", "failed"]

_ERROR = 0.02  # relative error of a quantile
_GAMMA = (1 + _ERROR) / (1 - _ERROR)
_LOG_GAMMA = math.log(_GAMMA)
_LEAST, _MOST = 1e-12, 1e6

PARTS = tuple(part.name for part in fields(Parts))


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as the edge saw it.

    Attributes:
        rung: rung id the request started on.
        parts: seconds by part; `network` is the round trip without queue, decode, tail and encode.
        recv: seconds the tail spent receiving the body; inside `network`.
        total: seconds the caller waited.
        bytes_up: body bytes sent.
        bytes_down: body bytes received.
        outcome: `ok`, `degraded` (answered on the edge after the cloud was tried) or `failed`.
        probe: whether the rung was chosen to learn about it rather than because it is best.
    """

    rung: str
    parts: Parts
    total: float
    outcome: Outcome
    recv: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    probe: bool = False


@dataclass(slots=True)
class Histogram:
    """Positive values in logarithmic buckets; quantiles within 2 %."""

    count: int = 0
    sum: float = 0.0
    buckets: dict[int, int] = field(default_factory=dict)

    def add(self, value: float) -> None:
        """Count one value; values below 1e-12 count as 1e-12."""
        bounded = min(max(value, _LEAST), _MOST)
        index = math.ceil(math.log(bounded) / _LOG_GAMMA)
        self.count += 1
        self.sum += bounded
        self.buckets[index] = self.buckets.get(index, 0) + 1

    def merge(self, other: Self) -> None:
        """Add another histogram's counts."""
        self.count += other.count
        self.sum += other.sum
        for index, count in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + count

    def quantile(self, q: float) -> float:
        """The value below which a share `q` of the values lies; NaN when empty."""
        rank, seen = q * (self.count - 1), 0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen > rank:
                return 2 * math.exp(index * _LOG_GAMMA) / (1 + _GAMMA)
        return math.nan

    @property
    def mean(self) -> float:
        """Mean of the values; NaN when empty."""
        return self.sum / self.count if self.count else math.nan

    def dump(self) -> dict[str, Any]:
        """JSON form."""
        return {"count": self.count, "sum": self.sum, "buckets": dict(self.buckets)}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Self:
        """From JSON form; raises `ValueError` where counts are negative or do not add up."""
        buckets = {int(index): int(count) for index, count in data["buckets"].items()}
        count, total = int(data["count"]), float(data["sum"])
        if count != sum(buckets.values()) or min(buckets.values(), default=0) < 0:
            raise ValueError("a histogram's buckets do not add up to its count")
        if not math.isfinite(total) or len(buckets) > 4096:
            raise ValueError("a histogram is not finite or too large")
        return cls(count, total, buckets)


@dataclass(slots=True)
class RungWindow:
    """What was seen of one rung."""

    outcomes: dict[str, int] = field(default_factory=dict)
    total: Histogram = field(default_factory=Histogram)
    parts: dict[str, Histogram] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    probes: int = 0

    def add(self, sample: Sample) -> None:
        """Fold in one sample; times of failed requests would only blur the others."""
        self.outcomes[sample.outcome] = self.outcomes.get(sample.outcome, 0) + 1
        self.bytes_up += sample.bytes_up
        self.bytes_down += sample.bytes_down
        self.probes += sample.probe
        if sample.outcome != "failed":
            self.total.add(sample.total)
        if sample.outcome == "ok":
            for name, seconds in asdict(sample.parts).items():
                self.parts.setdefault(name, Histogram()).add(seconds)

    def merge(self, other: Self) -> None:
        """Add another window's counts."""
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        self.total.merge(other.total)
        for name, histogram in other.parts.items():
            self.parts.setdefault(name, Histogram()).merge(histogram)
        self.bytes_up += other.bytes_up
        self.bytes_down += other.bytes_down
        self.probes += other.probes

    @property
    def count(self) -> int:
        """Requests of any outcome."""
        return sum(self.outcomes.values())

    def mean_parts(self) -> Parts:
        """Mean seconds by part over the requests that went as planned."""
        return Parts(**{n: h.mean for n, h in self.parts.items() if h.count})


@dataclass(slots=True)
class Window:
    """What one device class did in one stretch of time; mergeable across devices and replicas."""

    rungs: dict[str, RungWindow] = field(default_factory=dict)
    rtt: Histogram = field(default_factory=Histogram)
    seconds_per_byte: Histogram = field(default_factory=Histogram)

    def add(self, sample: Sample) -> None:
        """Fold in one sample."""
        self.rungs.setdefault(sample.rung, RungWindow()).add(sample)

    def add_link(self, link: "Link") -> None:
        """Fold in one device's view of its link."""
        self.rtt.add(link.rtt)
        self.seconds_per_byte.add(link.seconds_per_byte)

    def merge(self, other: Self) -> None:
        """Add another window's counts."""
        for rung, window in other.rungs.items():
            self.rungs.setdefault(rung, RungWindow()).merge(window)
        self.rtt.merge(other.rtt)
        self.seconds_per_byte.merge(other.seconds_per_byte)

    @property
    def count(self) -> int:
        """Requests of any rung and outcome."""
        return sum(window.count for window in self.rungs.values())

    def link(self) -> "Link | None":
        """The class's median link; None where no device saw it."""
        if not (self.rtt.count and self.seconds_per_byte.count):
            return None
        return Link(self.rtt.quantile(0.5), self.seconds_per_byte.quantile(0.5))

    def dump(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "rungs": {
                rung: {
                    "outcomes": dict(window.outcomes),
                    "total": window.total.dump(),
                    "parts": {name: h.dump() for name, h in window.parts.items()},
                    "bytesUp": window.bytes_up,
                    "bytesDown": window.bytes_down,
                    "probes": window.probes,
                }
                for rung, window in self.rungs.items()
            },
            "rtt": self.rtt.dump(),
            "secondsPerByte": self.seconds_per_byte.dump(),
        }

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Self:
        """From JSON form; raises `ValueError`, `KeyError` or `TypeError` on anything else."""
        return cls(
            {
                str(rung): RungWindow(
                    {str(k): int(v) for k, v in window["outcomes"].items()},
                    Histogram.load(window["total"]),
                    {n: Histogram.load(h) for n, h in window["parts"].items() if n in PARTS},
                    int(window["bytesUp"]),
                    int(window["bytesDown"]),
                    int(window["probes"]),
                )
                for rung, window in data["rungs"].items()
            },
            Histogram.load(data["rtt"]),
            Histogram.load(data["secondsPerByte"]),
        )


@dataclass(frozen=True, slots=True)
class Link:
    """A link as a request feels it: seconds = rtt + bytes x seconds_per_byte."""

    rtt: float
    seconds_per_byte: float


@dataclass(frozen=True, slots=True)
class _Crossing:
    at: float
    size: int
    seconds: float


class LinkEstimator:
    """Estimates a link from the requests that cross it; the newest observations count most.

    Args:
        half_life: seconds after which an observation weighs half.
        horizon: seconds after which it is forgotten.
    """

    def __init__(self, half_life: float = 1.0, horizon: float = 30.0) -> None:
        self._half_life, self._horizon = half_life, horizon
        self._trips: deque[_Crossing] = deque(maxlen=64)
        self._crossings: deque[_Crossing] = deque(maxlen=64)

    def observe(self, size: int, seconds: float, now: float) -> None:
        """Record a request that moved `size` bytes and spent `seconds` on the network."""
        self._crossings.append(_Crossing(now, size, seconds))

    def observe_trip(self, seconds: float, now: float) -> None:
        """Record the round trip of a request too small to feel the bandwidth."""
        self._trips.append(_Crossing(now, 0, seconds))

    def age(self, now: float) -> float:
        """Seconds since a crossing was last observed; infinity if never."""
        return now - self._crossings[-1].at if self._crossings else math.inf

    def link(self, now: float) -> Link | None:
        """The link now; None where nothing was observed within the horizon."""
        crossings = [c for c in self._crossings if now - c.at <= self._horizon]
        if not crossings:
            return None
        trips = [c for c in self._trips if now - c.at <= self._horizon]
        least = min(c.seconds for c in crossings)
        # Half the fastest crossing stands in until a tiny request has been timed; a trip can't
        # take longer than a crossing that contains it.
        rtt = (
            min(_median((t.seconds, self._weight(t, now)) for t in trips), least)
            if trips
            else least / 2
        )
        rates = (
            (max(c.seconds - rtt, 1e-6) / max(c.size, 1), self._weight(c, now)) for c in crossings
        )
        return Link(rtt, _median(rates))

    def _weight(self, seen: _Crossing, now: float) -> float:
        return float(0.5 ** ((now - seen.at) / self._half_life))


def _median(weighted: Iterable[tuple[float, float]]) -> float:
    """Weighted median."""
    ordered = sorted(weighted)
    half, seen = sum(weight for _, weight in ordered) / 2, 0.0
    for value, weight in ordered:
        seen += weight
        if seen >= half:
            return value
    return ordered[-1][0]
