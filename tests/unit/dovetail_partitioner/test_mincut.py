"""The minimum cut against brute force over every downset."""

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.dovetail_partitioner.dags import graph_of, graphs

from dovetail_partitioner.graph import Graph
from dovetail_partitioner.mincut import MinCut, Prices


@st.composite
def problems(draw: st.DrawFn, *, barred: bool) -> tuple[Graph, Prices]:
    """A graph with whole-number prices, which scaling keeps exact; maybe some infinite."""
    graph = draw(graphs())
    price = st.integers(0, 30).map(float)
    if barred:
        price = st.one_of(price, price, price, st.just(float("inf")))

    def column(size: int) -> np.ndarray:
        return np.array(draw(st.lists(price, min_size=size, max_size=size)), dtype=np.float64)

    edge, cloud = column(len(graph.ops)), column(len(graph.ops))
    cloud[np.isinf(edge)] = 1.0
    return graph, Prices(edge, cloud, column(len(graph.tensors)))


def brute_force(graph: Graph, prices: Prices) -> float:
    """Price of the cheapest downset, by looking at all of them and adding up by hand."""
    place = {name: index for index, name in enumerate(graph.tensors)}
    every = range(len(graph.ops))
    best = float("inf")
    for head in chain.from_iterable(combinations(every, size) for size in range(len(every) + 1)):
        if graph.is_downset(head):
            tail = set(every) - set(head)
            total = sum(prices.edge[i] for i in head) + sum(prices.cloud[i] for i in tail)
            total += sum(prices.up[place[name]] for name in graph.crossing(head))
            best = min(best, float(total))
    return best


@given(problems(barred=False))
def test_cut_costs_what_the_cheapest_of_all_downsets_costs(problem: tuple[Graph, Prices]) -> None:
    """Verify the optimum, and that what attains it is a downset."""
    graph, prices = problem
    solver = MinCut(graph)

    head = solver.solve(prices)

    assert graph.is_downset(np.flatnonzero(head).tolist())
    assert solver.price(prices, head) == brute_force(graph, prices)


@given(problems(barred=True))
def test_cut_keeps_to_what_is_forbidden(problem: tuple[Graph, Prices]) -> None:
    """Verify the optimum where ops must stay on a side and tensors may not cross."""
    graph, prices = problem
    solver = MinCut(graph)
    best = brute_force(graph, prices)

    if np.isinf(best):
        with pytest.raises(ValueError, match="infinite"):
            solver.solve(prices)
    else:
        assert solver.price(prices, solver.solve(prices)) == best


@given(problems(barred=False), st.lists(st.floats(0.1, 10), min_size=2, max_size=4))
def test_a_solve_leaves_nothing_behind_for_the_next(
    problem: tuple[Graph, Prices], factors: list[float]
) -> None:
    """Verify that a solver that has solved other prices gives what a fresh one gives."""
    graph, prices = problem
    used = MinCut(graph)
    for factor in factors:
        used.solve(Prices(prices.edge * factor, prices.cloud, prices.up))

    assert used.price(prices, used.solve(prices)) == brute_force(graph, prices)


def test_a_tensor_with_many_readers_is_paid_for_once() -> None:
    """Verify that fan-out does not make a cut dearer."""
    graph = graph_of(
        [("x0",), ("t0.0",), ("t0.0",), ("t0.0",), ("t1.0", "t2.0", "t3.0")], 1, [1] * 5
    )
    ones = np.ones(5)
    prices = Prices(ones, ones * 5, np.array([100.0, 7.0, 9.0, 9.0, 9.0, 9.0]))
    prices.edge[4] = np.inf

    head = MinCut(graph).solve(prices)

    assert head.tolist() == [True, False, False, False, False]
    assert MinCut(graph).price(prices, head) == 1 + 4 * 5 + 7


def test_sums_beyond_int32_do_not_overflow() -> None:
    """Verify a network whose raw capacities add up to more than scipy counts in."""
    count = 3000
    reads = [("x0",), *((f"t{i}.0",) for i in range(count - 1))]
    graph = graph_of(reads, 1, [1] * count)
    up = np.full(count + 1, 1e12)
    up[1500] = 1.0
    prices = Prices(np.full(count, 3e6), np.full(count, 2e6), up)
    prices.edge[1600:] = np.inf
    prices.cloud[:1400] = np.inf

    head = MinCut(graph).solve(prices)

    assert int(head.sum()) == 1500


def test_ten_thousand_parallel_ops_without_a_gate_are_cut_exactly() -> None:
    """Verify a graph that falls into no blocks: each branch is cut where it is cheapest."""
    branches, depth = 100, 100
    reads: list[tuple[str, ...]] = []
    for branch in range(branches):
        first = branch * depth
        reads += [("x0",), *((f"t{first + i}.0",) for i in range(depth - 1))]
    reads.append(tuple(f"t{(b + 1) * depth - 1}.0" for b in range(branches)))
    graph = graph_of(reads, 1, [1] * len(reads))
    up = np.full(len(reads) + 1, 50.0)
    cheapest = [(branch * depth + (branch * 7) % (depth - 1)) for branch in range(branches)]
    up[np.array(cheapest) + 1] = 0.0
    up[0] = 1e6
    edge, cloud = np.zeros(len(reads)), np.zeros(len(reads))
    edge[-1] = 1e6
    prices = Prices(edge, cloud, up)

    solver = MinCut(graph)

    assert solver.price(prices, solver.solve(prices)) == 0.0
