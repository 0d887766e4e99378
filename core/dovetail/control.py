"""The slow hand as values: from a window of samples to the next plan, with no client and no clock.

Whoever acts for a deployment, the local actuator now and an operator in a cluster, reads a window
from the ledger, calls `step`, and publishes the plan where it changed. Keeping that a pure function
means every move can be replayed from what was seen, and both actors move alike.

A plan carries costs corrected by samples, so that an edge's fast hand predicts from what this
device and this tail were seen to take rather than from the profiling machine. They are republished
only when they have drifted: each generation makes every edge fetch a plan.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from dovetail.api import HybridDeployment, Quality, Spec, seconds
from dovetail.bundle import BundleConfig, RungSpec
from dovetail.decide import Decision, Measured, Policy, View, decide, observe
from dovetail.errors import ManifestError
from dovetail.ladder import Conditions, CostProfile, Ladder, RungCost
from dovetail.measure import Link, Window
from dovetail.placement import EdgeClass
from dovetail.plan import Fallback, Plan, Privacy, allowed_by_privacy
from dovetail.tensor import Document

KEPT_MOVES = 10
_LINK_FRESH = 5.0  # seconds a link is believed after it was seen
_STEADY = 3  # windows whose median is taken for a speed
_WORSE_LINK = 1.5  # how much longer the rung in use takes on a link that collapsed
_DRIFT = 0.2  # relative change of a speed that is worth a new generation


class Move(Document):
    """A change of the default rung, for people.

    Attributes:
        at: seconds since the epoch.
        source: the rung left.
        target: the rung chosen.
        reason: why, one word.
        message: why, with figures.
    """

    at: float
    source: str
    target: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What stays while manifest and bundle stay: the rungs one class may use, and how.

    Attributes:
        deployment: `<namespace>/<name>`.
        bundle: manifest digest.
        device_class: whom it is for.
        ladder: allowed rungs with profiled costs.
        policy: when a move is worth it.
        pinned: the rung to keep with `adapt.mode: Manual`.
        paused: whether to keep what is in use.
        deadline: seconds a request may take.
        fallback: what to do when the cloud is gone.
        privacy: what may leave the device.
    """

    deployment: str
    bundle: str
    device_class: str
    ladder: Ladder
    policy: Policy
    pinned: str | None = None
    paused: bool = False
    deadline: float | None = None
    fallback: Fallback = "Local"
    privacy: Privacy = "Open"

    def plan(self, generation: int, default: str, at: Conditions) -> Plan:
        """The plan that starts from rung `default`, with costs as they are under `at`."""
        return Plan(
            generation=generation,
            deployment=self.deployment,
            bundle=self.bundle,
            device_class=self.device_class,
            default=default,
            ladder=tuple(_corrected(rung, at) for rung in self.ladder),
            pinned=self.pinned is not None or self.paused,
            deadline=self.deadline,
            fallback=self.fallback,
            privacy=self.privacy,
        )


@dataclass(frozen=True, slots=True)
class State:
    """What the slow hand remembers of one class.

    Attributes:
        plan: the plan last published.
        published: the conditions its costs were corrected to.
        conditions: the conditions now; kept where nothing was measured.
        speeds: the edge's and the cloud's speed in the last windows that measured any.
        link_at: when the link was last seen; -inf if never.
        moved_at: when the default rung last changed; -inf if never.
        moves: the last moves, newest last.
    """

    plan: Plan
    published: Conditions = field(default_factory=Conditions)
    conditions: Conditions = field(default_factory=Conditions)
    speeds: tuple[tuple[float, float], ...] = ()
    link_at: float = -math.inf
    moved_at: float = -math.inf
    moves: tuple[Move, ...] = ()


def terms(
    deployment: HybridDeployment,
    edge_class: EdgeClass,
    *,
    bundle: str,
    config: BundleConfig,
    costs: CostProfile,
) -> Terms:
    """Fix what a class may do.

    Raises:
        ManifestError: privacy, codecs and quality together leave no rung.
        UnknownRung: `split.rung` is not on the ladder that is left.
        BundleError: the cost profile belongs to another bundle.
    """
    spec = deployment.spec
    profiled = Ladder.of(config, costs)
    allowed = allowed_rungs(spec, config, profiled)
    if not allowed:
        raise ManifestError(
            f"{deployment.key}: privacy {spec.privacy}, wire.codecs and quality leave no rung of "
            f"{[rung.id for rung in config.rungs]}; allow more of them"
        )
    ladder = profiled.only(allowed)
    manual = spec.adapt.mode == "Manual"
    if manual and spec.split.rung is not None:
        ladder.get(spec.split.rung)
    return Terms(
        deployment=deployment.key,
        bundle=bundle,
        device_class=edge_class.name,
        ladder=ladder,
        policy=Policy(spec.adapt.hysteresis, seconds(spec.adapt.cooldown), spec.objective.quantile),
        pinned=spec.split.rung if manual else None,
        paused=spec.adapt.mode == "Paused",
        deadline=seconds(spec.objective.deadline) if spec.objective.deadline else None,
        fallback=edge_class.offline,
        privacy=spec.privacy,
    )


