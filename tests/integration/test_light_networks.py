"""The nine networks inside the onnx wheel, as they are shipped: import, cut, run."""

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tests.proving import light

from dovetail.bundle import BundleWriter
from dovetail.runtime import SegmentRuntime, session_options
from dovetail_partitioner.emit import Emitted, emit
from dovetail_partitioner.graph import Graph, TensorInfo
from dovetail_partitioner.importer import Imported, import_model
from dovetail_partitioner.partition import describe
from dovetail_partitioner.search import search


def seconds(graph: Graph) -> list[float]:
    """Seconds of each op of a plain model: multiply-adds where there are weights, else bytes."""
    times = []
    for op in graph.ops:
        info = graph.tensors[op.writes[0]]
        places = math.prod(int(dim) for dim in info.shape[2:])
        work = op.weight_bytes / 4 * places / 2e9 + info.nbytes / 1e10
        times.append(work + 2e-6)
    return times


def int8(tensor: TensorInfo) -> float:
    """Bytes of a tensor as int8 codes."""
    return tensor.nbytes / 4


def generators(emitted: Emitted) -> list[int]:
    """Number of ConstantOfShape nodes per segment."""
    return [
        sum(node.op_type == "ConstantOfShape" for node in onnx.GraphProto.FromString(s.nodes).node)
        for s in emitted.segments
    ]


def assert_equal_at_every_cut(imported: Imported, emitted: Emitted, folder: Path) -> None:
    """Compare every head and tail with the whole, bit for bit, optimisation off."""
    [spec] = imported.inputs
    rng = np.random.default_rng(0)
    feed = {spec.name: rng.standard_normal(spec.shape).astype(np.float32)}
    options = session_options(threads=2, optimize=False)
    [want] = ort.InferenceSession(str(imported.model), options).run(None, feed)
    with BundleWriter(folder / "bundle") as writer:
        config = describe(imported, emitted, writer, "light", None)
        count = len(config.segments)
        runtime = SegmentRuntime(writer.draft(config), range(count), threads=2, optimize=False)
        for cut in range(count + 1):
            head = runtime.run(feed, 0, cut)[0]
            sent = {name: head[name] for name in config.crossing(cut)}
            got = runtime.run(sent, cut, count)[0] if cut < count else head
            assert got[imported.outputs[0].name].tobytes() == want.tobytes()


@pytest.mark.parametrize("name", light.NAMES)
def test_a_network_is_cut_as_shipped(name: str, tmp_path: Path) -> None:
    """Verify import of old IR, a nested chain, generators kept, and equality at every cut."""
    source = light.shipped(name)

    imported = import_model(source, tmp_path)
    times = seconds(imported.graph)
    chain = search(imported.graph, times, times, int8)
    emitted = emit(imported, chain.cuts)

    shipped = onnx.load_model(source)
    kept = sum(node.op_type == "ConstantOfShape" for node in shipped.graph.node)
    stored = sum(len(group.initializers) for group in emitted.groups)
    assert [spec.shape for spec in imported.inputs] == [(1, 3, 224, 224)]
    assert 2 <= len(emitted.segments) <= 6
    assert sum(generators(emitted)) == kept
    assert stored + imported.weight_bytes < source.stat().st_size
    assert_equal_at_every_cut(imported, emitted, tmp_path)
