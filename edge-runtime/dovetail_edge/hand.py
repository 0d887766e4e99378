"""The fast hand: takes another allowed rung when this device's own link says so.

The plan's default rung is the slow hand's choice for a whole device class; one device's link can
collapse within a second. The fast hand therefore asks the same `decide`, with a wider hysteresis,
but only while its own link estimate is fresh, and never where the plan is pinned.

It compares rungs by model under the link of this moment, with speeds corrected by its own recent
requests. Measured totals are left out on purpose: they are as old as the window, so after a link
changed they would defend the rung in use and praise the ones last tried on the old link.

Pure but for a lock: every method takes the time, on one monotonic clock.
"""

import math
import threading
from collections import deque
from dataclasses import dataclass, replace
from time import perf_counter

from dovetail.decide import Decision, Policy, View, decide, observe
from dovetail.ladder import Conditions, Ladder, Parts, RungCost
from dovetail.measure import Link, LinkEstimator, Sample, Window
from dovetail_edge.route import Route, Routes

FRESH = 5.0  # seconds a link estimate is believed
POLICY = Policy(hysteresis=0.2, cooldown=3.0)
_STRETCH = 5.0  # seconds of samples in each of the two halves of the recent window
_ENOUGH = 3  # crossings before the link is believed
_PROBE_EVERY = 100
_BEARABLE = 3.0


@dataclass(frozen=True, slots=True)
class Shift:
    """A change of the rung in use.

    Attributes:
        source: the rung left; None where there was none.
        target: the rung taken; None where privacy left none.
        reason: why, one word.
        message: why, with figures.
        seconds: how long the switch took.
    """

    source: str | None
    target: str | None
    reason: str
    message: str
    seconds: float


