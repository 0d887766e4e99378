"""Every cut that is best somewhere, found with few minimum cuts.

What a cut costs is linear in four *weights*: how slow the device is, how slow the cloud is, seconds
per byte, and a price on each weight byte that the edge must hold. Along a line of one of them the
best cuts are the lower envelope of lines: two cuts that are best at two places meet where either
both are best or a third one is better, so asking at the meeting points finds *every* cut that is
best *anywhere* on the line, exactly, with two questions a cut. Sweeps:

- latency over bandwidth, for device speeds from 1/10 to 100 times slower. Weighing edge, wire and
  cloud against each other is also what a pipeline under load needs (max of the three), which is why
  the speeds reach below 1;
- the same where the raw input may not leave the device, down to the least depth that allows it;
- edge weight bytes (devices that cannot hold the model).

Most questions need no minimum cut. The price of the best cut, as the least of linear functions, is
concave and homogeneous: where a cut is best at some weights, it is best at all sums of multiples of
them, and where it does not pay for something, that may grow dearer. So each answer settles a whole
cone, and a sweep at another speed mostly asks inside cones that the sweeps before it have settled.

Reference: Eisner and Severance, "Mathematical techniques for efficient record segmentation in large
shared databases", 1976 (envelopes by meeting points).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from scipy.optimize import nnls

from dovetail_partitioner.graph import Graph, TensorInfo
from dovetail_partitioner.mincut import Floats, Mask, MinCut, Prices

_EDGE, _CLOUD, _BYTE, _HELD = range(4)  # the weights, in the order they are kept in
_SPEEDS: Final = (100.0, 2.0, 0.1, 0.3, 1.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # extremes settle the rest
_SLOWEST, _FASTEST = 1 / 0.02e6, 1 / 1e9  # seconds per byte
_SAME: Final = 1e-9  # share of a price below which two are one


class Costs:
    """Prices of a contracted graph, split by what they scale with.

    Args:
        graph: the contracted graph.
        groups: by op of it, the ops it stands for.
        edge_seconds: seconds of each original op at device speed 1.
        cloud_seconds: seconds of each original op in the cloud.
        coded_bytes: bytes that one row of a tensor takes on the wire.
    """

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

    def prices(self, at: Floats, *, masked: bool) -> Prices:
        """What cuts cost at some weights, float64 [4]."""
        barred = self.barred | self.raw if masked else self.barred
        return Prices(
            edge=at[_EDGE] * self.edge + at[_HELD] * self.weights,
            cloud=at[_CLOUD] * self.cloud + at[_BYTE] * self.down,
            up=np.where(barred, np.inf, at[_BYTE] * self.up),
        )

    def parts(self, head: Mask) -> Floats:
        """What each weight is multiplied with in a cut's price, float64 [4]."""
        edge, cloud = self.edge[head].sum(), self.cloud[~head].sum()
        return np.array([edge, cloud, self.bytes(head), self.weights[head].sum()])

    def bytes(self, head: Mask) -> float:
        """Bytes up and down of a cut."""
        return float(self.up[self.cut.crossing(head)].sum() + self.down[~head].sum())

    def leaks(self, head: Mask) -> bool:
        """Whether the raw input crosses."""
        return bool(np.any(self.cut.crossing(head) & self.raw))


def candidates(costs: Costs) -> list[Mask]:
    """Every cut that some sweep finds best, by depth; without all-edge and all-cloud."""
    found: dict[bytes, Mask] = {}
    best: _Best | None = None
    for masked in (False, True):
        best = _Best(costs, masked=masked, known=best)
        for head in _swept(costs, best):
            found[head.tobytes()] = head
    shallow = costs.cut.solve(costs.prices(_weights(1e6, _FASTEST), masked=True))
    found[shallow.tobytes()] = shallow
    inner = [head for head in found.values() if head.any() and not head.all()]
    return sorted(inner, key=lambda head: (int(np.count_nonzero(head)), head.tobytes()))


