"""Gathers what a replica saw and hands it to the pool's ledger, off the request path.

A request only adds to counters. About once a second one push carries what was gathered since the
last, under a number of its own, so that a push whose answer got lost can be sent again without
being counted twice. While the ledger is away, what was gathered stays and is merged: windows have
a fixed number of buckets, rungs and classes, so a ledger that stays away costs no memory.

What devices send is clipped: one POST of samples counts for at most 1 000 requests, scaled down
evenly where it claims more, names only rungs of this bundle, and at most 64 classes and 10 000
devices a class are kept. One broken or hostile device can therefore tilt its own class a little,
never flood the pool.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

from dovetail.measure import Window

log = logging.getLogger("ray.serve")

MAX_REQUESTS: Final = 1000  # per POST of samples
MAX_CLASSES: Final = 64
MAX_DEVICES: Final = 10_000  # a class
_PERIOD = 1.0  # seconds
_PATIENCE = 5.0  # seconds a push may take

Push = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(slots=True)
class Report:
    """What a replica saw in one stretch of time.

    Attributes:
        windows: samples of the edges, by device class.
        contacts: by device class, when it was last heard (seconds since the epoch).
        devices: the same by device class and device, of those that say who they are.
        counts: the replica's own: `requests`, `rows`, and `error.<code>` for each typed error.
    """

    windows: dict[str, Window] = field(default_factory=dict)
    contacts: dict[str, float] = field(default_factory=dict)
    devices: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def empty(self) -> bool:
        """Whether nothing was seen."""
        return not (self.windows or self.contacts or self.counts)

    def dump(self) -> dict[str, Any]:
        """Plain values, for the way to the ledger."""
        return {
            "windows": {name: window.dump() for name, window in self.windows.items()},
            "contacts": dict(self.contacts),
            "devices": {name: dict(devices) for name, devices in self.devices.items()},
            "counts": dict(self.counts),
        }

    @classmethod
    def load(cls, data: dict[str, Any]) -> "Report":
        """From plain values."""
        windows = {name: Window.load(window) for name, window in data["windows"].items()}
        contacts, devices = dict(data["contacts"]), dict(data["devices"])
        return cls(windows, contacts, devices, Counter(data["counts"]))


class Reporter:
    """Gathers, and pushes in the background.

    Args:
        replica: this replica's id.
        deployment: `<namespace>/<name>`.
        version: of the bundle; contacts are of this version.
        rungs: ids of the rungs that samples may name.
        push: hands a report to the ledger; raises where it is away.
    """

    def __init__(
        self, replica: str, deployment: str, version: str, rungs: Collection[str], push: Push
    ) -> None:
        self._source = {"replica": replica, "deployment": deployment, "version": version}
        self._rungs, self._push = frozenset(rungs), push
        self._now, self._unsent, self._number = Report(), Report(), 0
        self._task: asyncio.Task[None] | None = None

    def contact(self, device_class: str | None, device: str | None = None) -> None:
        """Note that a class was heard, and which of its devices."""
        if device_class is None or not self._room(device_class, self._now.contacts):
            return
        self._now.contacts[device_class] = now = time.time()
        if device is not None:
            devices = self._now.devices.setdefault(device_class, {})
            if device in devices or len(devices) < MAX_DEVICES:
                devices[device] = now

    def count(self, what: str, amount: int = 1) -> None:
        """Count something of the replica's own."""
        self._now.counts[what] += amount

    def samples(self, device_class: str, window: Window) -> None:
        """Fold in what an edge sent, clipped."""
        if self._room(device_class, self._now.windows):
            mine = self._now.windows.setdefault(device_class, Window())
            mine.merge(clip(window, self._rungs))

    def start(self) -> None:
        """Begin to push; call from the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Push once more and end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.flush()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD)
            await self.flush()

    async def flush(self) -> None:
        """Push what was gathered, or what could not be pushed before; never raises."""
        if self._unsent.empty:
            self._unsent, self._now = self._now, Report()
            self._number += 1
        if self._unsent.empty:
            return
        message = {**self._source, "number": self._number, **self._unsent.dump()}
        try:
            await asyncio.wait_for(self._push(message), _PATIENCE)
        except Exception as error:  # noqa: BLE001  Serve's errors share no base; none may end this
            log.debug("the ledger is away: %s", error)
        else:
            self._unsent = Report()

    @staticmethod
    def _room(device_class: str, kept: Collection[str]) -> bool:
        return device_class in kept or len(kept) < MAX_CLASSES


def clip(window: Window, rungs: Collection[str]) -> Window:
    """A window that names only `rungs` and counts for at most `MAX_REQUESTS` requests."""
    kept = {rung: seen for rung, seen in window.rungs.items() if rung in rungs}
    known = Window(kept, window.rtt, window.seconds_per_byte)
    claimed = max(known.count, window.rtt.count, window.seconds_per_byte.count)
    return known if claimed <= MAX_REQUESTS else known.scaled(MAX_REQUESTS / claimed)
