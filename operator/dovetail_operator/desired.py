"""What a deployment should own in its namespace, as values: no client, no clock.

The same deployment gives the same objects, whatever happened before, so applying them again after
any crash changes nothing. What is left out here is deleted there. Pods run under Kubernetes'
restricted profile but for one thing: an edge keeps its bundles on a path of its node, because a
container that restarts while the node is offline must find them there.

How a Job tells its result: as its termination message, see docs/adr/0008.
"""

import hashlib
import json
import secrets
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final

from dovetail.api import HybridDeployment
from dovetail.placement import EdgeClass
from dovetail_operator.client import Json
from dovetail_operator.config import Config
from dovetail_operator.names import CLASS_LABEL, TOKEN_HASH, child, child_name, labels, stamped
from dovetail_operator.record import partition_hash

EDGE_PORT: Final = 8000
PARTITION: Final = "partition"

_CONTAINER_SECURITY: Final[Json] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_POD_SECURITY: Final[Json] = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_SELECTED: Final = (
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    CLASS_LABEL,
)
_JOB_SECONDS: Final = 3600
_JOB_RETRIES: Final = 2


def service_account(hybrid: Json) -> Json:
    """An account without rights and without a token, for Job and edges."""
    body = child("ServiceAccount", hybrid, "workload")
    return stamped({**body, "automountServiceAccountToken": False})


def partition_job(hybrid: Json, deployment: HybridDeployment, config: Config) -> Json:
    """The Job that makes the bundle, pushes it and says its digest.

    Its name holds what the bundle is made from: another model is another Job, and the same one is
    never made twice.
    """
    body = child("Job", hybrid, PARTITION)
    body["metadata"]["name"] = partition_job_name(deployment)
    volumes, mounts = _model_volumes(deployment)
    container = {
        "name": PARTITION,
        "image": config.images.partitioner,
        "command": ["python", "-m", "dovetail_partitioner.job"],
        "args": [f"--push={config.registry.url}/{config.registry.repository}"],
        "env": [{"name": "DOVETAIL_MANIFEST", "value": _manifest(deployment)}],
        "terminationMessagePolicy": "File",
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "8Gi"}},
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [{"name": "work", "mountPath": "/tmp"}, *mounts],  # noqa: S108  in a container of its own
    }
    pod = {
        **_pod(hybrid),
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": "work", "emptyDir": {}}, *volumes],
    }
    body["spec"] = {
        "backoffLimit": _JOB_RETRIES,
        "activeDeadlineSeconds": _JOB_SECONDS,
        "template": {"metadata": {"labels": body["metadata"]["labels"]}, "spec": pod},
    }
    return stamped(body)


def partition_job_name(deployment: HybridDeployment) -> str:
    """Name of the Job that makes the bundle of this spec."""
    return child_name(deployment.metadata.name, PARTITION, partition_hash(deployment))


def edge(
    hybrid: Json, edge_class: EdgeClass, *, bundle: str, endpoint: str, config: Config
) -> tuple[Json, Json]:
    """The DaemonSet of a class and the Service through which a node's apps reach its own edge.

    A new plan reaches running edges through the mounted ConfigMap and the tail, so it is no part of
    this: only a new bundle or another spec starts edges anew.
    """
    name, role = edge_class.name, "edge"
    body = child("DaemonSet", hybrid, role, name)
    marks = {**labels(hybrid["metadata"]["name"], role), CLASS_LABEL: name}
    selector = {k: marks[k] for k in _SELECTED}
    body["metadata"]["labels"] = marks
    arguments = _edge_arguments(hybrid, edge_class, bundle, endpoint, config)
    pod = {
        **_pod(hybrid),
        "nodeSelector": dict(edge_class.node_selector),
        "tolerations": [
            item.model_dump(exclude_none=True, by_alias=True) for item in edge_class.tolerations
        ],
        "containers": [_edge_container(edge_class, arguments, config)],
        "volumes": _edge_volumes(hybrid, name, config),
    }
    body["spec"] = {
        "selector": {"matchLabels": selector},
        "updateStrategy": {"type": "RollingUpdate"},
        "template": {"metadata": {"labels": marks}, "spec": pod},
    }
    service = child("Service", hybrid, role, name)
    service["metadata"]["labels"] = marks
    service["spec"] = {
        "selector": selector,
        "internalTrafficPolicy": "Local",
        "ports": [{"name": "http", "port": EDGE_PORT, "targetPort": "http"}],
    }
    return stamped(body), stamped(service)


