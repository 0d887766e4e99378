"""The summary of a run: one document, from which the table and the report are made."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dovetail.control import Move
from dovetail.measure import RungWindow, Window
from dovetail_cli.link import Trace
from dovetail_cli.local.record import Point, Record, overall
from dovetail_cli.output import columns, size


def summarise(record: Record, slow_moves: Sequence[Move], generation: int) -> dict[str, Any]:
    """What one device class did: requests, latency, bytes and answers, whole and by rung."""
    totals = record.totals
    answered = [p for p in record.points if p.failed is None]
    lost = len(record.points) - len(answered) if record.driven else 0
    everything = overall(totals)
    return {
        "class": record.name,
        "requests": everything.count,
        "failed": max(everything.outcomes.get("failed", 0), lost),
        "degraded": everything.outcomes.get("degraded", 0),
        **_latency(answered, everything, driven=record.driven),
        **_answers(answered),
        "bytesUp": everything.bytes_up,
        "bytesDown": everything.bytes_down,
        "generation": generation,
        "rungs": [_rung(name, totals, answered, driven=record.driven) for name in totals.rungs],
        "moves": [move.model_dump(mode="json", by_alias=True) for move in record.moves],
        "planMoves": [move.model_dump(mode="json", by_alias=True) for move in slow_moves],
    }


def table(classes: Sequence[Mapping[str, Any]]) -> str:
    """The summary for people: a line a class, then a line a rung."""
    head = ("CLASS", "RUNG", "REQUESTS", "FAILED", "DEGRADED", "P50 MS", "P95 MS", "AGREE", "RIGHT")
    rows = []
    for found in classes:
        rows.append((found["class"], "all", *_cells(found)))
        if len(found["rungs"]) > 1:
            rows += [("", rung["rung"], *_cells(rung)) for rung in found["rungs"]]
    return columns([*head, "SENT"], rows)


def phases(
    records: Iterable[Record], trace: Trace | None, began: float, elapsed: float
) -> list[dict[str, Any]]:
    """Median milliseconds and the most used rung of every class, for each link of the trace."""
    if trace is None:
        return []
    found = []
    for start, end, link in zip(
        trace.starts, (*trace.starts[1:], math.inf), trace.links, strict=True
    ):
        if start >= elapsed:
            break
        inside = {
            r.name: [p for p in r.points if start <= p.at - began < end and not p.failed]
            for r in records
        }
        found.append(
            {
                "from": start,
                "link": str(link),
                "p50Ms": {
                    name: round(float(np.median([p.seconds for p in points])) * 1e3, 2)
                    if points
                    else None
                    for name, points in inside.items()
                },
                "rung": {
                    name: Counter(p.rung for p in points).most_common(1)[0][0] if points else None
                    for name, points in inside.items()
                },
            }
        )
    return found


def phase_table(found: Sequence[Mapping[str, Any]]) -> str:
    """The phases for people."""
    names = list(found[0]["p50Ms"])
    rows = [
        (
            f"{phase['from']:g} s",
            phase["link"],
            *(f"{_number(phase['p50Ms'][name])} ({phase['rung'][name] or '-'})" for name in names),
        )
        for phase in found
    ]
    return columns(("FROM", "LINK", *(f"{name.upper()} P50 MS (RUNG)" for name in names)), rows)


def _cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(found["requests"]),
        str(found["failed"]),
        str(found["degraded"]),
        _number(found["p50Ms"]),
        _number(found["p95Ms"]),
        _share(found.get("agreement")),
        _share(found.get("accuracy")),
        size(found["bytesUp"]),
    )


def _rung(name: str, totals: Window, answered: Sequence[Point], *, driven: bool) -> dict[str, Any]:
    seen = totals.rungs[name]
    own = [point for point in answered if point.rung == name]
    parts = asdict(seen.mean_parts())
    return {
        "rung": name,
        "requests": seen.count,
        "failed": seen.outcomes.get("failed", 0),
        "degraded": seen.outcomes.get("degraded", 0),
        **_latency(own, seen, driven=driven),
        **_answers(own),
        "bytesUp": seen.bytes_up,
        "bytesDown": seen.bytes_down,
        "partsMs": {part: round(seconds * 1e3, 3) for part, seconds in parts.items()},
    }


def _latency(points: Sequence[Point], seen: RungWindow, *, driven: bool) -> dict[str, Any]:
    """Milliseconds at two quantiles and on average: exact where every request was ours."""
    if driven and points:
        seconds = np.array([point.seconds for point in points])
        p50, p95, mean = np.quantile(seconds, 0.5), np.quantile(seconds, 0.95), seconds.mean()
    elif seen.total.count:
        p50, p95, mean = seen.total.quantile(0.5), seen.total.quantile(0.95), seen.total.mean
    else:
        return {"p50Ms": None, "p95Ms": None, "meanMs": None}
    named = {"p50Ms": p50, "p95Ms": p95, "meanMs": mean}
    return {name: round(float(value) * 1e3, 2) for name, value in named.items()}


def _answers(points: Sequence[Point]) -> dict[str, Any]:
    """Shares of answers that agree with the whole model and that are right, and the worst error."""
    agrees = [p.agrees for p in points if p.agrees is not None]
    right = [p.right for p in points if p.right is not None]
    errors = [p.error for p in points if p.error is not None]
    return {
        "agreement": sum(agrees) / len(agrees) if agrees else None,
        "accuracy": sum(right) / len(right) if right else None,
        "maxError": max(errors, default=None),
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
