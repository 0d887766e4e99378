"""What the sweeps find against every downset there is."""

from itertools import chain, combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.dovetail_partitioner.dags import graphs

from dovetail_partitioner.graph import Graph, TensorInfo
from dovetail_partitioner.mincut import Mask
from dovetail_partitioner.sweeps import Costs, candidates

SPEEDS = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0)


@st.composite
def costed(draw: st.DrawFn, *, alike: bool) -> tuple[Graph, Costs]:
    """A graph, and costs of it; edge and cloud seconds are in proportion or have nothing alike."""
    graph = draw(graphs())
    count = len(graph.ops)
    seconds = st.lists(st.floats(1e-5, 1e-2), min_size=count, max_size=count)
    edge = draw(seconds)
    cloud = edge if alike else draw(seconds)
    sizes = draw(st.lists(st.integers(0, 10**6), min_size=len(graph.tensors)))
    size = dict(zip(graph.tensors, sizes, strict=False))

    def coded(tensor: TensorInfo) -> float:
        return float(size[tensor.name])

    return graph, Costs(graph, [(i,) for i in range(count)], edge, cloud, coded)


def downsets(graph: Graph) -> list[Mask]:
    """Every downset."""
    every = range(len(graph.ops))
    found = chain.from_iterable(combinations(every, size) for size in range(len(every) + 1))
    return [np.isin(every, head) for head in found if graph.is_downset(head)]


def least(costs: Costs, heads: list[Mask], speed: float, per_byte: float, *, masked: bool) -> float:
    """Price of the best of some cuts."""
    at = np.array([speed, 1.0, per_byte, 0.0])
    return min(float(costs.parts(h) @ at) for h in heads if not (masked and costs.leaks(h)))


def check(graph: Graph, costs: Costs, per_byte: float) -> None:
    """Compare what was found with every downset, at every device speed."""
    none = np.zeros(len(graph.ops), dtype=np.bool_)
    menu = [*candidates(costs), none, ~none]
    every = downsets(graph)
    for masked in (False, True):
        for speed in SPEEDS:
            best = least(costs, every, speed, per_byte, masked=masked)
            assert least(costs, menu, speed, per_byte, masked=masked) <= best * (1 + 1e-6)


@given(costed(alike=True), st.floats(-9, -4.4))
def test_no_downset_beats_what_the_sweeps_found(problem: tuple[Graph, Costs], power: float) -> None:
    """Verify the candidates at any bandwidth, for a device that is slower by one factor."""
    check(*problem, 10**power)


@given(costed(alike=False), st.floats(-9, -4.4))
def test_the_device_may_be_slow_at_other_things_than_the_cloud(
    problem: tuple[Graph, Costs], power: float
) -> None:
    """Verify the candidates where no speed makes the edge's times those of the cloud."""
    check(*problem, 10**power)
