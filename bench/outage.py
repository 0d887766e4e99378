"""The cloud vanishes: what a request waits, and what later ones wait.

An edge that sends its crossing tensors over a shaped link; the link then goes black (connections
stay open, nothing arrives). The first requests after that must be answered by the device by their
deadline; once the breaker is open, later ones must take what the device takes alone. Those are
timed in turn with a second edge that is told to stay alone (`edge` pinned, same bundle, same
slowdown). Each outage starts from a cloud that answers again.
"""

import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from bench import networks, rig, stats
from bench.report import Context, Figure, Result, Table
from bench.stats import Floats
from dovetail_edge.request import Answer
from dovetail_edge.session import Session

_NETWORK, _LINK, _SLOWDOWN = "page-orientation", "20mbit,20ms", 2.0
_SPARE = 4.0  # the deadline over what the device takes alone
_LATER = 12
_PATIENCE = 60.0


@dataclass
class _Found:
    """What outages were seen to do."""

    deadline: float
    over: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    unbroken: int = 0
    failed: int = 0


def run(context: Context) -> Result:
    """Let the cloud vanish again and again."""
    outages = 4 if context.quick else 20
    cut = networks.cut(_NETWORK)
    crossing = [rung for rung in cut.ladder if 0 < rung.cut < len(cut.bundle.config.segments)]
    rung = min(crossing or [r for r in cut.ladder if r.crosses], key=lambda r: r.bytes_up).id
    with rig.pool(context) as ray, rig.ShapedLink(ray) as link:
        plan = rig.plan(cut.bundle, cut.costs, rung)
        rig.deploy(ray, [(cut.bundle, plan)])
        link.apply(_LINK)
        open_session = partial(Session, cut.bundle, endpoint=link.endpoint, slowdown=_SLOWDOWN)
        alone_plan = rig.plan(cut.bundle, cut.costs, "edge")
        with open_session(plan) as edge, open_session(alone_plan) as alone:
            row = dict(cut.rows[0])
            device = [alone.infer_detailed(row).sample.total for _ in range(15)]
            found = _Found(_SPARE * float(np.median(device[5:])) + 0.05)
            for number in range(outages):
                link.apply(_LINK)
                _wait_for_cloud(edge, row)
                link.apply("down")
                _outage(found, edge, alone, row)
                context.say(f"outage {number + 1}/{outages}: {found.over[-1] * 1e3:+.1f} ms")
    return _result(found, rung)


def _wait_for_cloud(edge: Session, row: dict[str, np.ndarray]) -> None:
    """Ask until the tail answers again."""
    stop, good = time.monotonic() + _PATIENCE, 0
    while good < 3:
        if time.monotonic() > stop:
            raise RuntimeError(f"the tail was not used again within {_PATIENCE:g} s")
        answer = edge.infer_detailed(row)
        good = 0 if answer.degraded else good + 1
        time.sleep(0.05 if answer.degraded else 0.0)


def _outage(found: _Found, edge: Session, alone: Session, row: dict[str, np.ndarray]) -> None:
    """The requests after the link went black."""
    for _ in range(5):
        answer = _asked(found, edge, row)
        if answer is None:
            return
        if not answer.degraded:
            found.unbroken += 1  # its answer was on the way already
            continue
        found.over.append(answer.sample.total - found.deadline)
        if edge.status().breaker == "open":
            break
    for _ in range(_LATER):
        answer = _asked(found, edge, row)
        found.alone.append(alone.infer_detailed(row).sample.total)
        if answer is not None:
            found.later.append(answer.sample.total)


def _asked(found: _Found, edge: Session, row: dict[str, np.ndarray]) -> Answer | None:
    try:
        return edge.infer_detailed(row, deadline=found.deadline)
    except Exception:  # noqa: BLE001  any error counts as a failed request
        found.failed += 1
        return None


def _result(found: _Found, rung: str) -> Result:
    over: Floats = np.array(found.over) * 1e3
    later, alone = np.array(found.later), np.array(found.alone)
    rounds = min(len(later), len(alone))
    ratio = stats.ratio(later[:rounds], alone[:rounds])
    worst = float(over.max())
    return Result(
        figures=(
            Figure.of(
                f"first requests of an outage: answer after the deadline, worst of {len(over)}",
                stats.Interval.exact(worst),
                "ms",
                10.0,
                f"deadline {found.deadline * 1e3:.0f} ms; rung {rung}, device {_SLOWDOWN:g}x "
                f"slower, {_LINK}; negative is before the deadline",
            ),
            Figure.of("the same, p50", stats.interval(over), "ms", 10.0),
            Figure.of("later requests over edge-only, p50", ratio, "x", 1.05),
            Figure.of("failed requests", stats.Interval.exact(found.failed), "", 0.0),
        ),
        tables=(
            Table(
                "Requests of an outage, ms",
                ("requests", "count", "p50", "worst"),
                (
                    ("first ones, after the deadline", len(over), stats.median(over), worst),
                    ("later ones", len(later), stats.median(later) * 1e3, float(later.max()) * 1e3),
                    ("edge-only", len(alone), stats.median(alone) * 1e3, float(alone.max()) * 1e3),
                ),
            ),
        ),
        data={"overMs": over, "later": later, "alone": alone, "deadline": found.deadline},
        method=(__doc__ or "").partition("\n\n")[2].strip(),
    )
