"""The edge's background talk with the tail: samples, plans, and probes of link and tail.

None of it is on a request's path, and all of it stops where it would hurt: samples are sent as one
mergeable window and at most a twentieth of the time, a failed call makes the next one wait longer,
and an idle device only asks for its plan every few seconds.

What leaves: a sample holds counts, seconds and bytes, nothing made from a tensor's values; a probe
holds zeros. Under `Private` not even samples and probes leave, only the plan is asked for, by a
request without a body.
"""

import logging
import threading
import time
from collections.abc import Callable

from dovetail.errors import DovetailError, TailMissing, Unauthorized
from dovetail.measure import Sample, Window
from dovetail.plan import Plan
from dovetail_edge.breaker import Breaker
from dovetail_edge.hand import Hand
from dovetail_edge.link import Overtaken
from dovetail_edge.tail import Tail

log = logging.getLogger("dovetail.edge")

_TIMEOUT = 3.0
_REPORT_EVERY, _PROBE_EVERY, _POLL_EVERY = 1.0, 2.0, 3.0
_SHARE = 20  # a report that took s seconds is followed by no other for 20 s
_LEAST_PROBE, _FIRST_PROBE, _MOST_PROBE = 1 << 10, 8 << 10, 256 << 10
_GROWTH, _MOST_PROBES = 4, 8
_LEAST_PROBE_SECONDS = 0.03
_FLOWING = 3.0  # seconds after a request in which more are expected
_BUSY_PAUSE = 0.1
_FIRST_QUIET, _LONGEST_QUIET = 0.5, 8.0


