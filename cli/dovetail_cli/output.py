"""How commands print: data on stdout, everything else on stderr.

In the manner of kubectl: a plain table with upper-case headings that `awk` can read, or the whole
truth as JSON or YAML. The three are of one document, so a script never scrapes what a person reads.
"""

import json
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Annotated, Self

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_GAP = "   "


class Format(StrEnum):
    """What stdout gets."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[
    Format, typer.Option("--output", "-o", help="How to print: table, json or yaml.")
]


def show(document: object, form: Format, table: Callable[[], str]) -> None:
    """Print a document to stdout.

    Args:
        document: plain values (dicts, lists, strings, numbers).
        form: what to print.
        table: makes the text of the table; called only where it is wanted.
    """
    if form is Format.JSON:
        text = json.dumps(document, indent=2, ensure_ascii=False)
    elif form is Format.YAML:
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip()
    else:
        text = table()
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Say something that is not data, on stderr."""
    sys.stderr.write(text + "\n")


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without lines: headings and cells padded to the widest of their column."""
    cells = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    lines = (
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
    return "\n".join(lines)


def size(count: float) -> str:
    """Bytes for people, in powers of 1000 as links are."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


class Steps:
    """Shows the parts of a long work on stderr: a bar on a terminal, else a line a part."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._part = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def __call__(self, part: str, done: int, total: int) -> None:
        """`done` of `total` steps of a part are finished."""
        if part != self._part:
            self._part = part
            self._next(part)
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def _next(self, part: str) -> None:
        if not self._console.is_terminal:
            note(f"{part} ...")
            return
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(part)
