"""What `dovetail up` shows while it runs.

On a terminal a picture that is redrawn twice a second; anywhere else a line every two seconds and a
line for each event, so that a log of a run can be read and searched.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dovetail.bundle import Bundle
from dovetail.measure import PARTS, Window
from dovetail_cli.local.record import Record, all_moves, overall
from dovetail_cli.local.system import System
from dovetail_cli.output import note

RECENT = 5.0  # seconds that shown figures are taken over
_LINE_EVERY = 2.0
_BAR = 64
_COLOURS = {
    "head": "cyan",
    "encode": "blue",
    "network": "yellow",
    "queue": "red",
    "decode": "magenta",
    "tail": "green",
}
_SHOWN_MOVES, _SHOWN_EVENTS = 4, 4


@dataclass
class View:
    """What is shown."""

    system: System
    bundle: Bundle
    records: dict[str, Record]
    _since: float = field(default=0.0)

    def line(self, record: Record) -> str:
        """One class in one line."""
        recent = record.recent(RECENT)
        whole, outcomes = overall(recent), overall(record.totals).outcomes
        parts = _parts(recent)
        split = " ".join(f"{name} {parts[name]:.1f}" for name in PARTS if parts[name] >= 0.05)
        seconds = time.time() - self.system.ready
        return (
            f"{seconds:6.1f} s  {record.name}: {_rung(record)}"
            f"  p50 {_ms(whole.total.quantile(0.5))} p95 {_ms(whole.total.quantile(0.95))}"
            f" ({split})  link {_seen(record.status)}"
            f"{self._set()}  requests {sum(outcomes.values())}"
            f" failed {outcomes.get('failed', 0)} degraded {outcomes.get('degraded', 0)}"
        )

    def news(self) -> list[str]:
        """Events that were not told yet."""
        events = [event for event in self.system.events if event.at > self._since]
        if events:
            self._since = events[-1].at
        return [event.text for event in events]

    def picture(self) -> RenderableType:
        """Everything."""
        deployment = self.system.wish.deployment
        title = f"{deployment.key}  {self.bundle.digest[7:19]}"
        slow = self.system.wish.slowdown
        simulated = f"devices made {slow:g}x slower on purpose" if slow > 1 else ""
        facts = Text.assemble(
            (f"{time.time() - self.system.ready:5.0f} s", "bold"),
            f"  privacy {deployment.spec.privacy}  adapt {deployment.spec.adapt.mode}",
            (f"  simulated link {self.system.link}" if self.system.link else "", "yellow"),
            (f"  {simulated}" if simulated else "", "yellow"),
        )
        body: list[RenderableType] = [facts, Text()]
        for name, record in self.records.items():
            body += [*_class(record, self.system.edges[name].url), Text()]
        body += self._moves()
        return Panel(Group(*body), title=title, subtitle="Ctrl-C stops everything")

    def _moves(self) -> list[RenderableType]:
        table = Table.grid(padding=(0, 2))
        for name, record in self.records.items():
            planned = self.system.hand.hands[name].moves
            for move in all_moves(record.moves, planned)[-_SHOWN_MOVES:]:
                table.add_row(
                    f"{move.at - self.system.ready:5.0f} s",
                    Text(f"{name}: {move.source} -> {move.target}", "bold"),
                    move.message,
                )
        for event in list(self.system.events)[-_SHOWN_EVENTS:]:
            table.add_row(f"{event.at - self.system.ready:5.0f} s", "", Text(event.text, "dim"))
        return [Text("moves and events", "bold"), table]

    def _set(self) -> str:
        return f" (set {self.system.link})" if self.system.link else ""


class Live:
    """Shows a view; use as a context manager."""

    def __init__(self, view: View) -> None:
        self._view, self._next = view, 0.0
        console = Console(stderr=True)
        self._rich = (
            RichLive(view.picture(), console=console, auto_refresh=False, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        urls = ", ".join(f"{name} {edge.url}" for name, edge in self._view.system.edges.items())
        model = self._view.bundle.config.model.name
        note(f"ready: model {model}, Open Inference Protocol at {urls}")
        if self._rich:
            self._rich.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._rich:
            self._rich.stop()

    def refresh(self) -> None:
        """Show what is now."""
        if self._rich:
            self._rich.update(self._view.picture(), refresh=True)
            return
        for text in self._view.news():
            note(text)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_EVERY
            for record in self._view.records.values():
                note(self._view.line(record))


def _class(record: Record, url: str) -> Sequence[RenderableType]:
    recent = record.recent(RECENT)
    whole, outcomes = overall(recent), overall(record.totals).outcomes
    breaker = record.status.get("breaker", "gone")
    head = Text.assemble(
        (record.name, "bold"),
        "  rung ",
        (_rung(record), "bold green"),
        f"  p50 {_ms(whole.total.quantile(0.5))}  p95 {_ms(whole.total.quantile(0.95))}",
        f"  link {_seen(record.status)}",
        ("" if breaker == "closed" else f"  cloud: breaker {breaker}", "red"),
        f"  {url}",
    )
    failed = outcomes.get("failed", 0)
    counts = Text.assemble(
        f"  {sum(outcomes.values())} requests  ",
        (f"{failed} failed", "red" if failed else ""),
        f"  {outcomes.get('degraded', 0)} degraded",
    )
    return head, counts, *_bar(_parts(recent))


def _bar(parts: dict[str, float]) -> Sequence[Text]:
    """Where the time went: a bar in colours, and what they mean."""
    total = sum(parts.values())
    shown = [name for name in PARTS if total and parts[name] > 0.005 * total]
    if not shown:
        return (Text("  no requests lately", "dim"),)
    blocks = [("█" * max(round(parts[name] / total * _BAR), 1), _COLOURS[name]) for name in shown]
    legend = [(f"  {name} {parts[name]:.1f}", _COLOURS[name]) for name in shown]
    return Text.assemble("  ", *blocks), Text.assemble(*legend, " ms")


def _parts(window: Window) -> dict[str, float]:
    """Mean milliseconds by part over all rungs, as often as each was used."""
    whole = overall(window)
    return {
        name: whole.parts[name].mean * 1e3 if name in whole.parts and whole.parts[name].count else 0
        for name in PARTS
    }


def _rung(record: Record) -> str:
    return str(record.status.get("rung") or "-") if record.status else "edge process gone"


def _seen(status: dict[str, Any]) -> str:
    link = status.get("link")
    if not link:
        return "unknown"
    return f"{8e-6 / max(link['secondsPerByte'], 1e-12):.1f} Mbit/s, {link['rtt'] * 1e3:.1f} ms"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds == seconds else "-"  # noqa: PLR0124  not a number