class Hand:
    """Decides which rung this device uses.

    Args:
        routes: the first plan's routes.
        now: seconds.

    Attributes:
        route: the rung in use; None where privacy leaves none. Requests take this one pointer.
        routes: the routes of the plan in use.
    """

    def __init__(self, routes: Routes, now: float) -> None:
        self.routes, self.route = routes, routes.start
        self._estimator = LinkEstimator()
        self._lock = threading.Lock()
        self._moved_at, self._turned_at = -math.inf, now
        self._halves: deque[Window] = deque((Window(), Window()), maxlen=2)
        self._conditions = _first_guess(routes)
        self._count = self._probes = self._crossings = 0

    @property
    def rung(self) -> str | None:
        """Id of the rung in use."""
        return self.route.rung.id if self.route is not None else None

    def adopt(self, routes: Routes, now: float) -> Shift | None:
        """Take over a newer plan; the rung stays unless the plan's default is another one.

        A new default is chosen from what a pool saw some seconds ago. While this device's own view
        of its link is fresh, it weighs the default by that at once, without a cooldown: else a plan
        that was overtaken by a collapse would send a few requests back into it.
        """
        with self._lock:
            same = routes.plan.default == self.routes.plan.default and not routes.plan.pinned
            target = routes.by_rung.get(self.rung or "") if same else None
            self.routes, self._conditions = routes, _first_guess(routes)
            start = routes.start
            if target is None and start is not None and not routes.plan.pinned:
                target = routes.by_rung[self._decide(start.rung.id, now, -math.inf).rung]
            message = f"plan {routes.plan.generation} starts from {routes.plan.default}"
            return self._shift(target or start, "Plan", message, now, perf_counter())

    def observe(self, sample: Sample, rows: int, now: float) -> None:
        """Fold in one request; its costs are taken per row, as a ladder's are."""
        parts = sample.parts
        per_row = replace(parts, head=parts.head / rows, tail=parts.tail / rows)
        with self._lock:
            if now - self._turned_at > _STRETCH:
                self._halves.append(Window())
                self._turned_at = now
            self._halves[-1].add(replace(sample, parts=per_row))

    def crossed(self, size: int, seconds: float, now: float) -> bool:
        """Record that `size` bytes took `seconds` on the network.

        Returns:
            Whether the bytes took enough of that to tell of the rate; never for the first crossing,
            which meets everything cold and is not believed.
        """
        with self._lock:
            self._crossings += 1
            if self._crossings == 1:
                return False
            return self._estimator.observe(size, seconds, now)

    def tripped(self, seconds: float, now: float) -> None:
        """Record the round trip of an empty request."""
        with self._lock:
            self._estimator.observe_trip(seconds, now)

    def link(self, now: float) -> Link | None:
        """The link, if it was seen within the last seconds."""
        with self._lock:
            return self._link(now)

    def rate_age(self, now: float) -> float:
        """Seconds since a crossing last told of the link's rate."""
        with self._lock:
            return self._estimator.felt_age(now)

    def look(self, now: float) -> Shift | None:
        """Decide; returns the shift where another rung is taken."""
        with self._lock:
            if self.route is None:
                return None
            decision = self._decide(self.route.rung.id, now, self._moved_at)
            if self.routes.plan.pinned:
                return None
            begin = perf_counter()
            target = self.routes.by_rung[decision.rung]
            return self._shift(target, decision.reason, decision.message, now, begin)

    def recent(self) -> Window:
        """What was seen in the last seconds, per row."""
        with self._lock:
            return self._recent()

    def expected(self, rung: RungCost, rows: int) -> Parts:
        """Seconds a request on a rung is expected to take by part, as last estimated."""
        parts = rung.predict(self._conditions)
        return replace(parts, head=parts.head * rows, tail=parts.tail * rows)

    def probe(self, deadline: float | None, rows: int) -> Route | None:
        """For one request in a hundred, another rung to learn about; None for the rest.

        Only where the device can answer alone if the probe is late, and only rungs that are
        expected to answer within the deadline, or where there is none within three times what
        the rung in use takes; they take turns.
        """
        self._count += 1  # a lost count between threads makes probes rarer, never more frequent
        plan = self.routes.plan
        if self._count % _PROBE_EVERY or plan.pinned or plan.fallback != "Local" or not self.route:
            return None
        limit = deadline or _BEARABLE * self.expected(self.route.rung, rows).total
        others = [
            route
            for route in self.routes.by_rung.values()
            if route.rung.id != self.rung and self.expected(route.rung, rows).total < limit
        ]
        self._probes += 1
        return others[self._probes % len(others)] if others else None

    def _decide(self, rung: str, now: float, moved_at: float) -> Decision:
        ladder = Ladder(rungs=tuple(route.rung for route in self.routes.by_rung.values()))
        view = observe(ladder, self._recent(), self._link(now), POLICY, self._conditions)
        self._conditions = view.conditions
        modelled = View(view.conditions, view.link_known)
        return decide(ladder, modelled, rung, POLICY, now=now, moved_at=moved_at)

    def _recent(self) -> Window:
        window = Window()
        for half in self._halves:
            window.merge(half)
        return window

    def _link(self, now: float) -> Link | None:
        fresh = self._estimator.age(now) < FRESH and self._crossings >= _ENOUGH
        return self._estimator.link(now) if fresh else None

    def _shift(
        self, target: Route | None, reason: str, message: str, now: float, begin: float
    ) -> Shift | None:
        """Swap the pointer; `begin` is when the target was known, on the performance counter."""
        source, self.route = self.rung, target
        seconds = perf_counter() - begin
        if source == self.rung:  # the same rung of another plan is no move
            return None
        self._moved_at = now
        return Shift(source, self.rung, reason, message, seconds)


def _first_guess(routes: Routes) -> Conditions:
    """Conditions before any request: the device's speed is what its warm-up took.

    Kept on where no request shows it: on the rung `cloud` no segment runs here, and a device that
    was forgotten to be slow would be moved to `edge`.
    """
    deepest = max(routes.by_rung.values(), key=lambda route: route.rung.head, default=None)
    if deepest is None or deepest.rung.head <= 0:
        return Conditions()
    return Conditions(edge=deepest.engine.head(deepest.rung.cut) / deepest.rung.head or 1.0)
