"""Ten thousand deployments on one operator.

A real API server and the real operator, no nodes: what the Job controller, kubelets and KubeRay
would write is written by a small program here (`bench.controllers`), which answers each object as
soon as it is seen. So the time until all are Ready is the operator's and the API server's, not that
of partitioning. All deployments are of one small bundle and differ in name (so the operator keeps
what is equal in their bundles' descriptions once, some 2 kB each); they are spread evenly over the
pools. Both programs, the small one and this one share the machine's cores.

Idle: requests that the API server counts over a minute without any change, less those that it
counts over a minute before the operator is started; watches and the Lease aside. A change: one
deployment's `objective.deadline` is patched and its status watched until it is about the new
generation, one after the other.
"""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import yaml
from tests.kube.apiserver import ApiServer, running
from tests.kube.binaries import find
from tests.kube.cluster import CAMERA
from tests.kube.controllers import merge
from tests.kube.kuberay import ray_service_definition
from tests.kube.operators import OperatorProcess, configuration, install, operator
from tests.kube.registry import push, running_registry
from tests.kube.resources import minimal, resource
from tests.tiny_bundle import write_tiny_bundle

from bench import stats
from bench.controllers import Controllers, watch
from bench.report import Context, Figure, Result, Table
from bench.stats import Floats
from dovetail.crd import render

_HYBRIDS = "/apis/dovetail.dev/v1alpha1/hybriddeployments"
_OURS = "/apis/dovetail.dev/v1alpha1/namespaces/fleet/hybriddeployments"
_PATIENCE = 3600.0
_QUIET = 60.0


@dataclass(frozen=True)
class _Found:
    """What was seen of a fleet."""

    count: int
    pools: int
    seconds: float
    idle: float
    changes: Floats
    memory: float
    reconciles: list[tuple[str, float]]


def run(context: Context) -> Result:
    """Bring a fleet up, leave it alone, change it."""
    count, pools = (1000, 10) if context.quick else (10_000, 100)
    with _cluster(context.scratch) as (server, config, made):
        config["pools"] = [{"name": f"pool{index}"} for index in range(pools)]
        context.say("the API server alone")
        alone = _requests_per_second(server)
        with (
            operator(server, context.scratch, config) as process,
            Controllers(server, made),
        ):
            seconds = _converge(context, server, count, pools)
            context.say(f"all Ready after {seconds:.0f} s; waiting for quiet")
            _settle(server)
            idle = max(0.0, _requests_per_second(server) - alone)
            changes = _change(context, server, 50 if context.quick else 200)
            memory = psutil.Process(process.process.pid).memory_info().rss / 2**20
            reconciles = _reconciles(process)
    found = _Found(count, pools, seconds, idle, np.array(changes), memory, reconciles)
    return _result(found)


@contextmanager
def _cluster(folder: Path) -> Iterator[tuple[ApiServer, dict[str, object], dict[str, str]]]:
    """An API server with all definitions, a registry, and a bundle in it."""
    with ExitStack() as stack:
        (folder / "kube").mkdir()
        server = stack.enter_context(running(folder / "kube", find("etcd"), find("kube-apiserver")))
        server.define(yaml.safe_load(render()))
        server.define(yaml.safe_load(ray_service_definition().read_text()))
        install(server)
        for path, body in (
            ("/api/v1/namespaces", {"kind": "Namespace", "metadata": {"name": "fleet"}}),
            ("/api/v1/nodes", {"kind": "Node", "metadata": {"name": "camera"}}),
        ):
            body["metadata"]["labels"] = CAMERA["nodeSelector"]
            server.request("POST", path, {"apiVersion": "v1", **body})
        (folder / "registry").mkdir()
        registry = stack.enter_context(running_registry(folder / "registry"))
        tiny = write_tiny_bundle(folder / "tiny")
        digest, costs = push(registry, tiny.bundle, tiny.costs)
        yield server, configuration(registry), {"bundle": digest, "costs": costs}


def _converge(context: Context, server: ApiServer, count: int, pools: int) -> float:
    """Create all and wait until all are Ready; returns the seconds from the first creation."""
    began = time.monotonic()

    def create(index: int) -> None:
        spec = minimal(edge={"classes": [CAMERA]}, cloud={"pool": f"pool{index % pools}"})
        server.request("POST", _OURS, resource(spec, f"hd{index}"))

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(create, range(count)))
    context.say(f"{count} created after {time.monotonic() - began:.0f} s")
    ready: set[str] = set()
    said = 0.0
    for event in watch(server, _HYBRIDS, _PATIENCE):
        if _is_ready(event["object"]):
            ready.add(event["object"]["metadata"]["uid"])
        if time.monotonic() - said > 10:
            said = time.monotonic()
            context.say(f"{len(ready)} of {count} Ready")
        if len(ready) == count:
            return time.monotonic() - began
    raise RuntimeError(f"only {len(ready)} of {count} were Ready in time")


def _is_ready(hybrid: dict[str, dict[str, list[dict[str, str]]]]) -> bool:
    conditions = hybrid.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _settle(server: ApiServer) -> None:
    """Wait until nothing is asked for ten seconds but a little."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        before = _count(server)
        time.sleep(10)
        if _count(server) - before < 20:
            return


def _requests_per_second(server: ApiServer) -> float:
    before, began = _count(server), time.monotonic()
    time.sleep(_QUIET)
    return (_count(server) - before) / (time.monotonic() - began)


def _count(server: ApiServer) -> float:
    """Requests that the API server has answered, watches and Leases aside."""
    text = server.client.get("/metrics").text
    total = 0.0
    for line in text.splitlines():
        if line.startswith("apiserver_request_total{"):
            labels, value = line.rsplit(" ", 1)
            if not re.search('verb="WATCH"|resource="leases"|resource=""', labels):
                total += float(value)
    return total


def _change(context: Context, server: ApiServer, times: int) -> list[float]:
    """Seconds from a change until the status is about it."""
    found = []
    for number in range(times):
        name = f"hd{number * 7}"
        spec = {"objective": {"deadline": f"{number + 100}ms"}}
        began = time.monotonic()
        generation = merge(server, f"{_OURS}/{name}", {"spec": spec})["metadata"]["generation"]
        while True:
            status = server.request("GET", f"{_OURS}/{name}").get("status", {})
            if status.get("observedGeneration", 0) >= generation:
                break
            time.sleep(0.005)
        found.append(time.monotonic() - began)
    context.say(f"{times} changes, the slowest took {max(found):.2f} s")
    return found


def _reconciles(process: OperatorProcess) -> list[tuple[str, float]]:
    return [(name, value) for name, value in process.metrics().items() if "reconcile_total" in name]


def _result(found: _Found) -> Result:
    exact = stats.Interval.exact
    p99 = float(np.quantile(found.changes, 0.99))
    return Result(
        figures=(
            Figure.of(
                f"{found.count} deployments in {found.pools} pools, all Ready",
                exact(found.seconds),
                "s",
            ),
            Figure.of(
                "API requests per second and 1 000 deployments, idle",
                exact(found.idle / found.count * 1000),
                "",
                0.1,
            ),
            Figure.of("a change reconciled, p99", exact(p99), "s", 1.0),
            Figure.of("the same, p50", stats.interval(found.changes), "s"),
            Figure.of("the operator's memory, resident MiB", exact(found.memory), "", 500.0),
        ),
        tables=(
            Table("Reconciles until the end", ("series", "count"), tuple(sorted(found.reconciles))),
        ),
        data={"changes": found.changes, "idlePerSecond": found.idle},
        method=(__doc__ or "").partition("\n\n")[2].strip(),
    )
