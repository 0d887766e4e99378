"""Two real nodes on this machine, as a context that leaves nothing behind.

What may stay after a run that was killed (names of network namespaces, empty cgroups) carries the
process id of its owner; `sweep` removes what belongs to owners that are gone, a guard process calls
it the moment its owner is, and so does every start.
"""

import fcntl
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2
import psutil
from tests.cluster import images, network
from tests.cluster.cluster import Cluster
from tests.cluster.control import DNS_PORT, ControlPlane
from tests.cluster.network import ADDRESSES, CLOUD, Network
from tests.cluster.node import CGROUPS, DNS, PAUSE, Node, remove_cgroup
from tests.cluster.prerequisites import check
from tests.kube.apiserver import Json
from tests.kube.binaries import Binary

from dovetail.errors import StateInUse

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = ROOT / ".cache" / "cluster"
_LEFT: Final = b"left"  # what an owner says to its guard when it has cleaned up
# images that only one of the nodes runs
_EDGE_IMAGES: Final = (images.EDGE.tag, PAUSE)


@dataclass(frozen=True)
class TwoNodes(Cluster):
    """Two nodes on this machine, with hands on all of it.

    Attributes:
        network: its namespaces and link.
        control: its control plane.
        nodes: its nodes by name.
    """

    network: Network
    control: ControlPlane
    nodes: Mapping[str, Node]

    @property
    def entry(self) -> str:
        """Address of `cloud` from this machine."""
        return self.network.entry

    @contextmanager
    def asked(self, service: Json) -> Iterator[tuple[list[str], str]]:
        """From the edge node itself, so that whatever happens to the API server is not noticed."""
        yield self.network.inside("edge"), f"{service['spec']['clusterIP']}:8000"


@contextmanager
def running(folder: Path) -> Iterator[TwoNodes]:
    """Start a cluster with every image in it, and end it whatever happens.

    Args:
        folder: where state and logs go, empty.

    Raises:
        MissingTool: this machine lacks something; the message says all of it.
        StateInUse: another cluster of this checkout runs.
        ServiceFailed: a program of it ended or did not get ready.
    """
    programs = check()
    sweep()
    archives = images.archives(programs)
    with ExitStack() as stack:
        stack.enter_context(_alone())
        owner = os.getpid()
        stack.enter_context(_guarded(owner))
        stack.callback(network.remove, owner)
        made = network.make(owner)
        control = ControlPlane(folder / "control", made, programs)
        stack.callback(control.stop)
        control.start()
        nodes = {name: _node(name, folder, made, control, programs) for name in ADDRESSES}
        for name, one in nodes.items():
            stack.callback(one.stop)
            one.start()
            wanted = [a for a in archives if name == "cloud" or a[0] in _EDGE_IMAGES]
            one.load(wanted)
        client = stack.enter_context(_client(control))
        kubeconfig = str(control.kubeconfig)
        cluster = TwoNodes(folder, kubeconfig, programs, client, made, control, nodes)
        control.apiserver.wait(lambda: serves(client), "it is ready")
        control.join()
        for one in nodes.values():
            one.join()
        _resolve(cluster)
        control.apiserver.wait(lambda: _joined(cluster), "both nodes are ready")
        yield cluster


def sweep() -> None:
    """Remove what clusters left whose owners are gone."""
    for owner in {*network.owners(), *_cgroup_owners()}:
        if not _lives(owner):
            network.remove(owner)
            for name in ADDRESSES:
                remove_cgroup(Network(owner).namespace(name))


def _cgroup_owners() -> set[int]:
    names = [path.name for path in (*CGROUPS.glob("dovetail-*"), *CGROUPS.glob("*/dovetail-*"))]
    return {int(name.split("-")[1]) for name in names if name.split("-")[1].isdigit()}


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the store of images, which containerd shares with nobody."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateInUse(
                f"another cluster uses {CACHE}; end it with `python -m tests.cluster down`"
            ) from error
        yield


@contextmanager
def _guarded(owner: int) -> Iterator[None]:
    """A process that sweeps when its owner is gone, however it went."""
    code = "from tests.cluster.harness import guard; guard()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(owner)],
        stdin=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        yield
        assert process.stdin is not None
        process.stdin.write(_LEFT)


def guard() -> None:
    """Wait for the owner to leave, or to be killed, and then sweep; what a guard runs."""
    if sys.stdin.buffer.read() == _LEFT:
        return
    end = time.monotonic() + 10.0
    while _lives(int(sys.argv[1])) and time.monotonic() < end:  # it is told before the last breath
        time.sleep(0.05)
    sweep()


def _lives(owner: int) -> bool:
    try:
        return bool(psutil.Process(owner).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _node(
    name: str,
    folder: Path,
    made: Network,
    control: ControlPlane,
    programs: dict[str, Binary],
) -> Node:
    return Node(
        name,
        made,
        folder / name,
        CACHE / "store" / name,
        kubelet=programs["kubelet"].path,
        proxy=programs["kube-proxy"].path,
        kubeconfigs=control.kubeconfigs,
        authority=control.certificate,
    )


@contextmanager
def _client(control: ControlPlane) -> Iterator[httpx2.Client]:
    with httpx2.Client(
        base_url=control.url,
        headers={"Authorization": f"Bearer {control.tokens['admin']}"},
        verify=ssl.create_default_context(cafile=control.certificate),
        timeout=30.0,
        trust_env=False,
    ) as client:
        yield client


def _resolve(cluster: Cluster) -> None:
    """A Service whose endpoint is CoreDNS on its node: pods resolve names of the cluster."""
    ports = [
        {"name": name, "port": 53, "protocol": protocol, "targetPort": DNS_PORT}
        for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
    ]
    space = "/namespaces/kube-system"
    cluster.request(
        "POST",
        f"/api/v1{space}/services",
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns"},
            "spec": {"clusterIP": DNS, "ports": ports},
        },
    )
    cluster.request(
        "POST",
        f"/apis/discovery.k8s.io/v1{space}/endpointslices",
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns-node",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [CLOUD]}],
            "ports": [
                {"name": port["name"], "protocol": port["protocol"], "port": DNS_PORT}
                for port in ports
            ],
        },
    )


def serves(client: httpx2.Client) -> bool:
    """Whether the API server is ready and has made what everyone uses."""
    try:
        ready = client.get("/readyz").is_success
        return ready and client.get("/api/v1/namespaces/kube-system").is_success
    except httpx2.TransportError:
        return False


def _joined(cluster: Cluster) -> bool:
    ready = [
        condition["status"]
        for item in cluster.request("GET", "/api/v1/nodes")["items"]
        for condition in item.get("status", {}).get("conditions", ())
        if condition["type"] == "Ready"
    ]
    return ready == ["True"] * len(ADDRESSES)
