"""The slow hand in the cluster: one read of each pool's ledger a window, then `control.step`.

A pool is read once whatever the number of its deployments, and only as often as the shortest of
their windows asks. A move is decided here and published by the deployment's own reconcile: first
the ConfigMap, so that a generation is never used twice, then the pool's Serve config.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from dovetail.api import seconds
from dovetail.errors import DovetailError
from dovetail.measure import Window
from dovetail_operator.client import Json
from dovetail_operator.figures import Figures
from dovetail_operator.hands import Hands
from dovetail_operator.ledger import Ledger, Presence, Reading
from dovetail_operator.metrics import LEDGER_READS
from dovetail_operator.pools import Pools
from dovetail_operator.rollout import Reports
from dovetail_operator.world import World

log = logging.getLogger("dovetail.operator.moving")

_TICK: Final = 0.25
_LEAST, _MOST = 1.0, 30.0  # seconds between two reads of a pool
_MEMORY: Final = 120  # the ledger remembers no longer
_READERS: Final = 8


class Mover:
    """Moves cuts while this process leads.

    Args:
        world: what is known.
        hands: slow hands.
        ledger: reads ledgers.
        hybrid: told the key of a deployment whose plan changed.
    """

    def __init__(
        self, world: World, hands: Hands, ledger: Ledger, hybrid: Callable[[str], None]
    ) -> None:
        self._world, self._hands, self._ledger, self._hybrid = world, hands, ledger, hybrid
        self._due: dict[str, float] = {}
        self._read: dict[str, float] = {}
        self._idle: dict[str, float] = {}
        self._answers: dict[str, bool] = {}
        self._presence: dict[str, Mapping[str, Presence]] = {}
        self._reports: dict[str, Reports] = {}
        self._told: dict[str, dict[str, tuple[bool, Figures | None]]] = {}
        self._stop = threading.Event()

    def answers(self, pool: str) -> bool | None:
        """Whether a pool's ledger answered when it was last asked; None before it was."""
        return self._answers.get(pool)

    def presence(self, key: str) -> Mapping[str, Presence] | None:
        """Devices of each class of a deployment; None before its ledger was read."""
        return self._presence.get(key)

    def reported(self, pool: str, key: str) -> Reports | None:
        """Which versions devices reported; None where that is not known now."""
        return self._reports.get(key) if self.answers(pool) else None

    def run(self, pools: Pools) -> None:
        """Turn until stopped."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="ledger") as readers:
            while not self._stop.wait(_TICK):
                now = time.monotonic()
                due = [key for key in pools.known() if self._due.get(key, 0.0) <= now]
                for key in due:
                    self._due[key] = math.inf  # until this turn is over
                    readers.submit(self._turn, key, pools.members(key))

    def stop(self) -> None:
        """Let `run` return."""
        self._stop.set()

    def _turn(self, pool: str, members: list[str]) -> None:
        """One window of a pool."""
        every = self._every(members)
        try:
            if not self.turn(pool, members):
                every = self._idle[pool] = min(_MOST, 2.0 * self._idle.get(pool, every))
            else:
                self._idle.pop(pool, None)
        except DovetailError as error:
            LEDGER_READS.labels("error").inc()
            log.info("%s", error, extra={"pool": pool})
            self._heard(pool, members, answers=False)
            every = _MOST
        except Exception:
            log.exception("a turn failed", extra={"pool": pool})
            every = _MOST
        self._due[pool] = time.monotonic() + every

    def turn(self, pool: str, members: list[str]) -> bool:
        """Read a pool's ledger and step each of its deployments.

        Returns:
            Whether any of them had traffic.

        Raises:
            Unavailable: the ledger does not answer.
        """
        namespace, name = pool.split("/", 1)
        url = self._world.config.pool_url.format(pool=name, namespace=namespace)
        now = time.monotonic()
        # The first read takes all there is: how fast a device is shows only while its head runs.
        span = math.ceil(now - self._read[pool]) if pool in self._read else _MEMORY
        reading = self._ledger.read(url, max(1, min(span, _MEMORY)))
        LEDGER_READS.labels("done").inc()
        self._read[pool] = now
        self._heard(pool, members, answers=True)
        for key in members:
            try:
                self._met(key, reading)
                self._step(key, reading.windows.get(key, {}))
            except Exception:  # one deployment's defect must not stop those after it
                log.exception("a step failed", extra={"pool": pool, "deployment": key})
        return bool(reading.windows)

    def _met(self, key: str, reading: Reading) -> None:
        """Remember which devices were heard of, and with which version."""
        before, now = self._presence.get(key), reading.presence(key)
        self._presence[key] = now
        old = self._reports.get(key, Reports(0.0))
        self._reports[key] = old.joined(reading.versions.get(key, {}), reading.at)
        counts = [{n: (p.known, p.connected) for n, p in (x or {}).items()} for x in (before, now)]
        if before is None or counts[0] != counts[1]:
            self._hybrid(key)

    def forget(self, key: str) -> None:
        """Forget a deployment."""
        self._presence.pop(key, None)
        self._reports.pop(key, None)
        self._told.pop(key, None)

    def _step(self, key: str, windows: Mapping[str, Window]) -> None:
        # Who was not heard of is left as it is: most of a large pool is idle most of the time.
        changed = self._hands.turn(key, windows, time.time()) if windows else {}
        now = {name: (hand.measured, hand.figures) for name, hand in self._hands.get(key).items()}
        if changed or self._told.get(key, dict.fromkeys(now, (False, None))) != now:
            self._hybrid(key)
        self._told[key] = now

    def _heard(self, pool: str, members: list[str], *, answers: bool) -> None:
        if self._answers.get(pool) != answers:
            self._answers[pool] = answers
            for key in members:
                self._hybrid(key)

    def _every(self, members: list[str]) -> float:
        """Seconds between two reads: the shortest window among those that may move."""
        windows = [_MOST]
        for key in members:
            hybrid = self._world.stores["HybridDeployment"].get(key)
            if hybrid is not None:
                windows.append(_window(hybrid))
        return max(_LEAST, min(windows))


def _window(hybrid: Json) -> float:
    adapt = hybrid["spec"].get("adapt") or {}
    return seconds(adapt.get("window", "2s")) if adapt.get("mode") == "Auto" else _MOST
