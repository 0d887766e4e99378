"""A cluster that is there already, such as kind's: the one that KUBECONFIG names.

No node is made and nothing of this machine is touched. What the tests bring they take away again,
so a cluster that has something of theirs is left alone: it may be somebody's. Nobody can look into
its nodes from here; whether images are there is what pods say that may not pull any.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx2
import yaml
from tests.cluster import example, images, release, store
from tests.cluster.cluster import EDGE_LABEL, EDGE_TAINT, Cluster
from tests.cluster.service import Service
from tests.kube.apiserver import Json
from tests.kube.binaries import Binary, find
from tests.kube.kuberay import definitions
from tests.kube.operators import until

from dovetail.errors import MissingTool, StateInUse, Unavailable

_DEFINITIONS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_OURS: Final = "hybriddeployments.dovetail.dev"
_PORT: Final = re.compile(r"127\.0\.0\.1:(\d+)")
_ABSENT: Final = "ErrImageNeverPull"


class Existing(Cluster):
    """The cluster that KUBECONFIG names."""

    @property
    def entry(self) -> str:
        """Address of its first node inside the cluster."""
        (node, *_) = self.request("GET", "/api/v1/nodes")["items"]
        addresses = {one["type"]: one["address"] for one in node["status"]["addresses"]}
        return str(addresses["InternalIP"])

    @contextmanager
    def asked(self, service: Json) -> Iterator[tuple[list[str], str]]:
        """Through `kubectl port-forward`, because nobody enters its nodes from here."""
        metadata = service["metadata"]
        words = ("-n", metadata["namespace"], f"service/{metadata['name']}", ":8000")
        with _told(self.folder, self.programs, "port-forward", *words) as port:
            yield [], f"127.0.0.1:{port}"


@contextmanager
def existing(folder: Path) -> Iterator[Existing]:
    """The cluster that KUBECONFIG names, once it has what the tests need; it is left as it was.

    Args:
        folder: where logs go, empty.

    Raises:
        MissingTool: kubectl or helm is not here, no node is a device, or images are not there.
        StateInUse: the cluster has something already that the tests would take away.
        Unavailable: it does not answer.
    """
    programs = {name: find(name) for name in ("kubectl", "helm")}
    with ExitStack() as stack:
        port = stack.enter_context(_told(folder, programs, "proxy", "--port=0"))
        client = stack.enter_context(
            httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0, trust_env=False)
        )
        cluster = Existing(folder, os.environ["KUBECONFIG"], programs, client)
        _answers(cluster)
        rays = release.has_kuberay(cluster)
        spaces = [example.NAMESPACE, release.NAMESPACE, store.NAMESPACE]
        _is_free(cluster, spaces if rays else [*spaces, release.KUBERAY])
        _has_edges(cluster)
        if not rays:
            stack.callback(_remove_kuberay, cluster)
        stack.callback(_remove, cluster, spaces)
        _has_images(cluster, kuberay=not rays)
        yield cluster


@contextmanager
def _told(folder: Path, programs: Mapping[str, Binary], verb: str, *words: str) -> Iterator[str]:
    """Run a kubectl that listens on loopback; gives the port that it says."""
    log = folder / f"{verb}-{time.time_ns()}.log"
    service = Service([str(programs["kubectl"].path), verb, *words], log)
    service.start()
    try:
        service.wait(lambda: bool(_PORT.search(log.read_text())), "it listens", 30)
        found = _PORT.search(log.read_text())
        assert found is not None
        yield found[1]
    finally:
        service.stop()


def _answers(cluster: Existing) -> None:
    try:
        answer = cluster.client.get("/readyz")
    except httpx2.HTTPError as error:
        why = str(error)
    else:
        if answer.is_success:
            return
        why = answer.text[:300]
    raise Unavailable(
        f"the cluster of KUBECONFIG ({cluster.kubeconfig}) does not answer: {why}; start it, or "
        "unset KUBECONFIG to have two nodes made on this machine"
    )


def _is_free(cluster: Existing, spaces: list[str]) -> None:
    found = [f"namespace {name}" for name in spaces if cluster.has(f"/api/v1/namespaces/{name}")]
    if cluster.has(f"{_DEFINITIONS}/{_OURS}"):
        found.append(f"definition {_OURS}")
    if found:
        raise StateInUse(
            f"the cluster of KUBECONFIG has {', '.join(found)} already, which the tests make and "
            "take away; delete what nobody needs, or name another cluster"
        )


def _has_edges(cluster: Existing) -> None:
    label = "=".join(EDGE_LABEL)
    if not cluster.edges:
        names = [
            one["metadata"]["name"] for one in cluster.request("GET", "/api/v1/nodes")["items"]
        ]
        raise MissingTool(
            f"no node carries the label {label}, which the example's class selects; give it to one "
            f"of {', '.join(names)}: `kubectl label node NAME {label}`"
        )


def _has_images(cluster: Existing, *, kuberay: bool) -> None:
    """Ask every image for one pod that may not pull it."""
    wanted = [*images.ROOMS, images.STORE, *([images.KUBERAY] if kuberay else [])]
    probes = {f"probe-{number}": image for number, image in enumerate(wanted)}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": store.NAMESPACE}}
    pods = [_probe(name, image) for name, image in probes.items()]
    cluster.kubectl("apply", "-f", "-", text=yaml.safe_dump_all([space, *pods]))
    said = until(lambda: _said(cluster, len(pods)), "a pod of every image", 120)
    cluster.kubectl("delete", "pod", "-n", store.NAMESPACE, *probes, "--grace-period=0")
    if missing := [probes[name].tag for name, reason in said.items() if reason == _ABSENT]:
        raise MissingTool(
            f"these images are not on the nodes of the cluster of KUBECONFIG: {', '.join(missing)};"
            " `python -m tests.cluster images` writes them, and `kind load image-archive "
            f"{images.CACHE}/*.tar` loads them into kind"
        )


def _probe(name: str, image: images.Image) -> Json:
    container = {
        "name": "probe",
        "image": image.tag,
        "imagePullPolicy": "Never",
        "command": ["true"],
    }
    spec: Json = {"restartPolicy": "Never", "containers": [container]}
    if image is images.EDGE:
        spec |= {"nodeSelector": dict([EDGE_LABEL]), "tolerations": [EDGE_TAINT]}
    metadata = {"name": name, "namespace": store.NAMESPACE, "labels": {"app": "probe"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _said(cluster: Existing, count: int) -> dict[str, str]:
    """What became of every probe, once that is known of all of them."""
    found = {}
    for pod in cluster.pods(store.NAMESPACE, "app=probe"):
        for one in pod["status"].get("containerStatuses") or ():
            (state,) = one["state"].values()
            reason = state.get("reason", "")
            if reason != "ContainerCreating":
                found[pod["metadata"]["name"]] = reason
    return found if len(found) == count else {}


def _remove(cluster: Existing, spaces: list[str]) -> None:
    """Take away what tests brought that did not come to their end, pools before KubeRay."""
    with suppress(RuntimeError):  # the release is gone, or never came
        cluster.helm("uninstall", release.RELEASE, "--namespace", release.NAMESPACE, "--wait")
    _delete(cluster, "customresourcedefinition", _OURS)
    _delete(cluster, "namespace", *spaces)


def _remove_kuberay(cluster: Existing) -> None:
    for path in definitions():
        cluster.kubectl("delete", "-f", str(path), "--ignore-not-found", "--timeout=120s")
    _delete(cluster, "clusterrolebinding", release.KUBERAY)
    _delete(cluster, "namespace", release.KUBERAY)


def _delete(cluster: Existing, kind: str, *names: str) -> None:
    cluster.kubectl("delete", kind, *names, "--ignore-not-found", "--timeout=120s")
