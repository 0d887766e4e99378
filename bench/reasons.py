"""Why a promise is not met, where it is not: by how its name begins. What `bench.docs` adds."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

_REASONS: Final = {
    "segments: time, worst network": """
        A boundary costs a call into ONNX Runtime, some 0.1 ms, and the fusions it parts; a network
        that takes 5 ms in all feels five of them. Fewer segments would keep the bound and lose
        rungs that win somewhere. A rung's cost includes it, so nothing is chosen by a figure that
        leaves it out; requests that are not cut do not pay it (ADR 0012).""",
    "added latency": """
        The empty handler does next to nothing in Python. The tail takes some 0.2 ms to route a
        call and to read and check its message (what `network` has above the empty handler), and
        spelling the answer, merging it and keeping a sample make up `the rest`. In a loop each of
        these takes a quarter of that: between two waits it runs with cold caches.""",
    "chosen rung over the best of all, worst condition": """
        The worst of many conditions, with the best chosen in hindsight from noisy medians. Rungs
        within the hands' hysteresis of each other are left as they are on purpose: a move must
        promise more than the promise may be wrong by.""",
    "first requests of an outage: answer after the deadline, worst": """
        The worst of many: the device begins in time by what it has seen its own remaining time to
        be; where something else takes its core just then, it takes longer.""",
}


def lines(figures: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each promise that is not met."""
    found = []
    for name in (figure["promise"] for figure in figures if figure["met"] is False):
        why = next((text for key, text in _REASONS.items() if name.startswith(key)), "")
        found.append(f"- *{name}*: {' '.join(why.split()) or 'see its section.'}")
    return found
