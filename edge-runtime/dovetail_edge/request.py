"""One request, from inputs to answer, on one route.

A request runs in one thread from start to end: head, encode, exchange, merge. That is the design
with the fewest hops: a caller of `Session.infer` pays none, an asynchronous caller pays one.

When the tail fails, the crossing tensors are still here, so nothing is computed twice: the device
goes on from the cut. What failed decides only how the breaker counts it; the caller sees an answer
flagged `degraded`, or, where the plan says `Fail`, the typed error.
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass

from opentelemetry.trace import SpanKind

from dovetail import telemetry
from dovetail.errors import DovetailError, TailUnavailable
from dovetail.ladder import Parts
from dovetail.measure import Outcome, Sample
from dovetail.tensor import Array
from dovetail.wire import WireTensor
from dovetail_edge.breaker import Breaker
from dovetail_edge.continuation import Continuation, Result
from dovetail_edge.hand import Hand
from dovetail_edge.link import Overtaken
from dovetail_edge.route import Route
from dovetail_edge.tail import RungAnswer, RungCall, Tail

log = logging.getLogger("dovetail.edge")

_MARGIN = 0.005  # seconds kept for waking up and merging before a deadline
_UNDECLARED, _UNDECLARED_TIMES = 1.0, 3.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with.

    Attributes:
        outputs: the model's outputs by name, in the model's order.
        rung: the rung that made it.
        degraded: whether the device answered although the request started for the cloud.
        generation: generation of the plan it started under.
        sample: what was measured.
    """

    outputs: dict[str, Array]
    rung: str
    degraded: bool
    generation: int
    sample: Sample


@dataclass(frozen=True, slots=True)
class Means:
    """What requests work with; shared by all requests of a session."""

    tail: Tail
    hand: Hand
    breaker: Breaker
    pool: Executor


