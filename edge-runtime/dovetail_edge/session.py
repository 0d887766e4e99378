"""The session: one model on one device, answered by the plan.

The public face of the edge. It owns what requests share (loaded segments, the link, the breaker,
the fast hand), starts two background threads, and hands each request the pointer to the rung in
use. `infer` runs in the caller's thread, without a hop; `ainfer` pays one.
"""

import asyncio
import contextvars
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, Self

from dovetail import telemetry
from dovetail.bundle import Bundle
from dovetail.control import KEPT_MOVES, Move
from dovetail.errors import BundleCorrupt, DovetailError, InvalidMessage
from dovetail.measure import Sample, Window
from dovetail.plan import Plan
from dovetail.tensor import Array, check_inputs
from dovetail_edge import store
from dovetail_edge.access import Access, Credentials
from dovetail_edge.breaker import Breaker
from dovetail_edge.engine import Engine
from dovetail_edge.hand import Hand, Shift
from dovetail_edge.reporter import Reporter
from dovetail_edge.request import Answer, Means, Request
from dovetail_edge.route import Routes, check, needs, routes
from dovetail_edge.status import LinkStatus, RungStatus, Status
from dovetail_edge.tail import Tail

log = logging.getLogger("dovetail.edge")

WORKERS = 32  # requests that asynchronous callers may have under way
_LOOK_EVERY = 0.1  # seconds between two decisions while requests flow
_NO_CREDENTIALS: Final = Credentials()


def _nobody(_: Plan | None) -> None:
    """Whoever is told of plans that need more than is here, where nobody is."""


