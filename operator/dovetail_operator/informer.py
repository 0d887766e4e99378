"""List, then watch, for ever: keeps a store equal to the cluster and tells what changed.

Why our own: see docs/adr/0007. Reconciling is level-triggered, so all that is promised is that a
change is told at least once and that the store ends up right, whatever was lost on the way. Four
things make that true. A watch that is answered 410 begins again with a list, and what the list no
longer holds is told as deleted: deletes that happened while nobody watched are in no event. Every
watch has a bound set by us and a bound on silence, because a half-open connection delivers nothing
and no error. Reconnects wait longer each time, with jitter, so that a hundred operators do not
come back together. Bookmarks keep the resource version fresh on collections that change rarely, so
that a reconnect seldom needs a list.

A kind that the API server may not have (a prerequisite that is not installed) is an empty store
that says `absent`, and is asked for again; that it came, or went, is told too, for no object does.
Of any other kind a 404 is a failure like others: a proxy that answers so for a moment must not look
as if everything had been deleted.

References: Kubernetes API concepts, "Efficient detection of changes"; client-go's Reflector.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dovetail.errors import DovetailError
from dovetail_operator.client import Absent, Api, ApiError, Expired, Json
from dovetail_operator.metrics import CACHE_OBJECTS, WATCH_RESTARTS
from dovetail_operator.store import Store, key_of, slim

log = logging.getLogger("dovetail.operator.informer")

_WATCH_SECONDS: Final = (240, 480)
_SILENCE: Final = 150.0  # bookmarks come about once a minute
_BACKOFF: Final = (0.5, 30.0)
_RELIST: Final = 1.0  # spreads the lists of all operators after an API server lost its history
_ABSENT_RETRY: Final = 15.0
_LEAST_WATCH: Final = 1.0  # one that ends sooner is not begun again at once
_OVERDUE: Final = _WATCH_SECONDS[1] + _SILENCE + _BACKOFF[1] + 60.0

Changed = Callable[[Json | None, Json | None], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """A collection to keep.

    Attributes:
        name: plural, for logs and metrics.
        path: path of the collection.
        params: selectors.
        slim: whether metadata is all that is asked for.
        keep: fields that are kept; all where none is named.
        labels: whether labels are kept.
        optional: whether the API server may have no such kind.
    """

    name: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    slim: bool = False
    keep: frozenset[str] = frozenset()
    labels: bool = True
    optional: bool = False


class Informer:
    """Keeps one store.

    Args:
        api: where it reads.
        kind: what it reads.
        store: where it keeps it.
        changed: told of each change as (before, after); None for not there.
        turned: told that an optional kind is there, or is there no more.

    Attributes:
        synced: set once the store has held the whole collection, or it is known to be absent.
        absent: whether the API server has no such kind.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        store: Store,
        changed: Changed,
        turned: Callable[[], None] = lambda: None,
    ) -> None:
        self.kind, self.store = kind, store
        self.synced = threading.Event()
        self.absent = False
        self._api, self._changed, self._turned = api, changed, turned
        self._stop = threading.Event()
        self._alive = time.monotonic()
        self._version = ""
        self._thread = threading.Thread(target=self._run, name=f"watch-{kind.name}", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the event at hand; returns at once."""
        self._stop.set()

    @property
    def healthy(self) -> bool:
        """Whether it runs and heard from the API server, or tried to, within its bound."""
        return self._thread.is_alive() and time.monotonic() - self._alive < _OVERDUE

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            self._alive = began = time.monotonic()
            try:
                if not self._version:
                    self._list()
                began = time.monotonic()
                self._watch()
                failures = 0
                if time.monotonic() - began >= _LEAST_WATCH:
                    continue
                why, wait = "ended", _LEAST_WATCH
            except Expired:
                self._version, why, wait = "", "expired", _RELIST
            except DovetailError as error:
                # One that lived for a while is no failure in a row: something on the way may cut
                # every stream once a minute.
                failures = 1 if time.monotonic() - began > _BACKOFF[1] else failures + 1
                why = "error"
                wait = min(_BACKOFF[0] * 2 ** min(failures, 8), _BACKOFF[1])
                if isinstance(error, ApiError):  # twice, because the jitter may halve it
                    wait = max(wait, 2 * error.retry_after)
                if isinstance(error, Absent):
                    self._version = ""
                if isinstance(error, Absent) and self.kind.optional:
                    failures, why, wait = 0, "absent", _ABSENT_RETRY
                    self._replace([])
                    self._is_absent(True)
                else:
                    log.warning("%s: %s", self.kind.name, error)
            WATCH_RESTARTS.labels(self.kind.name, why).inc()
            self._stop.wait(wait * random.uniform(0.5, 1.0))  # noqa: S311  spreads load, no secret

    def _list(self) -> None:
        items: list[Json] = []
        version = ""
        for page in self._api.pages(self.kind.path, self.kind.params, slim=self.kind.slim):
            self._alive = time.monotonic()
            items.extend(map(self._slim, page.get("items") or ()))
            version = page["metadata"]["resourceVersion"]
        self._replace(items)
        self._version = version
        self._is_absent(False)

    def _is_absent(self, absent: bool) -> None:
        turned, self.absent = absent != self.absent, absent
        self.synced.set()
        if turned:
            self._turned()

    def _replace(self, items: list[Json]) -> None:
        """Make the store hold exactly these, and tell every difference."""
        gone = set(self.store.keys()) - {key_of(item) for item in items}
        for item in items:
            self._put(item)
        for key in sorted(gone):
            self._drop(key)

    def _watch(self) -> None:
        params = {
            **self.kind.params,
            "resourceVersion": self._version,
            "timeoutSeconds": random.randint(*_WATCH_SECONDS),  # noqa: S311  spreads load
        }
        events = self._api.watch(self.kind.path, params, slim=self.kind.slim, silence=_SILENCE)
        for event in events:
            self._alive = time.monotonic()
            item = event["object"]
            self._version = item["metadata"]["resourceVersion"]
            if event["type"] == "DELETED":
                self._drop(key_of(item))
            elif event["type"] != "BOOKMARK":
                self._put(self._slim(item))
            if self._stop.is_set():
                return

    def _slim(self, item: Json) -> Json:
        return slim(item, self.kind.keep, labels=self.kind.labels)

    def _put(self, item: Json) -> None:
        old = self.store.put(item)
        CACHE_OBJECTS.labels(self.kind.name).set(len(self.store))
        version = item["metadata"]["resourceVersion"]
        if old is None or old["metadata"]["resourceVersion"] != version:
            self._changed(old, item)

    def _drop(self, key: str) -> None:
        old = self.store.drop(key)
        CACHE_OBJECTS.labels(self.kind.name).set(len(self.store))
        if old is not None:
            self._changed(old, None)
