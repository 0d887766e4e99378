"""Events for people: what `kubectl describe` shows, few and each once.

One Event per object and reason; what happens again is counted on it (`series`), and an object that
has had its share of new ones is silent for a while. Nothing here may fail a reconcile: an Event
that cannot be written is logged.

Reference: events.k8s.io/v1.
"""

import hashlib
import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from dovetail.errors import DovetailError
from dovetail_operator.client import Api, Json
from dovetail_operator.conditions import truncated
from dovetail_operator.names import OPERATOR, collection

log = logging.getLogger("dovetail.operator.events")

_SERIES: Final = 600.0  # seconds in which the same again is counted, not written anew
_BURST: Final = 20.0
_EARN: Final = 1 / 60  # Events a second that an object may have in the long run
_REMEMBERED: Final = 20_000


@dataclass(slots=True)
class _Series:
    """An Event that was written, and how often the same happened."""

    path: str
    at: float
    count: int = 1


class Events:
    """Writes Events.

    Args:
        api: the API server, fenced.
        identity: who reports.
    """

    def __init__(self, api: Api, identity: str) -> None:
        self._api, self._identity = api, identity
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._share: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def emit(
        self, about: Json, kind: Literal["Normal", "Warning"], reason: str, action: str, note: str
    ) -> None:
        """Report something of an object.

        Args:
            about: the object.
            kind: whether somebody should look.
            reason: why, one word in PascalCase.
            action: what was done, one word in PascalCase.
            note: a sentence.
        """
        uid, now = about["metadata"]["uid"], time.monotonic()
        key = (uid, reason, truncated(note))
        with self._lock:
            known = self._series.get(key)
            if known is not None and now - known.at < _SERIES:
                known.count += 1
                known.at = now
            elif not self._afford(uid, now):
                return
            else:
                known = None
        try:
            if known is None:
                self._write(key, about, kind, action)
            else:
                series = {"count": known.count, "lastObservedTime": _now()}
                self._api.merge(known.path, {"series": series})
        except DovetailError as error:
            log.warning("an Event was not written: %s", error)

    def _write(self, key: tuple[str, str, str], about: Json, kind: str, action: str) -> None:
        metadata = about["metadata"]
        digits = hashlib.sha256(f"{key}{_now()}".encode()).hexdigest()[:16]
        name = f"{metadata['name'][:200]}.{digits}"
        path = collection("Event", metadata["namespace"])
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "eventTime": _now(),
            "reportingController": f"dovetail.dev/{OPERATOR}",
            "reportingInstance": self._identity[:128],
            "regarding": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": kind,
            "reason": key[1],
            "action": action,
            "note": key[2],
        }
        self._api.create(path, body)
        with self._lock:
            self._series[key] = _Series(f"{path}/{name}", time.monotonic())
            while len(self._series) > _REMEMBERED:
                del self._series[next(iter(self._series))]

    def _afford(self, uid: str, now: float) -> bool:
        """Take one Event of an object's share."""
        saved, at = self._share.get(uid, (_BURST, now))
        saved = min(_BURST, saved + (now - at) * _EARN)
        if saved < 1.0:
            return False
        self._share[uid] = (saved - 1.0, now)
        while len(self._share) > _REMEMBERED:
            del self._share[next(iter(self._share))]
        return True


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
