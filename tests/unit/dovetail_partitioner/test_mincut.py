"""The minimum cut against brute force over every downset."""

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail_partitioner.graph import Graph, Op, TensorInfo
from dovetail_partitioner.mincut import MinCut, Prices


def graph_of(reads: list[tuple[str, ...]], inputs: int, writes: list[int]) -> Graph:
    """Ops `i` that read named tensors and write `t<i>.0`, `t<i>.1`, …"""
    made = [tuple(f"t{i}.{j}" for j in range(count)) for i, count in enumerate(writes)]
    ops = tuple(
        Op(i, f"op{i}", "Op", read, write)
        for i, (read, write) in enumerate(zip(reads, made, strict=True))
    )
    given_names = tuple(f"x{i}" for i in range(inputs))
    names = chain(given_names, *made)
    tensors = {name: TensorInfo(name, "float32", (1,), 4) for name in names}
    return Graph(ops, tensors, given_names, made[-1])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """DAGs of up to nine ops; some ops read only the newest tensor, so that gates appear."""
    inputs = draw(st.integers(1, 2))
    names = [f"x{i}" for i in range(inputs)]
    reads, writes = [], []
    for index in range(draw(st.integers(1, 9))):
        count = draw(st.integers(1, 2))
        newest = draw(st.booleans())
        read = [names[-1]] if newest else draw(st.lists(st.sampled_from(names), max_size=3))
        reads.append(tuple(dict.fromkeys(read)))
        writes.append(count)
        names += [f"t{index}.{j}" for j in range(count)]
    return graph_of(reads, inputs, writes)


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