class Request:
    """One request; used once, by one thread.

    Args:
        means: the session's parts.
        route: the rung it is pinned to.
        rows: batch size.
        deadline: seconds it may take; None where nobody declared one.
        probe: whether the rung was chosen to learn about it.
    """

    def __init__(
        self, means: Means, route: Route, rows: int, deadline: float | None, *, probe: bool
    ) -> None:
        self._means, self._route, self._rows, self._probe = means, route, rows, probe
        self._begin = time.monotonic()
        if deadline is None:
            expected = means.hand.expected(route.rung, rows).total
            deadline = max(_UNDECLARED, _UNDECLARED_TIMES * expected)
        self._deadline = self._begin + deadline
        self._parts = Parts()
        self._recv, self._up, self._down = 0.0, 0, 0
        self._ran = route.rung.id  # the rung whose costs were measured

    @property
    def rung(self) -> str:
        """Id of the rung it is pinned to."""
        return self._route.rung.id

    def answer(self, feed: Mapping[str, Array]) -> Answer:
        """Answer inputs that have been checked.

        Raises:
            InvalidTensor: the segments refuse the tensors.
            TailUnavailable: the tail failed and the plan lets nobody else answer.
            DeadlineExceeded: the same, and the tail was late.
            DovetailError: the same, and the tail answered with this error.
        """
        if self._route.rung.crosses:
            return self._cross(feed)
        return self._done(self._alone(feed), self._route.rung.id, "ok")

    def sample(self, outcome: Outcome) -> Sample:
        """What was measured so far."""
        return Sample(
            rung=self._ran,
            parts=self._parts,
            total=time.monotonic() - self._begin,
            outcome=outcome,
            recv=self._recv,
            bytes_up=self._up,
            bytes_down=self._down,
            probe=self._probe,
        )

    def _cross(self, feed: Mapping[str, Array]) -> Answer:
        route, breaker = self._route, self._means.breaker
        may_continue = route.plan.fallback == "Local"
        if not breaker.allows():
            if not may_continue:
                why = self._means.tail.trouble or "it failed"
                raise TailUnavailable(f"the tail is not asked until it is back: {why}")
            # Nothing crosses, so it tells of `edge`: a cloud rung would look as fast as the device.
            self._ran, self._probe = "edge", False
            return self._degraded(self._alone(feed), "breaker")
        try:
            live, tensors = self._head(feed)
            local = Continuation(
                self._work(live, route.rung.cut), self._latest_start(), self._means.pool
            )
            with closing(local):
                try:
                    got = self._ask(tensors, local if may_continue else None)
                except Overtaken:
                    self._late()
                    return self._degraded(local.result()[0], "late")
                except DovetailError as error:
                    if breaker.failure(time.monotonic()):
                        log.warning("the tail is not asked until it is back: %s", error)
                    if not may_continue:
                        raise
                    return self._degraded(local.result()[0], error.code)
            breaker.success()
            return self._merge(live, got)
        finally:
            breaker.release()

    def _head(self, feed: Mapping[str, Array]) -> tuple[dict[str, Array], list[WireTensor]]:
        route = self._route
        with telemetry.span(telemetry.SPAN_HEAD):
            live, head = route.engine.run(feed, 0, route.rung.cut, self._rows)
            tensors, encode = route.engine.encode(route.rung.codec, live, route.crossing)
        self._parts = Parts(head=head, encode=encode)
        return live, tensors

    def _ask(self, tensors: list[WireTensor], local: Continuation | None) -> RungAnswer:
        """Call the tail; once more, on a new connection, if it failed before the deadline."""
        tail = self._means.tail
        with telemetry.span(telemetry.SPAN_CALL, kind=SpanKind.CLIENT):
            call: RungCall = tail.prepare(self._route, tensors, self._rows)
            self._up = sum(map(len, call.body))
            try:
                return tail.infer(call, self._deadline, local, fresh=False)
            except TailUnavailable:
                if time.monotonic() >= self._deadline:
                    raise
            return tail.infer(call, self._deadline, local, fresh=True)

    def _merge(self, live: Mapping[str, Array], got: RungAnswer) -> Answer:
        here, there = self._parts, got.parts
        self._parts = Parts(
            here.head, here.encode, there.network, there.queue, there.decode, there.tail
        )
        self._recv, self._down = got.recv, got.bytes_down
        moved = got.bytes_up + got.bytes_down
        self._means.hand.crossed(moved, got.crossing, time.monotonic())
        outputs = {
            name: got.outputs[name] if name in got.outputs else live[name]
            for name in self._route.engine.outputs
        }
        return self._done(outputs, self._route.rung.id, "ok")

    def _late(self) -> None:
        """The device was done first: the link is at least as slow as the wait was long."""
        now = time.monotonic()
        if self._means.breaker.late(now):
            log.warning("the tail is not asked until it is back: it was late again")
        waited = now - self._begin - self._parts.head - self._parts.encode
        self._means.hand.crossed(self._up, waited, now)

    def _latest_start(self) -> float:
        """When the device must go on alone to be done by the deadline.

        Where it could not be done in time any more it waits until the deadline: starting at once
        would spend the device on every request, and meet the deadline on none.
        """
        mean, spread = self._route.engine.remaining(self._route.rung.cut, self._rows)
        at = self._deadline - mean - spread - _MARGIN
        return at if at > time.monotonic() else self._deadline

    def _work(self, env: Mapping[str, Array], cut: int) -> Callable[[], Result]:
        """Runs the segments from `cut` to the last."""

        def run() -> Result:
            engine = self._route.engine
            made, seconds = engine.run(env, cut, engine.segments, self._rows)
            return {name: made[name] for name in engine.outputs}, seconds

        return run

    def _alone(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs, all segments run here."""
        outputs, seconds = self._work(feed, 0)()
        self._parts = Parts(head=seconds)
        return outputs

    def _degraded(self, outputs: dict[str, Array], reason: str) -> Answer:
        telemetry.fallbacks.add(1, {telemetry.REASON: reason})
        return self._done(outputs, "edge", "degraded")

    def _done(self, outputs: dict[str, Array], rung: str, outcome: Outcome) -> Answer:
        generation = self._route.plan.generation
        return Answer(outputs, rung, outcome == "degraded", generation, self.sample(outcome))
