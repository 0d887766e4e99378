"""Small plots for docs/benchmarks.md."""

import itertools
from pathlib import Path

import matplotlib as mpl

from bench.report import ROOT

mpl.use("svg")
from matplotlib import pyplot as plt

_RUNGS = Path("docs/img/bench-rungs.svg")
_COLOURS = {"chosen": "#1f77b4", "all-edge": "#999999", "all-cloud": "#d98c3f"}

Point = tuple[str, str, float, tuple[float, float, float]]


def rungs(points: list[Point]) -> str:
    """Latency of the chosen rung, all-edge and all-cloud, one panel a network.

    Args:
        points: network, link, slowdown, and milliseconds of chosen, all-edge and all-cloud.

    Returns:
        Path of the SVG from the repository's root.
    """
    groups = [list(g) for _, g in itertools.groupby(points, key=lambda p: (p[0], p[2]))]
    columns = min(4, len(groups))
    lines = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.0 * columns, 2.3 * lines), squeeze=False, sharex=True
    )
    for axis, group in itertools.zip_longest(axes.flat, groups):
        if group is None:
            axis.axis("off")
            continue
        network, _, slowdown, _ = group[0]
        links = [link for _, link, _, _ in group]
        for index, (name, colour) in enumerate(_COLOURS.items()):
            values = [found[index] for *_, found in group]
            axis.plot(links, values, color=colour, label=name, marker="o", markersize=3)
        axis.set_yscale("log")
        axis.set_title(f"{network}, device {slowdown:g}x", fontsize=8)
        axis.tick_params(labelsize=6)
        axis.tick_params(axis="x", rotation=60)
    axes[0][0].set_ylabel("p50, ms", fontsize=7)
    axes[0][0].legend(fontsize=6, frameon=False)
    figure.tight_layout()
    path = ROOT / _RUNGS
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return str(_RUNGS)
