"""Chooses the chain of cuts: those that can ever be best, nested, and few.

Which cut is best depends on the link, the device and what the user wants; `sweeps` finds every cut
that is best anywhere.

A cut is paid for by everyone, also by rungs that do not use it: at a boundary between segments a
second session is entered and activations change to the plain layout and back. So a cut has a place
in the chain only if it lowers the regret by more than it slows the model.

Segments serve a *nested* chain only. Candidates mostly are nested; where they are not, the chain
that loses least is taken. A chain is judged by its regret: how much slower its best cut is than the
best of all candidates, over the conditions of `dovetail.ladder.sweep` and the wishes above. The
worst regret is returned, so that what was dropped is known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dovetail.ladder import sweep
from dovetail_partitioner.fuse import fuse
from dovetail_partitioner.graph import Graph, TensorInfo, expand, quotient
from dovetail_partitioner.mincut import Floats, Mask
from dovetail_partitioner.sweeps import Costs, candidates

_BUDGETS: Final = (0.25, 0.5)  # shares of the weights that a small device can hold
_SHORTLIST: Final = 16  # candidates whose chains are enumerated
# Seconds that a boundary costs, and seconds per byte that goes over it: fitted to convolutional
# networks of 4 to 32 ms, within a third of each one's measured sum over 2 to 5 cuts.
_BOUNDARY: Final = 1e-4
_BOUNDARY_BYTE: Final = 1.2e-10
_UNSERVED: Final = 10.0  # regret of a wish that no cut of a chain can meet


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
    costs = Costs(quotient(graph, groups), groups, edge_seconds, cloud_seconds, coded_bytes)
    found = candidates(costs)
    regrets = _Regrets(costs, found)
    slower = [_boundary(costs, head) for head in found]
    chosen = _best_chain(found, regrets, slower, max_segments - 1)
    heads = sorted((found[index] for index in chosen), key=np.count_nonzero)
    return Chain(
        cuts=tuple(expand(groups, np.flatnonzero(head).tolist()) for head in heads),
        regret=float(regrets.of(chosen).max()),
        considered=len(found),
        nested=all(_nested(a, b) for i, a in enumerate(found) for b in found[:i]),
        conditions=regrets.count,
    )


def _boundary(costs: Costs, head: Mask) -> float:
    """How much a boundary at a cut slows the whole model, as a share of its time."""
    seconds = _BOUNDARY + _BOUNDARY_BYTE * float(costs.plain[costs.cut.crossing(head)].sum())
    return seconds / max(float(costs.cloud.sum()), seconds)


class _Regrets:
    """How much each set of candidates loses under every condition and wish."""

    def __init__(self, costs: Costs, heads: Sequence[Mask]) -> None:
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
