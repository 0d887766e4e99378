"""docs/operations.md, where people look a condition's reason up."""

import ast
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from dovetail_operator import metrics
from dovetail_operator.exposition import Deployments
from dovetail_operator.store import Store

ROOT = Path(__file__).parents[3]


def reasons():
    """Every reason that is written out in the operator's code."""
    for file in (ROOT / "operator" / "dovetail_operator").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding"
            if called and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                yield node.args[1].value


def test_the_page_explains_every_reason():
    """A reason that a person meets is one that the page has a line for."""
    page = (ROOT / "docs" / "operations.md").read_text()
    found = set(reasons())

    assert len(found) > 20
    assert sorted(reason for reason in found if f"| `{reason}` |" not in page) == []


def test_the_page_names_every_metric():
    """A series that a dashboard can show is one that the page has a line for."""
    page = (ROOT / "docs" / "operations.md").read_text()
    own = [item for item in vars(metrics).values() if isinstance(item, MetricWrapperBase)]
    families = [family for item in own for family in item.collect()]
    families += Deployments(Store(), lambda: True).collect()
    assert len(families) > 20

    def named(family):
        full = family.name + ("_total" if family.type == "counter" else "")
        short = full.removeprefix("dovetail_operator").removeprefix("workqueue")
        return f"`{full}`" in page or f"`…{short}`" in page

    assert sorted(family.name for family in families if not named(family)) == []
