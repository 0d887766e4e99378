"""The slow hand of every deployment: what is remembered of it between two windows.

`dovetail.control` decides; here is only which state belongs to which deployment, and how a hand
goes on from a plan that an earlier operator left or that another spec made. A generation is never
used twice for two plans: whatever differs from the plan in force gets the next one.
"""

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from dovetail.api import HybridDeployment
from dovetail.control import State, Terms, start, step, terms
from dovetail.decide import Decision
from dovetail.ladder import Conditions
from dovetail.measure import Window
from dovetail.plan import Plan
from dovetail_operator.record import Record

_LATELY: Final = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Hand:
    """One class's slow hand.

    Attributes:
        terms: what it may do.
        state: what it remembers.
        seen: when its devices were last heard of, by the monotonic clock; -inf for never.
    """

    terms: Terms
    state: State
    seen: float = -math.inf

    @property
    def measured(self) -> bool:
        """Whether there was traffic lately; long enough that single requests do not flap."""
        return time.monotonic() - self.seen < _LATELY


def resume(terms: Terms, plan: Plan | None) -> State:
    """The state that goes on from the plan in force; its plan is that very one where it may be.

    Args:
        terms: what may be done now.
        plan: the plan in force; None for none yet.
    """
    if plan is None:
        return start(terms, 1)
    fresh = start(terms, plan.generation + 1)
    if plan.bundle != terms.bundle:
        return fresh
    if terms.pinned is None and plan.default in terms.ladder.ids():
        fresh = State(terms.plan(plan.generation + 1, plan.default, Conditions()))
    unpriced = {"generation", "ladder"}
    same = fresh.plan.model_dump(exclude=unpriced) == plan.model_dump(exclude=unpriced)
    return State(plan) if same and fresh.plan.allowed == plan.allowed else fresh


class Hands:
    """All slow hands; safe to use from several threads."""

    def __init__(self) -> None:
        self._hands: dict[str, dict[str, Hand]] = {}
        self._versions: dict[str, tuple[object, ...]] = {}
        self._lock = threading.Lock()

    def ensure(
        self, deployment: HybridDeployment, generation: int, record: Record
    ) -> dict[str, Hand]:
        """The hands of a deployment as its spec and bundle want them; returns them by class.

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
            made[item.name] = Hand(own, resume(own, self._plan(key, item.name, record)))
        with self._lock:
            for name, hand in self._hands.get(key, {}).items():
                if name in made:  # the story goes on, whatever the spec became
                    state = replace(made[name].state, moves=hand.state.moves)
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
                window = windows.get(name, Window())
                state, decision = step(hand.terms, hand.state, window, now)
                if state.plan != hand.state.plan:
                    changed[name] = decision
                seen = time.monotonic() if window.rungs else hand.seen
                self._hands[key][name] = Hand(hand.terms, state, seen)
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
