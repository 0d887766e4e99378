"""docs/operations.md, where people look up what they met: it explains that, and nothing else."""

import ast
import re
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from dovetail.decide import Reason
from dovetail_operator import metrics
from dovetail_operator.exposition import Deployments
from dovetail_operator.store import Store

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text()
OF_A_DEPLOYMENT = ["namespace", "name"]  # labels that the page says once for all


def constants(function, position):
    """Every text that the operator's code gives a function at a position."""
    for file in (ROOT / "operator" / "dovetail_operator").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or len(node.args) <= position:
                continue
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called == function and isinstance(node.args[position], ast.Constant):
                yield node.args[position].value


def rows(*heads):
    """The cells of each row of the tables whose first head is one of these."""
    tables = re.findall(r"^\| (\w+) \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [
        [cell.strip() for cell in line[1:-1].split("|")]
        for head, body in tables
        if head in heads
        for line in body.splitlines()
    ]


def named(*heads):
    """What those tables have a line for."""
    return {name for row in rows(*heads) for name in re.findall(r"`([^`]+)`", row[0])}


def test_the_page_explains_every_reason_and_no_other():
    """A reason that a person meets is one that the page has a line for."""
    found = set(constants("Finding", 1))

    assert len(found) > 20
    assert named("reason") == found


def test_the_page_explains_every_event_and_no_other():
    """An Event's reason is a condition's, or one of those that the page names."""
    found = set(constants("emit", 2))

    assert found
    assert named("event") == found


def test_the_page_explains_every_decision_and_no_other():
    """A move has one of the reasons of `decide`, or follows a plan."""
    assert named("decision") == {*Reason, "Plan"}


def test_the_page_names_every_metric_with_its_labels_and_no_other():
    """A series that a dashboard can show is one that the page has a line for."""
    own = [item for item in vars(metrics).values() if isinstance(item, MetricWrapperBase)]
    found = {}
    for item in own:
        (family,) = item.collect()
        total = "_total" if family.type == "counter" else ""
        found[family.name + total] = list(item._labelnames)
    for family in Deployments(Store(), lambda: True).collect():
        labels = list(family._labelnames)
        assert labels[:2] == OF_A_DEPLOYMENT
        found[family.name] = labels[2:]

    said = {
        name.replace("…", "workqueue"): re.findall(r"`(\w+)`", labels)
        for names, labels, _ in rows("metric")
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert len(found) > 20
    assert said == found
