"""The pictures of a run: latency over time with the moves and the link, and where time went.

Every request is a dot, because an average would hide exactly what a move is about; lines through
the dots are medians of their neighbours. Latency is logarithmic: a link that collapses changes it
tenfold.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dovetail.control import Move
from dovetail.measure import PARTS
from dovetail_cli.link import Trace
from dovetail_cli.local.record import Point, Record

PART_COLOURS = {
    "head": "#4477aa",
    "encode": "#66ccee",
    "network": "#ccbb44",
    "queue": "#ee6677",
    "decode": "#aa3377",
    "tail": "#228833",
}
_RUNG_COLOURS = ("#4477aa", "#228833", "#ee7733", "#aa3377", "#33bbee", "#999933", "#882255")
_OTHERS = ("#999999", "#bb5566")  # what is compared with
_SMOOTH = 9  # neighbours whose median a line is drawn through
_FONT = 9


@dataclass(frozen=True)
class Timeline:
    """What the picture over time is made of.

    Attributes:
        began: second zero, since the epoch.
        seconds: how long it was.
        main: the class that is shown request by request.
        others: classes it is compared with.
        moves: changes of the main class's rung, by either hand.
        trace: the simulated link; None where there was none.
    """

    began: float
    seconds: float
    main: Record
    others: Sequence[Record]
    moves: Sequence[Move]
    trace: Trace | None


def draw_timeline(line: Timeline) -> Figure:
    """Latency of every request over time, above the rung in use and the simulated link."""
    heights = (5, 1, 1.3) if line.trace else (5, 1)
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    colours = rung_colours([point.rung for point in line.main.points])
    _draw_latency(axes[0], line, colours)
    _draw_rungs(axes[1], line, colours)
    if line.trace:
        _draw_link(axes[2], line, line.trace)
    axes[-1].set_xlabel("seconds", fontsize=_FONT)
    axes[-1].set_xlim(0, line.seconds)
    for one in axes:
        one.tick_params(labelsize=_FONT)
        one.spines[["top", "right"]].set_visible(False)
    return figure


def draw_stack(rungs: Sequence[tuple[str, dict[str, float]]]) -> Figure:
    """Mean milliseconds by part, a bar a rung; args: (name, milliseconds by part)."""
    figure = Figure(figsize=(11, 0.8 + 0.42 * len(rungs)), layout="constrained")
    axes = figure.subplots()
    names = [name for name, _ in rungs]
    left = np.zeros(len(rungs))
    for part in PARTS:
        width = np.array([parts.get(part, 0.0) for _, parts in rungs])
        axes.barh(names, width, left=left, color=PART_COLOURS[part], label=part, height=0.65)
        left += width
    for index, total in enumerate(left):
        axes.text(total, index, f"  {total:.0f} ms", va="center", fontsize=_FONT)
    axes.invert_yaxis()
    axes.set_xlabel("mean milliseconds of a request", fontsize=_FONT)
    axes.tick_params(labelsize=_FONT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        fontsize=_FONT, frameon=False, ncols=len(PARTS), loc="lower left", bbox_to_anchor=(0, 1)
    )
    return figure


def svg(figure: Figure) -> str:
    """A figure as inline SVG."""
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", dpi=110)
    text = drawing.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    picture = io.BytesIO()
    figure.set_dpi(110)
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def rung_colours(rungs: Sequence[str]) -> dict[str, str]:
    """A colour a rung, the same wherever it is drawn; the most used come first."""
    used = sorted(set(rungs) - {""}, key=lambda rung: (-rungs.count(rung), rung))
    return {rung: _RUNG_COLOURS[i % len(_RUNG_COLOURS)] for i, rung in enumerate(used)}


def _draw_latency(axes: Axes, line: Timeline, colours: dict[str, str]) -> None:
    for other, colour in zip(line.others, _OTHERS, strict=False):
        at, ms = _series(list(other.points), line.began)
        axes.plot(at, _median(ms), color=colour, lw=1.4, label=f"{other.name} (median)")
    points = list(line.main.points)
    for rung, colour in colours.items():
        at, ms = _series([p for p in points if p.rung == rung], line.began)
        axes.scatter(at, ms, s=7, color=colour, label=rung, linewidths=0, rasterized=True)
    at, ms = _series(points, line.began)
    axes.plot(at, _median(ms), color="black", lw=1.2, label=f"{line.main.name} (median)")
    lost = [point for point in points if point.failed]
    if lost:
        at, ms = _series(lost, line.began, failed=True)
        axes.scatter(at, ms, s=40, color="red", marker="x", label="failed")
    for move in line.moves:
        axes.axvline(move.at - line.began, color="black", lw=0.7, ls=":")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.tick_params(which="minor", labelsize=_FONT - 2)
    axes.set_ylabel("milliseconds a request", fontsize=_FONT)
    axes.legend(fontsize=_FONT - 1, frameon=False, ncols=6, loc="lower left", bbox_to_anchor=(0, 1))


def _draw_rungs(axes: Axes, line: Timeline, colours: dict[str, str]) -> None:
    """The rung that answered, as a strip."""
    points = [point for point in line.main.points if not point.failed]
    starts = [p for i, p in enumerate(points) if i == 0 or points[i - 1].rung != p.rung]
    ends = [*(p.at for p in starts[1:]), line.began + line.seconds]
    for point, end in zip(starts, ends, strict=True):
        begin, width = point.at - line.began, end - point.at
        axes.barh(0, width, left=begin, color=colours[point.rung], height=1)
        if width > line.seconds / 100 * len(point.rung):
            axes.text(
                begin + width / 2, 0, point.rung, ha="center", va="center", color="white",
                fontsize=_FONT,
            )  # fmt: skip
    axes.set_yticks([])
    axes.set_ylabel("rung", fontsize=_FONT, rotation=0, ha="right", va="center")


def _draw_link(axes: Axes, line: Timeline, trace: Trace) -> None:
    starts = [*trace.starts, line.seconds]
    rates = [link.rate * 8e-6 if link.mode == "up" else np.nan for link in trace.links]
    axes.stairs(rates, starts, color="black", fill=False, lw=1.4, baseline=None)
    for start, end, link in zip(starts, starts[1:], trace.links, strict=False):
        if start >= line.seconds:
            break
        axes.axvspan(start, end, color="#f3e9c8" if link.mode == "up" else "#f0c0c0", alpha=0.4)
        if link.mode == "up":
            text = f"{link.rate * 8e-6:g} Mbit/s, {link.rtt * 1e3:g} ms"
        else:
            text = link.mode
        axes.annotate(text, (start, 0.06), xycoords=("data", "axes fraction"), fontsize=_FONT - 1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.35)
    axes.set_ylabel("link\nMbit/s", fontsize=_FONT)


def _series(
    points: Sequence[Point], began: float, *, failed: bool = False
) -> tuple[list[float], list[float]]:
    chosen = [point for point in points if (point.failed is not None) == failed]
    return [p.at - began for p in chosen], [p.seconds * 1e3 for p in chosen]


def _median(values: Sequence[float]) -> list[float]:
    half = _SMOOTH // 2
    return [float(np.median(values[max(i - half, 0) : i + half + 1])) for i in range(len(values))]
