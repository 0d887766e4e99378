"""The running system: pool, ledger, tail, shaped link, edges, and the hand that moves the cut.

Every part is the process it would be in a cluster; only who starts it differs. One thread looks
after all of them: it brings back what died and turns the slow hand once a window, so nobody else
ever changes anything, and what a person sees on screen can't get in the way of it.

Stopping is the exit of an `ExitStack`: whatever was started is ended, in the opposite order, also
when a later part did not start.
"""

import logging
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Self

from dovetail.api import HybridDeployment, seconds
from dovetail.bundle import Bundle
from dovetail.control import Terms, terms
from dovetail.errors import ChildFailed, DovetailError, Unavailable, UserError
from dovetail.ladder import CostProfile
from dovetail.plan import Plan
from dovetail.pool import LedgerApp, Replicas, TailApp, serve_config
from dovetail_cli.link import LinkSpec, Trace
from dovetail_cli.local.children import Child, Guard, ShapedLink
from dovetail_cli.local.client import EdgeClient
from dovetail_cli.local.slow_hand import LedgerClient, SlowHand
from dovetail_cli.local.state import State, fingerprint
from dovetail_cli.ray_pool import Progress, RayPool, free_port

log = logging.getLogger("dovetail.up")

ALL_EDGE, ALL_CLOUD = "all-edge", "all-cloud"
_TICK = 0.25
_EDGE_SECONDS = 60.0
_RETRY = 5.0
_EVENTS = 100


@dataclass(frozen=True)
class Wish:
    """How the system is to be run, beyond what the manifest says.

    Attributes:
        deployment: the manifest.
        trace: the simulated link; None leaves the wire alone.
        slowdown: how many times slower the devices are made, openly.
        port: port of the first edge; None for free ones.
        compare: whether all-edge and all-cloud run beside it, as device classes of their own.
    """

    deployment: HybridDeployment
    trace: Trace | None = None
    slowdown: float = 1.0
    port: int | None = None
    compare: bool = False


@dataclass(frozen=True)
class Event:
    """Something that happened to a part of the system, for people."""

    at: float
    text: str


def device_classes(wish: Wish, bundle: Bundle, costs: CostProfile) -> dict[str, Terms]:
    """The terms of every device class, those run for comparison last.

    All-edge has the uncut model alone; all-cloud has every input codec that quality allows and the
    same hand to choose among them. Where privacy keeps the input on the device, there is no
    all-cloud to compare with.

    Raises:
        DovetailError: as `dovetail.control.terms`.
    """
    deployment = wish.deployment
    found = {
        item.name: terms(deployment, item, bundle=bundle.digest, config=bundle.config, costs=costs)
        for item in deployment.spec.edge.classes
    }
    if not wish.compare:
        return found
    first = next(iter(found.values()))
    whole = {
        ALL_EDGE: [rung.id for rung in first.ladder if not rung.crosses],
        ALL_CLOUD: [rung.id for rung in first.ladder if rung.cut == 0],
    }
    for name, rungs in whole.items():
        if rungs:
            ladder = first.ladder.only(rungs)
            found[name] = replace(
                first, device_class=name, ladder=ladder, pinned=None, paused=False
            )
    return found


@dataclass
class Edge:
    """One edge process.

    Attributes:
        name: its device class.
        port: where it serves on loopback.
        child: the process.
    """

    name: str
    port: int
    child: Child

    @property
    def url(self) -> str:
        """Where applications reach it."""
        return f"http://127.0.0.1:{self.port}"


