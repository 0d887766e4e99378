"""The holder: which session answers, and how another takes its place between two requests.

A request leases the session it begins on and ends on it, so no answer is made by two versions. A
session that was replaced is closed when its last lease is over.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dovetail.errors import NotReady
from dovetail_edge.session import Session
from dovetail_edge.status import Following, Status


class _Held:
    """A session and how many requests are on it."""

    def __init__(self, session: Session) -> None:
        self.session, self.leases = session, 0


class Holder:
    """Holds the session in use; safe to use from many threads.

    Args:
        device: who this device is; None where it does not say.

    Attributes:
        waiting: what is waited for while there is no session, for people.
        following: the plan that is being got ready; None where there is none.
        leaving: whether the process was told to end.
    """

    def __init__(self, device: str | None = None) -> None:
        self._device = device
        self.waiting = "it is starting"
        self.following: Following | None = None
        self.leaving = False
        self._held: _Held | None = None
        self._free = threading.Condition()

    @property
    def session(self) -> Session | None:
        """The session in use."""
        held = self._held
        return held.session if held is not None else None

    @property
    def ready(self) -> bool:
        """Whether requests should come here."""
        return self._held is not None and not self.leaving

    @contextmanager
    def lease(self) -> Iterator[Session]:
        """The session in use, which stays open until this is left.

        Raises:
            NotReady: there is none yet.
        """
        with self._free:
            held = self._held
            if held is None:
                raise NotReady(f"no model is loaded yet: {self.waiting}")
            held.leases += 1
        try:
            yield held.session
        finally:
            with self._free:
                held.leases -= 1
                if not held.leases:
                    self._free.notify_all()

    def swap(self, session: Session | None) -> None:
        """Answer with another session from now on; returns when the one before is closed."""
        with self._free:
            old, self._held = self._held, _Held(session) if session is not None else None
            if old is None:
                return
            self._free.wait_for(lambda: not old.leases)
        old.session.close()

    def status(self) -> Status:
        """What this edge is doing now; raises `NotReady` where there is no session yet."""
        with self.lease() as session:
            more = {"device": self._device, "following": self.following}
            return session.status().model_copy(update=more)
