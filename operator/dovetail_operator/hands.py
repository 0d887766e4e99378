"""The slow hand of every deployment: what is remembered of it between two windows.

`dovetail.control` decides; here is only which state belongs to which deployment, and how a hand
goes on from a plan that an earlier operator left or that another spec made. A generation is never
used twice for two plans: whatever differs from the plan in force gets a higher one. What another
spec made, or the first one, is at the clock or above, so that a deployment that is made again, or
restored, stands above what devices and replicas still hold of before (ADR 0011).
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from dovetail.api import HybridDeployment
from dovetail.control import Move, State, Terms, start, step, terms
from dovetail.decide import Decision
from dovetail.ladder import Conditions
from dovetail.measure import Window
from dovetail.plan import Plan
from dovetail_operator.figures import EVERY, Facts, Figures, are_news, facts, measured
from dovetail_operator.record import Record

_LATELY: Final = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Hand:
    """One class's slow hand.

    Attributes:
        terms: what it may do.
        state: what it remembers.
        facts: what the bundle says of each rung.
        seen: when its devices were last heard of, by the monotonic clock; -inf for never.
        recent: what they saw since the figures were renewed.
        since: since when that is, seconds since the epoch.
        figures: what was measured, for people; None before there was traffic.
    """

    terms: Terms
    state: State
    facts: Mapping[str, Facts]
    seen: float = -math.inf
    recent: Window = field(default_factory=Window)
    since: float = 0.0
    figures: Figures | None = None

    @property
    def measured(self) -> bool:
        """Whether there was traffic lately; long enough that single requests do not flap."""
        return time.monotonic() - self.seen < _LATELY

    def turned(self, window: Window, now: float) -> tuple["Hand", Decision]:
        """One window further."""
        state, decision = step(self.terms, self.state, window, now)
        since, recent = self.since, self.recent
        if decision.moved or now - since > 2 * EVERY:  # what is older says nothing of now
            since, recent = now, Window()
        recent.merge(window)
        figures = measured(recent, decision.rung, decision, now)
        if figures is None or not are_news(self.figures, figures):
            figures = self.figures
        else:
            since, recent = now, Window()
        seen = time.monotonic() if window.rungs else self.seen
        return Hand(self.terms, state, self.facts, seen, recent, since, figures), decision


def resume(terms: Terms, plan: Plan | None, now: float) -> State:
    """The state that goes on from the plan in force; its plan is that very one where it may be.

    Args:
        terms: what may be done now.
        plan: the plan in force; None for none yet.
        now: seconds since the epoch.
    """
    if plan is None:
        return start(terms, int(now))
    generation = max(plan.generation + 1, int(now))
    fresh = start(terms, generation)
    if plan.bundle != terms.bundle:
        return fresh
    known = _priced(terms, plan)
    stays = terms.pinned is None and plan.default in terms.ladder.ids()
    default = plan.default if stays else fresh.plan.default
    fresh = State(terms.plan(generation, default, known), published=known, conditions=known)
    unpriced = {"generation", "ladder"}
    same = fresh.plan.model_dump(exclude=unpriced) == plan.model_dump(exclude=unpriced)
    return replace(fresh, plan=plan) if same and fresh.plan.allowed == plan.allowed else fresh


def _priced(terms: Terms, plan: Plan) -> Conditions:
    """The speeds that a plan's costs were corrected to.

    A device that leans on the cloud runs no head, so a hand that forgot how slow it is would not
    learn it again, and send it back to work alone.
    """
    pairs = [(r, terms.ladder.get(r.id)) for r in plan.ladder if r.id in terms.ladder.ids()]

    def speed(part: str) -> float:
        usual = sum(getattr(profiled, part) for _, profiled in pairs)
        return sum(getattr(rung, part) for rung, _ in pairs) / usual if usual > 0 else 1.0

    return Conditions(edge=speed("head"), cloud=speed("tail"))


class Hands:
    """All slow hands; safe to use from several threads."""

    def __init__(self) -> None:
        self._hands: dict[str, dict[str, Hand]] = {}
        self._versions: dict[str, tuple[object, ...]] = {}
        self._lock = threading.Lock()

    def ensure(
        self,
        deployment: HybridDeployment,
        generation: int,
        record: Record,
        moves: Mapping[str, Sequence[Move]] = MappingProxyType({}),
    ) -> dict[str, Hand]:
        """The hands of a deployment as its spec and bundle want them; returns them by class.

        Args:
            deployment: the resource.
            generation: of its spec.
            record: its live version.
            moves: moves that an earlier operator told of, by class, for a hand that begins.

        Raises:
            ManifestError: privacy, codecs and quality leave no rung.
            UnknownRung: the pinned rung is not on the ladder.
            BundleError: the record does not hold a bundle's description.
        """
        key, version = deployment.key, (generation, record.bundle, record.partition)
        with self._lock:
            if self._versions.get(key) == version:
                return dict(self._hands[key])
        config, costs = record.parse()
        made: dict[str, Hand] = {}
        for item in deployment.spec.edge.classes:
            own = terms(deployment, item, bundle=record.bundle, config=config, costs=costs)
            state = resume(own, self._plan(key, item.name, record), time.time())
            told = moves.get(item.name, ())
            if told:
                state = replace(state, moves=tuple(told), moved_at=told[-1].at)
            made[item.name] = Hand(own, state, facts(config, own.ladder))
        with self._lock:
            for name, hand in self._hands.get(key, {}).items():
                if name in made:  # the story goes on, whatever the spec became
                    state = replace(
                        made[name].state, moves=hand.state.moves, moved_at=hand.state.moved_at
                    )
                    made[name] = replace(made[name], state=state, seen=hand.seen)
            self._hands[key], self._versions[key] = made, version
            return dict(made)

    def get(self, key: str) -> Mapping[str, Hand]:
        """The hands of a deployment; none before it has a bundle."""
        return self._hands.get(key, {})

    def turn(self, key: str, windows: Mapping[str, Window], now: float) -> dict[str, Decision]:
        """Step every class of a deployment; returns the decisions that change its plan."""
        changed: dict[str, Decision] = {}
        with self._lock:
            for name, hand in self._hands.get(key, {}).items():
                further, decision = hand.turned(windows.get(name, Window()), now)
                if further.state.plan != hand.state.plan:
                    changed[name] = decision
                self._hands[key][name] = further
        return changed

    def drop(self, key: str) -> None:
        """Forget a deployment."""
        with self._lock:
            self._hands.pop(key, None)
            self._versions.pop(key, None)

    def _plan(self, key: str, name: str, record: Record) -> Plan | None:
        """The newest plan known: what was decided here, or what the record holds."""
        known = self._hands.get(key, {}).get(name)
        written = record.plan(name)
        if known is None:
            return written
        if written is not None and written.generation > known.state.plan.generation:
            return written
        return known.state.plan
