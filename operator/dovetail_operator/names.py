"""Names, labels and paths of the objects that the operator writes.

A child's name follows from its owner and its role alone, so that an operator that is killed and
starts again finds what it made. The digits at the end keep two owners apart whose names with a role
behind them would read the same, and keep every name within 63 characters.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from dovetail.layout import canonical_json
from dovetail_operator.client import Json

GROUP: Final = "dovetail.dev"
OPERATOR: Final = "dovetail-operator"
MANAGED: Final = f"app.kubernetes.io/managed-by={OPERATOR}"
APPLIED: Final = f"{GROUP}/applied"
TOKEN_HASH: Final = f"{GROUP}/token-sha256"
CLASS_LABEL: Final = f"{GROUP}/device-class"
GROUP_LABEL: Final = f"{GROUP}/device-group"
SLOWDOWN: Final = f"{GROUP}/slowdown"
POOL_LABEL: Final = f"{GROUP}/pool"
BUNDLE: Final = f"{GROUP}/bundle"
PARTITION: Final = f"{GROUP}/partition"
MODEL: Final = f"{GROUP}/model"
MADE: Final = f"{GROUP}/made"
HYBRIDS: Final = f"/apis/{GROUP}/v1alpha1/hybriddeployments"

_COLLECTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "HybridDeployment": (f"{GROUP}/v1alpha1", "hybriddeployments"),
    "ServiceAccount": ("v1", "serviceaccounts"),
    "Secret": ("v1", "secrets"),
    "ConfigMap": ("v1", "configmaps"),
    "Service": ("v1", "services"),
    "Pod": ("v1", "pods"),
    "Node": ("v1", "nodes"),
    "Job": ("batch/v1", "jobs"),
    "DaemonSet": ("apps/v1", "daemonsets"),
    "ControllerRevision": ("apps/v1", "controllerrevisions"),
    "RayService": ("ray.io/v1", "rayservices"),
    "NetworkPolicy": ("networking.k8s.io/v1", "networkpolicies"),
    "Event": ("events.k8s.io/v1", "events"),
    "Lease": ("coordination.k8s.io/v1", "leases"),
}


def collection(kind: str, namespace: str = "") -> str:
    """Path of a collection; of all namespaces where none is given."""
    version, plural = _COLLECTIONS[kind]
    root = f"/api/{version}" if version == "v1" else f"/apis/{version}"
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


def path_of(item: Mapping[str, Any]) -> str:
    """Path of an object."""
    metadata = item["metadata"]
    return f"{collection(item['kind'], metadata.get('namespace', ''))}/{metadata['name']}"


def child_name(owner: str, role: str, part: str = "", most: int = 63) -> str:
    """`<owner>-<role>-<8 digits>`, at most so many characters."""
    digits = hashlib.sha256(f"{owner}/{role}/{part}".encode()).hexdigest()[:8]
    return f"{owner[: most - len(role) - 10].rstrip('-')}-{role}-{digits}"


def child(kind: str, owner: Mapping[str, Any], role: str, part: str = "") -> Json:
    """An object's head: version, kind, name, labels and owner; the rest is added by its maker.

    Args:
        kind: its kind.
        owner: the HybridDeployment.
        role: what it is for; also its component label.
        part: which of several.
    """
    metadata = owner["metadata"]
    return {
        "apiVersion": _COLLECTIONS[kind][0],
        "kind": kind,
        "metadata": {
            "name": child_name(metadata["name"], role, part),
            "namespace": metadata["namespace"],
            "labels": labels(metadata["name"], role),
            "ownerReferences": [owner_reference(owner)],
        },
    }


def labels(instance: str, component: str) -> dict[str, str]:
    """The labels of everything that the operator writes."""
    return {
        "app.kubernetes.io/name": "dovetail",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "dovetail",
        "app.kubernetes.io/managed-by": OPERATOR,
    }


def owner_reference(owner: Mapping[str, Any]) -> Json:
    """A reference that has an object deleted with its owner."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def owner_uids(item: Mapping[str, Any]) -> list[str]:
    """Uids of the controllers of an object; none or one."""
    references = item["metadata"].get("ownerReferences") or ()
    return [one["uid"] for one in references if one.get("controller")]


def stamped(body: Json) -> Json:
    """The object with a digest of its content, which tells later whether it must be written."""
    digest = hashlib.sha256(canonical_json(body)).hexdigest()[:16]
    annotations = {**body["metadata"].get("annotations", {}), APPLIED: digest}
    return {**body, "metadata": {**body["metadata"], "annotations": annotations}}


def same(wanted: Mapping[str, Any], found: Mapping[str, Any] | None) -> bool:
    """Whether the object found was written from the same content."""
    if found is None:
        return False
    mine = wanted["metadata"]["annotations"][APPLIED]
    return bool((found["metadata"].get("annotations") or {}).get(APPLIED) == mine)