@dataclass
class System:
    """The system; use as a context manager, which starts and stops it.

    Args:
        wish: how to run it.
        bundle: the bundle.
        costs: its cost profile.
        state: the state directory, locked.
        progress: told what is being waited for while it starts.

    Attributes:
        edges: the edge processes by class.
        terms: what each class may do.
        hand: the slow hand.
        events: what happened, newest last.
        ready: when it was ready, seconds since the epoch.

    Raises:
        PoolFailed: Ray or an application does not start.
        ChildFailed: an edge does not start; the message ends with its log.
    """

    wish: Wish
    bundle: Bundle
    costs: CostProfile
    state: State
    progress: Progress
    edges: dict[str, Edge] = field(default_factory=dict)
    terms: dict[str, Terms] = field(default_factory=dict)
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=_EVENTS))
    ready: float = 0.0

    def __enter__(self) -> Self:
        spec = self.wish.deployment.spec
        self.terms = device_classes(self.wish, self.bundle, self.costs)
        self.hand = SlowHand(self.terms, self.state, seconds(spec.adapt.window), self._publish)
        ports = self._ports()
        with ExitStack() as stack:
            guard = stack.enter_context(Guard(self.state.folder("run")))
            self._pool = stack.enter_context(
                RayPool(self.state.folder("ray"), progress=self._waiting)
            )
            self.hand.keep()
            self._pool.apply(self._serve_config(self.hand.plans))
            endpoint = self._shape(stack, guard)
            for name, port in ports.items():
                self.edges[name] = self._edge(name, port, endpoint, guard)
                stack.callback(self.edges[name].child.stop)
                self.edges[name].child.start()
            for edge in self.edges.values():
                self._wait(edge)
            self._stop = threading.Event()
            self._keeper = threading.Thread(target=self._look_after, name="keeper", daemon=True)
            self.ready = time.time()
            self._keeper.start()
            stack.callback(self._keeper.join)
            stack.callback(self._stop.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def link(self) -> LinkSpec | None:
        """The link simulated now; None where none is."""
        return self._shaped.link if self._shaped else None

    def happened(self, text: str) -> None:
        """Record an event."""
        self.events.append(Event(time.time(), text))
        log.info("%s", text)

    def _waiting(self, text: str) -> None:
        """Tell what is waited for while it starts; later each new plan would say so."""
        if not self.ready:
            self.progress(text)

    def _publish(self, plans: Mapping[str, Plan]) -> None:
        self._pool.apply(self._serve_config(plans))

    def _serve_config(self, plans: Mapping[str, Plan]) -> dict[str, object]:
        deployment = self.wish.deployment
        cloud = deployment.spec.cloud
        tokens = {name: fingerprint(self.state.token(name)) for name in self.terms}
        tail = TailApp(
            deployment=deployment.key,
            bundle=str(self.bundle.path.resolve()),
            digest=self.bundle.digest,
            plans=plans,
            tokens=tokens,
            settings={"threads": cloud.threads, "max_batch": cloud.max_batch},
            replicas=Replicas(cloud.replicas.min, cloud.replicas.max),
        )
        ledger = LedgerApp(fingerprint(self.state.token("_operator")))
        return serve_config([tail], ledger, host=self._pool.host, port=self._pool.port)

    def _shape(self, stack: ExitStack, guard: Guard) -> str:
        """Put the simulated link on the wire; returns the endpoint that edges use."""
        self._shaped: ShapedLink | None = None
        port = self._pool.port
        if self.wish.trace is not None:
            port = free_port()
            self._shaped = stack.enter_context(
                ShapedLink(port, self._pool.port, self.wish.trace.at(0), guard.environment)
            )
        return f"http://127.0.0.1:{port}"

    def _ports(self) -> dict[str, int]:
        """Each edge's port; one a person asked for is checked before anything starts."""
        first = self.wish.port
        return {
            name: free_port() if first is None else _own_port(first + index)
            for index, name in enumerate(self.terms)
        }

    def _edge(self, name: str, port: int, endpoint: str, guard: Guard) -> Edge:
        classes = {item.name: item for item in self.wish.deployment.spec.edge.classes}
        first = next(iter(classes.values()))
        options = {
            "bundle": self.bundle.path,
            "plan": self.state.plan_file(name),
            "endpoint": endpoint,
            "device-class": name,
            "token-file": self.state.token(name),
            "port": port,
            "threads": classes.get(name, first).threads,
            "slowdown": self.wish.slowdown,
            "state": self.state.folder("edge", name),
        }
        command = ["-m", "dovetail_edge", *(f"--{key}={value}" for key, value in options.items())]
        child = Child(
            f"edge {name}",
            [sys.executable, *command],
            self.state.folder("logs") / f"edge-{name}.log",
            guard.environment,
        )
        return Edge(name, port, child)

    def _wait(self, edge: Edge) -> None:
        self.progress(f"waiting for edge {edge.name}")
        stop = time.monotonic() + _EDGE_SECONDS
        while time.monotonic() < stop and edge.child.pid is not None:
            try:
                EdgeClient(edge.url).status()
            except Unavailable:
                time.sleep(_TICK / 2)
            else:
                return
        raise ChildFailed(f"edge {edge.name} does not start; it said:\n{edge.child.said()}")

    def _look_after(self) -> None:
        """Bring back what died, play the trace, turn the slow hand."""
        token = self.state.token("_operator").read_text()
        ledger = LedgerClient(self._pool.port, token, self.wish.deployment.key)
        quiet_until = 0.0
        while not self._stop.wait(_TICK):
            now = time.time()
            self._play(now)
            for edge in self.edges.values():
                if (news := edge.child.ensure()) is not None:
                    self.happened(news)
            if now < quiet_until:
                continue
            try:
                if self._pool.ensure():
                    self.happened("Ray died and was started again")
                self.hand.turn(ledger.windows, now)
            except DovetailError as error:
                self.happened(str(error).splitlines()[0])
                quiet_until = now + _RETRY

    def _play(self, now: float) -> None:
        if self._shaped is None or self.wish.trace is None:
            return
        link = self.wish.trace.at(now - self.ready)
        if link != self._shaped.link:
            self._shaped.apply(link)
            self.happened(f"link is now {link}")


def _own_port(port: int) -> int:
    """The port a person asked for; raises `UserError` where somebody has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--port: {port} cannot be listened on ({error}); choose another"
            ) from error
    return port
