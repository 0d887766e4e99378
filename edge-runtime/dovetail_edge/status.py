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


class Following(Document):
    """A plan that is not in use yet, because what it needs is being brought.

    Attributes:
        generation: the plan's.
        bundle: digest of its bundle.
        fetched: bytes of it that are on disk.
        size: bytes of it that this device needs; 0 while that is not known.
        problem: why it is not in use after the last try; None before that.
    """

    generation: int
    bundle: str
    fetched: int = 0
    size: int = 0
    problem: str | None = None


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
        trouble: why the tail is of no use now; None where it is.
        device: who this device is; None where it does not say.
        following: the plan it is getting ready for; None where there is none.
        link: its link; None where it was not seen lately.
        outcomes: requests since its bundle was loaded, by outcome.
        totals: everything since then, as `Window.dump` writes it.
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
    trouble: str | None = None
    device: str | None = None
    following: Following | None = None
    link: LinkStatus | None
    outcomes: Mapping[str, int]
    totals: Mapping[str, Any]
    recent: Mapping[str, RungStatus]
    moves: tuple[Move, ...]
    longest_switch: float
