"""Measures the cost profile: what each op, each segment and each codec takes on this machine.

The cut is searched with seconds per op, but no op runs alone: ONNX Runtime fuses a convolution with
what follows it, and a time measured op by op would punish cuts for work that never happens. So ops
are timed inside one run of the optimised model: a fused kernel's time goes to the op that makes the
kernel's output, which lies in the same fusion group. The kernel times, taken at the optimisation
level that keeps tensor names, are then scaled to add up to the time of the whole model at the level
it is served at. Once the cuts are known, segments and codecs are timed as they will run.

Times are medians over interleaved rounds: a neighbour that takes the core for a moment hits every
quantity alike and no median much. A neighbour that stays would double every time and make the cost
of a boundary look small beside it, so one thread is timed by the processor time that it got.
"""

import itertools
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from dovetail.bundle import Bundle, BundleConfig
from dovetail.codecs import CodecSet
from dovetail.errors import CostsError
from dovetail.ladder import CodecCost, CostProfile
from dovetail.runtime import Clock, SegmentRuntime, session_options
from dovetail.tensor import Array
from dovetail_partitioner.graph import Graph
from dovetail_partitioner.progress import Report
from dovetail_partitioner.whole import Row, open_session

_OPTIMISED = "optimised.onnx"
_SECONDS = 0.6  # aimed at for each measured quantity
_ROUNDS = (5, 40)
_DIGITS = 9  # nanoseconds: more digits would only be noise in the file


def host() -> str:
    """This machine, for people who read a profile."""
    name = platform.processor() or platform.machine()
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{platform.system()} {platform.machine()}, {name}, ONNX Runtime {ort.__version__}"


def measure_ops(
    model: Path, graph: Graph, row: Row, *, threads: int, report: Report
) -> tuple[dict[str, float], float]:
    """Time every op and the whole model, batch 1.

    Args:
        model: the normalised ONNX file.
        graph: its search graph.
        row: one row of inputs.
        threads: intra-op threads.
        report: told of progress.

    Returns:
        Seconds by op name, with an entry for every op of the graph and the whole as their sum; and
        the seconds of the whole model.

    Raises:
        ModelError: ONNX Runtime refuses the model or the row.
    """
    feed = dict(row)
    names = list(graph.outputs)
    with tempfile.TemporaryDirectory(prefix="dovetail-profile-") as folder:
        whole = open_session(model, session_options(threads=threads, optimize=True))
        optimised = _optimised(model, Path(folder), threads)
        profiled = open_session(Path(folder) / _OPTIMISED, _profiling(threads, Path(folder)))
        profiled.run(names, feed)  # the first run allocates; it is left out below
        wholes: list[float] = []
        clock = _clock(threads)
        rounds = _rounds(_timed(lambda: whole.run(names, feed), clock))
        for done in range(rounds):
            report("measuring operators", done, rounds)
            profiled.run(names, feed)
            wholes.append(_timed(lambda: whole.run(names, feed), clock))
        kernels = _kernel_seconds(Path(profiled.end_profiling()))
    seconds = statistics.median(wholes)
    ops = _by_op(kernels, optimised.graph, graph)
    total = sum(ops.values()) or 1.0
    return {name: round(own * seconds / total, 12) for name, own in ops.items()}, _tidy(seconds)


def measure_segments(bundle: Bundle, row: Row, *, threads: int, report: Report) -> list[float]:
    """Seconds of each segment, batch 1, with every cut possible."""
    count = len(bundle.config.segments)
    runtime = SegmentRuntime(bundle, range(count), threads=threads, whole=False)
    clock = _clock(threads)

    def one() -> list[float]:
        env: dict[str, Array] = dict(row)
        times = []
        for index in range(count):
            env, seconds = runtime.run(env, index, index + 1, clock=clock)
            times.append(seconds)
        return times

    one()
    rounds = _rounds(sum(one()))
    taken = []
    for done in range(rounds):
        report("measuring segments", done, rounds)
        taken.append(one())
    return [_tidy(statistics.median(times)) for times in zip(*taken, strict=True)]


def measure_codecs(
    config: BundleConfig,
    envs: Mapping[int, Mapping[str, Array]],
    rungs: Mapping[str, tuple[int, str]],
    *,
    report: Report,
) -> dict[str, CodecCost]:
    """Seconds to encode and to decode one row's crossing tensors.

    Args:
        config: the bundle's description, with the codecs' tables.
        envs: by cut, the tensors of one row that cross there.
        rungs: by rung id, its cut and codec.
        report: told of progress.
    """
    codecs = CodecSet(config)
    taken: dict[str, list[tuple[float, float]]] = {rung: [] for rung in rungs}
    for done in range(_ROUNDS[0]):
        report("measuring codecs", done, _ROUNDS[0])
        for rung, (cut, codec) in rungs.items():
            names = config.crossing(cut)
            begin = time.perf_counter()
            packed = tuple(codecs.pack(codec, envs[cut], names))
            middle = time.perf_counter()
            codecs.unpack(codec, names, packed)
            taken[rung].append((middle - begin, time.perf_counter() - middle))
    return {
        rung: CodecCost(
            encode=_tidy(statistics.median(encode for encode, _ in times)),
            decode=_tidy(statistics.median(decode for _, decode in times)),
        )
        for rung, times in taken.items()
    }