def _edge_container(edge_class: EdgeClass, arguments: list[str], config: Config) -> Json:
    return {
        "name": "edge",
        "image": config.images.edge,
        "command": ["python", "-m", "dovetail_edge"],
        "args": arguments,
        "ports": [{"name": "http", "containerPort": EDGE_PORT}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": "http"}},
        "livenessProbe": {"httpGet": {"path": "/v2/health/live", "port": "http"}},
        "resources": {
            "requests": edge_class.resources.model_dump(),
            "limits": {"memory": edge_class.resources.memory},
        },
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "plan", "mountPath": "/etc/dovetail/plan", "readOnly": True},
            {"name": "token", "mountPath": "/etc/dovetail/token", "readOnly": True},
            {"name": "cache", "mountPath": config.cache},
        ],
    }


def token_secret(hybrid: Json, name: str) -> Json:
    """A new bearer token for a class; it is created once and never written again.

    The digest beside it is what a pool needs to know the token by, so that the operator watches
    metadata and never reads a Secret.
    """
    token = secrets.token_urlsafe(32)
    body = child("Secret", hybrid, "token", name)
    body["metadata"]["labels"][CLASS_LABEL] = name
    body["metadata"]["annotations"] = {TOKEN_HASH: hashlib.sha256(token.encode()).hexdigest()}
    return {**body, "type": "Opaque", "data": {"token": b64encode(token.encode()).decode()}}


def _pod(hybrid: Json) -> Json:
    return {
        "serviceAccountName": child_name(hybrid["metadata"]["name"], "workload"),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _POD_SECURITY,
    }


def _manifest(deployment: HybridDeployment) -> str:
    document = deployment.model_dump(mode="json", by_alias=True, exclude_none=True)
    document["metadata"] = {k: document["metadata"][k] for k in ("name", "namespace")}
    return json.dumps(document, sort_keys=True)


def _model_volumes(deployment: HybridDeployment) -> tuple[list[Json], list[Json]]:
    """What the Job mounts to reach the model: a claim, or credentials of a registry."""
    model = deployment.spec.model
    volumes: list[Json] = []
    mounts: list[Json] = []
    if model.uri.startswith("pvc://"):
        claim = model.uri.removeprefix("pvc://").split("/", 1)[0]
        source: Mapping[str, Any] = {"claimName": claim, "readOnly": True}
        volumes.append({"name": "model", "persistentVolumeClaim": source})
        mounts.append({"name": "model", "mountPath": "/model", "readOnly": True})
    if model.credentials is not None:
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        volumes.append(
            {"name": "login", "secret": {"secretName": model.credentials, "items": items}}
        )
        mounts.append({"name": "login", "mountPath": "/etc/dovetail/login", "readOnly": True})
    return volumes, mounts


def _edge_arguments(
    hybrid: Json, edge_class: EdgeClass, bundle: str, endpoint: str, config: Config
) -> list[str]:
    metadata = hybrid["metadata"]
    own = f"{metadata['namespace']}--{metadata['name']}--{edge_class.name}"
    return [
        f"--bundle={config.cache}/bundles/{bundle.removeprefix('sha256:')}",
        "--plan=/etc/dovetail/plan/plan.json",
        f"--endpoint={endpoint}",
        f"--device-class={edge_class.name}",
        "--token-file=/etc/dovetail/token/token",
        f"--state={config.cache}/state/{own}",
        f"--port={EDGE_PORT}",
        f"--threads={edge_class.threads}",
    ]


def _edge_volumes(hybrid: Json, name: str, config: Config) -> list[Json]:
    owner = hybrid["metadata"]["name"]
    plan = {
        "name": child_name(owner, "plan"),
        "items": [{"key": f"plan.{name}.json", "path": "plan.json"}],
    }
    return [
        {"name": "plan", "configMap": plan},
        {"name": "token", "secret": {"secretName": child_name(owner, "token", name)}},
        {"name": "cache", "hostPath": {"path": config.cache, "type": "DirectoryOrCreate"}},
    ]
