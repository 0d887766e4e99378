"""Draws where on a map of links and devices each rung is best.

An image file, or a page that holds the drawing itself and asks for nothing from any other place.
"""

import html
import io
import os
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from dovetail.errors import UserError
from dovetail.ladder import Conditions, Ladder

_BANDWIDTHS = np.geomspace(0.05e6, 125e6, 121)  # bytes per second, as the ladder's sweep
_SLOWDOWNS = np.geomspace(1.0, 50.0, 81)
_RTT = 0.015
_COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#004488",
    "#ddaa33", "#994455", "#117733", "#88ccee", "#882255", "#44aa99", "#999933", "#332288",
)  # fmt: skip


def check_plot(path: Path) -> None:
    """Refuse a file that cannot be drawn to, before the work; raises `UserError`."""
    if path.suffix not in (".png", ".html"):
        raise UserError(f"{path}: a plot is written as .png or .html")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")


def draw(name: str, ladder: Ladder, path: Path) -> None:
    """Write the map of a ladder, in one step.

    Args:
        name: the model's name.
        ladder: its rungs.
        path: `.png` or `.html`.

    Raises:
        UserError: another ending, or no such folder.
    """
    check_plot(path)
    figure = _figure(name, ladder)
    if path.suffix == ".png":
        picture = io.BytesIO()
        FigureCanvasAgg(figure).print_png(picture)
        data = picture.getvalue()
    else:
        drawing = io.StringIO()
        figure.savefig(drawing, format="svg")
        svg = drawing.getvalue()
        title = html.escape(f"{name}: where each rung is best")
        data = (
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
            f"<body style='max-width:70rem;margin:2rem auto'>{svg[svg.index('<svg') :]}"
            "</body></html>"
        ).encode()
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    temp.write_bytes(data)
    temp.replace(path)


def _figure(name: str, ladder: Ladder) -> Figure:
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    figure.suptitle(f"{name}: fastest rung, {_RTT * 1e3:.0f} ms round trip")
    inside = Ladder(rungs=tuple(rung for rung in ladder.rungs if rung.cut > 0))
    colours = {rung.id: _COLOURS[i % len(_COLOURS)] for i, rung in enumerate(ladder.rungs)}
    shown: list[str] = []
    for number, (title, rungs) in enumerate(
        (("all rungs", ladder), ("no raw input leaves the device", inside))
    ):
        axes = figure.add_subplot(1, 2, number + 1)
        best = _best(rungs)
        palette = ListedColormap([colours[rung.id] for rung in rungs.rungs])
        axes.pcolormesh(
            _BANDWIDTHS * 8e-6, _SLOWDOWNS, best, cmap=palette, vmin=-0.5,
            vmax=len(rungs.rungs) - 0.5, rasterized=True,
        )  # fmt: skip
        axes.set(xscale="log", yscale="log", title=title, xlabel="link, Mbit/s")
        axes.set_ylabel("device, times slower than the cloud")
        shown += [rungs.rungs[i].id for i in np.unique(best)]
    patches = [Patch(color=colours[r.id], label=r.id) for r in ladder.rungs if r.id in shown]
    figure.legend(handles=patches, loc="outside right center", frameon=False)
    return figure


def _best(ladder: Ladder) -> NDArray[np.int64]:
    """[slowdowns, bandwidths] index of the fastest rung."""
    times = np.array(
        [
            [
                [
                    rung.predict(Conditions(edge=edge, bandwidth=bandwidth, rtt=_RTT)).total
                    for bandwidth in _BANDWIDTHS.tolist()
                ]
                for edge in _SLOWDOWNS.tolist()
            ]
            for rung in ladder.rungs
        ]
    )
    best: NDArray[np.int64] = times.argmin(axis=0)
    return best
