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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
import psutil
import yaml
from tests.cluster import images, network
from tests.cluster.control import DNS_PORT, ControlPlane
from tests.cluster.network import ADDRESSES, CLOUD, Network
from tests.cluster.node import CGROUPS, DNS, PAUSE, Node, remove_cgroup
from tests.cluster.prerequisites import check
from tests.cluster.service import Service
from tests.kube.apiserver import Json, Refused
from tests.kube.binaries import Binary

from dovetail.errors import StateInUse

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = ROOT / ".cache" / "cluster"
REGISTRY: Final = f"http://{CLOUD}:5000"
FILES: Final = f"http://{CLOUD}:8080"
_LEFT: Final = b"left"  # what an owner says to its guard when it has cleaned up
# images that only one of the nodes runs
_EDGE_IMAGES: Final = (images.EDGE.tag, PAUSE)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster.

    Attributes:
        folder: its state and logs.
        files: folder that pods reach as `FILES`.
        network: its namespaces and link.
        control: its control plane.
        nodes: its nodes by name.
        programs: programs by name, `kubectl` and `helm` among them.
        client: an HTTP client of the API server that carries the admin's token.
    """

    folder: Path
    files: Path
    network: Network
    control: ControlPlane
    nodes: dict[str, Node]
    programs: dict[str, Binary]
    client: httpx2.Client

    @property
    def kubeconfig(self) -> Path:
        """For `kubectl`, `helm` and client libraries."""
        return self.control.kubeconfig

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> Json:
        """One request to the API server; raises `Refused` where the answer is 400 or above."""
        answer = self.client.request(method, path, json=body, **options)
        content: Json = answer.json()
        if answer.is_error:
            raise Refused(answer.status_code, content.get("message", answer.text))
        return content

    def pods(self, namespace: str, selector: str) -> list[Json]:
        """Pods that are not on their way out.

        Args:
            namespace: where they are.
            selector: labels, as kubectl takes them.
        """
        path = f"/api/v1/namespaces/{namespace}/pods"
        found = self.request("GET", path, params={"labelSelector": selector})["items"]
        return [item for item in found if "deletionTimestamp" not in item["metadata"]]

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl; returns what it said, raises `RuntimeError` with it where it fails."""
        return self._program("kubectl", *arguments, text=text)

    def helm(self, *arguments: str) -> str:
        """Run helm; returns what it said, raises `RuntimeError` with it where it fails."""
        return self._program("helm", *arguments)

    def _program(self, name: str, *arguments: str, text: str | None = None) -> str:
        command = [str(self.programs[name].path), *arguments]
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"KUBECONFIG": str(self.kubeconfig)},
        )
        if done.returncode:
            raise RuntimeError(f"{name} {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Start a cluster with every image in it, and end it whatever happens.

    Args:
        folder: where state and logs go, empty; files stay there.

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
        cluster = Cluster(folder, folder / "files", made, control, nodes, programs, client)
        control.apiserver.wait(lambda: serves(client), "it is ready")
        control.join()
        for one in nodes.values():
            one.join()
        for service in _beside(cluster):
            stack.callback(service.stop)
            service.start()
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


def _beside(cluster: Cluster) -> list[Service]:
    """A registry and a file server, which pods and both nodes reach."""
    folder = cluster.folder / "registry"
    folder.mkdir()
    cluster.files.mkdir()
    settings = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": REGISTRY.removeprefix("http://")},
    }
    (folder / "registry.yaml").write_text(yaml.safe_dump(settings))
    inside = cluster.network.inside("cloud")
    registry = [
        *inside,
        "docker-registry",
        "serve",
        str(folder / "registry.yaml"),
    ]
    files = [*inside, sys.executable, "-m", "http.server", "8080", "--bind", CLOUD]
    return [
        Service(registry, folder / "registry.log"),
        Service([*files, "--directory", str(cluster.files)], cluster.folder / "files.log"),
    ]


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
