"""The chain of cuts."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dovetail.ladder import Conditions, sweep
from dovetail_partitioner.graph import Graph, Op, TensorInfo
from dovetail_partitioner.search import _BOUNDARY, _BOUNDARY_BYTE, Chain, search


def line(sizes: list[int], *, weights: list[int] | None = None) -> Graph:
    """A chain of Pool ops, which never fuse; `sizes` has the input's bytes and each op's."""
    names = [f"t{index}" for index in range(len(sizes))]
    tensors = {
        name: TensorInfo(name, "float32", (1,), size)
        for name, size in zip(names, sizes, strict=True)
    }
    heavy = weights or [0] * (len(sizes) - 1)
    ops = tuple(
        Op(i, f"op{i}", "MaxPool", (names[i],), (names[i + 1],), heavy[i])
        for i in range(len(sizes) - 1)
    )
    return Graph(ops, tensors, (names[0],), (names[-1],))


def raw(tensor: TensorInfo) -> float:
    """Bytes on the wire without a codec."""
    return float(tensor.nbytes)


def latency(graph: Graph, seconds: list[float], depth: int, at: Conditions) -> float:
    """Seconds of the cut of a chain at a depth."""
    names = list(graph.tensors)
    total = at.edge * sum(seconds[:depth]) + sum(seconds[depth:])
    if depth < len(seconds):
        total += graph.tensors[names[depth]].nbytes / at.bandwidth
        total += graph.tensors[names[-1]].nbytes / at.bandwidth + at.rtt
    return total


def depths(chain: Chain) -> set[int]:
    """How many ops each cut holds."""
    return {len(cut) for cut in chain.cuts}


@given(
    st.lists(st.integers(1, 200_000), min_size=3, max_size=9),
    st.lists(st.floats(1e-4, 1e-1), min_size=8, max_size=8),
)
def test_a_cut_that_is_fastest_somewhere_is_made_or_costs_more_than_it_gains(
    sizes: list[int], times: list[float]
) -> None:
    """Verify that, with room for all, no more is lost than the missing boundaries would cost."""
    graph = line(sizes)
    seconds = times[: len(graph.ops)]

    chain = search(graph, seconds, seconds, raw, max_segments=20)

    missing = set(range(1, len(graph.ops))) - depths(chain)
    saved = sum(_BOUNDARY + _BOUNDARY_BYTE * sizes[depth] for depth in missing) / sum(seconds)
    menu = {0, len(graph.ops), *depths(chain)}
    for at in sweep():
        best, got = (
            min(latency(graph, seconds, depth, at) for depth in some)
            for some in (range(len(graph.ops) + 1), menu)
        )
        assert got <= best * (1 + 2 * saved + 1e-6)
    assert chain.nested


def test_a_small_model_is_cut_less_than_the_same_one_larger() -> None:
    """Verify that what a boundary costs is weighed against what the cut gains."""
    sizes = [6_000, 2_000, 500, 120, 30, 8, 4]
    small, large = (
        search(line([size * by for size in sizes]), [2e-5 * by] * 6, [2e-5 * by] * 6, raw)
        for by in (1, 1000)
    )

    assert len(small.cuts) < len(large.cuts)


@given(st.lists(st.integers(1, 10**6), min_size=4, max_size=12), st.integers(1, 4))
def test_cuts_are_nested_downsets_and_no_more_than_allowed(
    sizes: list[int], max_segments: int
) -> None:
    """Verify the form of the answer."""
    graph = line(sizes)
    seconds = list(np.linspace(1e-3, 5e-3, len(graph.ops)))

    chain = search(graph, seconds, seconds, raw, max_segments=max_segments)

    assert len(chain.cuts) <= max_segments - 1
    assert all(graph.is_downset(cut) and cut for cut in chain.cuts)
    assert all(a < b for a, b in pairwise([*chain.cuts, frozenset(range(len(graph.ops)))]))


def test_a_narrow_place_in_the_middle_is_cut() -> None:
    """Verify the textbook case: a small tensor after cheap ops."""
    graph = line([600_000, 600_000, 4_000, 600_000, 600_000, 40])
    seconds = [1e-3, 1e-3, 20e-3, 20e-3, 20e-3]

    chain = search(graph, seconds, seconds, raw)

    assert 2 in depths(chain)


def test_dropping_cuts_is_paid_for_in_regret() -> None:
    """Verify that fewer segments never regret less, and that one segment regrets something."""
    graph = line([600_000, 200_000, 50_000, 12_000, 3_000, 800, 40])
    seconds = [2e-3] * 6

    regrets = [search(graph, seconds, seconds, raw, max_segments=n).regret for n in (2, 3, 6)]

    assert regrets == sorted(regrets, reverse=True)
    assert regrets[0] > 0


def test_a_device_that_cannot_hold_the_model_has_a_cut() -> None:
    """Verify that weights alone put a cut on the chain, where raw input may not leave."""
    graph = line([10, 10_000, 10_000, 40], weights=[100, 100, 10_000])
    seconds = [1e-4, 1e-4, 1e-4]

    chain = search(graph, seconds, seconds, raw)

    assert depths(chain) & {1, 2}


def test_a_tensor_that_may_not_cross_is_never_cut() -> None:
    """Verify that the narrowest place is passed by where its tensor cannot travel."""
    graph = line([600_000, 600_000, 400, 4_000, 600_000, 40])
    barred = TensorInfo("t2", "float32", ("t2.0",), 400, crossable=False)
    graph = Graph(graph.ops, {**graph.tensors, "t2": barred}, graph.inputs, graph.outputs)
    seconds = [1e-3, 1e-3, 1e-3, 20e-3, 20e-3]

    chain = search(graph, seconds, seconds, raw)

    assert 3 in depths(chain)
    assert 2 not in depths(chain)


def test_a_model_that_cannot_be_cut_is_one_segment() -> None:
    """Verify the answer for models with random ops."""
    graph = line([600_000, 4, 600_000])

    assert search(graph, [1e-3] * 2, [1e-3] * 2, raw, cuttable=False).cuts == ()