class Session:
    """Runs one model by its plan; safe to use from many threads.

    Args:
        bundle: the bundle, or the folder it is in; the digest of every blob that the plan needs is
            checked, others may be missing.
        plan: the first plan.
        endpoint: `http://host:port[/prefix]` of the pool, or `https://…`.
        credentials: what to show there, whom to trust.
        threads: intra-op threads.
        slowdown: makes the device this many times slower, in the open; 1 changes nothing.
        state: folder in which the last plan is kept; None keeps none.
        elsewhere: is told of plans that need more than is here (another bundle, or blobs that are
            missing), and by None that this version is served no more, or not to this device.

    Raises:
        BundleError: not a bundle, or the plan is for another.
        BundleCorrupt: a blob does not have the digest it is named by.
        UnknownRung: the plan allows a rung the bundle does not have.
        MissingTool: a rung's codec needs a library that is not installed.
        ManifestError: the endpoint is not a URL this edge can call, or a file of the credentials
            cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle | Path,
        plan: Plan,
        *,
        endpoint: str,
        credentials: Credentials = _NO_CREDENTIALS,
        threads: int = 1,
        slowdown: float = 1.0,
        state: Path | None = None,
        elsewhere: Callable[[Plan | None], object] | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        self.slowdown = slowdown
        self._state, self._threads = state, threads
        if state is not None:
            plan = store.newest(state, plan)
        check(plan, self.bundle, plan)
        self._elsewhere = elsewhere or _nobody
        access = Access(endpoint, plan.device_class, credentials)
        tail = Tail(access, plan.application)
        hand = Hand(self._routes(plan, None), time.monotonic())
        self._pool = ThreadPoolExecutor(WORKERS, "dovetail-continuation")
        self._callers = ThreadPoolExecutor(WORKERS, "dovetail-request")
        self._means = Means(tail, hand, Breaker(), self._pool)
        self._reporter = Reporter(
            tail, hand, self._means.breaker, self.adopt, partial(self._elsewhere, None)
        )
        self._adopting, self._left = threading.Lock(), 0
        self._samples: deque[tuple[Sample, int]] = deque()
        self._news, self._closed = threading.Event(), threading.Event()
        self._totals, self._counting = Window(), threading.Lock()
        self._moves: deque[Move] = deque(maxlen=KEPT_MOVES)
        self._longest_switch = 0.0
        telemetry.plan_generation.set(plan.generation)
        self._watcher = threading.Thread(target=self._watch, name="dovetail-hand", daemon=True)
        self._watcher.start()
        self._reporter.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._means.hand.routes.plan

    def infer(
        self, feed: Mapping[str, Array], *, deadline: float | None = None
    ) -> dict[str, Array]:
        """Answer a request.

        Args:
            feed: every input of the model by name, of the declared dtype and shape.
            deadline: seconds this request may take; None for the plan's.

        Returns:
            The model's outputs by name.

        Raises:
            InvalidTensor: an input is missing, unknown, or not as declared.
            PrivacyRefused: the plan's rungs would send what its privacy class forbids.
            TailUnavailable: the tail failed and the plan's fallback is `Fail`.
            DeadlineExceeded: the same, and the tail was late.
        """
        return self.infer_detailed(feed, deadline=deadline).outputs

    def infer_detailed(self, feed: Mapping[str, Array], *, deadline: float | None = None) -> Answer:
        """Answer a request and say how it was answered; takes and raises what `infer` does."""
        if deadline is not None and not 0 < deadline < float("inf"):
            raise InvalidMessage(f"deadline is {deadline}; expected seconds above 0")
        rows = check_inputs(self.bundle.config.inputs, feed)
        hand = self._means.hand
        route = hand.route
        if route is None:
            raise hand.routes.refusal()
        limit = deadline if deadline is not None else route.plan.deadline
        probe = hand.probe(limit, rows)
        request = Request(self._means, probe or route, rows, limit, probe=probe is not None)
        with telemetry.span(telemetry.SPAN_REQUEST) as span:
            span.set_attribute(telemetry.RUNG, request.rung)
            span.set_attribute(telemetry.GENERATION, route.plan.generation)
            try:
                answer = request.answer(feed)
            except DovetailError:
                self._collect(request.sample("failed"), rows)
                raise
            span.set_attribute(telemetry.OUTCOME, answer.sample.outcome)
        self._collect(answer.sample, rows)
        return answer

    async def ainfer(
        self, feed: Mapping[str, Array], *, deadline: float | None = None
    ) -> dict[str, Array]:
        """`infer` for asynchronous callers."""
        return (await self.ainfer_detailed(feed, deadline=deadline)).outputs

    async def ainfer_detailed(
        self, feed: Mapping[str, Array], *, deadline: float | None = None
    ) -> Answer:
        """`infer_detailed` for asynchronous callers; runs in a thread of the session's own."""
        context = contextvars.copy_context()  # carries the caller's span

        def run() -> Answer:
            return context.run(self.infer_detailed, feed, deadline=deadline)

        return await asyncio.get_running_loop().run_in_executor(self._callers, run)

    def adopt(self, plan: Plan) -> bool:
        """Take over a plan of a higher generation; requests under way keep theirs.

        A plan that does not fit is logged and left: what is in use goes on. One that needs another
        bundle, or blobs that are not here, is for whoever brings them.

        Returns:
            Whether the plan is now in use.
        """
        with self._adopting:
            held = self._means.hand.routes
            if plan.generation <= held.plan.generation:
                return False
            if plan.bundle != self.bundle.digest and self._elsewhere is not _nobody:
                self._elsewhere(plan)
                return False
            try:
                check(plan, self.bundle, held.plan)
                found = self._routes(plan, held)
            except BundleCorrupt as error:
                log.warning("plan %d needs what is not here: %s", plan.generation, error)
                self._elsewhere(plan)
                return False
            except DovetailError as error:
                if plan.generation != self._left:  # it is offered again with every poll
                    log.warning("plan %d is not taken over: %s", plan.generation, error)
                self._left = plan.generation
                return False
            store.keep(self._state, plan)
            shift = self._means.hand.adopt(found, time.monotonic())
        telemetry.plan_generation.set(plan.generation)
        self._moved(shift)
        return True

    def status(self) -> Status:
        """What this edge is doing now."""
        hand, plan = self._means.hand, self.plan
        link = hand.link(time.monotonic())
        with self._counting:
            totals = self._totals.dump()
            outcomes: Counter[str] = Counter()
            for seen in self._totals.rungs.values():
                outcomes.update(seen.outcomes)
        recent = {
            rung: RungStatus(
                count=seen.count,
                median=seen.total.quantile(0.5),
                parts={name: part.mean for name, part in seen.parts.items()},
            )
            for rung, seen in hand.recent().rungs.items()
            if seen.total.count
        }
        return Status(
            deployment=plan.deployment,
            device_class=plan.device_class,
            bundle=self.bundle.digest,
            generation=plan.generation,
            default=plan.default,
            rung=hand.rung,
            breaker=self._means.breaker.state,
            slowdown=self.slowdown,
            trouble=self._means.tail.trouble,
            link=LinkStatus(rtt=link.rtt, seconds_per_byte=link.seconds_per_byte) if link else None,
            outcomes=outcomes,
            totals=totals,
            recent=recent,
            moves=tuple(self._moves),
            longest_switch=self._longest_switch,
        )

    def close(self) -> None:
        """Stop the background threads and close the link; requests under way end first."""
        self._closed.set()
        self._news.set()
        self._callers.shutdown()
        self._pool.shutdown()
        self._watcher.join()
        self._reporter.close()
        self._means.tail.close()

    def _routes(self, plan: Plan, held: Routes | None) -> Routes:
        """A plan's routes, on the loaded segments where they suffice."""
        cuts, whole = needs(plan)
        engine = next(iter(held.by_rung.values())).engine if held and held.by_rung else None
        if engine is None or not cuts <= engine.cuts or (whole and not engine.whole):
            engine = Engine(
                self.bundle, cuts, whole=whole, threads=self._threads, slowdown=self.slowdown
            )
        return routes(plan, self.bundle, engine)

    def _collect(self, sample: Sample, rows: int) -> None:
        self._samples.append((sample, rows))
        self._news.set()

    def _watch(self) -> None:
        """Fold samples in and decide, off the requests' path; sleeps while nothing comes."""
        while not self._closed.is_set():
            self._news.wait()
            self._closed.wait(_LOOK_EVERY)
            self._news.clear()
            try:
                self._fold()
                self._moved(self._means.hand.look(time.monotonic()))
            except Exception:  # a defect here must not stop later decisions
                log.exception("the fast hand failed")

    def _fold(self) -> None:
        now = time.monotonic()
        while self._samples:
            sample, rows = self._samples.popleft()
            with self._counting:
                self._totals.add(sample)
            self._means.hand.observe(sample, rows, now)
            self._reporter.add(sample)
            telemetry.record(sample)

    def _moved(self, shift: Shift | None) -> None:
        if shift is None:
            return
        self._longest_switch = max(self._longest_switch, shift.seconds)
        move = Move(
            at=time.time(),
            source=shift.source or "none",
            target=shift.target or "none",
            reason=shift.reason,
            message=shift.message,
        )
        self._moves.append(move)
        telemetry.moves.add(1, {telemetry.REASON: shift.reason})
        log.info("moved from %s to %s: %s", move.source, move.target, move.message)