class Reporter:
    """Talks to the tail from a thread of its own.

    Args:
        tail: the tail.
        hand: gets the link's measurements.
        breaker: is told whether the tail is back.
        adopt: takes over a plan.
        lost: is told that this version is served no more, or not to this device, as long as that
            is so.
    """

    def __init__(
        self,
        tail: Tail,
        hand: Hand,
        breaker: Breaker,
        adopt: Callable[[Plan], object],
        lost: Callable[[], object],
    ) -> None:
        self._tail, self._hand, self._breaker = tail, hand, breaker
        self._adopt, self._lost = adopt, lost
        self._lock = threading.Lock()
        self._window = Window()
        self._wake, self._stop = threading.Event(), False
        never = -1e9
        self._seen_at = self._reported_at = self._polled_at = never
        self._tripped_at = self._probed_at = self._looked_at = never
        self._report_pause, self._quiet, self._quiet_until = _REPORT_EVERY, 0.0, never
        self._asked = 0
        self._thread = threading.Thread(target=self._run, name="dovetail-reporter", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def add(self, sample: Sample) -> None:
        """Count a sample in the window that is sent next; never one of a private request."""
        if not self._private:
            with self._lock:
                self._window.add(sample)
        idle = self._seen_at < time.monotonic() - _FLOWING
        self._seen_at = time.monotonic()
        if idle or self._tail.stale:
            self._wake.set()

    def close(self) -> None:
        """Stop; a window that is not sent yet is dropped."""
        self._stop = True
        self._wake.set()
        self._tail.quit()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop:
            now = time.monotonic()
            if now - self._looked_at >= _REPORT_EVERY:
                self._looked_at = now
                self._tail.access.refresh()
            try:
                self._step(now)
            except Overtaken:
                return  # `close` was called
            except DovetailError as error:
                self._failed(error)
            except Exception:  # a defect here must not end plans and probes for good
                log.exception("the reporter failed")
                self._quiet_until = time.monotonic() + _LONGEST_QUIET
            flowing = time.monotonic() - self._seen_at < _FLOWING
            self._wake.wait(_BUSY_PAUSE if flowing else _POLL_EVERY)
            self._wake.clear()

    def _failed(self, error: DovetailError) -> None:
        """Wait longer after every failure in a row; say so once, and again where it is another."""
        if str(error) != self._tail.trouble:
            log.warning("the tail does not answer as it should: %s", error)
        self._tail.trouble = str(error)
        if isinstance(error, TailMissing | Unauthorized):
            self._lost()
        self._quiet = min(max(2 * self._quiet, _FIRST_QUIET), _LONGEST_QUIET)
        self._quiet_until = time.monotonic() + self._quiet
        self._tail.access.link.resolve()

    def _step(self, now: float) -> None:
        if self._breaker.probe_due(now):
            self._probe_tail()
        if now < self._quiet_until or self._breaker.is_open:
            return
        if self._talk(now) and self._quiet:
            log.warning("the tail answers again")
            self._quiet, self._tail.trouble = 0.0, None

    def _talk(self, now: float) -> bool:
        """Say whatever is due; returns whether anything was."""
        said = False
        if self._tail.stale or self._tail.generation > max(self._asked, self._generation):
            said = self._poll(now)
        private = self._private
        flowing = now - self._seen_at < _FLOWING
        if flowing and not private:
            said |= self._probe_link(now)
        if not private and now - self._reported_at >= self._report_pause:
            said |= self._report(now)
        if (private or not flowing) and now - self._polled_at >= _POLL_EVERY:
            said |= self._poll(now)
        return said

    @property
    def _private(self) -> bool:
        return self._hand.routes.plan.privacy == "Private"

    @property
    def _generation(self) -> int:
        return self._hand.routes.plan.generation

    def _poll(self, now: float) -> bool:
        self._polled_at = now
        plan = self._tail.plan(_TIMEOUT)
        newer = plan is not None and plan.generation > self._generation
        if self._tail.stale and not newer:
            self._lost()
        self._asked, self._tail.stale = self._tail.generation, False
        if plan is not None:
            self._adopt(plan)
        return True

    def _probe_tail(self) -> None:
        """Ask whether a tail that was given up is back."""
        good = False
        try:
            self._probe(self._probe_size())
            good = True
        finally:
            self._breaker.probed(time.monotonic(), good=good)

    def _probe_link(self, now: float) -> bool:
        """Keep the link's estimate fresh while requests flow, also when none of them crosses."""
        said = False
        if now - self._tripped_at >= _PROBE_EVERY:
            self._tripped_at = now
            self._hand.tripped(self._tail.probe(0, _TIMEOUT), time.monotonic())
            said = True
        # On a link so fast that no bytes are felt, the rate stays old: hence a clock of its own.
        if min(self._hand.rate_age(now), now - self._probed_at) >= _PROBE_EVERY:
            self._probed_at = now
            self._probe_rate()
            said = True
        return said

    def _probe_rate(self) -> None:
        """Probe with more and more bytes until they are felt.

        Bytes that are not felt took less than a third of a round trip, so four times as many are
        soon through; and on a fast link few bytes say no more than how much round trips vary, by
        which it would look slower than it is, and the device would stay alone.
        """
        size = self._probe_size()
        for _ in range(_MOST_PROBES):
            felt = self._probe(size)
            known = self._hand.link(time.monotonic()) is not None
            if known and (felt or size == _MOST_PROBE):
                return
            if not felt:
                size = min(_GROWTH * size, _MOST_PROBE)

    def _probe(self, size: int) -> bool:
        """Send so many bytes; returns whether they were felt."""
        begin = time.monotonic()
        try:
            seconds = self._tail.probe(size, _TIMEOUT)
        except DovetailError:
            seconds = time.monotonic() - begin
            if seconds >= _TIMEOUT:  # at least as slow as that
                self._hand.crossed(size, seconds, time.monotonic())
            raise
        return self._hand.crossed(size, seconds, time.monotonic())

    def _probe_size(self) -> int:
        """Bytes that take about a round trip longer than none: fewer tell nothing of the rate."""
        link = self._hand.link(time.monotonic())
        if link is None:
            return _FIRST_PROBE
        size = max(link.rtt, _LEAST_PROBE_SECONDS) / link.seconds_per_byte
        return int(min(max(size, _LEAST_PROBE), _MOST_PROBE))

    def _report(self, now: float) -> bool:
        self._reported_at = now
        with self._lock:
            window, self._window = self._window, Window()
        if not window.count:
            return False
        link = self._hand.link(now)
        sent = Window()
        sent.merge(window)
        if link is not None:
            sent.add_link(link)
        begin = time.monotonic()
        try:
            size = self._tail.samples(sent, self._hand.routes.plan.device_class, _TIMEOUT)
        except DovetailError:
            with self._lock:
                self._window.merge(window)
            raise
        took = time.monotonic() - begin
        # What it waited behind requests is no cost of its own: counted, the news of a link that
        # collapsed would keep the next report, which says where it stands, away for longest.
        own = took if link is None else min(took, link.rtt + size * link.seconds_per_byte)
        self._report_pause = max(_REPORT_EVERY, _SHARE * own)
        return True
