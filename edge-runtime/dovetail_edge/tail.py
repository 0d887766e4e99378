"""The tail as the edge sees it: rung calls, plans, samples and probes over one link.

Every answer is checked against the bundle's declarations before anyone sees it: version, request
id, names, dtypes, shapes and batch. What does not fit is treated as a tail that failed, never
passed on, whatever peer or proxy made it.
"""

import itertools
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any

from pydantic import ValidationError

from dovetail import telemetry
from dovetail.errors import (
    DovetailError,
    InvalidMessage,
    TailMissing,
    TailUnavailable,
    UnknownPlan,
    UnknownVersion,
    by_code,
)
from dovetail.ladder import Parts
from dovetail.measure import Window
from dovetail.plan import Plan
from dovetail.tensor import Array, Buffer
from dovetail.wire import (
    ERROR_HEADER,
    HEADER_LENGTH,
    PLAN_HEADER,
    TIMEOUT_HEADER,
    TIMING_HEADER,
    InferRequest,
    WireTensor,
    parse_response,
    parse_timing,
    request_parts,
)
from dovetail_edge.access import Access
from dovetail_edge.link import Alarm, Call, Reply
from dovetail_edge.route import Route

_ENVELOPE = 64 << 10  # bytes an answer may have beside its tensors
_CONTROL_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class RungAnswer:
    """A rung call's answer.

    Attributes:
        outputs: the outputs the tail made.
        parts: seconds of network, queue, decode and tail.
        recv: seconds the tail spent receiving.
        crossing: seconds on the network, connecting left out.
        bytes_up: body bytes sent.
        bytes_down: body bytes received.
    """

    outputs: dict[str, Array]
    parts: Parts
    recv: float
    crossing: float
    bytes_up: int
    bytes_down: int


class Quit:
    """An alarm that is over when the session closes, so that no background call outlives it."""

    at = -inf

    def __init__(self) -> None:
        self._here, self._other = socket.socketpair()

    def ring(self) -> int:
        """Begin nothing; returns the descriptor that turns readable when it is over."""
        return self._here.fileno()

    def over(self) -> None:
        """End every call that waits with this alarm."""
        self._other.close()

    def close(self) -> None:
        """Forget the descriptor; no call waits with it any more."""
        self._here.close()