def _swept(costs: Costs, best: "_Best") -> Iterator[Mask]:
    best.settle(_weights(1.0, 0.0))  # where edge and cloud cost the same and the wire nothing
    # So slow a link leaves even the slowest device its work: all there is to know of slower ones.
    yield from _envelope(best, _weights(_SPEEDS[0], _FASTEST), _BYTE, _SLOWEST * _SPEEDS[0])
    for speed in _SPEEDS:
        yield from _envelope(best, _weights(speed, _FASTEST), _BYTE, _SLOWEST)
    for per_byte in (1 / 0.3e6, 1 / 2.5e6, 1 / 12.5e6):
        start = _weights(4.0, per_byte)
        dearest = 100 * (4.0 * float(costs.edge.sum()) + per_byte * float(costs.up.sum()))
        dearest /= max(float(costs.weights.sum()), 1.0)
        yield from _envelope(best, start, _HELD, dearest)


def _weights(speed: float, per_byte: float) -> Floats:
    return np.array([speed, 1.0, per_byte, 0.0])


class _Best:
    """The best cut at any weights, remembering what earlier answers settle.

    Args:
        costs: what cuts cost.
        masked: whether the raw input must stay on the device.
        known: what is known where it need not. Its best cuts are best here, too, if they keep the
            raw input.
    """

    def __init__(self, costs: Costs, *, masked: bool, known: "_Best | None") -> None:
        self._costs, self._masked = costs, masked
        self.heads: list[Mask] = []
        self.parts = np.empty((0, 4))
        self.at, self.least = np.empty((0, 4)), np.empty(0)  # weights and the best price there
        if known is not None:
            self.at, self.least = known.at, known.least
            for head in known.heads:
                if not costs.leaks(head):
                    self._learn(head)

    def __call__(self, at: Floats) -> tuple[Mask, Floats]:
        """A best cut and the parts of its price."""
        prices = self.parts @ at
        first = int(prices.argmin()) if prices.size else -1
        if first >= 0 and self._settled(self.parts[first], at):
            return self.heads[first], self.parts[first]
        head = self._costs.cut.solve(self._costs.prices(at, masked=self._masked))
        if first < 0 or self._costs.parts(head) @ at < prices[first] * (1 - _SAME):
            first = self._learn(head)
        self._note(at, float(self.parts[first] @ at))
        return self.heads[first], self.parts[first]

    def settle(self, at: Floats) -> None:
        """Take in what the best price is at some weights, whichever cut has it."""
        head = self._costs.cut.solve(self._costs.prices(at, masked=self._masked))
        self._note(at, float(self._costs.parts(head) @ at))

    def _learn(self, head: Mask) -> int:
        self.heads.append(head)
        self.parts = np.vstack([self.parts, self._costs.parts(head)])
        return len(self.heads) - 1

    def _note(self, at: Floats, price: float) -> None:
        self.at = np.vstack([self.at, at])
        self.least = np.append(self.least, price)

    def _settled(self, parts: Floats, at: Floats) -> bool:
        """Whether a cut must be best at some weights, as they are a sum of where it is best."""
        cone = self.at[self.at @ parts <= self.least * (1 + _SAME)]
        free = np.eye(4)[parts == 0]
        directions = np.concatenate([cone, free]).T
        used = at > 0
        directions = directions[:, ~directions[~used].any(axis=0)][used] / at[used, None]
        if not directions.size:
            return False
        return bool(nnls(directions, np.ones(int(used.sum())))[1] <= _SAME)


def _envelope(best: _Best, start: Floats, along: int, stop: float) -> Iterator[Mask]:
    """Every cut that is best between some weights and those with one of them raised to `stop`."""

    def ask(value: float) -> tuple[Mask, float, float]:
        at = start.copy()
        at[along] = value
        head, parts = best(at)
        at[along] = 0.0
        return head, float(parts @ at), float(parts[along])

    low = float(start[along])
    first, last = ask(low), ask(stop)
    yield first[0]
    yield last[0]
    todo = [(first[1:], last[1:])]
    while todo:
        (base_a, slope_a), (base_b, slope_b) = todo.pop()
        if slope_a <= slope_b:
            continue
        meet = (base_b - base_a) / (slope_a - slope_b)
        if not low < meet < stop:
            continue
        head, base, slope = ask(meet)
        if base + slope * meet < (base_a + slope_a * meet) * (1 - _SAME):
            yield head
            todo += [((base_a, slope_a), (base, slope)), ((base, slope), (base_b, slope_b))]
