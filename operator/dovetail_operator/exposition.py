"""How each deployment stands, as series that are made when they are asked for.

A gauge that is set when something changes outlives the object it is about, and every standby would
show one of its own. These are read from the statuses in the store at each scrape and only by the
process that leads, so a series is there exactly as long as its deployment and is there once.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dovetail.api import seconds
from dovetail_operator.client import Json
from dovetail_operator.store import Store

_PREFIX: Final = "dovetail_hybriddeployment_"
_OF: Final = ["namespace", "name"]
_PARTS: Final = ("total", "head", "encode", "network", "queue", "decode", "tail")


class Deployments(Collector):
    """Collects the series of all deployments.

    Args:
        store: the deployments.
        leads: whether this process leads at this moment.
    """

    def __init__(self, store: Store, leads: Callable[[], bool]) -> None:
        self._store, self._leads = store, leads

    def collect(self) -> Iterator[Metric]:
        """Every series, made from the statuses as they are now."""
        keys = self._store.keys() if self._leads() else []
        found = [item for key in keys if (item := self._store.get(key)) is not None]
        condition = _family("condition", "1 where a condition is true, 0 where not.", "condition")
        for item in found:
            for one in _status(item).get("conditions") or ():
                if one["status"] != "Unknown":
                    condition.add_metric([*_name(item), one["type"]], one["status"] == "True")
        yield condition
        yield from _classes(found)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is, is known when it is collected."""
        return ()


def _classes(found: list[Json]) -> Iterator[Metric]:
    """What is said of each device class: rung, generation, shares, latency, regret, devices."""
    rung = _family("rung", "1 for the rung that a class starts from.", "class", "rung")
    generation = _family("plan_generation", "Generation of a class's plan.", "class")
    devices = _family("devices", "Devices of a class, by state.", "class", "state")
    share = _family("rung_share_ratio", "Share of requests by rung.", "class", "rung")
    latency = _family("latency_seconds", "Median time, whole and by part.", "class", "part")
    regret = _family("regret_ratio", "How much slower than the best rung.", "class")
    for item in found:
        for said in _status(item).get("classes") or ():
            of = [*_name(item), said["name"]]
            if "rung" in said:
                rung.add_metric([*of, said["rung"]], 1)
            generation.add_metric(of, said.get("planGeneration", 0))
            for state, count in (said.get("devices") or {}).items():
                if state in ("known", "connected"):
                    devices.add_metric([*of, state], count)
            measured = said.get("measured")
            if measured is None:
                continue
            for name, per_cent in (measured.get("shares") or {}).items():
                share.add_metric([*of, name], per_cent / 100)
            for part in _PARTS:
                if part in measured["latency"]:
                    latency.add_metric([*of, part], seconds(measured["latency"][part]))
            regret.add_metric(of, measured.get("regret", 0) / 100)
    yield from (rung, generation, devices, share, latency, regret)


def _family(name: str, what: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}{name}", what, labels=[*_OF, *labels])


def _name(item: Json) -> list[str]:
    return [item["metadata"]["namespace"], item["metadata"]["name"]]


def _status(item: Json) -> Json:
    status: Json = item.get("status") or {}
    return status
