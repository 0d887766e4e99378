"""Chooses the chain of cuts: those that can ever be best, nested, and few.

Which cut is best depends on the link, the device and what the user wants. For a fixed device speed
the price of every cut is a line in seconds per byte, and the best cuts are the lower envelope of
those lines: two cuts that are best at two bandwidths meet at one where either they are both best or
a third one is better, so solving at the meeting points finds *every* cut that is best at *any*
bandwidth, exactly, with two solves a cut. The same holds for a price on edge weight bytes (devices
that cannot hold the model). Sweeps:

- latency over bandwidth, for device speeds from 1/10 to 100 times slower. Weighing edge, wire and
  cloud against each other is also what a pipeline under load needs (max of the three), which is why
  the speeds reach below 1;
- the same where the raw input may not leave the device, down to the least depth that allows it;
- edge weight bytes.

A cut is paid for by everyone, also by rungs that do not use it: at a boundary between segments a
second session is entered and activations change to the plain layout and back. So a cut has a place
in the chain only if it lowers the regret by more than it slows the model.

Segments serve a *nested* chain only. Candidates mostly are nested; where they are not, the chain
that loses least is taken. A chain is judged by its regret: how much slower its best cut is than the
best of all candidates, over the conditions of `dovetail.ladder.sweep` and the wishes above. The
worst regret is returned, so that what was dropped is known.

Reference: Eisner and Severance, "Mathematical techniques for efficient
record segmentation in large shared databases", 1976 (envelopes by meeting points).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dovetail.ladder import sweep
from dovetail_partitioner.fuse import fuse
from dovetail_partitioner.graph import Graph, TensorInfo, expand, quotient
from dovetail_partitioner.mincut import Floats, Mask, MinCut, Prices

_SPEEDS: Final = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0)
_SLOWEST, _FASTEST = 1 / 0.02e6, 1 / 1e9  # seconds per byte
_BUDGETS: Final = (0.25, 0.5)  # shares of the weights that a small device can hold
_SHORTLIST: Final = 16  # candidates whose chains are enumerated
# Seconds that a boundary costs, and seconds per byte that goes over it: fitted to convolutional
# networks of 4 to 32 ms, within a third of each one's measured sum over 2 to 5 cuts.
_BOUNDARY: Final = 1e-4
_BOUNDARY_BYTE: Final = 1.2e-10
_UNSERVED: Final = 10.0  # regret of a wish that no cut of a chain can meet
_SAME: Final = 1 - 1e-9


@dataclass(frozen=True)
class Chain:
    """Cuts to make, innermost first.

    Attributes:
        cuts: nested downsets of ops, neither empty nor all; maybe none.
        regret: worst relative loss against the best of all candidates, over all conditions, the
            cost of the boundaries aside.
        considered: number of distinct candidates, without all-edge and all-cloud.
        nested: whether the candidates were a chain as they came.
        conditions: number of conditions that the regret was taken over.
    """

    cuts: tuple[frozenset[int], ...]
    regret: float
    considered: int
    nested: bool
    conditions: int


def search(
    graph: Graph,
    edge_seconds: Sequence[float],
    cloud_seconds: Sequence[float],
    coded_bytes: Callable[[TensorInfo], float],
    *,
    max_segments: int = 6,
    cuttable: bool = True,
) -> Chain:
    """Find the chain of cuts.

    Args:
        graph: the search graph.
        edge_seconds: seconds of each op at device speed 1, by index.
        cloud_seconds: seconds of each op in the cloud, by index.
        coded_bytes: bytes that one row of a tensor takes on the wire.
        max_segments: most segments to cut into.
        cuttable: whether any cut but all-edge and all-cloud is allowed.

    Returns:
        The chain.
    """
    if not cuttable or max_segments < 2:
        return Chain((), 0.0, 0, nested=True, conditions=0)
    groups = fuse(graph)
    costs = _Costs(quotient(graph, groups), groups, edge_seconds, cloud_seconds, coded_bytes)
    found = _candidates(costs)
    regrets = _Regrets(costs, found)
    slower = [costs.boundary(head) for head in found]
    chosen = _best_chain(found, regrets, slower, max_segments - 1)
    heads = sorted((found[index] for index in chosen), key=np.count_nonzero)
    return Chain(
        cuts=tuple(expand(groups, np.flatnonzero(head).tolist()) for head in heads),
        regret=float(regrets.of(chosen).max()),
        considered=len(found),
        nested=all(_nested(a, b) for i, a in enumerate(found) for b in found[:i]),
        conditions=regrets.count,
    )


class _Costs:
    """Prices of a contracted graph, split by what they scale with."""

    def __init__(
        self,
        graph: Graph,
        groups: Sequence[Sequence[int]],
        edge_seconds: Sequence[float],
        cloud_seconds: Sequence[float],
        coded_bytes: Callable[[TensorInfo], float],
    ) -> None:
        self.cut = MinCut(graph)
        self.edge = np.array([sum(edge_seconds[i] for i in group) for group in groups])
        self.cloud = np.array([sum(cloud_seconds[i] for i in group) for group in groups])
        self.weights = np.array([float(op.weight_bytes) for op in graph.ops])
        tensors = graph.tensors.values()
        self.up = np.array([float(coded_bytes(info)) for info in tensors])
        self.plain = np.array([float(info.nbytes) for info in tensors])
        self.barred = np.array([not info.crossable for info in tensors])
        raw = set(graph.inputs)
        self.raw = np.array([info.name in raw for info in tensors])
        answers = set(graph.outputs)
        self.down = np.array(
            [
                float(sum(graph.tensors[name].nbytes for name in op.writes if name in answers))
                for op in graph.ops
            ]
        )

    def prices(self, speed: float, per_byte: float, per_weight: float, *, masked: bool) -> Prices:
        """Seconds at a device speed and seconds per byte, with a price on edge weight bytes."""
        barred = self.barred | self.raw if masked else self.barred
        return Prices(
            edge=speed * self.edge + per_weight * self.weights,
            cloud=self.cloud + per_byte * self.down,
            up=np.where(barred, np.inf, per_byte * self.up),
        )

    def bytes(self, head: Mask) -> float:
        """Bytes up and down of a cut."""
        return float(self.up[self.cut.crossing(head)].sum() + self.down[~head].sum())

    def boundary(self, head: Mask) -> float:
        """How much a boundary at a cut slows the whole model, as a share of its time."""
        seconds = _BOUNDARY + _BOUNDARY_BYTE * float(self.plain[self.cut.crossing(head)].sum())
        return seconds / max(float(self.cloud.sum()), seconds)

    def leaks(self, head: Mask) -> bool:
        """Whether the raw input crosses."""
        return bool(np.any(self.cut.crossing(head) & self.raw))


def _candidates(costs: _Costs) -> list[Mask]:
    """Every cut that some sweep finds best, by depth; without all-edge and all-cloud."""
    found: dict[bytes, Mask] = {}
    for masked in (False, True):
        for speed in _SPEEDS:
            for head in _over_bandwidth(costs, speed, masked=masked):
                found[head.tobytes()] = head
        for per_byte in (1 / 0.3e6, 1 / 2.5e6, 1 / 12.5e6):
            for head in _over_weights(costs, per_byte, masked=masked):
                found[head.tobytes()] = head
    shallow = costs.cut.solve(costs.prices(1e6, _FASTEST, 0.0, masked=True))
    found[shallow.tobytes()] = shallow
    inner = [head for head in found.values() if head.any() and not head.all()]
    return sorted(inner, key=lambda head: (int(np.count_nonzero(head)), head.tobytes()))


def _over_bandwidth(costs: _Costs, speed: float, *, masked: bool) -> Iterator[Mask]:
    def solve(per_byte: float) -> Mask:
        return costs.cut.solve(costs.prices(speed, per_byte, 0.0, masked=masked))

    def line(head: Mask) -> tuple[float, float]:
        seconds = speed * costs.edge[head].sum() + costs.cloud[~head].sum()
        return float(seconds), costs.bytes(head)

    return _envelope(solve, line, _FASTEST, _SLOWEST)


def _over_weights(costs: _Costs, per_byte: float, *, masked: bool) -> Iterator[Mask]:
    speed, total = 4.0, max(float(costs.weights.sum()), 1.0)
    dearest = 100 * (speed * float(costs.edge.sum()) + per_byte * float(costs.up.sum())) / total

    def solve(per_weight: float) -> Mask:
        return costs.cut.solve(costs.prices(speed, per_byte, per_weight, masked=masked))

    def line(head: Mask) -> tuple[float, float]:
        seconds = speed * costs.edge[head].sum() + costs.cloud[~head].sum()
        return float(seconds) + per_byte * costs.bytes(head), float(costs.weights[head].sum())

    return _envelope(solve, line, 0.0, dearest)


def _envelope(
    solve: Callable[[float], Mask],
    line: Callable[[Mask], tuple[float, float]],
    low: float,
    high: float,
) -> Iterator[Mask]:
    """Every cut that is best for some parameter in a range: `solve` there, meet, solve again."""
    first, last = solve(low), solve(high)
    yield first
    yield last
    todo = [(line(first), line(last))]
    while todo:
        (base_a, slope_a), (base_b, slope_b) = todo.pop()
        if slope_a <= slope_b:
            continue
        meet = (base_b - base_a) / (slope_a - slope_b)
        if not low < meet < high:
            continue
        head = solve(meet)
        base, slope = line(head)
        if base + slope * meet < (base_a + slope_a * meet) * _SAME:
            yield head
            todo += [((base_a, slope_a), (base, slope)), ((base, slope), (base_b, slope_b))]


class _Regrets:
    """How much each set of candidates loses under every condition and wish."""

    def __init__(self, costs: _Costs, heads: Sequence[Mask]) -> None:
        none = np.zeros(len(costs.edge), dtype=np.bool_)
        everyone = [*heads, none, ~none]  # all-cloud and all-edge are always on the menu
        at = tuple(sweep())
        speed = np.array([c.edge for c in at])
        per_byte = np.array([1 / c.bandwidth for c in at])
        rtt = np.array([c.rtt for c in at])
        edge = np.array([costs.edge[head].sum() for head in everyone])[:, None] * speed
        cloud = np.array([costs.cloud[~head].sum() for head in everyone])[:, None]
        wire = np.array([costs.bytes(head) for head in everyone])[:, None] * per_byte
        remote = np.array([not head.all() for head in everyone])[:, None]
        latency = edge + cloud + wire + rtt * remote
        period = np.maximum(np.maximum(edge, wire), cloud)
        leaks = np.array([costs.leaks(head) for head in everyone])
        share = np.array([costs.weights[head].sum() for head in everyone])
        share = share / max(float(costs.weights.sum()), 1.0)
        wishes = [latency, period, np.where(leaks[:, None], np.inf, latency)]
        for budget in _BUDGETS:
            fits = np.where((share > budget)[:, None], np.inf, latency)
            wishes += [fits, np.where(leaks[:, None], np.inf, fits)]
        prices = np.concatenate(wishes, axis=1)
        best = prices.min(axis=0)
        possible = np.isfinite(best)
        loss = prices[:, possible] / best[possible] - 1.0
        self._loss = np.minimum(loss, _UNSERVED)
        self._menu = self._loss[-2:].min(axis=0)
        self.count = int(np.count_nonzero(possible))

    def of(self, chosen: Sequence[int], base: Floats | None = None) -> Floats:
        """Loss per condition of the chosen candidates together, added to what `base` offers."""
        start = self._menu if base is None else base
        return np.minimum(start, self._loss[list(chosen)].min(axis=0)) if len(chosen) else start


def _best_chain(
    heads: Sequence[Mask], regrets: _Regrets, slower: Sequence[float], most: int
) -> list[int]:
    """The nested chain of at most `most` candidates with the least regret, worst and mean.

    Args:
        heads: the candidates, by depth.
        regrets: what each set of them loses.
        slower: by candidate, the share of the model's time that its boundary costs.
        most: most cuts in the chain.
    """
    short = _shortlist(len(heads), regrets)
    best: list[int] = []
    least = _score(regrets.of([]), 0.0)
    todo: list[tuple[list[int], Floats]] = [([], regrets.of([]))]
    while todo:
        chain, loss = todo.pop()
        for index in short:
            if chain and not (index > chain[-1] and _nested(heads[chain[-1]], heads[index])):
                continue
            longer, together = [*chain, index], regrets.of([index], loss)
            score = _score(together, sum(slower[cut] for cut in longer))
            if score < least:
                best, least = longer, score
            if len(longer) < most:
                todo.append((longer, together))
    return best


def _shortlist(count: int, regrets: _Regrets) -> list[int]:
    """The candidates that, taken one after the other, lower the regret most; ascending."""
    chosen: list[int] = []
    loss = regrets.of([])
    while len(chosen) < min(count, _SHORTLIST):
        rest = [index for index in range(count) if index not in chosen]
        index = min(rest, key=lambda index: _score(regrets.of([index], loss), 0.0))
        chosen.append(index)
        loss = regrets.of([index], loss)
    return sorted(chosen)


def _score(loss: Floats, slower: float) -> float:
    """Worst and mean regret; what slows the model adds to both, for it adds to every rung."""
    return float(loss.max() + loss.mean()) + 2 * slower if loss.size else 0.0


def _nested(a: Mask, b: Mask) -> bool:
    """Whether one cut holds the other."""
    return not (np.any(a & ~b) and np.any(b & ~a))
