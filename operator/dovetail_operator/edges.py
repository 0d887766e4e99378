"""What a device class owns: its credential, and on nodes a DaemonSet with a Service before it.

Devices of nodes and devices outside the cluster are told the same three things: an address, the
authority behind it, and a token. On a node they are mounted; outside they lie in one Secret from
which a person takes them. A new plan or bundle reaches running edges through the tail, so neither
is part of a pod: a pod is replaced only when the spec or the edge's own image changes.
"""

import hashlib
import secrets
from base64 import b64encode
from dataclasses import dataclass
from typing import Final

from dovetail.api import HybridDeployment
from dovetail.errors import ManifestError
from dovetail.placement import EdgeClass
from dovetail.telemetry import ENDPOINT_VARIABLE
from dovetail_operator.client import Json
from dovetail_operator.config import Config
from dovetail_operator.desired import CONTAINER_SECURITY, USER, pod_of
from dovetail_operator.names import (
    CLASS_LABEL,
    GROUP_LABEL,
    SLOWDOWN,
    TOKEN_HASH,
    child,
    child_name,
    labels,
    stamped,
)

EDGE_PORT: Final = 8000
CA_KEY: Final = "ca.crt"

_SELECTED: Final = (
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    CLASS_LABEL,
)
_PLAN: Final = "/etc/dovetail/plan"
_TOKEN: Final = "/etc/dovetail/token"  # noqa: S105  a folder
_LEAVING: Final = 5  # seconds in which nodes learn that a pod takes no more requests
_GRACE: Final = 30  # seconds for those and for the requests under way
_FETCHING: Final = 3600  # seconds a first start may take: a bundle comes over a thin link


@dataclass(frozen=True, slots=True)
class Access:
    """How devices reach the tail.

    Attributes:
        endpoint: address of the pool, as they see it.
        ca: PEM of the authority they trust beside the usual ones; None for no other.
    """

    endpoint: str
    ca: str | None = None


def access(deployment: HybridDeployment, pool: str, config: Config, ca: str | None) -> Access:
    """How devices on nodes reach a deployment's pool.

    Args:
        deployment: the resource; its `cloud.endpoint` goes before what the chart says.
        pool: `<namespace>/<name>` of its pool.
        config: what the chart decides.
        ca: the authority in force.
    """
    template = config.endpoint or config.pool_url
    return Access(deployment.spec.cloud.endpoint or _filled(template, pool), ca)


def external_access(
    deployment: HybridDeployment, pool: str, config: Config, ca: str | None
) -> Access | None:
    """The same for devices outside the cluster; None where nothing leads in from there."""
    endpoint = deployment.spec.cloud.endpoint
    if endpoint is None and config.external_endpoint is not None:
        endpoint = _filled(config.external_endpoint, pool)
    return Access(endpoint, ca) if endpoint is not None else None


def slowdown(hybrid: Json) -> str | None:
    """The factor by which an annotation has the edges slowed down; None for as they are.

    Raises:
        ManifestError: it is not a factor.
    """
    text = (hybrid["metadata"].get("annotations") or {}).get(SLOWDOWN)
    if text is None:
        return None
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 1 <= factor < float("inf"):
        raise ManifestError(f"annotation {SLOWDOWN} is {text!r}; expected a factor of 1 or more")
    return f"{factor:g}"


