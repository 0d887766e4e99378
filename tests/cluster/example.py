"""The example that the tests deploy: pages, read by a document camera on the edge node."""

import json
from pathlib import Path

import yaml
from examples.page_orientation import pages
from tests.cluster import store
from tests.cluster.cluster import EDGE_LABEL, EDGE_TAINT, Cluster
from tests.cluster.harness import ROOT
from tests.cluster.store import FILES
from tests.kube.apiserver import Json
from tests.kube.operators import until

NAMESPACE = "vision"
NAME = "page-orientation"
MANIFEST = ROOT / "examples" / "page_orientation" / "deployment.yaml"
_PATH = f"/apis/dovetail.dev/v1alpha1/namespaces/{NAMESPACE}/hybriddeployments"


def publish(cluster: Cluster) -> Path:
    """Put model and pages where the cluster's Jobs fetch them; returns the folder."""
    folder = ROOT / ".cache" / "page_orientation"
    if not (folder / "model.onnx").is_file() or not (folder / "evaluation.npz").is_file():
        pages.write(folder)
    store.install(cluster)
    for name in ("model.onnx", "calibration.npz"):
        store.put(cluster, folder / name)
    return folder


def manifest(**spec: object) -> Json:
    """The example's resource, its files on the cluster's network, its device the edge node."""
    document = yaml.safe_load(MANIFEST.read_text())
    document["metadata"]["namespace"] = NAMESPACE
    document["spec"]["model"] = {"uri": f"{FILES}/model.onnx"}
    document["spec"]["calibration"] = {"uri": f"{FILES}/calibration.npz"}
    document["spec"]["edge"]["classes"] = [
        {
            "name": "camera",
            "nodeSelector": dict([EDGE_LABEL]),
            "tolerations": [EDGE_TAINT],
            "resources": {"cpu": "100m", "memory": "512Mi"},
        }
    ]
    document["spec"].update(spec)
    return document


def apply(cluster: Cluster, document: Json) -> None:
    """Apply it in a namespace of its own."""
    space = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "privileged"},
        },
    }
    cluster.kubectl("apply", "-f", "-", text=yaml.safe_dump_all([space, document]))


def patch(cluster: Cluster, spec: Json, name: str = NAME) -> None:
    """Change its spec, as `kubectl patch --type merge` does."""
    text = json.dumps({"spec": spec})
    cluster.kubectl("patch", "hd", name, "-n", NAMESPACE, "--type", "merge", "-p", text)


def get(cluster: Cluster, name: str = NAME) -> Json:
    """The resource."""
    return cluster.request("GET", f"{_PATH}/{name}")


def conditions(cluster: Cluster, name: str = NAME) -> dict[str, tuple[str, str, str]]:
    """Status, reason and message by type of condition."""
    found = get(cluster, name).get("status", {}).get("conditions", [])
    return {one["type"]: (one["status"], one["reason"], one["message"]) for one in found}


def ready(cluster: Cluster, name: str = NAME, seconds: float = 300) -> Json:
    """Wait until it is Ready; returns it."""

    def look() -> bool:
        found = conditions(cluster, name)
        assert found.get("Partitioned", ("", ""))[1] != "PartitionFailed", found["Partitioned"]
        return found.get("Ready", ("",))[0] == "True"

    try:
        until(look, f"{name} to be Ready", seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; conditions: {conditions(cluster, name)}") from None
    return get(cluster, name)
