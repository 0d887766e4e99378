"""How long it takes to find the cuts.

Three times. The exact cut: one solve over a graph that is already loaded, for random layered graphs
of up to 10 000 ops, every solve at other speeds and another link. The ladder: every sweep and the
choice of the nested chain, for the same graphs and for real networks. File to bundle: ResNet-50
with drawn weights, from the ONNX file to a proved bundle on disk, on rows made up from the model's
digest. The promise is about the way without calibration, so the steps that answer the rows, fit
codecs to them and measure what codecs do are timed apart; the whole way is shown beside it.
"""

import itertools
import time
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
from dovetail_partitioner.partition import Options, partition
from dovetail_partitioner.search import search

_SIZES = (100, 300, 1000, 3000, 10_000)
_REAL = ("squeezenet", "resnet50", "densenet121")
_BANDWIDTHS = (0.3e6, 1.25e6, 6e6, 40e6)
_DEVICES = (1.0, 4.0, 16.0)
# Steps that need rows: their answers, fitting codecs, and what each does to size, time and answers.
_CALIBRATION = (
    "asking the whole",
    "fitting codecs",
    "measuring coded",
    "measuring codecs",
    "proving rungs",
)


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
                "without a gate: one network of all ops",
            ),
            _figure(
                "ResNet-50, file to bundle, without calibration",
                _without_calibration(bundles),
                1.0,
                5.0,
                "all but: " + ", ".join(n for n in bundles if n.startswith(_CALIBRATION)),
            ),
            _figure("ResNet-50, file to bundle, every codec fitted and proved", bundles["all"], 1),
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
            Table(
                "ResNet-50, file to bundle, by step",
                ("step", "s (median)"),
                tuple((name, stats.median(times)) for name, times in bundles.items()),
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
    """Seconds of each step, one a round; `all` is their sum."""
    taken: list[dict[str, float]] = []
    for _ in range(rounds):
        steps = _Steps()
        folder = context.scratch / "resnet50"
        partition(light.seeded("resnet50"), folder, options=Options(), report=steps)
        taken.append(steps.end())
        context.say("ResNet-50 written")
    names = dict.fromkeys(name for one in taken for name in one)
    return {name: np.array([one.get(name, 0.0) for one in taken]) for name in names}


class _Steps:
    """A partitioner's report, turned into seconds by step."""

    def __init__(self) -> None:
        self._begin = self._since = time.perf_counter()
        self._step, self._taken = "", dict[str, float]()

    def __call__(self, part: str, done: int, total: int) -> None:  # noqa: ARG002  a protocol
        """Count the time since the last report to the step that was under way."""
        now = time.perf_counter()
        self._taken[self._step] = self._taken.get(self._step, 0.0) + now - self._since
        self._step, self._since = part, now

    def end(self) -> dict[str, float]:
        """Seconds by step."""
        self("", 0, 0)
        del self._taken[""]
        return {**self._taken, "all": time.perf_counter() - self._begin}


def _without_calibration(steps: dict[str, Floats]) -> Floats:
    spent = [times for name, times in steps.items() if name.startswith(_CALIBRATION)]
    return np.asarray(steps["all"] - np.sum(spent, axis=0))