class Tail:
    """Calls one deployment's tail as one device.

    Args:
        access: how to reach it; closed with the tail.
        application: name and route of the Serve application.

    Attributes:
        access: as given.
        generation: highest plan generation any answer named.
        stale: whether the tail did not know the version of a call, until a plan was fetched.
        trouble: why the tail is of no use now, for people; None where it is.
    """

    def __init__(self, access: Access, application: str) -> None:
        self.access = access
        self.generation, self.stale = 0, False
        self.trouble: str | None = None
        self._root = f"/{application}/dovetail"
        self._ids = itertools.count(1)
        self._quit = Quit()

    def prepare(self, route: Route, tensors: Sequence[WireTensor], rows: int) -> "RungCall":
        """Build a rung call, so that a retry need not."""
        call_id = format(next(self._ids), "x")
        body, headers = request_parts(InferRequest(tuple(tensors), id=call_id))
        headers.update(self.access.headers)
        telemetry.inject(headers)
        return RungCall(route, rows, call_id, body, headers)

    def infer(
        self, call: "RungCall", deadline: float, alarm: Alarm | None, *, fresh: bool
    ) -> RungAnswer:
        """Make a rung call.

        Args:
            call: the prepared call.
            deadline: when the caller needs the answer, on `time.monotonic`; the tail is told.
            alarm: what to begin if the answer takes long; with none, the deadline ends the wait.
            fresh: whether a new connection must be made.

        Raises:
            DeadlineExceeded: no answer by the deadline.
            Overtaken: the alarm's work was done first.
            TailUnavailable: no answer, or one that is not the tail's.
            DovetailError: the typed error the tail answered with.
        """
        left = max(deadline - monotonic(), 0.001)
        headers = {**call.headers, TIMEOUT_HEADER: f"{left:.6f}"}
        limit = _ENVELOPE + sum(spec.dims_bytes(call.rows) for spec in call.route.remote)
        request = Call("POST", call.route.path, headers, call.body, limit)
        until = deadline if alarm is None else inf
        reply = self.access.link.call(request, until, alarm=alarm, fresh=fresh)
        self._note(reply)
        return call.read(reply)

    def plan(self, timeout: float) -> Plan | None:
        """The class's plan; None where the tail has none yet.

        Raises:
            TailUnavailable: no answer, or one that is not a plan.
            DovetailError: the typed error the tail answered with.
            Overtaken: `quit` was called.
        """
        reply = self._control("GET", "/plan", timeout)
        try:
            raise_for(reply)
        except UnknownPlan:
            return None
        try:
            return Plan.model_validate_json(bytes(reply.body))
        except ValidationError as error:
            raise TailUnavailable(f"the tail's plan does not hold: {error}") from error

    def samples(self, window: Window, device_class: str, timeout: float) -> int:
        """Leave a window of samples; returns the bytes it took. Raises as `plan` does."""
        document = {"deviceClass": device_class, "window": window.dump()}
        body = json.dumps(document, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json"}
        raise_for(self._control("POST", "/samples", timeout, body, headers))
        return len(body)

    def probe(self, size: int, timeout: float) -> float:
        """Send `size` bytes; returns the seconds they were on the way. Raises as `plan` does."""
        reply = self._control("POST", "/probe", timeout, bytes(size))
        raise_for(reply)
        return reply.seconds

    def quit(self) -> None:
        """End plan, samples and probe calls that are under way."""
        self._quit.over()

    def close(self) -> None:
        """Close the connections; nothing may be called any more."""
        self._quit.close()
        self.access.link.close()

    def _control(
        self,
        method: str,
        path: str,
        timeout: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        every = {**self.access.headers, **(headers or {})}
        call = Call(method, self._root + path, every, (body,), _CONTROL_LIMIT)
        reply = self.access.link.call(call, monotonic() + timeout, alarm=self._quit)
        self._note(reply)
        return reply

    def _note(self, reply: Reply) -> None:
        value = reply.headers.get(PLAN_HEADER.lower(), "")
        if value.isascii() and value.isdigit():
            self.generation = max(self.generation, int(value[:18]))
        if reply.headers.get(ERROR_HEADER.lower()) == UnknownVersion.__name__:
            self.stale = True


@dataclass(frozen=True, slots=True)
class RungCall:
    """A rung call as it is sent.

    Attributes:
        route: the rung.
        rows: batch size.
        id: request id, which the answer must repeat.
        body: the message, in parts.
        headers: its HTTP headers.
    """

    route: Route
    rows: int
    id: str
    body: Sequence[Buffer]
    headers: Mapping[str, str]

    def read(self, reply: Reply) -> RungAnswer:
        """Read and check the answer."""
        raise_for(reply)
        try:
            outputs = self._outputs(reply)
        except DovetailError as error:
            raise TailUnavailable(f"the tail's answer is not right: {error}") from error
        timing = parse_timing(reply.headers.get(TIMING_HEADER.lower(), ""))
        queue, decode, tail = (timing.get(name, 0.0) for name in ("queue", "decode", "compute"))
        inside = queue + decode + tail + timing.get("encode", 0.0)
        crossing = max(reply.seconds - inside, 0.0)
        parts = Parts(network=reply.connect + crossing, queue=queue, decode=decode, tail=tail)
        return RungAnswer(
            outputs, parts, timing.get("recv", 0.0), crossing, reply.sent, len(reply.body)
        )

    def _outputs(self, reply: Reply) -> dict[str, Array]:
        response = parse_response(reply.body, reply.headers.get(HEADER_LENGTH.lower()))
        if (response.version, response.id) != (self.route.version, self.id):
            raise InvalidMessage(
                f"it is for request {response.id!r} of version {response.version!r}, expected "
                f"{self.id!r} of {self.route.version!r}"
            )
        outputs = response.arrays()
        if sorted(outputs) != sorted(spec.name for spec in self.route.remote):
            raise InvalidMessage(f"its outputs are {sorted(outputs)}")
        for spec in self.route.remote:
            spec.check(outputs[spec.name])
            if isinstance(spec.shape[0] if spec.shape else 0, str):
                self._check_rows(spec.name, outputs[spec.name])
        return outputs

    def _check_rows(self, name: str, array: Array) -> None:
        if len(array) != self.rows:
            raise InvalidMessage(f"output {name!r} has {len(array)} rows, expected {self.rows}")


def raise_for(reply: Reply) -> None:
    """Raise the typed error of an answer that is one."""
    if reply.status in (200, 204, 206):
        return
    code = reply.headers.get(ERROR_HEADER.lower())
    text = _error_text(reply)
    if code is None:  # not the tail but something before it
        kind = TailMissing if reply.status == 404 else TailUnavailable
        raise kind(f"HTTP {reply.status} from the tail's ingress: {text}")
    raise by_code(code)(f"the tail answered: {text}")


def _error_text(reply: Reply) -> str:
    try:
        document: Any = json.loads(bytes(reply.body))
        return str(document["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return bytes(reply.body[:200]).decode("utf-8", "replace")
