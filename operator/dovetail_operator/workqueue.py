"""A queue of keys: each waits once, is worked on by one worker, and comes back as told.

What makes level-triggered work cheap and safe: any number of events for a key that waits are one
piece of work; a key that changes while it is worked on is worked on again afterwards, never twice
at once, so a reconciler needs no lock. A key that fails waits 1 s, then twice as long each time up
to 5 minutes, with jitter, which keeps one bad object from taking the operator's time; all retries
together also share a token bucket, which keeps ten thousand bad objects from it.

Modelled on client-go's workqueue.
"""

import heapq
import random
import threading
import time
from collections import OrderedDict
from typing import Final

from dovetail_operator.metrics import (
    QUEUE_ADDS,
    QUEUE_DEPTH,
    QUEUE_RETRIES,
    QUEUE_SECONDS,
    QUEUE_UNFINISHED,
)

FIRST: Final = 1.0
LONGEST: Final = 300.0
_RATE: Final = 20.0  # retries a second over all keys
_BURST: Final = 100.0


class WorkQueue:
    """Keys to work on.

    Args:
        name: for metrics.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._waiting: OrderedDict[str, float] = OrderedDict()  # since when
        self._working: dict[str, float] = {}  # since when
        self._again: set[str] = set()
        self._later: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._tokens, self._earned = _BURST, time.monotonic()
        self._closed = False
        self._condition = threading.Condition()
        QUEUE_UNFINISHED.labels(name).set_function(self._unfinished)

    def add(self, key: str) -> None:
        """Have a key worked on soon."""
        with self._condition:
            self._add(key)

    def add_after(self, key: str, seconds: float) -> None:
        """Have a key worked on after a while; an earlier time already set stands."""
        with self._condition:
            self._add_at(key, time.monotonic() + seconds)

    def retry(self, key: str, least: float = 0.0, first: float = FIRST) -> float:
        """Have a key worked on again after a failure; returns in how many seconds.

        Args:
            key: the key.
            least: seconds to wait at least, as a server asked for.
            first: seconds to wait after the first of several failures in a row.
        """
        with self._condition:
            count = self._failures[key] = self._failures.get(key, 0) + 1
            wait = min(first * 2.0 ** min(count - 1, 16), LONGEST)
            wait *= random.uniform(0.8, 1.2)  # noqa: S311  spreads load, no secret
            wait = max(wait, least) + self._toll()
            self._add_at(key, time.monotonic() + wait)
            QUEUE_RETRIES.labels(self.name).inc()
            return wait

    def forget(self, key: str) -> None:
        """A key's work succeeded: its next failure is a first one."""
        with self._condition:
            self._failures.pop(key, None)

    def failures(self, key: str) -> int:
        """How often in a row a key's work failed."""
        return self._failures.get(key, 0)

    def take(self) -> str | None:
        """Wait for a key and take it; None once the queue is closed."""
        with self._condition:
            while True:
                wait = self._ripen()
                if self._closed:
                    return None
                if self._waiting:
                    key, since = self._waiting.popitem(last=False)
                    self._working[key] = time.monotonic()
                    QUEUE_SECONDS.labels(self.name).observe(time.monotonic() - since)
                    QUEUE_DEPTH.labels(self.name).set(len(self._waiting))
                    return key
                self._condition.wait(wait)

    def done(self, key: str) -> None:
        """Give a taken key back."""
        with self._condition:
            self._working.pop(key, None)
            if key in self._again:
                self._again.discard(key)
                self._add(key)

    def close(self) -> None:
        """Give out no more keys."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _unfinished(self) -> float:
        now = time.monotonic()
        with self._condition:
            return sum(now - since for since in self._working.values())

    def _add(self, key: str) -> None:
        if self._closed or key in self._waiting:
            return
        if key in self._working:
            self._again.add(key)
            return
        self._waiting[key] = time.monotonic()
        QUEUE_ADDS.labels(self.name).inc()
        QUEUE_DEPTH.labels(self.name).set(len(self._waiting))
        self._condition.notify()

    def _add_at(self, key: str, when: float) -> None:
        if self._due.get(key, when + 1.0) <= when:
            return
        self._due[key] = when
        heapq.heappush(self._later, (when, key))
        self._condition.notify()

    def _ripen(self) -> float | None:
        """Move what is due to those that wait; returns seconds until the next is."""
        now = time.monotonic()
        while self._later:
            when, key = self._later[0]
            if self._due.get(key) != when:  # an earlier time was set since
                heapq.heappop(self._later)
            elif when <= now:
                heapq.heappop(self._later)
                del self._due[key]
                self._add(key)
            else:
                return when - now
        return None

    def _toll(self) -> float:
        """Seconds until the bucket has a token for one more retry."""
        now = time.monotonic()
        self._tokens = min(_BURST, self._tokens + (now - self._earned) * _RATE) - 1.0
        self._earned = now
        return max(0.0, -self._tokens / _RATE)
