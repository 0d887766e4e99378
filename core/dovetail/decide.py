"""Which rung, and why: one pure function for both hands.

The operator (slow hand) calls it once a window with what a whole pool measured; the edge (fast
hand) calls it with its own fresh view of the link. Values and a clock go in, a decision with its
reasons comes out, so every move can be replayed and explained.

Rungs are compared by measurement where it is fresh and by model where it is not. The model is
corrected by samples first: the device's and the cloud's speed are what the measured rungs say they
are, not what a data sheet or a `slowdown` setting says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from dovetail.ladder import Conditions, Ladder, Parts, RungCost
from dovetail.measure import Link, Window

_TELLING = 0.2  # share of the longest head or tail that a rung must run to tell its speed
_ENOUGH = 3  # requests before a rung's own measurement is believed over the model


class Reason(StrEnum):
    """Why a decision is what it is."""

    PINNED = "Pinned"
    BEST = "AlreadyBest"
    FASTER = "Faster"
    NOT_ALLOWED = "NotAllowed"
    HYSTERESIS = "GainTooSmall"
    COOLDOWN = "Cooldown"
    NO_LINK = "LinkUnknown"


@dataclass(frozen=True, slots=True)
class Policy:
    """How eager a hand is.

    Attributes:
        hysteresis: least relative gain that is worth a move.
        cooldown: seconds after a move in which no other is made.
        quantile: which quantile of measured latency is compared.
    """

    hysteresis: float = 0.1
    cooldown: float = 10.0
    quantile: float = 0.5


@dataclass(frozen=True, slots=True)
class Measured:
    """A rung's own fresh measurement: requests, seconds at the policy's quantile, mean parts."""

    count: int
    seconds: float
    parts: Parts


@dataclass(frozen=True, slots=True)
class View:
    """What is known now.

    Attributes:
        conditions: speeds and link, corrected by samples.
        link_known: whether the link was measured recently.
        measured: fresh measurements by rung id.
    """

    conditions: Conditions = field(default_factory=Conditions)
    link_known: bool = False
    measured: Mapping[str, Measured] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rung's expected seconds, and whether they were measured or computed."""

    rung: str
    seconds: float
    parts: Parts
    measured: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """The rung to use and everything that led to it.

    Attributes:
        rung: rung id to use from now on.
        moved: whether that differs from the current one.
        reason: why.
        message: the reason in a sentence with its figures.
        estimates: every rung that was compared, in ladder order.
        regret: expected seconds of `rung` over those of the best, minus 1.
    """

    rung: str
    moved: bool
    reason: Reason
    message: str
    estimates: tuple[Estimate, ...]
    regret: float


def observe(
    ladder: Ladder, window: Window, link: Link | None, policy: Policy, prior: Conditions
) -> View:
    """Turn a window of samples into a view: speeds from what was measured, link from `link`.

    Args:
        ladder: the allowed rungs with profiled costs.
        window: what was seen lately.
        link: the link now; None where unknown.
        policy: gives the quantile.
        prior: speeds to keep where nothing was measured.
    """
    measured = {
        rung: Measured(w.total.count, w.total.quantile(policy.quantile), w.mean_parts())
        for rung, w in window.rungs.items()
        if w.parts and rung in ladder.ids()
    }
    edge = _speed(ladder, measured, "head", prior.edge)
    cloud = _speed(ladder, measured, "tail", prior.cloud)
    crossing = [m for rung, m in measured.items() if ladder.get(rung).crosses]
    queue = min((m.parts.queue for m in crossing), default=prior.queue)
    bandwidth = 1.0 / max(link.seconds_per_byte, 1e-12) if link else prior.bandwidth
    conditions = Conditions(edge, cloud, bandwidth, link.rtt if link else prior.rtt, queue)
    return View(conditions, link is not None, measured)


def estimate(ladder: Ladder, view: View) -> tuple[Estimate, ...]:
    """Expected seconds of every rung."""
    return tuple(_estimate(rung, view) for rung in ladder.rungs)