def check_costs(costs: CostProfile, model: str, graph: Graph) -> None:
    """Refuse a cost profile of another model.

    Raises:
        CostsError: the digest differs, or an op of the graph has no time.
    """
    if costs.model != model:
        raise CostsError(
            f"the cost profile was measured on model {costs.model}, this one is {model}; "
            "leave --costs out to measure"
        )
    missing = [op.name for op in graph.ops if op.name not in costs.ops]
    if missing:
        raise CostsError(
            f"the cost profile has no time for {len(missing)} ops, first {missing[0]!r}; "
            "leave --costs out to measure"
        )


def check_cuts(costs: CostProfile, config: BundleConfig, rungs: Iterable[str]) -> None:
    """Refuse times of other segments or codecs.

    Raises:
        CostsError: the profile's cuts are not this bundle's, or it lacks a rung's codec.
    """
    if costs.cuts != cuts_of(config) or not costs.codecs.keys() >= set(rungs):
        raise CostsError(
            f"the cost profile has the times of other segments or codecs ({len(costs.segments)} "
            f"segments, this cut makes {len(config.segments)}): it was made with other options; "
            "give the same ones, or leave --costs out to measure"
        )


def cuts_of(config: BundleConfig) -> tuple[tuple[str, ...], ...]:
    """Crossing tensors of each cut between segments: whose times a profile's are."""
    return tuple(config.crossing(cut) for cut in range(1, len(config.segments)))


def _optimised(model: Path, folder: Path, threads: int) -> Any:
    """Optimise a model once, leave it in `folder` with a name for every node, and return it.

    A fused or inlined node has no name, or another's, and a profile knows nodes by name only.
    """
    options = session_options(threads=threads, optimize=True)
    # One level below the highest: the layout changes above it rename tensors.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / _OPTIMISED)
    prefix = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(f"{prefix}file_name", "optimised.bin")
    options.add_session_config_entry(f"{prefix}min_size_in_bytes", "1024")
    open_session(model, options)
    optimised = onnx.load(folder / _OPTIMISED, load_external_data=False)
    for index, node in enumerate(optimised.graph.node):
        node.name = f"kernel.{index}"
    (folder / _OPTIMISED).write_bytes(optimised.SerializeToString())
    return optimised


def _profiling(threads: int, folder: Path) -> ort.SessionOptions:
    options = session_options(threads=threads, optimize=False)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    return options


def _kernel_seconds(profile: Path) -> dict[str, float]:
    """Median seconds of each node over the profiled runs, without the first."""
    taken: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(profile.read_bytes()):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            taken[name.removesuffix("_kernel_time")].append(event["dur"] * 1e-6)
    # Microseconds are coarse for a small op: a mean of the middle half beats a median.
    return {name: _middle_mean(times[1:]) for name, times in taken.items()}


def _by_op(kernels: Mapping[str, float], optimised: Any, graph: Graph) -> dict[str, float]:
    """Give each kernel's seconds to the op of the search graph that makes its output."""
    seconds = dict.fromkeys((op.name for op in graph.ops), 0.0)
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in optimised.node:
        for name in node.input:
            readers[name].append(node)
    for node in optimised.node:
        owner = _owner(node, readers, graph.producer)
        if owner is not None:
            seconds[graph.ops[owner].name] += kernels.get(node.name, 0.0)
    return seconds


def _owner(
    node: Any, readers: Mapping[str, Sequence[Any]], producer: Mapping[str, int]
) -> int | None:
    """The op that makes a kernel's output, or, for a tensor that fusion made up, the next known."""
    todo, seen = deque([node]), {id(node)}
    while todo:
        here = todo.popleft()
        known = [producer[name] for name in here.output if name in producer]
        if known:
            return min(known)
        for reader in itertools.chain.from_iterable(readers[name] for name in here.output):
            if id(reader) not in seen:
                seen.add(id(reader))
                todo.append(reader)
    return None


def _middle_mean(times: Sequence[float]) -> float:
    ordered = np.sort(np.asarray(times or [0.0]))
    quarter = len(ordered) // 4
    return float(ordered[quarter : len(ordered) - quarter].mean())


def _clock(threads: int) -> Clock:
    """What a session of that many threads is timed by; with one, the work is all in the caller."""
    return time.thread_time if threads == 1 else time.perf_counter


def _timed(run: Callable[[], object], clock: Clock) -> float:
    begin = clock()
    run()
    return clock() - begin


def _rounds(seconds: float) -> int:
    least, most = _ROUNDS
    return int(min(max(_SECONDS / max(seconds, 1e-6), least), most))


def _tidy(seconds: float) -> float:
    return round(seconds, _DIGITS)


def _lines(path: Path) -> Iterable[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return ()
