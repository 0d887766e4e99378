"""The breaker: later requests don't wait on a cloud that is known to be gone.

Closed, requests go to the tail. After failures it opens and they are answered on the edge at
once; a probe in the background, ever more rarely, asks whether the tail is back. A tail may answer
probes and still hang on requests, so after a good probe exactly one request is let through: only
its success closes the breaker, and its failure doubles the pause.

Pure but for a lock: every method takes the time.

Reference: Nygard, "Release It!", 2007 (circuit breaker).
"""

import threading
from enum import StrEnum

_LATE_BEFORE_OPEN = 2
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 4.0


class State(StrEnum):
    """What the breaker lets through: everything, nothing, or one request."""

    CLOSED = "closed"
    OPEN = "open"
    TRIAL = "trial"


class Breaker:
    """Counts failures of one tail; times are seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._late = 0
        self._pause, self._probe_at = _FIRST_PAUSE, 0.0
        self._trial_taken = False
        self.state = State.CLOSED
        self.opened = 0

    def allows(self) -> bool:
        """Whether a request may go to the tail; it must `release` in the end, whatever happened."""
        with self._lock:
            if self.state is State.TRIAL and not self._trial_taken:
                self._trial_taken = True
                return True
            return self.state is State.CLOSED

    def success(self) -> None:
        """The tail answered a request."""
        if self.state is State.CLOSED and not self._late:
            return
        with self._lock:
            if self.state is not State.OPEN:  # a straggler does not overrule later failures
                self.state, self._late, self._pause = State.CLOSED, 0, _FIRST_PAUSE
                self._trial_taken = False

    def late(self, now: float) -> bool:
        """The edge was done before the tail; opens when it happens again, and says whether so."""
        with self._lock:
            self._late += 1
            again = self._late >= _LATE_BEFORE_OPEN or self.state is State.TRIAL
            return again and self._open(now)

    def failure(self, now: float) -> bool:
        """The tail failed a request, and the retry too. Returns whether that opened the breaker."""
        with self._lock:
            return self._open(now)

    @property
    def is_open(self) -> bool:
        """Whether no request is let through."""
        return self.state is State.OPEN

    def release(self) -> None:
        """A request that was let through is over; if it proved nothing, the next one may."""
        if self._trial_taken:
            with self._lock:
                self._trial_taken = False

    def probe_due(self, now: float) -> bool:
        """Whether the background should probe the tail now."""
        return self.state is State.OPEN and now >= self._probe_at

    def probed(self, now: float, *, good: bool) -> None:
        """Record a probe's outcome: a good one admits one request, a bad one waits longer."""
        with self._lock:
            if self.state is not State.OPEN:
                return
            if good:
                self.state, self._trial_taken = State.TRIAL, False
            else:
                self._back_off(now)

    def _open(self, now: float) -> bool:
        if self.state is State.OPEN:
            return False  # a straggler of the same outage
        if self.state is State.CLOSED:
            self.opened += 1
            self._pause = _FIRST_PAUSE
            self._probe_at = now + self._pause
        else:
            self._back_off(now)
        self.state, self._late, self._trial_taken = State.OPEN, 0, False
        return True

    def _back_off(self, now: float) -> None:
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        self._probe_at = now + self._pause
