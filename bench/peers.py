"""Cutting beside `onnx.utils.extract_model` and `ssp4onnx`, on the networks of the onnx wheel.

Each network is given as shipped (IR version 3, generators in place of weights, inputs that are
weights), with drawn weights in that old form, and with drawn weights as exporters write them now.
Each tool gets the same file and makes the same number of parts where it can. Dovetail finds the
cuts (seconds per op are given: uniform, since only the work of cutting is timed) and writes the
segments. `extract_model` finds none: it is called once a part with the boundaries that Dovetail
found. `ssp4onnx` cuts by weight size only: it is asked for the model's weights over the number of
parts. Timed is reading, cutting and writing in a warm process, without starting Python. Bytes are
all files written over the model's file. Equality: the parts run one after the other in ONNX
Runtime, graph optimisation off, on a real photo, against the uncut file run the same way.

`ssp4onnx` pins an older onnx, so it runs in an environment of its own, with what it asks for.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from examples.registry import cache_root
from tests.proving import light

from bench.report import ROOT, Cell, Context, Figure, Result, Table
from bench.stats import Interval
from dovetail.bundle import Bundle, BundleWriter
from dovetail.errors import MissingTool
from dovetail.runtime import SegmentRuntime
from dovetail.tensor import Array
from dovetail_partitioner.emit import emit
from dovetail_partitioner.importer import import_model
from dovetail_partitioner.partition import describe
from dovetail_partitioner.search import search

_PEER = "ssp4onnx==1.0.4"
_QUICK = ("squeezenet", "inception_v1", "resnet50")
_OP_SECONDS = 1e-4
_SHIPPED, _DRAWN, _MODERN = "as shipped", "drawn weights", "drawn weights, modern form"
_MODERN_IR = 8

Feed = Mapping[str, Array]


@dataclass(frozen=True)
class Outcome:
    """What one tool did with one file.

    Attributes:
        parts: how many it made; 0 where it failed.
        seconds: how long it took.
        bytes: bytes written.
        error: max |a - b| of the chained parts against the whole; None where they do not run.
        fault: why it failed, in a few words.
    """

    parts: int
    seconds: float
    bytes: int
    error: float | None
    fault: str = ""


def run(context: Context) -> Result:
    """Cut every network with every tool."""
    peer = _environment(context)
    names = _QUICK if context.quick else light.NAMES
    found: dict[str, dict[str, Outcome]] = {}
    sizes: dict[str, int] = {}
    for name in names:
        feed, modern = light.rows(name)[0], context.scratch / f"{name}.onnx"
        _modernise(light.seeded(name), modern)
        forms = {_SHIPPED: light.shipped(name), _DRAWN: light.seeded(name), _MODERN: modern}
        for form, path in forms.items():
            context.say(f"{name}, {form}")
            case = f"{name}, {form}"
            found[case] = _all_tools(path, feed, context.scratch, peer)
            sizes[case] = path.stat().st_size
        modern.unlink()
    tables = tuple(_table(tool, found, sizes) for tool in ("dovetail", "extract_model", "ssp4onnx"))
    return Result(
        figures=_figures(found, sizes),
        tables=tables,
        data={
            case: {tool: vars(outcome) for tool, outcome in by_tool.items()}
            for case, by_tool in found.items()
        },
        method=(__doc__ or "").partition("\n\n")[2].strip(),
    )


def _all_tools(path: Path, feed: Feed, scratch: Path, peer: Path) -> dict[str, Outcome]:
    whole = _whole(path, feed)
    folder = scratch / "dovetail"
    ours, bundle = _dovetail(path, folder, feed, whole)
    found = {"dovetail": ours}
    config = bundle.config
    bounds = [(segment.reads, segment.writes) for segment in config.segments]
    out = scratch / "extract"
    found["extract_model"] = _tried(out, lambda: _extract(path, out, bounds), feed, whole)
    size = config.model.weight_bytes or path.stat().st_size
    limit = f"{max(size // len(bounds) // 1024, 1)}KB"
    out = scratch / "ssp4onnx"
    found["ssp4onnx"] = _tried(out, lambda: _ssp4onnx(path, out, limit, peer), feed, whole)
    shutil.rmtree(folder)
    return found


def _dovetail(path: Path, folder: Path, feed: Feed, whole: Feed) -> tuple[Outcome, Bundle]:
    begin = time.perf_counter()
    scratch = folder.with_name("import")
    scratch.mkdir()
    imported = import_model(path, scratch)
    graph = imported.graph
    seconds = [_OP_SECONDS] * len(graph.ops)
    chain = search(graph, seconds, seconds, lambda tensor: tensor.nbytes / 4)
    emitted = emit(imported, chain.cuts)
    with BundleWriter(folder) as writer:
        writer.commit(describe(imported, emitted, writer, path.stem, None))
    took = time.perf_counter() - begin
    shutil.rmtree(scratch)
    bundle = Bundle(folder)
    count = len(bundle.config.segments)
    runtime = SegmentRuntime(bundle, range(count + 1), optimize=False, whole=False)
    answers, _ = runtime.run(feed, 0, count)
    return Outcome(count, took, _size(folder), _error(answers, whole)), bundle


def _extract(
    path: Path, out: Path, bounds: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> tuple[list[Path], float]:
    begin, made = time.perf_counter(), []
    for index, (reads, writes) in enumerate(bounds):
        made.append(out / f"part{index}.onnx")
        onnx.utils.extract_model(path, made[-1], list(reads), list(writes))
    return made, time.perf_counter() - begin


def _ssp4onnx(path: Path, out: Path, limit: str, python: Path) -> tuple[list[Path], float]:
    script = (
        "import json,sys,time,ssp4onnx.onnx_network_split as s;b=time.perf_counter();"
        "p=s.split(input_onnx_file_path=sys.argv[1],output_dir=sys.argv[2],"
        "auto_split_max_size=sys.argv[3],non_verbose=True);"
        "print(json.dumps([p,time.perf_counter()-b]))"
    )
    done = subprocess.run(
        [python, "-c", script, path, out, limit],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "no message")
    made, seconds = json.loads(done.stdout.splitlines()[-1])
    return [Path(part) for part in made], float(seconds)


def _tried(
    out: Path, cut: Callable[[], tuple[list[Path], float]], feed: Feed, whole: Feed
) -> Outcome:
    """Cut with a peer; what it raises is its outcome."""
    out.mkdir()
    try:
        parts, seconds = cut()
        size = _size(out)
        try:
            error, fault = _error(_chained(parts, feed), whole), ""
        except Exception as problem:  # noqa: BLE001  a part that does not run is a finding
            error, fault = None, _first_line(problem)
        return Outcome(len(parts), seconds, size, error, fault)
    except Exception as problem:  # noqa: BLE001  a tool that fails is a finding
        return Outcome(0, 0.0, 0, None, _first_line(problem))
    finally:
        shutil.rmtree(out)


def _modernise(old: Path, new: Path) -> None:
    """The same network as exporters write it now: weights are no inputs."""
    model = onnx.load(old)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = _MODERN_IR
    onnx.save(model, new)


def _whole(path: Path, feed: Feed) -> dict[str, Array]:
    return _chained([path], feed)


def _chained(parts: Sequence[Path], feed: Feed) -> dict[str, Array]:
    """Run parts one after the other over one environment of named tensors."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    env = dict(feed)
    for part in parts:
        session = ort.InferenceSession(part, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        needed = {value.name: env[value.name] for value in session.get_inputs()}
        env.update(zip(names, session.run(names, needed), strict=True))
    return env


def _error(answers: Feed, whole: Feed) -> float:
    """Max |a - b| over the outputs of the whole that are no inputs."""
    wanted = [name for name in whole if name in answers]
    return max(float(np.abs(answers[name] - whole[name]).max()) for name in wanted)


def _figures(
    found: Mapping[str, Mapping[str, Outcome]], sizes: Mapping[str, int]
) -> tuple[Figure, ...]:
    figures = []
    for tool in ("dovetail", "extract_model", "ssp4onnx"):
        outcomes = [by_tool[tool] for by_tool in found.values()]
        equal = sum(outcome.error == 0 for outcome in outcomes)
        slowest = max(outcome.seconds for outcome in outcomes)
        figures += [
            Figure.of(
                f"{tool}: parts equal the whole bit for bit, of {len(outcomes)} files",
                Interval.exact(equal),
                "",
            ),
            Figure.of(f"{tool}: slowest cut", Interval.exact(slowest), "s"),
        ]
    ratios = {
        case: by_tool["dovetail"].bytes / sizes[case]
        for case, by_tool in found.items()
        if _SHIPPED not in case
    }
    worst = max(ratios, key=lambda case: ratios[case])
    bytes_promise = "bundle bytes over the model's file, worst network with drawn weights"
    return (*figures, Figure.of(bytes_promise, Interval.exact(ratios[worst]), "x", 1.01, worst))


def _table(
    tool: str, found: Mapping[str, Mapping[str, Outcome]], sizes: Mapping[str, int]
) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for case, by_tool in found.items():
        outcome, size = by_tool[tool], sizes[case]
        error = "no parts" if not outcome.parts else "does not run"
        shown = error if outcome.error is None else f"{outcome.error:.3g}"
        rows.append(
            (
                case,
                outcome.parts,
                outcome.seconds,
                outcome.bytes / 1e6,
                outcome.bytes / size,
                shown,
                outcome.fault[:90],
            )
        )
    columns = ("network", "parts", "s", "MB written", "over file", "max |a - b|", "fault")
    return Table(tool, columns, tuple(rows))


def _environment(context: Context) -> Path:
    """Python of an environment that holds the peer, made on the first run."""
    folder = cache_root() / "bench-venv" / "env"
    python = folder / "bin" / "python"
    if not (folder / "bin" / "ssp4onnx").is_file():
        context.say(f"making an environment with {_PEER}")
        beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        uv = shutil.which("uv", path=beside)
        if uv is None:
            raise MissingTool("uv is not here to make the peer's environment: run `make setup`")
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True, cwd=ROOT)
        subprocess.run([uv, "pip", "install", "-q", "--python", python, _PEER], check=True)
    return python


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _first_line(problem: Exception) -> str:
    """What went wrong in a line, without the paths of this machine."""
    line = f"{type(problem).__name__}: {problem}".splitlines()[0]
    return re.sub(r"(Load model from )?/\S+\.onnx( failed:)?\s*", "", line)