def decide(
    ladder: Ladder,
    view: View,
    current: str,
    policy: Policy,
    *,
    now: float,
    moved_at: float,
    pinned: str | None = None,
) -> Decision:
    """Choose the rung for the next stretch of time.

    Args:
        ladder: the allowed rungs.
        view: what is known.
        current: the rung in use; it may have left the ladder.
        policy: how eager to be.
        now: clock, seconds.
        moved_at: when the last move was made, same clock.
        pinned: the rung a person fixed, if any.

    Returns:
        The decision; its `estimates` hold every rung compared.
    """
    estimates = estimate(ladder, view)
    by_id = {e.rung: e for e in estimates}
    best = min(estimates, key=lambda e: (e.seconds, e.rung != current))  # of equals, where it is

    def choose(rung: str, reason: Reason, message: str) -> Decision:
        regret = by_id[rung].seconds / best.seconds - 1 if best.seconds > 0 else 0.0
        return Decision(rung, rung != current, reason, message, estimates, regret)

    if pinned is not None:
        ladder.get(pinned)
        return choose(pinned, Reason.PINNED, f"{pinned} is pinned")
    if current not in by_id:
        target = best.rung if view.link_known else _without_link(ladder)
        return choose(target, Reason.NOT_ALLOWED, f"{current} is no longer on the ladder")
    if not view.link_known:
        return choose(current, Reason.NO_LINK, "the link was not measured lately")
    return _compare(by_id[current], best, policy, now - moved_at, choose_as=choose)


def _compare(
    here: Estimate,
    best: Estimate,
    policy: Policy,
    since: float,
    *,
    choose_as: Callable[[str, Reason, str], Decision],
) -> Decision:
    if best.rung == here.rung:
        return choose_as(here.rung, Reason.BEST, f"{here.rung} {_ms(here)} is the best rung")
    gain = 1 - best.seconds / here.seconds
    figures = f"{best.rung} {_ms(best)} against {here.rung} {_ms(here)}, {gain:.0%} less"
    if gain < policy.hysteresis:
        return choose_as(here.rung, Reason.HYSTERESIS, f"{figures}: below {policy.hysteresis:.0%}")
    if since < policy.cooldown:
        left = policy.cooldown - since
        return choose_as(here.rung, Reason.COOLDOWN, f"{figures}; next move in {left:.1f} s")
    return choose_as(best.rung, Reason.FASTER, figures)


def _estimate(rung: RungCost, view: View) -> Estimate:
    own = view.measured.get(rung.id)
    if own is not None and own.count >= _ENOUGH:
        return Estimate(rung.id, own.seconds, own.parts, measured=True)
    parts = rung.predict(view.conditions)
    return Estimate(rung.id, parts.total, parts, measured=False)


def _speed(ladder: Ladder, measured: Mapping[str, Measured], part: str, prior: float) -> float:
    """Measured over profiled seconds, over all measured rungs, each weighed by its requests.

    Rungs that run only a small piece there are left out: a piece of a few percent, with what every
    request costs besides, says twice the speed or half of it about the rest, and a device that was
    fast enough would look too slow to answer alone just when the link is gone.
    """
    most = max((getattr(rung, part) for rung in ladder), default=0.0)
    seen = expected = 0.0
    for rung_id, own in measured.items():
        profiled = getattr(ladder.get(rung_id), part)
        if profiled > _TELLING * most:
            seen += own.count * getattr(own.parts, part)
            expected += own.count * profiled
    return seen / expected if expected > 0 else prior


def _without_link(ladder: Ladder) -> str:
    """Where to stand when nothing is known of the link: alone if possible."""
    ids = ladder.ids()
    return "edge" if "edge" in ids else ids[0]


def _ms(e: Estimate) -> str:
    return f"{e.seconds * 1e3:.1f} ms ({'measured' if e.measured else 'predicted'})"
