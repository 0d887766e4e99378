"""What a scrape says of single deployments: their statuses as they are, nothing of who is gone."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dovetail_operator.exposition import Deployments
from dovetail_operator.store import Store

STATUS = {
    "conditions": [
        {"type": "Ready", "status": "True"},
        {"type": "Degraded", "status": "False"},
        {"type": "Moving", "status": "Unknown"},
    ],
    "classes": [
        {
            "name": "camera",
            "rung": "cut1-int8",
            "planGeneration": 3,
            "devices": {"known": 4, "connected": 2, "lastContact": "2026-01-01T00:00:00Z"},
            "measured": {
                "shares": {"cut1-int8": 95, "edge": 5},
                "latency": {"total": "12.5ms", "head": "0.25ms"},
                "regret": 7,
            },
        },
        {"name": "new"},
    ],
}


def hybrid(status, name="page"):
    return {"metadata": {"namespace": "vision", "name": name}, "status": status}


def scraped(store, *, leads=True):
    """Every series of a scrape: its value by name and labels."""
    registry = CollectorRegistry()
    registry.register(Deployments(store, lambda: leads))
    text = generate_latest(registry).decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {(s.name, frozenset(s.labels.items())): s.value for s in samples}


def series(metric, **labels):
    labels |= {"namespace": "vision", "name": "page"}
    return f"dovetail_hybriddeployment_{metric}", frozenset(labels.items())


def test_a_status_is_told_in_series():
    """Verify conditions, rung, generation, devices, shares, latency in seconds, and regret."""
    store = Store()
    store.put(hybrid(STATUS))

    camera = {"class": "camera"}
    assert scraped(store) == {
        series("condition", condition="Ready"): 1,
        series("condition", condition="Degraded"): 0,
        series("rung", **camera, rung="cut1-int8"): 1,
        series("plan_generation", **camera): 3,
        series("plan_generation", **{"class": "new"}): 0,
        series("devices", **camera, state="known"): 4,
        series("devices", **camera, state="connected"): 2,
        series("rung_share_ratio", **camera, rung="cut1-int8"): 0.95,
        series("rung_share_ratio", **camera, rung="edge"): 0.05,
        series("latency_seconds", **camera, part="total"): 0.0125,
        series("latency_seconds", **camera, part="head"): 0.00025,
        series("regret_ratio", **camera): 0.07,
    }


def test_who_is_gone_or_without_a_status_has_no_series_and_a_standby_tells_nothing():
    """Verify that a series is there as long as its deployment, and once in all replicas."""
    store = Store()
    store.put(hybrid(STATUS))
    store.put({"metadata": {"namespace": "vision", "name": "young"}})
    assert scraped(store)
    assert not [labels for _, labels in scraped(store) if ("name", "young") in labels]
    assert scraped(store, leads=False) == {}

    store.drop("vision/page")
    assert scraped(store) == {}
