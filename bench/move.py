"""A move under load, on the whole path: real tail, real edge process, real clients.

Clients call the edge's own server by the Open Inference Protocol without a pause; meanwhile the
plan in Serve's `user_config` changes again and again, as the slow hand changes it, and the edge
moves from rung to rung across the ladder. Counted: requests that failed or whose answer is not the
whole model's (within what the proof allows the codec). Read: the slowest switch that the edge
recorded, and the resident memory of the edge and of the tail's replica on the way: the first visit
to a rung lets ONNX Runtime allocate its buffers, later ones add nothing.
"""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np
from tests.callers import Callers

from bench import networks, rig, stats
from bench.networks import Cut
from bench.report import Context, Figure, Result, Table
from bench.stats import Interval
from dovetail.plan import Plan
from dovetail.wire import (
    HEADER_LENGTH,
    InferRequest,
    WireTensor,
    build_request,
    parse_response,
)
from dovetail_cli.ray_pool import RayPool, free_port
from dovetail_edge.link import Call, TailLink

_NETWORK, _LINK = "page-orientation", "200mbit,4ms"
_CLIENTS = 4
_PATIENCE = 60.0
_NEAR = 0.5  # seconds around a move that count as near it


@dataclass
class _Seen:
    """What the clients saw."""

    at: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rungs: set[str] = field(default_factory=set)
    failed: int = 0
    wrong: int = 0


def run(context: Context) -> Result:
    """Move under load."""
    moves = 6 if context.quick else 40
    cut = networks.cut(_NETWORK)
    with rig.pool(context) as ray, rig.ShapedLink(ray) as link:
        first = rig.plan(cut.bundle, cut.costs, "edge")
        rig.deploy(ray, [(cut.bundle, first)])
        link.apply(_LINK)
        with _Edge(context, cut, first, link.endpoint) as edge, _Clients(cut, edge) as clients:
            time.sleep(3.0)
            memory = {"before any move": _memory(ray, first, edge)}
            rungs = itertools.cycle(cut.ladder.ids())
            lap = moves // 2
            times = _moves(ray, cut, edge, itertools.islice(rungs, lap), 2)
            context.say(f"{lap} moves made")
            memory[f"after {lap} moves"] = _memory(ray, first, edge)
            times += _moves(ray, cut, edge, itertools.islice(rungs, moves - lap), 2 + lap)
            time.sleep(2.0)
            memory[f"after {moves} moves"] = _memory(ray, first, edge)
            switch = edge.status()["longestSwitch"]
    return _result(clients.seen, times, memory, switch)


class _Edge:
    """`python -m dovetail_edge` in a process of its own."""

    def __init__(self, context: Context, cut: Cut, plan: Plan, endpoint: str) -> None:
        file = context.scratch / "plan.json"
        file.write_text(plan.model_dump_json(by_alias=True))
        port = free_port()
        options = {
            "bundle": cut.bundle.path.resolve(),
            "plan": file,
            "endpoint": endpoint,
            "device-class": rig.CLASS,
            "port": port,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        self._log = (context.scratch / "edge.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dovetail_edge", *flags], stderr=self._log
        )
        self.endpoint = f"http://127.0.0.1:{port}"
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        stop = time.monotonic() + _PATIENCE
        while True:
            try:
                self.status()
            except Exception:
                if time.monotonic() > stop or self._process.poll() is not None:
                    raise
                time.sleep(0.1)
            else:
                return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def status(self) -> dict[str, object]:
        """What the edge says of itself."""
        link = TailLink(self.endpoint)
        reply = link.call(Call("GET", "/dovetail/status"), time.monotonic() + 5)
        link.close()
        found: dict[str, object] = json.loads(bytes(reply.body))
        return found


