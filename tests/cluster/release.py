"""What a person installs on a cluster: KubeRay's operator, then the chart."""

import yaml
from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.cluster.harness import ROOT
from tests.cluster.store import REGISTRY
from tests.kube.apiserver import Json
from tests.kube.kuberay import definitions
from tests.kube.operators import until

NAMESPACE = "dovetail-system"
RELEASE = "dovetail"
_PORT = 30443  # of the nodes, where devices outside the cluster come in
KUBERAY = "kuberay"
_FOLLOWING = ("events", "endpoints", "ipaddresses")
_EVERYWHERE = (("configmaps", "kube-root-ca.crt"), ("serviceaccounts", "default"))
# Small enough for two cores: one pod is the whole pool, and one of everything.
VALUES: Json = {
    "registry": {"url": REGISTRY},
    "pools": [{"name": "default", "workers": 0, "cpu": "300m", "memory": "3Gi"}],
    "operator": {"replicas": 1, "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}}},
    "gateway": {
        "replicas": 1,
        "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}},
        "service": {"type": "NodePort", "nodePort": _PORT},
    },
}


def has_kuberay(cluster: Cluster) -> bool:
    """Whether the cluster knows KubeRay's kinds; then its operator is taken to run."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/rayservices.ray.io"
    return cluster.has(path)


def install_kuberay(cluster: Cluster) -> None:
    """Install KubeRay's operator, as its own chart would."""
    for path in definitions():
        cluster.kubectl("create", "-f", str(path))
    labels = {"app.kubernetes.io/name": "kuberay-operator"}  # which the policies of the chart name
    container = {
        "name": KUBERAY,
        "image": images.KUBERAY.tag,
        "args": ["--feature-gates=RayClusterStatusConditions=true"],
        "env": [{"name": "POD_NAMESPACE", "value": KUBERAY}],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
    }
    bodies = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": KUBERAY}},
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": KUBERAY, "namespace": KUBERAY},
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": KUBERAY},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "cluster-admin",
            },
            "subjects": [{"kind": "ServiceAccount", "name": KUBERAY, "namespace": KUBERAY}],
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": KUBERAY, "namespace": KUBERAY},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"serviceAccountName": KUBERAY, "containers": [container]},
                },
            },
        },
    ]
    cluster.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(bodies))


def install(cluster: Cluster, **values: object) -> None:
    """Install or upgrade the chart and wait until its pods are ready."""
    file, outside = cluster.folder / "values.yaml", f"https://{cluster.entry}:{_PORT}"
    gateway = {**VALUES["gateway"], "externalUrl": outside}
    file.write_text(yaml.safe_dump({**VALUES, "gateway": gateway, **values}))
    cluster.helm(
        *("upgrade", "--install", RELEASE, str(ROOT / "charts" / "dovetail")),
        *("--namespace", NAMESPACE, "--create-namespace", "--values", str(file)),
        *("--wait", "--timeout", "3m"),
    )


def available(cluster: Cluster, namespace: str, name: str) -> None:
    """Wait until a Deployment is available."""
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"
    until(
        lambda: cluster.request("GET", path)["status"].get("availableReplicas"),
        f"{name} to be available",
        120,
    )


def everything(cluster: Cluster) -> dict[tuple[str, str, str], Json]:
    """Metadata of all that there is, by resource, namespace and name.

    Left out is what only follows from others: Events, what is kept for each Service, and what every
    namespace has.
    """
    groups = cluster.request("GET", "/apis")["groups"]
    roots = ["/api/v1", *(f"/apis/{one['preferredVersion']['groupVersion']}" for one in groups)]
    found = {}
    for root in roots:
        for kind in cluster.request("GET", root)["resources"]:
            name = kind["name"]
            if "/" in name or "list" not in kind["verbs"] or name in _FOLLOWING:
                continue
            for item in cluster.request("GET", f"{root}/{name}")["items"]:
                metadata = item["metadata"]
                if (name, metadata["name"]) in _EVERYWHERE:
                    continue
                if metadata.get("namespace") == "kube-node-lease":  # of nodes, whenever they come
                    continue
                found[name, metadata.get("namespace", ""), metadata["name"]] = metadata
    return found
