"""Samples, and estimators that merge.

An edge makes one `Sample` a request. Nobody ships samples: they are folded into `Window`s, whose
histograms merge by adding buckets, so an edge, a replica and the ledger can each add up what they
saw, in any order, and the operator reads one window for a whole pool.

The link is estimated at the edge, where every crossing request is already a measurement of it:
network seconds = round trip + bytes x seconds per byte. Round trips come from empty probes,
seconds per byte from what a request took beyond that.

Reference: Masson, Rim, Lee, "DDSketch", VLDB 2019 (relative-error quantiles, fully mergeable).
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, get_args

from dovetail.errors import InvalidMessage
from dovetail.ladder import Parts

Outcome = Literal["ok", "degraded", "failed"]

_ERROR = 0.02  # relative error of a quantile
_FELT = 0.25  # share of a crossing's time from which its bytes tell of the rate
_GAMMA = (1 + _ERROR) / (1 - _ERROR)
_LOG_GAMMA = math.log(_GAMMA)
_LEAST, _MOST = 1e-12, 1e6
_FIRST, _LAST = (math.ceil(math.log(bound) / _LOG_GAMMA) for bound in (_LEAST, _MOST))
_MOST_COUNT = 1 << 53  # beyond it counts are no longer exact in JSON

PARTS = tuple(part.name for part in fields(Parts))


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as the edge saw it.

    Attributes:
        rung: rung id the request started on; `edge` where the cloud is known to be away.
        parts: seconds by part; `network` is the round trip without queue, decode, tail and encode.
        recv: seconds the tail spent receiving the body; inside `network`.
        total: seconds the caller waited.
        bytes_up: body bytes sent.
        bytes_down: body bytes received.
        outcome: `ok`, `degraded` (answered on the edge, by a plan that says cloud) or `failed`.
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

    @property
    def whole(self) -> bool:
        """Whether `parts` say where all of the time went: not where a crossing was given up."""
        return self.outcome == "ok" or (self.outcome == "degraded" and self.rung == "edge")


@dataclass(slots=True)
class Histogram:
    """Positive values in logarithmic buckets; quantiles within 2 %."""

    count: int = 0
    sum: float = 0.0
    buckets: dict[int, int] = field(default_factory=dict)

    def add(self, value: float) -> None:
        """Count one value, bounded to 1e-12…1e6; raises `ValueError` on NaN."""
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

    def scaled(self, share: float) -> Self:
        """The same distribution with `share` of the counts, 0…1, each bucket's rounded."""
        buckets = {i: kept for i, count in self.buckets.items() if (kept := round(count * share))}
        total = sum(count * _middle(index) for index, count in buckets.items())
        return type(self)(sum(buckets.values()), total, buckets)

    def quantile(self, q: float) -> float:
        """The value below which a share `q` of the values lies; NaN when empty."""
        rank, seen = q * (self.count - 1), 0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen > rank:
                return _middle(index)
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
        """From JSON form; raises `ValueError` where its figures contradict each other."""
        buckets = {int(index): _count(count) for index, count in data["buckets"].items()}
        count, total = _count(data["count"]), float(data["sum"])
        if count != sum(buckets.values()):
            raise ValueError("a histogram's buckets do not add up to its count")
        if not all(_FIRST <= index <= _LAST for index in buckets):
            raise ValueError("a histogram has a bucket for values it never holds")
        # Each value lies in its bucket, so the sum is known to within one bucket's width: a peer
        # may misreport its times, but not a mean that its own quantiles deny.
        most = sum(n * math.exp(index * _LOG_GAMMA) for index, n in buckets.items())
        if not most / _GAMMA * (1 - 1e-6) <= total <= most * (1 + 1e-6):
            raise ValueError("a histogram's sum is not the sum of its buckets")
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
        if sample.whole:
            for name in PARTS:
                self.parts.setdefault(name, Histogram()).add(getattr(sample.parts, name))

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

    def scaled(self, share: float) -> Self:
        """As if only `share` of the requests, 0…1, had been seen."""
        return type(self)(
            {outcome: round(count * share) for outcome, count in self.outcomes.items()},
            self.total.scaled(share),
            {name: histogram.scaled(share) for name, histogram in self.parts.items()},
            round(self.bytes_up * share),
            round(self.bytes_down * share),
            round(self.probes * share),
        )

    @property
    def count(self) -> int:
        """Requests of any outcome."""
        return sum(self.outcomes.values())

    def mean_parts(self) -> Parts:
        """Mean seconds by part over the requests whose time is accounted for; all 0 for none."""
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

    def scaled(self, share: float) -> Self:
        """As if only `share` of everything, 0…1, had been seen."""
        return type(self)(
            {rung: window.scaled(share) for rung, window in self.rungs.items()},
            self.rtt.scaled(share),
            self.seconds_per_byte.scaled(share),
        )

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
        """From JSON form, as a peer sent it; raises `InvalidMessage` on anything else."""
        try:
            return cls(
                {str(rung): _load_rung(window) for rung, window in data["rungs"].items()},
                Histogram.load(data["rtt"]),
                Histogram.load(data["secondsPerByte"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InvalidMessage(f"the samples are not a window: {error!r}") from error


def _middle(index: int) -> float:
    """The value that stands for a bucket: within 2 % of every value in it."""
    return 2 * math.exp(index * _LOG_GAMMA) / (1 + _GAMMA)


def _load_rung(window: Mapping[str, Any]) -> RungWindow:
    outcomes = {name: _count(count) for name, count in window["outcomes"].items()}
    if not outcomes.keys() <= set(get_args(Outcome)):
        raise ValueError(f"outcomes are {get_args(Outcome)}, not {sorted(outcomes)}")
    return RungWindow(
        outcomes,
        Histogram.load(window["total"]),
        {name: Histogram.load(h) for name, h in window["parts"].items() if name in PARTS},
        _count(window["bytesUp"]),
        _count(window["bytesDown"]),
        _count(window["probes"]),
    )


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_COUNT:
        raise ValueError(f"{value!r:.40} is not a count")
    return value


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
    felt: bool = False


class LinkEstimator:
    """Estimates a link from the requests that cross it; the newest time counts most.

    An observation stands for the time since the one before it, not for one request: on a link that
    collapsed requests get rare exactly when they matter, and counted by number the many from before
    would outvote them for several half-lives. Weighed by time the new link has the majority after
    one half-life, at any request rate, and a single stalled request never has it for longer.

    Args:
        half_life: seconds after which time weighs half.
        horizon: seconds after which an observation is forgotten.
    """

    def __init__(self, half_life: float = 1.0, horizon: float = 30.0) -> None:
        self._half_life, self._horizon = half_life, horizon
        self._trips: deque[_Crossing] = deque(maxlen=64)
        # Crossings whose bytes took a good part of their time, and those that say little more than
        # the round trip: kept apart, so that many small requests never push out the few that tell.
        self._felt: deque[_Crossing] = deque(maxlen=64)
        self._unfelt: deque[_Crossing] = deque(maxlen=8)

    def observe(self, size: int, seconds: float, now: float) -> bool:
        """Record a request that moved `size` bytes and spent `seconds` on the network.

        Returns:
            Whether its bytes took enough of that time to tell of the link's rate.
        """
        trip = min((one.seconds for one in itertools.islice(reversed(self._trips), 8)), default=0.0)
        felt = seconds - trip >= _FELT * seconds
        (self._felt if felt else self._unfelt).append(_Crossing(now, size, seconds, felt))
        return felt

    def observe_trip(self, seconds: float, now: float) -> None:
        """Record the round trip of a request too small to feel the bandwidth."""
        self._trips.append(_Crossing(now, 0, seconds))

    def age(self, now: float) -> float:
        """Seconds since a crossing was last observed; infinity if never."""
        return min(self.felt_age(now), now - self._unfelt[-1].at if self._unfelt else math.inf)

    def felt_age(self, now: float) -> float:
        """Seconds since a crossing told of the rate; infinity if none ever did."""
        return now - self._felt[-1].at if self._felt else math.inf

    def link(self, now: float) -> Link | None:
        """The link now; None where nothing was observed within the horizon."""
        known = heapq.merge(self._felt, self._unfelt, key=lambda one: one.at)
        crossings = self._weighed(known, now)
        if not crossings:
            return None
        trips = self._weighed(self._trips, now)
        # Half the fastest crossing stands in until a tiny request has been timed; a trip can't
        # take longer than a crossing that contains it. Only the newest crossings can say so: a
        # round trip may have grown since the older ones.
        since = crossings[-1][0].at - 5 * self._half_life
        least = min(c.seconds for c, _ in crossings if c.at >= since)
        # The quickest of the last few empty trips: what a busy machine adds comes and goes, and a
        # round trip taken too long leaves no time for the bytes, which then seem to cost nothing.
        lately = [t.seconds for t, _ in trips if t.at >= trips[-1][0].at - 6 * self._half_life]
        trip = min(lately, default=least / 2)
        rtt = min(trip, least)
        # What a few bytes took beyond the round trip may be no more than how much round trips
        # vary: taken at its word, a lucky one would promise gigabits and send the largest rung
        # over a thin link.
        varies = _median((abs(t.seconds - trip), w) for t, w in trips) if trips else 0.0
        told = max(varies, trip - rtt, 1e-6)
        rates = [(max(c.seconds - rtt, told) / max(c.size, 1), w, c.felt) for c, w in crossings]
        # A crossing whose bytes were not felt gives no rate but a bound on it: it speaks for what
        # the others saw where that is within the bound, and against a single stall where not.
        seen = [(rate, weight) for rate, weight, felt in rates if felt]
        common = _median(seen) if seen else math.inf
        votes = ((rate if felt else min(rate, common), weight) for rate, weight, felt in rates)
        return Link(rtt, _median(votes))

    def _weighed(self, seen: Iterable[_Crossing], now: float) -> list[tuple[_Crossing, float]]:
        """Observations within the horizon, oldest first, each with the time it stands for."""
        weighed: list[tuple[_Crossing, float]] = []
        before = -math.inf
        for one in seen:
            begin = max(before, one.at - self._horizon) if weighed else one.at - one.seconds
            if now - one.at <= self._horizon:
                weight = self._decayed(one.at, now) - self._decayed(begin, now)
                weighed.append((one, max(weight, 1e-12)))
            before = one.at
        return weighed

    def _decayed(self, at: float, now: float) -> float:
        return float(0.5 ** ((now - at) / self._half_life))


def _median(weighted: Iterable[tuple[float, float]]) -> float:
    """Weighted median."""
    ordered = sorted(weighted)
    half, seen = sum(weight for _, weight in ordered) / 2, 0.0
    for value, weight in ordered:
        seen += weight
        if seen >= half:
            return value
    return ordered[-1][0]
