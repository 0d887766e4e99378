"""Throughput under load: head and tail as a pipeline.

A device as fast as the cloud, a gigabit link, closed-loop clients. All-edge and all-cloud (the
uncut model, with each input codec the proof allows; the best of them counts) keep one side busy;
a cut that balances head, wire and tail keeps both. The balanced rung is taken from predictions: the
ladder's rung with the least max(head + encode, wire, decode + tail). Variants run in interleaved
rounds, each for a fixed time a round; a figure is answered requests per second over another's.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench import networks, rig, stats
from bench.networks import Cut
from bench.report import Cell, Context, Figure, Result, Table
from bench.stats import Samples
from dovetail.ladder import RungCost
from dovetail_cli.link import parse_link
from dovetail_edge.session import Session

_LINK = "1gbit,1ms"
_CLIENTS = 6
_LATE = 60.0
_NAMES = ("resnet50", "squeezenet", "page-orientation")


@dataclass(frozen=True)
class _Found:
    """Requests per second by variant, and the rung that was taken as balanced."""

    rates: Samples
    rung: str
    cloud: str


def run(context: Context) -> Result:
    """Measure every network."""
    names = _NAMES[:1] if context.quick else _NAMES
    rounds, seconds = (4, 1.5) if context.quick else (12, 3.0)
    found = {}
    with rig.pool(context) as ray, rig.ShapedLink(ray) as link:
        link.apply(_LINK)
        for name in names:
            context.say(f"{name}: cutting")
            cut, whole = networks.cut(name), networks.cut(name, segments=1)
            served = [(c.bundle, rig.plan(c.bundle, c.costs, "edge")) for c in (cut, whole)]
            rig.deploy(ray, served)
            found[name] = _measure(cut, whole, link.endpoint, rounds, seconds)
            context.say(f"{name}: balanced {found[name].rung}")
    return _result(found)


def _balanced(cut: Cut) -> str:
    """The rung whose slowest stage is predicted to be fastest."""
    rate = parse_link(_LINK).rate

    def bottleneck(rung: RungCost) -> float:
        wire = max(rung.bytes_up, rung.bytes_down) / rate
        return max(rung.head + rung.encode, wire, rung.decode + rung.tail)

    return min(cut.ladder, key=bottleneck).id


def _measure(cut: Cut, whole: Cut, endpoint: str, rounds: int, seconds: float) -> _Found:
    row, balanced = dict(cut.rows[0]), _balanced(cut)
    clouds = [rung.id for rung in whole.ladder if rung.cut == 0]
    wanted = {"balanced": (cut, balanced), "all-edge": (whole, "edge")}
    wanted |= {codec: (whole, codec) for codec in clouds}
    sessions = {
        name: Session(one.bundle, rig.plan(one.bundle, one.costs, rung), endpoint=endpoint)
        for name, (one, rung) in wanted.items()
    }
    try:
        variants = {name: _loaded(session, row, seconds) for name, session in sessions.items()}
        rates = stats.interleave(variants, rounds)
    finally:
        for session in sessions.values():
            session.close()
    cloud = max(clouds, key=lambda name: stats.median(rates[name]))
    return _Found(rates, balanced, cloud)


def _loaded(session: Session, row: dict[str, np.ndarray], seconds: float) -> Callable[[], float]:
    """A variant: answered requests per second with every client busy."""

    def once() -> float:
        counts = [0] * _CLIENTS
        stop = time.monotonic() + seconds

        def client(number: int) -> None:
            while time.monotonic() < stop:
                counts[number] += not session.infer_detailed(row, deadline=_LATE).degraded

        threads = [threading.Thread(target=client, args=(n,)) for n in range(_CLIENTS)]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.monotonic() - begin)

    return once


def _result(found: dict[str, _Found]) -> Result:
    figures, rows = [], list[tuple[Cell, ...]]()
    for name, one in found.items():
        balanced, edge, cloud = (one.rates[key] for key in ("balanced", "all-edge", one.cloud))
        figures += [
            Figure.of(f"{name}: requests/s over all-edge", stats.ratio(balanced, edge), "x"),
            Figure.of(f"{name}: requests/s over all-cloud", stats.ratio(balanced, cloud), "x"),
        ]
        rates = (stats.median(values) for values in (balanced, edge, cloud))
        rows.append((name, one.rung, *rates, one.cloud))
    columns = ("network", "balanced rung", "requests/s", "all-edge", "all-cloud", "its codec")
    title = f"Requests per second, {_CLIENTS} clients, {_LINK}"
    return Result(
        figures=tuple(figures),
        tables=(Table(title, columns, tuple(rows)),),
        data={name: {"rates": one.rates, "rung": one.rung} for name, one in found.items()},
        method=(__doc__ or "").partition("\n\n")[2].strip(),
    )
