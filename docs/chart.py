"""Writes what the chart takes from its schema: `values.yaml`, and the README's table of values.

A value is described once, in `values.schema.json`, which helm checks values against. Its default
stands there too, so what a person reads and what helm enforces cannot drift apart.
"""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

CHART: Final = Path(__file__).parents[1] / "charts" / "dovetail"

_BEGIN: Final = "<!-- values: begin, written by docs/chart.py -->"
_END: Final = "<!-- values: end -->"
_NOTE: Final = (
    "# Written by `make generate` from values.schema.json, which describes every value.\n"
)
_WIDTH: Final = 100

Schema = dict[str, Any]


def values_yaml() -> str:
    """Every value at its default, each below its description."""
    return _NOTE + "\n".join(_lines(_schema(), 0)) + "\n"


def readme() -> str:
    """The chart's README with its table of values written anew."""
    text = (CHART / "README.md").read_text()
    before, rest = text.split(_BEGIN)
    table = "\n".join(_rows(_schema(), ""))
    return (
        f"{before}{_BEGIN}\n| value | default | what it is |\n|---|---|---|\n{table}\n{_END}"
        + (rest.split(_END)[1])
    )


def write() -> None:
    """Write both."""
    (CHART / "values.yaml").write_text(values_yaml())
    (CHART / "README.md").write_text(readme())


def _schema() -> Schema:
    schema: Schema = json.loads((CHART / "values.schema.json").read_text())
    return schema


def _lines(schema: Schema, depth: int) -> Iterator[str]:
    """Lines of `values.yaml`."""
    pad = "  " * depth
    for name, value in schema["properties"].items():
        if depth == 0:
            yield ""
        for line in textwrap.wrap(value["description"], _WIDTH - len(pad) - 2):
            yield f"{pad}# {line}"
        if "properties" in value and "default" not in value:
            yield f"{pad}{name}:"
            yield from _lines(value, depth + 1)
        else:
            text = yaml.safe_dump({name: value["default"]}, sort_keys=False, width=_WIDTH)
            yield from (pad + line for line in text.strip().splitlines())


def _rows(schema: Schema, prefix: str) -> Iterator[str]:
    """Rows of the table, one a value."""
    for name, value in schema["properties"].items():
        path = f"{prefix}{name}"
        if "properties" in value and "default" not in value:
            yield from _rows(value, f"{path}.")
            continue
        default = f"`{json.dumps(value['default'])}`" if "default" in value else ""
        yield f"| `{path}` | {default} | {value['description']} |"
        items = value.get("items", {})
        if "properties" in items:
            yield from _rows(items, f"{path}[].")


if __name__ == "__main__":
    write()
