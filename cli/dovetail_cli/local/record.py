"""What was seen of the running edges: for the screen now, for the summary and the report later.

Each edge counts everything itself and says so in `GET /dovetail/status`; that works while the cloud
is gone, which is when a person looks. Counts only rise, so two looks give what happened between
them, and an edge that was started again (its counts fall) goes on where its predecessor ended.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dovetail.control import Move
from dovetail.errors import Unavailable
from dovetail.measure import Histogram, RungWindow, Window
from dovetail_cli.local.client import EdgeClient

_KEPT = 60  # looks that recent figures can be taken from
_MOST_POINTS = 200_000  # hours of requests; the oldest are forgotten


@dataclass(frozen=True, slots=True)
class Point:
    """One request, or the median of several, as the caller saw it.

    Attributes:
        at: when it was answered, seconds since the epoch.
        seconds: what the caller waited.
        rung: the rung that answered; empty where it failed.
        degraded: whether the device answered because the cloud did not.
        failed: why it failed; None where it did not.
        agrees: whether the top answer is the whole model's; None where there is none.
        right: whether it is the label; None without labels.
        error: max|a-b| / max|a| against the whole model, worst output.
    """

    at: float
    seconds: float
    rung: str
    degraded: bool = False
    failed: str | None = None
    agrees: bool | None = None
    right: bool | None = None
    error: float | None = None


@dataclass
class Record:
    """Everything seen of one edge.

    Attributes:
        name: its device class.
        status: its last status; empty before the first and while it does not answer.
        points: requests, oldest first.
        driven: whether a driver adds the points; else they are medians between two looks.
    """

    name: str
    status: dict[str, Any] = field(default_factory=dict)
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=_MOST_POINTS))
    driven: bool = False
    _before: Window = field(default_factory=Window)
    _totals: Window = field(default_factory=Window)
    _looks: deque[tuple[float, Window]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _moves: dict[tuple[float, str], Move] = field(default_factory=dict)

    @property
    def totals(self) -> Window:
        """Everything since the beginning."""
        return merged((self._before, self._totals))

    @property
    def moves(self) -> list[Move]:
        """Every change of the rung in use, by either hand, oldest first."""
        return [self._moves[key] for key in sorted(self._moves)]

    def look(self, client: EdgeClient, now: float) -> None:
        """Ask the edge; one that does not answer has an empty status."""
        try:
            status = client.status()
        except Unavailable:
            status = {}
        self.take(status, now)

    def take(self, status: dict[str, Any], now: float) -> None:
        """Take in what an edge says of itself, `now` in seconds since the epoch."""
        self.status = status
        if not status:
            return
        totals = Window.load(self.status["totals"])
        if totals.count < self._totals.count:
            self._before = self.totals
        self._totals = totals
        for move in (Move.model_validate(item) for item in self.status["moves"]):
            self._moves[move.at, move.target] = move
        if not self.driven and self._looks:
            self._sample(difference(self.totals, self._looks[-1][1]), now)
        self._looks.append((now, self.totals))

    def recent(self, seconds: float) -> Window:
        """What happened in about the last `seconds`."""
        if not self._looks:
            return Window()
        last = self._looks[-1][0]
        old = next((w for at, w in self._looks if at >= last - seconds), Window())
        return difference(self.totals, old)

    def _sample(self, window: Window, now: float) -> None:
        for rung, seen in window.rungs.items():
            if seen.total.count:
                self.points.append(Point(now, seen.total.quantile(0.5), rung))


def all_moves(taken: Iterable[Move], planned: Iterable[Move]) -> list[Move]:
    """Moves of both hands by time, each once.

    Args:
        taken: by an edge; those that only follow a plan have the reason `Plan`.
        planned: by the slow hand, with the figures that made it.
    """
    own = [move for move in taken if move.reason != "Plan"]
    return sorted([*own, *planned], key=lambda move: move.at)


def merged(windows: Iterable[Window]) -> Window:
    """All windows added up."""
    total = Window()
    for window in windows:
        total.merge(window)
    return total


def overall(window: Window) -> RungWindow:
    """All rungs of a window as one."""
    total = RungWindow()
    for rung in window.rungs.values():
        total.merge(rung)
    return total


def difference(new: Window, old: Window) -> Window:
    """What `new` counted beyond `old`, an earlier state of it; rungs with nothing new are left out.

    The link's histograms are left empty: an edge reports its link elsewhere.
    """
    rungs = {}
    for name, now in new.rungs.items():
        then = old.rungs.get(name, RungWindow())
        left = RungWindow(
            {k: v - then.outcomes.get(k, 0) for k, v in now.outcomes.items()},
            _less(now.total, then.total),
            {k: _less(v, then.parts.get(k, Histogram())) for k, v in now.parts.items()},
            now.bytes_up - then.bytes_up,
            now.bytes_down - then.bytes_down,
            now.probes - then.probes,
        )
        if left.count:
            rungs[name] = left
    return Window(rungs)


def _less(new: Histogram, old: Histogram) -> Histogram:
    left = {k: v - old.buckets.get(k, 0) for k, v in new.buckets.items()}
    return Histogram(new.count - old.count, new.sum - old.sum, {k: v for k, v in left.items() if v})
