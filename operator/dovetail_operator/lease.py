"""Who leads: one process holds the Lease, and knows without asking when it may no longer write.

Two operators that write at once would undo each other's work, so a process leads only while its
Lease is fresh. Asking the API server before each write would not help: a process can be paused
(SIGSTOP, a suspended machine) between answer and write. So the holder keeps a deadline of its own,
counted by the monotonic clock from before its last renewal was sent: it stops writing 10 seconds
after that, while others wait 15, counted by their own clocks from when they saw the renewal. The
difference covers the request that is under way. Whatever else slips through lands only on an
object that nobody changed since, because writes carry the resource version they were decided on.
A holder that finds its deadline passed ends the process: everything it knows may be old.

The `LeaderElection` of the kubernetes package is not used: it counts by the wall clock, has no
deadline that a worker could ask, does not release, and ends in an exception when the API server
restarts. The Lease it writes is the same, as are client-go's defaults of 15, 10 and 2 seconds.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from dovetail.errors import DovetailError
from dovetail_operator.client import Absent, Api, Conflict, Json, LeaseLost
from dovetail_operator.metrics import LEADER
from dovetail_operator.names import owner_reference

log = logging.getLogger("dovetail.operator.lease")


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a Lease lasts.

    Attributes:
        duration: seconds after which others may take it.
        renew: seconds after which its holder stops if it could not renew it.
        retry: seconds between two tries.
    """

    duration: float = 15.0
    renew: float = 10.0
    retry: float = 2.0

    @classmethod
    def lasting(cls, duration: float) -> "Terms":
        """Terms of that duration, the others in proportion."""
        return cls(duration, duration * 10.0 / 15.0, duration * 2.0 / 15.0)


class Lease:
    """One process's hold on a Lease.

    Args:
        api: where it is, unfenced.
        path: path of the collection of Leases.
        name: its name.
        identity: who we are; no two processes may have the same.
        terms: how long it lasts.
        owner: gives what the Lease is to be deleted with, when it is made; None for nothing.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        name: str,
        identity: str,
        terms: Terms | None = None,
        *,
        owner: Callable[[], Json] | None = None,
    ) -> None:
        self.identity, self._owner = identity, owner
        self._api, self._path, self._name = api, path, name
        self._terms = terms or Terms()
        self._until = 0.0  # monotonic; until then we surely lead
        self._seen: tuple[str, float] = ("", 0.0)  # the Lease's version, and when we first saw it
        self._stop = threading.Event()
        LEADER.set_function(lambda: float(self.held))

    @property
    def held(self) -> bool:
        """Whether this process leads at this moment."""
        return time.monotonic() < self._until

    def remaining(self) -> float:
        """Seconds for which a write may surely be under way; raises `LeaseLost` for none."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise LeaseLost(f"{self.identity} does not hold the Lease {self._name}")
        return left

    def run(self, lead: Callable[[], None]) -> bool:
        """Wait for the Lease, call `lead`, keep it until told to stop.

        Returns:
            True where it was stopped and released, False where the Lease was lost: end the
            process.
        """
        while not self._stop.is_set():
            if self._try():
                log.info("leading", extra={"identity": self.identity})
                lead()
                return self._keep()
            self._pause()
        return True

    def stop(self) -> None:
        """Let `run` return."""
        self._stop.set()

    def release(self) -> None:
        """Give the Lease up, so that another need not wait; call after the last write."""
        if not self.held:
            return
        self._until = 0.0
        try:
            lease = self._api.get(f"{self._path}/{self._name}")
            if lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                self._api.replace(f"{self._path}/{self._name}", lease)
        except DovetailError as error:
            log.warning("the Lease was not released: %s", error)

    def _keep(self) -> bool:
        while not self._stop.is_set():
            self._pause()
            if not self.held:
                break  # paused past the deadline; renewing now would hide it
            self._try()
        return self._stop.is_set()

    def _pause(self) -> None:
        self._stop.wait(self._terms.retry * random.uniform(0.9, 1.1))  # noqa: S311  spreads load

    def _try(self) -> bool:
        """Take or renew the Lease; returns whether we hold it."""
        sent = time.monotonic()
        try:
            self._write(self._read())
        except _Taken:
            return False
        except DovetailError as error:
            log.warning("the Lease was not renewed: %s", error)
            return False
        if self._until and not self.held:
            return False  # passed while this was under way: others were told so, it stays so
        self._until = sent + self._terms.renew
        return self.held

    def _read(self) -> Json | None:
        try:
            return self._api.get(f"{self._path}/{self._name}")
        except Absent:
            return None

    def _write(self, lease: Json | None) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if lease is None:
            owners = [owner_reference(self._owner())] if self._owner is not None else []
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name, "ownerReferences": owners},
                "spec": self._spec(now, now, 0),
            }
            self._api.create(self._path, body)
            return
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder != self.identity and holder and not self._expired(lease):
            raise _Taken
        changes = spec.get("leaseTransitions") or 0
        if holder == self.identity:
            lease["spec"] = self._spec(spec.get("acquireTime") or now, now, changes)
        else:
            lease["spec"] = self._spec(now, now, changes + 1)
        try:
            self._api.replace(f"{self._path}/{self._name}", lease)
        except Conflict as error:
            raise _Taken from error

    def _expired(self, lease: Json) -> bool:
        """Whether the Lease has not changed for its duration, by our own clock."""
        version = lease["metadata"]["resourceVersion"]
        if self._seen[0] != version:
            self._seen = (version, time.monotonic())
        lasts = float(lease["spec"].get("leaseDurationSeconds") or self._terms.duration)
        return time.monotonic() - self._seen[1] > lasts

    def _spec(self, acquired: str, renewed: str, changes: int) -> Json:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._terms.duration)),
            "acquireTime": acquired,
            "renewTime": renewed,
            "leaseTransitions": changes,
        }


class _Taken(Exception):
    """Another process holds the Lease."""
