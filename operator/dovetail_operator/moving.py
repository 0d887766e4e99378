"""The slow hand in the cluster: one read of each pool's ledger a window, then `control.step`.

A pool is read once whatever the number of its deployments, and only as often as the shortest of
their windows asks. A move is decided here and published by the deployment's own reconcile: first
the ConfigMap, so that a generation is never used twice, then the pool's Serve config.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import urllib3

from dovetail.api import seconds
from dovetail.errors import DovetailError, Unavailable
from dovetail.measure import Window
from dovetail.pool import LEDGER_APPLICATION
from dovetail_operator.client import Json
from dovetail_operator.events import Events
from dovetail_operator.hands import Hands
from dovetail_operator.metrics import LEDGER_READS, MOVES
from dovetail_operator.pools import Pools
from dovetail_operator.world import World

log = logging.getLogger("dovetail.operator.moving")

Windows = Mapping[str, Mapping[str, Window]]

_TICK: Final = 0.25
_LEAST, _MOST = 1.0, 30.0  # seconds between two reads of a pool
_MEMORY: Final = 120  # the ledger remembers no longer
_READERS: Final = 8


class Ledger:
    """Reads a pool's ledger.

    Args:
        token: the bearer token that may.
    """

    def __init__(self, token: str) -> None:
        self._headers = {"Authorization": f"Bearer {token}"}
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=2.0, read=5.0), retries=False, maxsize=2
        )

    def windows(self, url: str, span: int) -> Windows:
        """What every class of every deployment saw in the last `span` seconds.

        Args:
            url: address of the pool.
            span: seconds.

        Raises:
            Unavailable: the ledger does not answer.
        """
        path = f"{url}/{LEDGER_APPLICATION}/v1/windows?seconds={span}"
        try:
            answer = self._http.request("GET", path, headers=self._headers)
            if answer.status != 200:
                raise Unavailable(f"{path} answered {answer.status}")
            document: dict[str, Any] = json.loads(answer.data)
            return {
                deployment: {name: Window.load(item) for name, item in classes.items()}
                for deployment, classes in document["windows"].items()
            }
        except (urllib3.exceptions.HTTPError, OSError, ValueError, KeyError) as error:
            raise Unavailable(f"the ledger at {url} does not answer: {error}") from error


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
        self._stop = threading.Event()

    def answers(self, pool: str) -> bool:
        """Whether a pool's ledger answered when it was last asked."""
        return self._answers.get(pool, False)

    def run(self, pools: Pools, events: Events) -> None:
        """Turn until stopped."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="ledger") as readers:
            while not self._stop.wait(_TICK):
                now = time.monotonic()
                due = [key for key in pools.known() if self._due.get(key, 0.0) <= now]
                for key in due:
                    self._due[key] = math.inf  # until this turn is over
                    readers.submit(self._turn, key, pools.members(key), events)

    def stop(self) -> None:
        """Let `run` return."""
        self._stop.set()

    def _turn(self, pool: str, members: list[str], events: Events) -> None:
        """One window of a pool."""
        every = self._every(members)
        try:
            if not self.turn(pool, members, events):
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

    def turn(self, pool: str, members: list[str], events: Events) -> bool:
        """Read a pool's ledger and step each of its deployments.

        Returns:
            Whether any of them had traffic.

        Raises:
            Unavailable: the ledger does not answer.
        """
        namespace, name = pool.split("/", 1)
        url = self._world.config.pool_url.format(pool=name, namespace=namespace)
        now = time.monotonic()
        span = math.ceil(now - self._read.get(pool, now - self._every(members)))
        seen = self._ledger.windows(url, max(1, min(span, _MEMORY)))
        LEDGER_READS.labels("done").inc()
        self._read[pool] = now
        self._heard(pool, members, answers=True)
        for key in members:
            self._step(key, seen.get(key, {}), events)
        return bool(seen)

    def _step(self, key: str, windows: Mapping[str, Window], events: Events) -> None:
        before = {name: hand.measured for name, hand in self._hands.get(key).items()}
        # Who was not heard of is left as it is: most of a large pool is idle most of the time.
        changed = self._hands.turn(key, windows, time.time()) if windows else {}
        hands = self._hands.get(key)
        hybrid = self._world.stores["HybridDeployment"].get(key)
        for name, decision in changed.items():
            if decision.moved and hybrid is not None:
                MOVES.labels(str(decision.reason)).inc()
                note = f"Class {name} moved to {decision.rung}: {decision.message}"
                events.emit(hybrid, "Normal", "Moved", "Move", note)
        if changed or before != {name: hand.measured for name, hand in hands.items()}:
            self._hybrid(key)

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
