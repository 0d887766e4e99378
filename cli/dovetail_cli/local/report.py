"""The report of a run: one HTML page that holds everything it shows.

No script, no font and no picture comes from elsewhere, so the page can be mailed, archived and
opened on a machine without a network, and says the same there.
"""

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.bundle import BundleConfig
from dovetail.control import State, Terms
from dovetail_cli.local.plots import Timeline, draw_stack, draw_timeline, png, svg
from dovetail_cli.local.record import all_moves
from dovetail_cli.output import size

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin-top:2.2rem}
p.facts{color:#555;margin-top:0} table{border-collapse:collapse;width:100%;font-size:.92rem}
th{text-align:left;border-bottom:2px solid #ccc;padding:.3rem .6rem;font-weight:600}
td{border-bottom:1px solid #e5e5e5;padding:.3rem .6rem} td.n,th.n{text-align:right}
tr.main td{font-weight:600;background:#f4f8f4} .tiles{display:flex;gap:1rem;flex-wrap:wrap}
.tile{border:1px solid #ddd;border-radius:.5rem;padding:.6rem 1rem;min-width:8rem}
.tile b{display:block;font-size:1.5rem} .tile span{color:#555;font-size:.85rem}
.open{background:#fff7e0;border-left:4px solid #ccbb44;padding:.5rem .8rem}
svg{width:100%;height:auto}
code{font-size:.9em}
"""

_LADDER_NOTE = (
    "<p>Predicted for the link and the speeds at the end of the run. Agreement and error are from "
    "the bundle's proof, over its calibration rows.</p>"
)


@dataclass(frozen=True)
class Story:
    """What a report tells.

    Attributes:
        summary: the summary document.
        line: what happened over time.
        config: the bundle's description, for the ladder's proof.
        terms: of the main class.
        hand: its slow hand at the end, for speeds and moves.
    """

    summary: Mapping[str, Any]
    line: Timeline
    config: BundleConfig
    terms: Terms
    hand: State


def write_report(path: Path, story: Story) -> None:
    """Write the page in one step."""
    summary, line, terms, hand = story.summary, story.line, story.terms, story.hand
    title = html.escape(f"{summary['deployment']}: {summary['seconds']:.0f} s of dovetail up")
    main = summary["classes"][0]
    stack = [(r["rung"], r["partsMs"]) for r in main["rungs"] if r["requests"] - r["failed"] > 0]
    body = [
        f"<h1>{title}</h1>",
        f"<p class=facts>bundle <code>{summary['bundle'][:19]}</code>, privacy {terms.privacy}</p>",
        _openly(summary, line),
        _tiles(main),
        "<h2>Latency over time</h2>",
        "<p>Each dot is a request, coloured by the rung that answered; dotted lines are moves.</p>",
        svg(draw_timeline(line)),
        "<h2>What came of it</h2>",
        _classes(summary["classes"]),
        _phases(summary["phases"]),
        "<h2>Where the time went</h2>",
        svg(draw_stack(stack)) if stack else "<p>No request was answered.</p>",
        "<h2>Moves</h2>",
        _moves(story),
        "<h2>The ladder</h2>",
        _LADDER_NOTE,
        _ladder(story.config, terms, hand, {r["rung"]: r["requests"] for r in main["rungs"]}),
        "<h2>What happened</h2>",
        _events(summary["events"], line.began),
    ]
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{_STYLE}</style><body>{''.join(body)}</body></html>"
    )
    _write(path, page.encode())


def write_picture(path: Path, line: Timeline) -> None:
    """Write the picture over time as PNG, in one step."""
    _write(path, png(draw_timeline(line)))


def _write(path: Path, data: bytes) -> None:
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    temp.write_bytes(data)
    temp.replace(path)


def _openly(summary: Mapping[str, Any], line: Timeline) -> str:
    """What was simulated, where it cannot be overlooked."""
    said = []
    if summary["slowdown"] > 1:
        said.append(
            f"The devices were made {summary['slowdown']:g} times slower on purpose, by waiting "
            "after each piece of work."
        )
    if line.trace:
        said.append("The link was simulated by a shaping proxy between edge and tail.")
    return f"<p class=open>{' '.join(said)}</p>" if said else ""


def _tiles(main: Mapping[str, Any]) -> str:
    facts = [
        (f"{main['requests']}", "requests"),
        (f"{main['failed']}", "failed"),
        (f"{main['degraded']}", "degraded"),
        (_ms(main["p50Ms"]), "p50"),
        (_ms(main["p95Ms"]), "p95"),
        (str(len(main["moves"])), "moves"),
    ]
    for key, name in (("agreement", "same answer as the whole model"), ("accuracy", "right")):
        if main[key] is not None:
            facts.append((f"{main[key]:.1%}", name))
    tiles = (f"<div class=tile><b>{value}</b><span>{name}</span></div>" for value, name in facts)
    return f"<div class=tiles>{''.join(tiles)}</div>"


def _classes(classes: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for index, found in enumerate(classes):
        rows.append((found["class"], "all", *_figures(found), "main" if index == 0 else ""))
        if index == 0:
            rows += [("", r["rung"], *_figures(r), "") for r in found["rungs"]]
    head = ("class", "rung", "requests", "failed", "degraded", "p50 ms", "p95 ms", "mean ms")
    return _table((*head, "same answer", "right", "worst error", "sent"), rows, text=2)


def _figures(found: Mapping[str, Any]) -> tuple[str, ...]:
    error = found["maxError"]
    return (
        str(found["requests"]),
        str(found["failed"]),
        str(found["degraded"]),
        _number(found["p50Ms"]),
        _number(found["p95Ms"]),
        _number(found["meanMs"]),
        _share(found["agreement"]),
        _share(found["accuracy"]),
        "-" if error is None else f"{error:.1e}",
        size(found["bytesUp"]),
    )


def _phases(phases: Sequence[Mapping[str, Any]]) -> str:
    if len(phases) < 2:
        return ""
    names = list(phases[0]["p50Ms"])
    rows = [
        (f"{p['from']:g} s", p["link"], *(_number(p["p50Ms"][name]) for name in names), "")
        for p in phases
    ]
    head = ("from", "link", *(f"{name} p50 ms" for name in names))
    return "<h2>By phase of the link</h2>" + _table(head, rows, text=2)


def _moves(story: Story) -> str:
    """Moves of both hands; the slow one moves a class's plan, the fast one a single device."""
    planned, began = story.hand.moves, story.line.began
    moves = all_moves(story.line.moves, planned)
    if not moves:
        return f"<p>None: it stayed on <code>{story.hand.plan.default}</code>.</p>"
    rows = [
        (
            f"{m.at - began:.0f} s",
            "slow" if m in planned else "fast",
            m.source,
            m.target,
            f"{m.reason}: {m.message}",
            "",
        )
        for m in moves
    ]
    return _table(("at", "hand", "from", "to", "why"), rows, text=5)


def _ladder(config: BundleConfig, terms: Terms, hand: State, used: Mapping[str, int]) -> str:
    rows = []
    for rung in config.rungs:
        allowed = rung.id in terms.ladder.ids()
        parts = terms.ladder.get(rung.id).predict(hand.conditions) if allowed else None
        tensors = ", ".join(
            f"{name} {'x'.join(str(d) for d in config.spec(name).shape[1:])}"
            for name in config.crossing(rung.cut)
        )
        rows.append(
            (
                rung.id,
                tensors or "nothing",
                size(rung.bytes_up) if rung.id != "edge" else "-",
                _number(parts.head * 1e3 + parts.encode * 1e3) if parts else "-",
                _number(parts.network * 1e3) if parts else "-",
                _number((parts.queue + parts.decode + parts.tail) * 1e3) if parts else "-",
                _number(parts.total * 1e3) if parts else "not allowed",
                _share(rung.top1),
                f"{rung.max_error:.1e}",
                str(used.get(rung.id, 0)),
                "main" if rung.id == hand.plan.default else "",
            )
        )
    head = ("rung", "crossing", "sent", "device ms", "wire ms", "cloud ms", "total ms")
    return _table((*head, "agreement", "error", "requests"), rows, text=2)


def _events(events: Sequence[Mapping[str, Any]], began: float) -> str:
    rows = [(f"{event['at'] - began:.0f} s", event["text"], "") for event in events]
    return _table(("at", "what"), rows, text=2) if rows else "<p>Nothing else.</p>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text: int) -> str:
    """A table; the first `text` columns are words, the rest figures; a row ends with its class."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{'' if index < text else ' class=n'}>{html.escape(value)}</{tag}>"
            for index, value in enumerate(values)
        )

    lines = "".join(
        f"<tr{f' class={row[-1]}' if row[-1] else ''}>{cells('td', row[:-1])}</tr>" for row in rows
    )
    return f"<table><tr>{cells('th', head)}</tr>{lines}</table>"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
