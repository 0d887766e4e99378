"""How long it takes to find the cuts.

Three times. The exact cut: one solve over a graph that is already loaded, for random layered graphs
of up to 10 000 ops, every solve at other speeds and another link. The ladder: every sweep and the
choice of the nested chain, for the same graphs and for real networks. File to bundle: ResNet-50
with drawn weights, from the ONNX file to a proved bundle on disk, on rows made up from the model's
digest; once with the operators measured on the way and once with a cost profile that is at hand
(`--costs`).
"""

import itertools
from functools import partial

import numpy as np
from tests.proving import light

from bench import stats
from bench.graphs import layered
from bench.report import Cell, Context, Figure, Result, Table
from bench.stats import Floats
from dovetail_partitioner.graph import Graph, TensorInfo
from dovetail_partitioner.importer import import_model
from dovetail_partitioner.mincut import MinCut, Prices
from dovetail_partitioner.partition import COSTS_FILE, Options, partition
from dovetail_partitioner.search import search

_SIZES = (100, 300, 1000, 3000, 10_000)
_REAL = ("squeezenet", "resnet50", "densenet121")
_BANDWIDTHS = (0.3e6, 1.25e6, 6e6, 40e6)
_DEVICES = (1.0, 4.0, 16.0)
_RTT = 0.002


def run(context: Context) -> Result:
    """Time the cut, the ladder and the whole way."""
    rounds = 12 if context.quick else 60
    graphs = {size: layered(size, seed=1) for size in _SIZES}
    cuts = {size: _solves(*made, rounds) for size, made in graphs.items()}
    context.say("exact cuts timed")
    ladders = _ladders(context, graphs)
    context.say("ladders timed")
    bundles = _file_to_bundle(context, 2 if context.quick else 7)
    largest = _SIZES[-1]
    real = [name for name in ladders if not name.startswith("random")]
    slowest = max(real, key=lambda name: stats.median(ladders[name][1]))
    rows: list[tuple[Cell, ...]] = [
        (f"random, {size} ops", size, stats.median(cuts[size]) * 1e3, float(cuts[size].max()) * 1e3)
        for size in _SIZES
    ]
    found = ("network", "ops", "ladder s (median)", "longest s")
    return Result(
        figures=(
            _figure(f"exact cut of a {largest}-op graph, once loaded", cuts[largest], 1e3, 20.0),
            _figure("ladder, slowest real network", ladders[slowest][1], 1.0, 1.0, slowest),
            _figure(
                f"ladder, random graph of {largest} ops",
                ladders[f"random, {largest} ops"][1],
                1.0,
                1.0,
                "one maximum flow for each of the sweeps' vertices; nothing is shared between them",
            ),
            _figure("ResNet-50, file to bundle", bundles["measuring"], 1.0, 5.0),
            _figure("ResNet-50, file to bundle, with `--costs`", bundles["--costs"], 1.0),
        ),
        tables=(
            Table("Exact cut", ("graph", "ops", "cut ms (median)", "longest ms"), tuple(rows)),
            Table(
                "Ladder: sweeps and nested chain",
                found,
                tuple(
                    (name, ops, stats.median(times), float(times.max()))
                    for name, (ops, times) in ladders.items()
                ),
            ),
        ),
        data={
            "cut": {str(size): times for size, times in cuts.items()},
            "ladder": {name: times for name, (_, times) in ladders.items()},
            "bundle": bundles,
        },
        method=(__doc__ or "").partition("\n\n")[2].strip(),
    )


def _figure(
    promise: str, times: Floats, factor: float, bound: float | None = None, why: str = ""
) -> Figure:
    unit = "ms" if factor == 1e3 else "s"
    return Figure.of(promise, stats.interval(times * factor), unit, bound, why)


def _solves(graph: Graph, seconds: Floats, rounds: int) -> Floats:
    """Seconds of one solve each, over links and devices: float64 [rounds x conditions]."""
    loaded = MinCut(graph)
    sizes = np.array([info.nbytes / 4 for info in graph.tensors.values()])
    answers = np.array(
        [
            sum(graph.tensors[name].nbytes for name in op.writes if name in graph.outputs)
            for op in graph.ops
        ]
    )
    conditions = list(itertools.product(_BANDWIDTHS, _DEVICES))
    variants = {
        f"{bandwidth:g} {device:g}": stats.timed(
            partial(
                loaded.solve,
                Prices(seconds * device, seconds + answers / bandwidth, sizes / bandwidth),
            )
        )
        for bandwidth, device in conditions
    }
    found = stats.interleave(variants, max(rounds // len(conditions), 2))
    return np.concatenate(list(found.values()))


def _ladders(
    context: Context, graphs: dict[int, tuple[Graph, Floats]]
) -> dict[str, tuple[int, Floats]]:
    """Ops and seconds of the whole search, by graph."""
    todo = {f"random, {size} ops": made for size, made in graphs.items()}
    for name in _REAL[: 1 if context.quick else None]:
        folder = context.scratch / f"ladder-{name}"
        folder.mkdir()
        graph = import_model(light.seeded(name), folder).graph
        todo[name] = (graph, np.full(len(graph.ops), 50e-3 / len(graph.ops)))
    variants = {
        name: stats.timed(partial(search, graph, list(seconds), list(seconds), _coded))
        for name, (graph, seconds) in todo.items()
    }
    found = stats.interleave(variants, 3 if context.quick else 11)
    return {name: (len(todo[name][0].ops), found[name]) for name in todo}


def _coded(tensor: TensorInfo) -> float:
    return tensor.nbytes / 4


def _file_to_bundle(context: Context, rounds: int) -> dict[str, Floats]:
    source, folder = light.seeded("resnet50"), context.scratch / "resnet50"
    costs = context.scratch / COSTS_FILE

    def once(*, given: bool) -> None:
        partition(source, folder, costs=costs if given else None, options=Options())
        context.say("ResNet-50 written")

    once(given=False)
    (folder / COSTS_FILE).rename(costs)
    variants = {
        "measuring": stats.timed(lambda: once(given=False)),
        "--costs": stats.timed(lambda: once(given=True)),
    }
    return stats.interleave(variants, rounds, warmup=0)
