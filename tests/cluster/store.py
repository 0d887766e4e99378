"""Where models come from and bundles go: a registry and a file server in a pod of the cluster."""

from pathlib import Path
from typing import Final

import yaml
from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.kube.operators import until

NAMESPACE: Final = "dovetail-test"
_NAME: Final = "store"
# short of the cluster's domain, which is not everywhere the same
REGISTRY: Final = f"http://{_NAME}.{NAMESPACE}.svc:5000"
FILES: Final = f"http://{_NAME}.{NAMESPACE}.svc:8080"
_PORTS: Final = {"registry": 5000, "files": 8080}
_COMMANDS: Final = {
    "registry": ["docker-registry", "serve", "/registry.json"],
    "files": ["python3", "-m", "http.server", str(_PORTS["files"]), "--directory", "/srv"],
}


def install(cluster: Cluster) -> None:
    """Have it run, with nothing in it."""
    labels = {"app": _NAME}
    containers = [
        {
            "name": name,
            "image": images.STORE.tag,
            "command": _COMMANDS[name],
            "ports": [{"containerPort": port}],
            "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
        }
        for name, port in _PORTS.items()
    ]
    metadata = {"name": _NAME, "namespace": NAMESPACE, "labels": labels}
    ports = [{"name": name, "port": port} for name, port in _PORTS.items()]
    bodies = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": labels, "ports": ports},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {"containers": containers},
        },
    ]
    cluster.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(bodies))

    def ready() -> bool:
        (pod,) = cluster.pods(NAMESPACE, f"app={_NAME}")
        states = pod["status"].get("containerStatuses") or []
        return len(states) == len(_PORTS) and all(one["ready"] for one in states)

    until(ready, "the registry and the file server", 120)


def put(cluster: Cluster, path: Path) -> None:
    """Have a file under its name at `FILES`."""
    cluster.kubectl("cp", str(path), f"{NAMESPACE}/{_NAME}:/srv/{path.name}", "-c", "files")