class _Clients(Callers):
    """Clients that never pause."""

    def __init__(self, cut: Cut, edge: _Edge) -> None:
        self._cut, self._edge = cut, edge
        self.seen = _Seen()
        super().__init__(partial(self._client, number) for number in range(_CLIENTS))

    def _client(self, number: int, end: threading.Event) -> None:
        link = TailLink(self._edge.endpoint)
        row = self._cut.rows[number]
        inputs = tuple(WireTensor.of(name, array) for name, array in row.items())
        body, headers = build_request(InferRequest(inputs))
        path = f"/v2/models/{self._cut.bundle.config.model.name}/infer"
        call = Call("POST", path, headers, (body,))
        wanted = networks.whole_answer(self._cut, number)
        while not end.is_set():
            begin = time.monotonic()
            try:
                reply = link.call(call, begin + _PATIENCE)
                good = reply.status == 200
            except Exception:  # noqa: BLE001  whatever the reason, the request failed
                good = False
            if not good:
                self.seen.failed += 1
                continue
            answer = parse_response(reply.body, reply.headers.get(HEADER_LENGTH.lower()))
            self.seen.at.append(begin)
            self.seen.seconds.append(time.monotonic() - begin)
            self.seen.rungs.add(str(answer.parameters.get("rung")))
            outputs = answer.arrays()
            self.seen.wrong += any(
                outputs[name].argmax() != wanted[name].argmax() for name in wanted
            )


def _moves(ray: RayPool, cut: Cut, edge: _Edge, rungs: Iterable[str], first: int) -> list[float]:
    """Change the plan, wait until the edge has it; returns when each move was seen."""
    times = []
    for generation, rung in enumerate(rungs, start=first):
        plan = rig.plan(cut.bundle, cut.costs, rung, generation=generation)
        rig.deploy(ray, [(cut.bundle, plan)])
        stop = time.monotonic() + _PATIENCE
        while edge.status()["generation"] != generation:
            if time.monotonic() > stop:
                raise RuntimeError(f"the edge did not take over plan {generation}")
            time.sleep(0.02)
        times.append(time.monotonic())
        time.sleep(2 * _NEAR)
    return times


def _memory(ray: RayPool, plan: Plan, edge: _Edge) -> dict[str, float]:
    [replica] = rig.replica_pids(ray, plan.application)
    return {"edge": rig.resident_mb(edge.pid), "tail": rig.resident_mb(replica)}


def _result(
    seen: _Seen,
    moves: list[float],
    memory: dict[str, dict[str, float]],
    switch: object,
) -> Result:
    at, seconds = np.array(seen.at), np.array(seen.seconds)
    near = np.zeros(len(at), dtype=bool)
    for moved in moves:
        near |= (at > moved - _NEAR) & (at < moved + _NEAR)
    slowest = float(str(switch)) * 1e3
    _, lap, last = memory.values()
    rows = tuple((side, *(found[side] for found in memory.values())) for side in ("edge", "tail"))
    return Result(
        figures=(
            Figure.of(
                f"a move under load: failed of {len(at)} requests over {len(moves)} moves",
                Interval.exact(seen.failed),
                "",
                0.0,
            ),
            Figure.of("a move under load: slowest switch", Interval.exact(slowest), "ms", 1.0),
            Figure.of(
                "answers whose argmax is not the whole model's", Interval.exact(seen.wrong), ""
            ),
            *(
                Figure.of(
                    f"resident memory, {side}: after all moves over after half of them",
                    Interval.exact(last[side] / lap[side]),
                    "x",
                )
                for side in ("edge", "tail")
            ),
        ),
        tables=(
            Table("Resident memory, MB", ("side", *memory), rows),
            Table(
                f"Latency, ms ({_CLIENTS} clients, rungs {', '.join(sorted(seen.rungs))})",
                ("requests", "count", "p50", "p99", "worst"),
                (
                    _latency(f"within {_NEAR:g} s of a move", seconds[near]),
                    _latency("all others", seconds[~near]),
                ),
            ),
        ),
        data={"memory": memory, "moves": len(moves), "switchMs": slowest},
        method=(__doc__ or "").partition("\n\n")[2].strip(),
    )


def _latency(name: str, seconds: stats.Floats) -> tuple[str, int, float, float, float]:
    if not len(seconds):
        return name, 0, 0.0, 0.0, 0.0
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return name, len(seconds), float(p50), float(p99), float(seconds.max()) * 1e3