def allowed_rungs(spec: Spec, config: BundleConfig, ladder: Ladder) -> tuple[str, ...]:
    """Ids of the rungs that privacy, `wire.codecs` and `quality` permit."""
    inputs = {item.name for item in config.inputs}

    def permitted(rung: RungCost) -> bool:
        if not rung.crosses:
            return True
        reads_input = not inputs.isdisjoint(config.crossing(rung.cut))
        codecs = spec.wire.codecs
        return (
            allowed_by_privacy(spec.privacy, rung, reads_input=reads_input)
            and (codecs is None or rung.codec in codecs)
            and good_enough(spec.quality, config.rung(rung.id))
        )

    return tuple(rung.id for rung in ladder if permitted(rung))


def good_enough(quality: Quality, rung: RungSpec) -> bool:
    """Whether a rung's proof is within `quality`: agreement for scores, error for the rest."""
    if rung.top1 is not None:
        return rung.top1 >= quality.min_top1_agreement
    return rung.max_error <= quality.max_error


def start(terms: Terms, generation: int) -> State:
    """The state before anything was measured: alone if possible, or where a person pinned it."""
    decision = decide(
        terms.ladder, View(), "", terms.policy, now=0.0, moved_at=0.0, pinned=terms.pinned
    )
    return State(terms.plan(generation, decision.rung, Conditions()))


def step(terms: Terms, state: State, window: Window, now: float) -> tuple[State, Decision]:
    """One window of the slow hand.

    Args:
        terms: what stays.
        state: what is remembered.
        window: what the class's devices saw since the last step.
        now: seconds since the epoch.

    Returns:
        The next state, whose plan has a higher generation where it must be published, and the
        decision that led to it.
    """
    seen = window.link()
    link_at = now if seen is not None else state.link_at
    link = seen if seen is not None else _remembered(state, now)
    view = observe(terms.ladder, window, link, terms.policy, state.conditions)
    speeds = state.speeds
    if view.measured:
        speeds = (*speeds, (view.conditions.edge, view.conditions.cloud))[-_STEADY:]
        view = replace(view, conditions=_steady(view.conditions, speeds))
    current = state.plan.default
    if state.link_at > -math.inf and _collapsed(terms.ladder, current, state, view.conditions):
        view = replace(view, measured=_alone(terms.ladder, view.measured))
    decision = decide(
        terms.ladder,
        view,
        current,
        terms.policy,
        now=now,
        moved_at=state.moved_at,
        pinned=current if terms.paused else terms.pinned,
    )
    state = replace(state, conditions=view.conditions, speeds=speeds, link_at=link_at)
    if decision.moved:
        move = Move(
            at=now,
            source=current,
            target=decision.rung,
            reason=decision.reason,
            message=decision.message,
        )
        state = replace(state, moved_at=now, moves=_last((*state.moves, move)))
    if decision.moved or _drifted(state.published, view.conditions):
        plan = terms.plan(state.plan.generation + 1, decision.rung, view.conditions)
        state = replace(state, plan=plan, published=view.conditions)
    return state, decision


def _steady(seen: Conditions, speeds: Sequence[tuple[float, float]]) -> Conditions:
    """Speeds as the median of the last windows: one that met a busy machine says little."""
    edge, cloud = (median(values) for values in zip(*speeds, strict=True))
    return replace(seen, edge=edge, cloud=cloud)


def _collapsed(ladder: Ladder, current: str, state: State, now: Conditions) -> bool:
    """Whether the link became so much worse for the rung in use that old times do not hold.

    What was measured in the window in which a link collapses is mostly of before: taken at its
    word, it defends the rung in use for another window or two. (One that recovers does the rung no
    such favour.) By how much the rung's time changes, and not the link's rate: a fast link's rate
    is known badly, and matters to nobody.
    """
    if current not in ladder.ids():
        return False
    rung, old = ladder.get(current), state.conditions
    before = rung.predict(replace(now, bandwidth=old.bandwidth, rtt=old.rtt)).total
    after = rung.predict(now).total
    return after > _WORSE_LINK * before


def _alone(ladder: Ladder, measured: Mapping[str, Measured]) -> dict[str, Measured]:
    """The measurements that no link has a part in."""
    return {rung: own for rung, own in measured.items() if not ladder.get(rung).crosses}


def _remembered(state: State, now: float) -> Link | None:
    if now - state.link_at > _LINK_FRESH:
        return None
    return Link(state.conditions.rtt, 1.0 / state.conditions.bandwidth)


def _last(moves: Sequence[Move]) -> tuple[Move, ...]:
    return tuple(moves[-KEPT_MOVES:])


def _corrected(rung: RungCost, at: Conditions) -> RungCost:
    """A rung's costs as seconds of this device and this tail, not of the profiling machine."""
    return replace(
        rung,
        head=rung.head * at.edge,
        encode=rung.encode * at.edge,
        decode=rung.decode * at.cloud,
        tail=rung.tail * at.cloud,
    )


def _drifted(old: Conditions, new: Conditions) -> bool:
    pairs = ((old.edge, new.edge), (old.cloud, new.cloud))
    return any(abs(a - b) > _DRIFT * min(a, b) for a, b in pairs)
