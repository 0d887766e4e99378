"""The cut follows a link between two real nodes.

Two nodes in network namespaces of one machine (`tests/cluster`): KubeRay, the chart and the example
are installed as a person would, a client on the edge node asks its edge without a pause, and the
link between the nodes is shaped by `tc`. The device is made slower in the open (`slowdown`), as a
small board is. All of it, control plane, Ray, edge and client, shares the machine's cores.

A move: seconds from the shaping of the link until the resource's status names another rung, in
windows of `adapt.window`. What it is worth: then the deployment is left alone and pinned to each
rung of its ladder in turn, in interleaved rounds under the same link; a round's figure is the
median of its requests, degraded answers and all. `against the best` is the median over rounds left
alone by that of the rung that was fastest pinned. Requests that failed are counted throughout.
"""

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from tests.cluster import example, release
from tests.cluster.harness import TwoNodes, running
from tests.cluster.traffic import Traffic, steady
from tests.kube.operators import until

from bench import stats
from bench.report import Context, Figure, Result, Table
from bench.stats import Floats, Interval

_SLOWDOWN = "30"
_LINKS = (100, 4, 100)  # Mbit/s
_WINDOW = 2.0  # seconds, as the example has it
_PATIENCE = 60.0
_SETTLE = 16.0  # seconds in which further moves may follow the first
_ALONE = "left alone"


@dataclass(frozen=True)
class _Rig:
    """What a step works with.

    Attributes:
        context: what the section is given.
        cluster: two nodes with the example on them.
        traffic: requests from the edge node.
        rounds: rounds of every variant.
        requests: requests a round.
    """

    context: Context
    cluster: TwoNodes
    traffic: Traffic
    rounds: int
    requests: int


@dataclass(frozen=True)
class _Step:
    """One state of the link.

    Attributes:
        link: its rate, in words.
        moved: seconds until the status named another rung; None where none was named.
        source: the rung before.
        target: the rung once things had settled.
        rounds: variant -> medians of its rounds, seconds.
    """

    link: str
    moved: float | None
    source: str
    target: str
    rounds: dict[str, Floats]

    @property
    def best(self) -> str:
        """The rung that was fastest pinned."""
        pinned = {name: stats.median(found) for name, found in self.rounds.items()}
        return min(pinned.keys() - {_ALONE}, key=pinned.__getitem__)

    @property
    def against(self) -> Interval:
        """Left alone against the best."""
        return stats.ratio(self.rounds[_ALONE], self.rounds[self.best])


def run(context: Context) -> Result:
    """Install, shape, watch."""
    rounds, requests = (2, 12) if context.quick else (5, 20)
    with _deployed(context) as (cluster, traffic):
        cluster.network.shape(f"{_LINKS[0]}mbit")
        until(lambda: _rung(cluster) != "edge", "the cut to leave the device", 120)
        time.sleep(_SETTLE)
        rig, steps = _Rig(context, cluster, traffic, rounds, requests), []
        for before, rate in itertools.pairwise(_LINKS):
            link = f"{before} to {rate} Mbit/s"
            steps.append(_step(rig, link, rate))
        return _result(steps, len(traffic.all()), len(traffic.failed()))


@contextmanager
def _deployed(context: Context) -> Iterator[tuple[TwoNodes, Traffic]]:
    """The example on two nodes, under requests."""
    with running(context.scratch / "cluster") as cluster:
        context.say("two nodes run")
        release.install_kuberay(cluster)
        folder = example.publish(cluster)
        release.available(cluster, "kuberay", "kuberay")
        release.install(cluster)
        context.say("KubeRay and the chart are installed")
        document = example.manifest()
        document["metadata"]["annotations"] = {"dovetail.dev/slowdown": _SLOWDOWN}
        began = time.monotonic()
        example.apply(cluster, document)
        example.ready(cluster)
        context.say(f"Ready after {time.monotonic() - began:.0f} s")
        with steady(cluster, example.NAME, folder / "evaluation.npz", rate=20.0) as traffic:
            traffic.more(4, 90)
            yield cluster, traffic


