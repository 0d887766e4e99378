"""Writes what was found of a deployment into its status, and tells people what is new in it.

A status is written only where it differs from the one that is stored, so a deployment that stays as
it is causes no request; Events follow from the difference, so each thing is told once, whichever
operator was there before.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, Literal

from pydantic import ValidationError

from dovetail.errors import DovetailError
from dovetail.status import Status, moment
from dovetail_operator import conditions
from dovetail_operator.classes import Before
from dovetail_operator.client import STATUS_MANAGER, Api, Json
from dovetail_operator.conditions import Finding, Findings
from dovetail_operator.events import Events
from dovetail_operator.metrics import MOVES
from dovetail_operator.names import HYBRIDS
from dovetail_operator.rollout import short
from dovetail_operator.store import key_of

_AWAITED: Final = 60.0  # seconds; a watch that is slower than that is not healthy
_TOLD: Final = ("Partitioned", "TailAvailable", "EdgeAvailable", "Degraded", "Ready")


class Reporter:
    """Writes statuses and Events.

    Args:
        api: the API server, fenced.
        events: what people are told.
    """

    def __init__(self, api: Api, events: Events) -> None:
        self._api, self._events = api, events
        self._written: dict[str, tuple[int, float]] = {}  # version, and how long it is awaited

    def is_behind(self, hybrid: Json) -> bool:
        """Whether our own last write of a status is not back yet: look again soon.

        Not for ever: an API server that was set back to a backup counts from there again.
        """
        version, until = self._written.get(key_of(hybrid), (0, 0.0))
        return int(hybrid["metadata"]["resourceVersion"]) < version and time.monotonic() < until

    def forget(self, key: str) -> None:
        """Forget a deployment."""
        self._written.pop(key, None)

    def report(self, hybrid: Json, findings: Findings) -> None:
        """Write the status where it differs, and tell people of conditions that changed."""
        stored = hybrid.get("status") or {}
        previous = {one["type"]: one for one in stored.get("conditions") or ()}
        known = _readable(stored)
        if not findings.classes and findings.degraded.status == "True" and known is not None:
            findings = replace(findings, classes=known.classes, versions=known.versions)
        status = conditions.status_of(
            findings, hybrid["metadata"]["generation"], previous, moment(time.time())
        )
        document = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        if document == stored:
            return
        metadata = {key: hybrid["metadata"][key] for key in ("name", "namespace")}
        head = {"apiVersion": hybrid["apiVersion"], "kind": hybrid["kind"], "metadata": metadata}
        root, leaf = HYBRIDS.rsplit("/", 1)
        path = f"{root}/namespaces/{metadata['namespace']}/{leaf}/{metadata['name']}/status"
        written = self._api.apply(
            path, {**head, "status": document}, seen=hybrid, manager=STATUS_MANAGER
        )
        version = int(written["metadata"]["resourceVersion"])
        self._written[key_of(hybrid)] = version, time.monotonic() + _AWAITED
        self._tell(hybrid, document["conditions"], previous)
        self._tell_moves(hybrid, document.get("classes", ()), stored.get("classes", ()))
        old, new = stored.get("bundle"), document.get("bundle")
        if old and new and old != new:
            note = f"Version {short(new)} took over from {short(old)}."
            self._events.emit(hybrid, "Normal", "RolledOut", "Rollout", note)

    def _tell_moves(self, hybrid: Json, now: Iterable[Json], before: Iterable[Json]) -> None:
        """Tell moves once their plan is written: one that never got that far did not happen."""
        told = {one["name"]: one.get("moves", ()) for one in before}
        for item in now:
            name = item["name"]
            for move in item.get("moves", ()):
                if move not in told.get(name, ()):
                    MOVES.labels(move["reason"]).inc()
                    note = f"Class {name} moved to {move['target']}: {move['message']}"
                    self._events.emit(hybrid, "Normal", "Moved", "Move", note)

    def _tell(self, hybrid: Json, now: list[Json], before: Mapping[str, Json]) -> None:
        for condition in now:
            name, old = condition["type"], before.get(condition["type"]) or {}
            if not _is_news(condition, old):
                continue
            good = condition["status"] == ("False" if name == "Degraded" else "True")
            kind: Literal["Normal", "Warning"] = "Warning"
            if good or condition["reason"] in _UNDER_WAY:
                kind = "Normal"
            self._events.emit(hybrid, kind, condition["reason"], name, condition["message"])


_UNDER_WAY: Final = frozenset({"Partitioning", "TailDeploying", "EdgesNotReady"})


def _is_news(condition: Json, old: Json) -> bool:
    """Whether people are told: what sums up when it turns, a cause when its reason changes."""
    name, status = condition["type"], condition["status"]
    if name not in _TOLD or status == "Unknown":
        return False
    if name in ("Ready", "Degraded"):
        return bool(status != old.get("status", "False"))
    return bool(condition["reason"] != old.get("reason"))


def _readable(stored: Json) -> Status | None:
    """A status as its types; None where another release wrote it otherwise."""
    try:
        return Status.model_validate(stored)
    except ValidationError:
        return None


def said(hybrid: Json, bundle: str | None = None) -> Before:
    """What was said last of each class, of that version where one is given."""
    stored = hybrid.get("status") or {}
    status = _readable(stored) if stored else None
    if status is None or (bundle is not None and status.bundle != bundle):
        return {}
    return {item.name: item for item in status.classes}


def invalid(hybrid: Json, error: ValidationError) -> Findings:
    """The resource was admitted by another version of its definition."""
    faults = "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
    )
    return _as_before(hybrid, Finding("True", "InvalidSpec", f"The spec does not hold: {faults}"))


def retrying(hybrid: Json, error: DovetailError) -> Findings:
    """What could not be done now comes back by itself; until then what was found stands."""
    message = f"What this deployment needs could not be done, and is tried again: {error}"
    return _as_before(hybrid, Finding("True", "Retrying", message))


def taken(hybrid: Json, error: DovetailError) -> Findings:
    """Somebody else has, or writes, what the deployment needs: it does not end by itself."""
    message = (
        f"An object that this deployment needs is somebody else's: {error}. Delete it, or stop "
        "who writes it; it is tried again."
    )
    return _as_before(hybrid, Finding("True", "NameTaken", message))


def _as_before(hybrid: Json, wrong: Finding) -> Findings:
    """What was found last, and what is wrong now: nobody looked at the rest anew."""

    def known(name: str) -> Finding:
        return found_before(hybrid, name) or Finding("Unknown", wrong.reason, wrong.message)

    return Findings(
        known("Partitioned"),
        known("TailAvailable"),
        known("EdgeAvailable"),
        known("Moving"),
        wrong,
        bundle=(hybrid.get("status") or {}).get("bundle"),
    )


def found_before(hybrid: Json, name: str) -> Finding | None:
    """What a condition said last; None for nothing yet."""
    for one in (hybrid.get("status") or {}).get("conditions") or ():
        if one["type"] == name:
            return Finding(one["status"], one["reason"], one["message"])
    return None
