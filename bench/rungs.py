"""The chosen rung against every rung, measured.

For each network, link and device: first a fresh edge with no knowledge but the ladder is put in the
place, and the product's own two hands choose: a few requests a window, the window and the link that
the edge saw go to `control.step`, its plan goes to the edge, until a window brings no move. Then
every rung of the ladder is measured for real (real edge session, shaped link, real tail on Ray
Serve), request by request in interleaved rounds, and with them the uncut model: all on the device,
and all in the cloud with each input codec the proof allows. A rung that takes more than twice the
best so far is left after that. A figure is the median of the chosen rung over the lowest median of
the ladder; the best is chosen in hindsight from noisy medians, which counts against us.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from bench import networks, plots, rig, stats
from bench.networks import Cut
from bench.report import Cell, Context, Figure, Result, Table
from bench.stats import Floats, Interval
from dovetail import control
from dovetail.api import parse_manifest
from dovetail.measure import Link, Window
from dovetail_cli.ray_pool import RayPool
from dovetail_edge.session import Session

# Chosen before anything was measured: a poor cellular link to a LAN; the device as fast as the
# cloud and six times slower.
LINKS = ("2mbit,60ms", "8mbit,40ms", "20mbit,20ms", "50mbit,10ms", "200mbit,4ms", "1gbit,1ms")
SLOWDOWNS = (1.0, 6.0)
NAMES = (*networks.TRAINED, *networks.DRAWN)
_QUICK_NAMES = ("page-orientation", "squeezenet")
_QUICK_LINKS = ("2mbit,60ms", "20mbit,20ms", "1gbit,1ms")

_UNCUT = "uncut "  # before the name of a rung of the uncut model
_LATE = 60.0  # seconds: no request is answered by the fallback while rungs are measured
_SECONDS, _LEAST, _MOST = 8.0, 4, 25  # of one condition's rounds
_HOPELESS = 2.0
_WINDOWS = 8  # that the hands may take
_REQUESTS, _WINDOW_SECONDS = 5, 1.0  # a window is at least that much; the product's lasts 2 s
_STEP = 10.0  # seconds a window stands for on the slow hand's clock: past any cooldown


@dataclass(frozen=True)
class Condition:
    """One network on one device behind one link.

    Attributes:
        network: its name.
        link: the link.
        slowdown: how many times slower the device is.
        chosen: rung the hands chose.
        windows: windows they took.
        times: seconds by rung, one a round; rungs of the uncut model have `uncut ` before them.
    """

    network: str
    link: str
    slowdown: float
    chosen: str
    windows: int
    times: Mapping[str, Floats]

    def best(self, *, uncut: bool) -> str:
        """The rung with the lowest median, of the ladder or of the uncut model."""
        names = [name for name in self.times if name.startswith(_UNCUT) == uncut]
        return min(names, key=lambda name: stats.median(self.times[name]))

    def over(self, rung: str) -> tuple[Floats, Floats]:
        """The chosen rung's seconds and another's, row by row from the same rounds."""
        ours, theirs = self.times[self.chosen], self.times[rung]
        rounds = min(len(ours), len(theirs))
        return ours[:rounds], theirs[:rounds]

    def alone(self, prefix: str) -> str:
        """The best rung of the uncut model that is all-edge or all-cloud."""
        names = [name for name in self.times if name.startswith(_UNCUT + prefix)]
        return min(names, key=lambda name: stats.median(self.times[name]))


def run(context: Context) -> Result:
    """Measure every condition."""
    names = _QUICK_NAMES if context.quick else NAMES
    links = _QUICK_LINKS if context.quick else LINKS
    found: list[Condition] = []
    total = len(names) * len(links) * len(SLOWDOWNS)
    with rig.pool(context) as ray, rig.ShapedLink(ray) as link:
        for name in names:
            context.say(f"{name}: cutting")
            cut, whole = networks.cut(name), networks.cut(name, segments=1)
            _serve(ray, cut, whole)
            for slowdown in SLOWDOWNS:
                with _Devices(link, cut, whole, slowdown) as devices:
                    for spec in links:
                        found.append(devices.measure(spec))
                        context.say(f"{len(found)}/{total}  {_line(found[-1])}")
    return _result(found)


def _serve(ray: RayPool, cut: Cut, whole: Cut) -> None:
    served = [(c.bundle, rig.plan(c.bundle, c.costs, "edge")) for c in (cut, whole)]
    rig.deploy(ray, served)


class _Devices:
    """The edges of one network and one device speed."""

    def __init__(self, link: rig.ShapedLink, cut: Cut, whole: Cut, slowdown: float) -> None:
        self._link, self._cut, self._slowdown = link, cut, slowdown
        self._sessions = {
            prefix: Session(
                one.bundle,
                rig.plan(one.bundle, one.costs, "edge"),
                endpoint=link.endpoint,
                slowdown=slowdown,
            )
            for prefix, one in (("", cut), (_UNCUT, whole))
        }
        self._generation = 1
        self._row = dict(cut.rows[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for session in self._sessions.values():
            session.close()

    def measure(self, link: str) -> Condition:
        """Let the hands choose, then measure everything there is."""
        self._link.apply(link)
        chosen, windows = self._choose()
        return Condition(self._cut.name, link, self._slowdown, chosen, windows, self._times())

    def _choose(self) -> tuple[str, int]:
        """What the product takes, given the ladder, its own requests and the link it saw."""
        terms = _terms(self._cut)
        state = control.start(terms, 2)
        session = Session(
            self._cut.bundle, state.plan, endpoint=self._link.endpoint, slowdown=self._slowdown
        )
        with session:
            for window in range(1, _WINDOWS + 1):
                seen, link = self._window(session)
                state, decision = control.step(terms, state, seen, window * _STEP)
                session.adopt(state.plan)
                if link and not decision.moved:
                    break
            return session.status().rung or state.plan.default, window

    def _window(self, session: Session) -> tuple[Window, bool]:
        """Requests for a while, as the ledger would add them up, and whether a link was seen."""
        seen, number, stop = Window(), 0, time.monotonic() + _WINDOW_SECONDS
        while number < _REQUESTS or time.monotonic() < stop:
            row = dict(self._cut.rows[number % len(self._cut.rows)])
            seen.add(session.infer_detailed(row).sample)
            number += 1
        link = session.status().link
        if link is not None:
            seen.add_link(Link(link.rtt, link.seconds_per_byte))
        return seen, link is not None

    def _times(self) -> dict[str, Floats]:
        """Seconds of every rung, in rounds until the time is up."""
        names = [p + rung for p, session in self._sessions.items() for rung in session.plan.allowed]
        times = {name: [self._once(name)] for name in names}
        stop, number = time.monotonic() + _SECONDS, 0
        while number < _LEAST or (number < _MOST and time.monotonic() < stop):
            best = min(float(np.median(values)) for values in times.values())
            names = [name for name in names if min(times[name]) <= _HOPELESS * best]
            for name in names[number % len(names) :] + names[: number % len(names)]:
                times[name].append(self._once(name))
            number += 1
        # The first request after a change of link is colder; only where it was hopeless it stays.
        return {name: np.array(found[1:] or found) for name, found in times.items()}

    def _once(self, name: str) -> float:
        prefix = _UNCUT if name.startswith(_UNCUT) else ""
        rung, session = name.removeprefix(_UNCUT), self._sessions[prefix]
        if session.plan.default != rung:
            self._generation += 1
            plan = session.plan.model_copy(update={"default": rung, "generation": self._generation})
            if not session.adopt(plan):
                raise RuntimeError(f"the edge did not take over a plan for {rung}")
        answer = session.infer_detailed(self._row, deadline=_LATE)
        if answer.degraded or answer.sample.rung != rung:
            raise RuntimeError(f"{name} was answered by {answer.rung}, degraded={answer.degraded}")
        return answer.sample.total


def _terms(cut: Cut) -> control.Terms:
    """What a manifest that only names the model allows."""
    manifest = parse_manifest(
        {
            "apiVersion": "dovetail.dev/v1alpha1",
            "kind": "HybridDeployment",
            "metadata": {"name": cut.bundle.config.model.name, "namespace": "bench"},
            "spec": {
                "model": {"uri": "file:model.onnx"},
                "edge": {"classes": [{"name": rig.CLASS}]},
            },
        },
        "bench",
    )
    return control.terms(
        manifest,
        manifest.spec.edge.classes[0],
        bundle=cut.bundle.digest,
        config=cut.bundle.config,
        costs=cut.costs,
    )


def _line(found: Condition) -> str:
    ours, best = found.over(found.best(uncut=False))
    return (
        f"{found.network}, {found.link}, {found.slowdown:g}x: {found.chosen} "
        f"{stats.median(ours) * 1e3:.1f} ms, best {found.best(uncut=False)} "
        f"{stats.median(best) * 1e3:.1f} ms"
    )


def _result(found: list[Condition]) -> Result:
    pairs = [one.over(one.best(uncut=False)) for one in found]
    ratios = [stats.ratio(*pair) for pair in pairs]
    worst = max(range(len(found)), key=lambda index: ratios[index].value)
    both = [one.over(one.best(uncut=True)) for one in found]
    edge = [one.over(one.alone("edge")) for one in found]
    cloud = [one.over(one.alone("cloud")) for one in found]
    rows = tuple(_row(one, ratio) for one, ratio in zip(found, ratios, strict=True))
    wins = sum(stats.ratio(*pair).high < 1 for pair in both)
    columns = ("network", "link", "device", "chosen", "ms", "best", "ms", "chosen/best")
    plot = plots.rungs([(one.network, one.link, one.slowdown, _points(one)) for one in found])
    return Result(
        figures=(
            Figure.of(
                f"chosen rung over the best of all, mean of {len(found)} conditions",
                stats.mean_of_ratios(pairs),
                "x",
                1.03,
            ),
            Figure.of(
                "chosen rung over the best of all, worst condition",
                ratios[worst],
                "x",
                1.10,
                _line(found[worst]),
            ),
            Figure.of("chosen over all-edge, uncut, mean", stats.mean_of_ratios(edge), "x"),
            Figure.of(
                "chosen over all-cloud, uncut, best input codec, mean",
                stats.mean_of_ratios(cloud),
                "x",
            ),
            Figure.of(
                "chosen over the better of all-edge and all-cloud in hindsight, mean",
                stats.mean_of_ratios(both),
                "x",
            ),
            Figure.of(
                f"conditions of {len(found)} in which it beats both", Interval.exact(wins), ""
            ),
        ),
        tables=(
            Table(
                "Every condition, p50",
                (*columns, "all-edge ms", "all-cloud ms", "all-cloud codec"),
                rows,
            ),
        ),
        data={"conditions": [_document(one) for one in found], "plot": plot},
        method=(__doc__ or "").partition("\n\n")[2].strip(),
    )


def _row(one: Condition, ratio: Interval) -> tuple[Cell, ...]:
    best, edge, cloud = one.best(uncut=False), one.alone("edge"), one.alone("cloud")
    ms = {name: stats.median(one.times[name]) * 1e3 for name in (one.chosen, best, edge, cloud)}
    return (
        one.network,
        one.link,
        f"{one.slowdown:g}x slower" if one.slowdown > 1 else "as fast",
        one.chosen,
        ms[one.chosen],
        best,
        ms[best],
        ratio.value,
        ms[edge],
        ms[cloud],
        cloud.removeprefix(_UNCUT),
    )


def _points(one: Condition) -> tuple[float, float, float]:
    """Milliseconds of the chosen rung, of all-edge and of all-cloud."""
    names = (one.chosen, one.alone("edge"), one.alone("cloud"))
    chosen, edge, cloud = (stats.median(one.times[name]) * 1e3 for name in names)
    return chosen, edge, cloud


def _document(one: Condition) -> dict[str, Any]:
    return {
        "network": one.network,
        "link": one.link,
        "slowdown": one.slowdown,
        "chosen": one.chosen,
        "windows": one.windows,
        "best": one.best(uncut=False),
        "medianSeconds": {name: stats.median(values) for name, values in one.times.items()},
        "rounds": {name: len(values) for name, values in one.times.items()},
    }
