"""Segments against the uncut model: what it costs to have every rung resident.

Time: all segments one after the other with every cut kept possible, against the uncut model in one
session, one thread each, in interleaved rounds. The uncut model is the user's own file or, where
that is faster, the imported one (bound dimensions let ONNX Runtime fold more): whatever import
gains must not hide what cutting costs. Beside it, what a request that is not cut takes, with all
cuts kept possible: a small network's whole is loaded beside its segments for it. Memory: fresh
child processes that load all that an edge or a tail loads, or the user's file, and answer real
inputs; resident memory at rest afterwards.
"""

import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

from bench import networks, stats
from bench.report import ROOT, Context, Figure, Result, Table
from bench.stats import Floats, Interval
from dovetail.runtime import SegmentRuntime, session_options
from dovetail_partitioner.whole import open_session

_NAMES = (*networks.TRAINED, "magika", "minilm-int8", "silero-vad-sequence", *networks.DRAWN)
_QUICK = ("page-orientation", "squeezenet", "paraphrase-minilm")
_MB_A_SEGMENT = 3.0
_PROMISES = {"segments": "segments: time", "not cut": "a request that is not cut: time"}


def run(context: Context) -> Result:
    """Measure every network."""
    names = _QUICK if context.quick else _NAMES
    rounds = 15 if context.quick else 60
    pairs: dict[str, list[tuple[Floats, Floats]]] = {kind: [] for kind in _PROMISES}
    times: dict[str, dict[str, Interval]] = {kind: {} for kind in _PROMISES}
    memory: dict[str, stats.Samples] = {}
    counts: dict[str, int] = {}
    rows = []
    for name in names:
        context.say(f"{name}: cutting")
        cut = networks.cut(name)
        context.say(f"{name}: {len(cut.bundle.config.segments)} segments, timing")
        found = _timing(cut, rounds)
        uncut = min(("whole", "joined"), key=lambda kind: stats.median(found[kind]))
        for kind in _PROMISES:
            pairs[kind].append((found[kind], found[uncut]))
            times[kind][name] = stats.ratio(found[kind], found[uncut])
        memory[name] = _memory(cut, 3 if context.quick else 5)
        whole, parts = (stats.median(memory[name][kind]) for kind in ("whole", "loaded"))
        count = counts[name] = len(cut.bundle.config.segments)
        rows.append(
            (
                name,
                count,
                stats.median(found["whole"]) * 1e3,
                stats.median(found["joined"]) * 1e3,
                stats.median(found["segments"]) * 1e3,
                *(_ratio(times[kind][name]) for kind in _PROMISES),
                whole,
                parts,
                (parts - _MB_A_SEGMENT * count) / whole,
            )
        )
    columns = ("network", "segments", "file ms", "joined ms", "segments ms", "time", "not cut")
    table = Table(
        "Segments against the uncut model, one thread",
        (*columns, "file MB", "loaded MB", "(loaded - 3 MB each) / file"),
        tuple(rows),
    )
    return Result(
        figures=(
            *(
                figure
                for kind, promise in _PROMISES.items()
                for figure in _time_figures(promise, pairs[kind], times[kind], counts)
            ),
            _memory_figure(memory, counts),
        ),
        tables=(table,),
        data={
            name: {
                "time": vars(times["segments"][name]),
                "not cut": vars(times["not cut"][name]),
                "memory": memory[name],
            }
            for name in names
        },
        method=__doc__.partition("\n\n")[2].strip(),
    )


def _timing(cut: networks.Cut, rounds: int) -> stats.Samples:
    config, row = cut.bundle.config, dict(cut.rows[0])
    count = len(config.segments)
    apart = SegmentRuntime(cut.bundle, range(count + 1), whole=False)
    loaded, joined = SegmentRuntime(cut.bundle, range(count + 1)), SegmentRuntime(cut.bundle, ())
    whole = open_session(cut.source.path(), session_options(threads=1, optimize=True))
    names = [spec.name for spec in config.outputs]
    variants = {
        "whole": stats.timed(lambda: whole.run(names, row)),
        "joined": stats.timed(lambda: joined.run(row, 0, count)),
        "segments": stats.timed(lambda: apart.run(row, 0, count)),
        "not cut": stats.timed(lambda: loaded.run(row, 0, count)),
    }
    return stats.interleave(variants, rounds, warmup=3, repeat=3)


def _memory(cut: networks.Cut, rounds: int) -> dict[str, Floats]:
    """MB resident in fresh processes, without what Python and ONNX Runtime take by themselves."""

    def resident(kind: str, path: str) -> float:
        done = subprocess.run(
            [sys.executable, "-m", "bench.resident", kind, path, cut.name],
            check=True,
            capture_output=True,
            cwd=ROOT,
            timeout=120,
        )
        return float(json.loads(done.stdout)["mb"])

    variants = {
        "whole": lambda: resident("whole", str(cut.source.path())),
        "loaded": lambda: resident("loaded", str(cut.bundle.path)),
    }
    return stats.interleave(variants, rounds, warmup=0)


def _time_figures(
    promise: str,
    pairs: list[tuple[Floats, Floats]],
    times: dict[str, Interval],
    counts: dict[str, int],
) -> Iterator[Figure]:
    slowest = max(times, key=lambda name: times[name].value)
    which = f"{slowest}, {counts[slowest]} segments"
    yield Figure.of(f"{promise}, mean over networks", stats.mean_of_ratios(pairs), "x", 1.1)
    yield Figure.of(f"{promise}, worst network", times[slowest], "x", 1.1, which)


def _memory_figure(memory: dict[str, stats.Samples], counts: dict[str, int]) -> Figure:
    """The promise is a sum, memory <= 1.1 x whole + 3 MB a segment; shown as a ratio to it."""
    ratios = {
        name: stats.ratio(
            found["loaded"], np.asarray(1.1 * found["whole"] + _MB_A_SEGMENT * counts[name])
        )
        for name, found in memory.items()
    }
    worst = max(ratios, key=lambda name: ratios[name].value)
    promise = "all that is loaded: memory over (1.1x whole + 3 MB a segment), worst network"
    return Figure.of(promise, ratios[worst], "x", 1.0, worst)


def _ratio(found: Interval) -> str:
    return f"{found.value:.3f}x ({found.low:.3f} to {found.high:.3f})"