def edge(
    hybrid: Json, edge_class: EdgeClass, reach: Access, config: Config, *, slower: str | None
) -> tuple[Json, Json]:
    """The DaemonSet of a class and the Service through which a node's apps reach its own edge.

    A pod that replaces another is ready before the other ends, and the other goes on answering
    while the node learns of it: no request is lost.
    """
    name, role = edge_class.name, "edge"
    body = child("DaemonSet", hybrid, role, name)
    marks = {**labels(hybrid["metadata"]["name"], role), CLASS_LABEL: name}
    selector = {k: marks[k] for k in _SELECTED}
    body["metadata"]["labels"] = marks
    state = _state(hybrid, edge_class, config)
    arguments = _arguments(edge_class, reach, state, slower)
    pod = {
        **pod_of(hybrid, config),
        "nodeSelector": dict(edge_class.node_selector),
        "tolerations": [
            item.model_dump(exclude_none=True, by_alias=True) for item in edge_class.tolerations
        ],
        "terminationGracePeriodSeconds": _GRACE,
        "initContainers": [_owner_of_state(state, config)],
        "containers": [_container(edge_class, arguments, state, config)],
        "volumes": _volumes(hybrid, name, reach, state),
    }
    body["spec"] = {
        "selector": {"matchLabels": selector},
        "updateStrategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        },
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


def token_secret(hybrid: Json, name: str, group: str | None = None) -> Json:
    """A new bearer token for a class; the token is made once and never written again.

    The digest beside it is what a pool needs to know the token by, so that the operator watches
    metadata and never reads a Secret.

    Args:
        hybrid: its owner.
        name: the class.
        group: the group of devices that join with it.
    """
    token = secrets.token_urlsafe(32)
    body = child("Secret", hybrid, "token", name)
    body["metadata"]["labels"] |= {CLASS_LABEL: name} | ({GROUP_LABEL: group} if group else {})
    body["metadata"]["annotations"] = {TOKEN_HASH: hashlib.sha256(token.encode()).hexdigest()}
    return {**body, "type": "Opaque", "data": {"token": _encoded(token)}}


def joining(hybrid: Json, edge_class: EdgeClass, reach: Access) -> Json:
    """What is written into the Secret of a device group beside its token: where to join."""
    body = child("Secret", hybrid, "token", edge_class.name)
    data = {"endpoint": _encoded(reach.endpoint)}
    if reach.ca is not None:
        data[CA_KEY] = _encoded(reach.ca)
    marks = {CLASS_LABEL: edge_class.name, GROUP_LABEL: str(edge_class.device_group)}
    body["metadata"]["labels"] |= marks
    return stamped({**body, "data": data})


def _encoded(text: str) -> str:
    return b64encode(text.encode()).decode()


def _filled(template: str, pool: str) -> str:
    namespace, name = pool.split("/", 1)
    return template.format(namespace=namespace, pool=name)


def _state(hybrid: Json, edge_class: EdgeClass, config: Config) -> str:
    """The folder of a node in which this class's edge of this deployment keeps what it needs."""
    metadata = hybrid["metadata"]
    return f"{config.cache}/{metadata['namespace']}--{metadata['name']}--{edge_class.name}"


def _arguments(edge_class: EdgeClass, reach: Access, state: str, slower: str | None) -> list[str]:
    return [
        f"--endpoint={reach.endpoint}",
        f"--device-class={edge_class.name}",
        f"--token-file={_TOKEN}/token",
        *([f"--ca-file={_PLAN}/{CA_KEY}"] if reach.ca is not None else ()),
        f"--plan={_PLAN}/plan.json",
        f"--state={state}",
        "--host=0.0.0.0",
        f"--port={EDGE_PORT}",
        f"--threads={edge_class.threads}",
        "--device=$(NODE_NAME)",
        *([f"--slowdown={slower}"] if slower is not None else ()),
    ]


def _owner_of_state(state: str, config: Config) -> Json:
    """Gives the edge its folder, which the node makes for root alone; nothing else is root's."""
    return {
        "name": "state",
        "image": config.images.edge,
        "imagePullPolicy": config.images.pull_policy,
        "command": ["chown", f"{USER}:{USER}", state],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": {
            **CONTAINER_SECURITY,
            "runAsNonRoot": False,
            "runAsUser": 0,
            "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]},
        },
        "volumeMounts": [{"name": "state", "mountPath": state}],
    }


def _container(edge_class: EdgeClass, arguments: list[str], state: str, config: Config) -> Json:
    live = {"httpGet": {"path": "/v2/health/live", "port": "http"}}
    env: list[Json] = [
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    ]
    if config.telemetry is not None:
        env.append({"name": ENDPOINT_VARIABLE, "value": config.telemetry})
    return {
        "name": "edge",
        "image": config.images.edge,
        "imagePullPolicy": config.images.pull_policy,
        "command": ["python", "-m", "dovetail_edge"],
        "args": arguments,
        "env": env,
        "ports": [{"name": "http", "containerPort": EDGE_PORT}],
        "startupProbe": {**live, "periodSeconds": 2, "failureThreshold": _FETCHING // 2},
        "readinessProbe": {
            "httpGet": {"path": "/v2/health/ready", "port": "http"},
            "periodSeconds": 2,
        },
        "livenessProbe": {**live, "periodSeconds": 10, "failureThreshold": 3},
        "lifecycle": {"preStop": {"sleep": {"seconds": _LEAVING}}},
        "resources": {
            "requests": edge_class.resources.model_dump(),
            "limits": {"memory": edge_class.resources.memory},
        },
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "plan", "mountPath": _PLAN, "readOnly": True},
            {"name": "token", "mountPath": _TOKEN, "readOnly": True},
            {"name": "state", "mountPath": state},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  in a container of its own
        ],
    }


def _volumes(hybrid: Json, name: str, reach: Access, state: str) -> list[Json]:
    owner = hybrid["metadata"]["name"]
    items = [{"key": f"plan.{name}.json", "path": "plan.json"}]
    if reach.ca is not None:
        items.append({"key": CA_KEY, "path": CA_KEY})
    token = {
        "secretName": child_name(owner, "token", name),
        "items": [{"key": "token", "path": "token"}],
    }
    return [
        {"name": "plan", "configMap": {"name": child_name(owner, "plan"), "items": items}},
        {"name": "token", "secret": token},
        {"name": "state", "hostPath": {"path": state, "type": "DirectoryOrCreate"}},
        {"name": "tmp", "emptyDir": {}},
    ]
