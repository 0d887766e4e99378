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
from dovetail.measure import PARTS
from dovetail_operator.client import Json
from dovetail_operator.store import Store

Rows = Iterator[tuple[tuple[str, ...], float]]

_PREFIX: Final = "dovetail_hybriddeployment_"


class Deployments(Collector):
    """Collects the series of all deployments.

    Args:
        store: the deployments.
        leads: whether this process leads at this moment.
    """

    def __init__(self, store: Store, leads: Callable[[], bool]) -> None:
        self._store, self._leads = store, leads

    def collect(self) -> Iterator[Metric]:
        """Every series, made from the statuses as they are now; one family at a time is held."""
        keys = self._store.keys() if self._leads() else []
        found = [item for key in keys if (item := self._store.get(key)) is not None]
        for name, what, labels, rows in _FAMILIES:
            family = GaugeMetricFamily(
                f"{_PREFIX}{name}", what, labels=["namespace", "name", *labels]
            )
            for item in found:
                of = (item["metadata"]["namespace"], item["metadata"]["name"])
                for values, value in rows(item.get("status") or {}):
                    family.add_metric([*of, *values], value)
            yield family

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is, is known when it is collected."""
        return ()


def _conditions(status: Json) -> Rows:
    for one in status.get("conditions") or ():
        if one["status"] != "Unknown":
            yield (one["type"],), float(one["status"] == "True")


def _rung(status: Json) -> Rows:
    for said in status.get("classes") or ():
        if "rung" in said:
            yield (said["name"], said["rung"]), 1.0


def _generation(status: Json) -> Rows:
    for said in status.get("classes") or ():
        yield (said["name"],), said.get("planGeneration", 0)


def _devices(status: Json) -> Rows:
    for said in status.get("classes") or ():
        for state in ("known", "connected"):
            if state in (said.get("devices") or {}):
                yield (said["name"], state), said["devices"][state]


def _measured(status: Json) -> Iterator[tuple[str, Json]]:
    for said in status.get("classes") or ():
        if "measured" in said:
            yield said["name"], said["measured"]


def _shares(status: Json) -> Rows:
    for name, measured in _measured(status):
        for rung, per_cent in (measured.get("shares") or {}).items():
            yield (name, rung), per_cent / 100


def _latency(status: Json) -> Rows:
    for name, measured in _measured(status):
        for part in ("total", *PARTS):
            if part in measured["latency"]:
                yield (name, part), seconds(measured["latency"][part])


def _regret(status: Json) -> Rows:
    for name, measured in _measured(status):
        yield (name,), measured.get("regret", 0) / 100


# name, what it is, labels beside the deployment's own, rows of one status
_FAMILIES: Final[tuple[tuple[str, str, tuple[str, ...], Callable[[Json], Rows]], ...]] = (
    ("condition", "1 where a condition is true, 0 where not.", ("condition",), _conditions),
    ("rung", "1 for the rung that a class starts from.", ("class", "rung"), _rung),
    ("plan_generation", "Generation of a class's plan.", ("class",), _generation),
    ("devices", "Devices of a class, by state.", ("class", "state"), _devices),
    ("rung_share_ratio", "Share of requests by rung.", ("class", "rung"), _shares),
    ("latency_seconds", "Median time, whole and by part.", ("class", "part"), _latency),
    ("regret_ratio", "How much slower than the best rung.", ("class",), _regret),
)
