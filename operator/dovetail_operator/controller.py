"""Workers that take keys from a queue and reconcile them; how each ending is treated is here.

A conflict is no error: somebody was faster, and the key comes back soon; one that does not end (a
name of ours is somebody else's) comes back later each time. So does what the API server or a
registry cannot do now; what must be looked at again though nothing changes says when. A lost Lease
ends the process, because every further write would be refused and everything known may be old.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Final

from dovetail import telemetry
from dovetail.errors import DovetailError
from dovetail_operator import logs
from dovetail_operator.client import ApiError, Conflict, LeaseLost
from dovetail_operator.metrics import ACTIVE_WORKERS, RECONCILE_SECONDS, RECONCILES, WORK_SECONDS
from dovetail_operator.workqueue import WorkQueue

log = logging.getLogger("dovetail.operator.controller")

_SOON: Final = 0.4  # seconds after which a conflict is looked at again


class Controller:
    """A queue and its workers.

    Args:
        name: for logs and metrics.
        reconcile: does the work of one key; returns seconds after which to do it again, or None.
        lost: called once the Lease is lost.
        workers: how many keys at once.
        rest: seconds that a worker rests after work that took so many. What changes meanwhile
            becomes one piece of work.
        about: what logs say of a key besides its name.
    """

    def __init__(
        self,
        name: str,
        reconcile: Callable[[str], float | None],
        lost: Callable[[], None],
        *,
        workers: int,
        rest: Callable[[float], float] = lambda _: 0.0,
        queue: WorkQueue,
        about: Callable[[str], Mapping[str, object]] = lambda _: {},
    ) -> None:
        self.queue, self._about = queue, about
        self._name, self._reconcile, self._lost = name, reconcile, lost
        self._rest, self._stopped = rest, threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True)
            for index in range(workers)
        ]

    def start(self) -> None:
        """Begin to work; returns at once."""
        for thread in self._threads:
            thread.start()

    def stop(self, grace: float) -> None:
        """Take no more keys and wait until those at hand are done."""
        self.queue.close()
        self._stopped.set()
        until = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (key := self.queue.take()) is not None:
            began = time.monotonic()
            with ACTIVE_WORKERS.labels(self._name).track_inprogress():
                try:
                    with logs.about(**self._words(key)), telemetry.span(telemetry.SPAN_RECONCILE):
                        self._one(key, began)
                finally:
                    self.queue.done(key)
            took = time.monotonic() - began
            WORK_SECONDS.labels(self.queue.name).observe(took)
            self._stopped.wait(self._rest(took))

    def _one(self, key: str, began: float) -> None:
        result, wait = "done", 0.0
        try:
            again = self._reconcile(key)
            self.queue.forget(key)
            if again is not None:
                result = "later"
                self.queue.add_after(key, again)
        except LeaseLost:
            self._lost()
            return
        except Conflict as error:
            result = "conflict"
            self.queue.retry(key, first=_SOON)
            log.debug("%s", error)
        except DovetailError as error:
            result = "error"
            least = error.retry_after if isinstance(error, ApiError) else 0.0
            wait = self.queue.retry(key, least)
            log.warning("%s", error, extra={"result": result, "retry_s": round(wait, 1)})
        except Exception:
            result = "error"
            self.queue.retry(key)
            log.exception("a reconcile failed", extra={"result": result})
        took = time.monotonic() - began
        RECONCILES.labels(self._name, result).inc()
        RECONCILE_SECONDS.labels(self._name).observe(took)
        log.debug("reconciled", extra={"result": result, "duration_s": round(took, 4)})

    def _words(self, key: str) -> dict[str, object]:
        """What every log line of a reconcile says it is about."""
        namespace, name = key.split("/", 1)
        return {
            "controller": self._name,
            "namespace": namespace,
            "name": name,
            **self._about(key),
            "reconcile_id": uuid.uuid4().hex[:12],
            "attempt": self.queue.failures(key) + 1,
        }
