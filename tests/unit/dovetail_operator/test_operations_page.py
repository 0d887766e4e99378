"""docs/operations.md, where people look a condition's reason up."""

import ast
from pathlib import Path

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
