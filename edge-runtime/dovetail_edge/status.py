"""What an edge says of itself: the document behind `GET /dovetail/status`."""

from collections.abc import Mapping
from typing import Any

from dovetail.control import Move
from dovetail.tensor import Document


class LinkStatus(Document):
    """The link as this device sees it now: seconds, and seconds per byte."""

    rtt: float
    seconds_per_byte: float


class RungStatus(Document):
    """One rung over the last seconds: requests, median seconds, and mean seconds by part."""

    count: int
    median: float
    parts: Mapping[str, float]


class Status(Document):
    """An edge's state.

    Attributes:
        deployment: `<namespace>/<name>`.
        device_class: its class.
        bundle: digest of its bundle.
        generation: generation of the plan in use.
        default: the plan's default rung.
        rung: the rung in use; None where privacy leaves none.
        breaker: `closed`, `open` or `trial`.
        slowdown: how many times slower the device is made; 1 where it is not.
        link: its link; None where it was not seen lately.
        outcomes: requests since the start by outcome.
        totals: everything since the start, as `Window.dump` writes it.
        recent: what was seen in the last seconds, by rung.
        moves: the last moves, newest last.
        longest_switch: seconds the slowest of all moves took.
    """

    deployment: str
    device_class: str
    bundle: str
    generation: int
    default: str
    rung: str | None
    breaker: str
    slowdown: float
    link: LinkStatus | None
    outcomes: Mapping[str, int]
    totals: Mapping[str, Any]
    recent: Mapping[str, RungStatus]
    moves: tuple[Move, ...]
    longest_switch: float