def _step(rig: _Rig, link: str, rate: int) -> _Step:
    cluster = rig.cluster
    source = _rung(cluster)
    cluster.network.shape(f"{rate}mbit")
    moved = _moved(cluster, source)
    rig.context.say(f"{link}: another rung after {moved or float('nan'):.1f} s")
    time.sleep(_SETTLE)
    target = _rung(cluster)
    variants = {name: partial(_asked, rig, name) for name in (_ALONE, *_ladder(cluster))}
    found = stats.interleave(variants, rig.rounds, warmup=0)
    medians = ", ".join(f"{name} {stats.median(of) * 1e3:.0f}" for name, of in found.items())
    rig.context.say(f"{link}, ms: {medians}")
    _leave_alone(cluster)
    time.sleep(_SETTLE)
    return _Step(link, moved, source, target, found)


def _moved(cluster: TwoNodes, source: str) -> float | None:
    """Seconds until the status names another rung; None for none."""
    began = time.monotonic()
    while time.monotonic() - began < _PATIENCE:
        if _rung(cluster) != source:
            return time.monotonic() - began
        time.sleep(0.1)
    return None


def _asked(rig: _Rig, variant: str) -> float:
    """Median seconds of some requests, left alone or pinned to a rung."""
    cluster, traffic = rig.cluster, rig.traffic
    if variant == _ALONE:
        _leave_alone(cluster)
        time.sleep(_SETTLE)
    else:
        spec = {"adapt": {"mode": "Manual"}, "split": {"rung": variant}}
        example.patch(cluster, spec)
        began = time.time()
        until(lambda: _is_on(traffic, variant, began), f"requests on {variant}", _PATIENCE)
    found = [one["seconds"] for one in traffic.more(rig.requests, 120) if "seconds" in one]
    return float(np.median(found))


def _is_on(traffic: Traffic, rung: str, since: float) -> bool:
    """Whether a request was answered by a rung, or by the device when that was late."""
    found = traffic.all(since)
    late = sum(one.get("degraded", False) for one in found)
    return any(one.get("rung") == rung for one in found[-3:]) or late >= 3


def _leave_alone(cluster: TwoNodes) -> None:
    example.patch(cluster, {"adapt": {"mode": "Auto"}, "split": {"rung": None}})


def _rung(cluster: TwoNodes) -> str:
    return str(example.get(cluster)["status"]["classes"][0]["rung"])


def _ladder(cluster: TwoNodes) -> list[str]:
    """Ids of the rungs that the device's plan allows."""
    path = f"/api/v1/namespaces/{example.NAMESPACE}/configmaps"
    plans = [one["data"] for one in cluster.request("GET", path)["items"]]
    (plan,) = [json.loads(one["plan.camera.json"]) for one in plans if "plan.camera.json" in one]
    return [rung["id"] for rung in plan["ladder"]]


def _result(steps: list[_Step], asked: int, failed: int) -> Result:
    figures = [
        figure
        for step in steps
        for figure in (
            Figure.of(
                f"windows until the cut moved, {step.link}",
                Interval.exact((step.moved or float("inf")) / _WINDOW),
                "",
                3.0,
                f"from {step.source} to {step.target}",
            ),
            Figure.of(
                f"p50 afterwards against the best rung's, {step.link}",
                step.against,
                "x",
                1.1,
                f"the best was {step.best}",
            ),
        )
    ]
    rows = tuple(
        (step.link, name, stats.median(found) * 1e3, len(found))
        for step in steps
        for name, found in sorted(step.rounds.items(), key=lambda item: stats.median(item[1]))
    )
    return Result(
        figures=(
            *figures,
            Figure.of(f"failed of {asked} requests", Interval.exact(float(failed)), "", 0.0),
        ),
        tables=(Table("Rungs under each link", ("link", "rung", "p50 ms", "rounds"), rows),),
        data={
            step.link: {"moved": step.moved, "source": step.source, "target": step.target}
            | {"rounds": step.rounds}
            for step in steps
        },
        method=(__doc__ or "").partition("\n\n")[2].strip(),
    )
