"""What is said of a cluster that KUBECONFIG names and that is not fit for the tests on nodes."""

import threading

import pytest
from tests.cluster import images
from tests.cluster.existing import existing
from tests.kube.apiserver import Refused, running
from tests.kube.binaries import API_SERVER, find
from tests.kube.controllers import merge
from tests.kube.operators import until

from dovetail.errors import MissingTool, StateInUse, Unavailable

pytestmark = pytest.mark.kube

NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "device", "labels": {"dovetail.dev/edge": "true"}},
}
PODS = "/api/v1/namespaces/dovetail-test/pods"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An API server of its own, because nothing may be on it."""
    try:
        etcd, program, *_ = [find(name) for name in (*API_SERVER, "kubectl", "helm")]
    except MissingTool as error:
        pytest.skip(str(error))
    with running(tmp_path_factory.mktemp("existing"), etcd, program) as server:
        yield server


@pytest.fixture
def named(server, monkeypatch):
    """KUBECONFIG names it."""
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    return server


def refused(folder, error, *words):
    """The tests on nodes do not begin, and say why."""
    with pytest.raises(error) as raised, existing(folder):
        pass
    for word in words:
        assert word in str(raised.value)


def test_a_cluster_that_does_not_answer_is_said_to(tmp_path, named, monkeypatch):
    """Verify it with a kubeconfig of a server that is not there."""
    text = named.kubeconfig.read_text().replace(named.url, "https://127.0.0.1:9")
    (tmp_path / "away").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "away"))

    refused(tmp_path, Unavailable, "away) does not answer", "unset KUBECONFIG")


def test_a_cluster_that_has_what_tests_take_away_is_left_alone(tmp_path, named):
    """Verify that nobody's Dovetail is uninstalled by a test."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "dovetail-system"}}
    named.request("POST", "/api/v1/namespaces", body)
    try:
        refused(tmp_path, StateInUse, "has namespace dovetail-system", "name another cluster")
    finally:
        remove(named, "dovetail-system")


def remove(server, namespace):
    """Delete a namespace as its controller would: none runs here."""
    path = f"/api/v1/namespaces/{namespace}"
    server.request("DELETE", path)
    body = server.request("GET", path) | {"spec": {"finalizers": []}}
    server.request("PUT", f"{path}/finalize", body)


def test_a_cluster_without_a_device_is_told_how_a_node_becomes_one(tmp_path, named):
    """Verify that the label that the example's class selects is asked for."""
    refused(tmp_path, MissingTool, "`kubectl label node NAME dovetail.dev/edge=true`")


@pytest.fixture
def kubelet(named):
    """A node that is a device and has no image of the serving room."""
    named.request("POST", "/api/v1/nodes", NODE)
    ended = threading.Event()

    def state(pod):
        there = "serving" not in pod["spec"]["containers"][0]["image"]
        end = {"terminated": {"exitCode": 0, "reason": "Completed"}}
        return end if there else {"waiting": {"reason": "ErrImageNeverPull"}}

    def run():
        while not ended.wait(0.1):
            for pod in named.request("GET", PODS)["items"]:
                said = {"name": "probe", "image": "x", "imageID": "", "ready": False}
                said |= {"restartCount": 0, "state": state(pod)}
                path = f"{PODS}/{pod['metadata']['name']}/status"
                try:
                    merge(named, path, {"status": {"containerStatuses": [said]}})
                except Refused:  # it was deleted
                    continue

    def collect():
        until(lambda: named.request("GET", "/api/v1/namespaces/dovetail-test"), "a namespace")
        until(
            lambda: (
                "deletionTimestamp"
                in named.request("GET", "/api/v1/namespaces/dovetail-test")["metadata"]
            ),
            "its end",
        )
        remove(named, "dovetail-test")

    threads = [threading.Thread(target=one) for one in (run, collect)]
    for thread in threads:
        thread.start()
    yield
    ended.set()
    for thread in threads:
        thread.join()
    named.request("DELETE", "/api/v1/nodes/device")


def test_images_that_are_not_on_nodes_are_named_before_anything_is_installed(
    tmp_path, named, kubelet
):
    """Verify that only those are named, with how they come there, and nothing is left."""
    refused(
        tmp_path,
        MissingTool,
        f"KUBECONFIG: {images.SERVING.tag};",
        "`python -m tests.cluster images`",
        "`kind load image-archive",
    )

    with pytest.raises(Refused, match="not found"):
        named.request("GET", "/api/v1/namespaces/dovetail-test")
