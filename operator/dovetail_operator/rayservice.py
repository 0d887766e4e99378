"""A pool as one RayService, composed whole from the deployments that are in it.

Serve deletes an application that its config leaves out, and the config is one string in one
object. So it cannot be patched by many; it is a function of everything that lives in the pool, put
by one writer. The order in which deployments came decides who is in when there is no more room:
one that was in is never pushed out by one that comes later.

References: KubeRay v1.6 RayService (`ray.io/v1`), Ray Serve config file schema.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dovetail.api import Spec
from dovetail.plan import Plan
from dovetail.pool import LedgerApp, Replicas, TailApp, serve_config
from dovetail_operator.client import Json
from dovetail_operator.config import Config, PoolConfig
from dovetail_operator.names import POOL_LABEL, labels, stamped

PORT: Final = 8000
_VERSION: Final = "ray.io/v1"
_SECURITY: Final[Json] = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass(frozen=True, slots=True)
class Member:
    """A deployment that has a bundle and wants a place.

    Attributes:
        key: `<namespace>/<name>`.
        created: when it was created, RFC 3339.
        spec: what it wants.
        digest: its bundle.
        plans: its plans by class.
        tokens: device class -> sha256 hex of its bearer token.
    """

    key: str
    created: str
    spec: Spec
    digest: str
    plans: Mapping[str, Plan]
    tokens: Mapping[str, str] = field(default_factory=dict)


def admitted(members: Iterable[tuple[str, str]], most: int) -> frozenset[str]:
    """Keys of those that have a place: the first ones that came.

    Args:
        members: (created, key) of each.
        most: places.
    """
    return frozenset(key for _, key in sorted(members)[:most])


def ray_service(
    name: str,
    namespace: str,
    owner: Json,
    *,
    members: Sequence[Member],
    pool: PoolConfig,
    config: Config,
    operator_token: str,
) -> Json:
    """The RayService of a pool.

    Args:
        name: its name.
        namespace: its namespace.
        owner: reference to what it is deleted with.
        members: those that have a place.
        pool: what the pool is like.
        config: what the chart decides.
        operator_token: sha256 hex of the token that may read the ledger.
    """
    marks = {**labels(name, "pool"), POOL_LABEL: name}
    tails = [_tail(member, config) for member in members]
    ledger = LedgerApp({tail.bundle: tail.tokens for tail in tails}, operator_token)
    serve = serve_config(tails, ledger, host="0.0.0.0", port=PORT, everywhere=True)  # noqa: S104  a pod's own address
    return stamped(
        {
            "apiVersion": _VERSION,
            "kind": "RayService",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": marks,
                "ownerReferences": [owner],
            },
            "spec": {
                "serveConfigV2": json.dumps(serve, sort_keys=True),
                "rayClusterConfig": _cluster(pool, config, marks),
            },
        }
    )


def _tail(member: Member, config: Config) -> TailApp:
    cloud = member.spec.cloud
    return TailApp(
        deployment=member.key,
        bundle=f"{config.cache}/bundles/{member.digest.removeprefix('sha256:')}",
        digest=member.digest,
        plans=member.plans,
        tokens=member.tokens,
        settings={"threads": cloud.threads, "max_batch": cloud.max_batch},
        replicas=Replicas(cloud.replicas.min, cloud.replicas.max),
    )


def _cluster(pool: PoolConfig, config: Config, marks: Mapping[str, str]) -> Json:
    """The Ray cluster: tokens on, because whoever reaches an open Ray runs code on it."""
    head = _pod("ray-head", "1", "2Gi", config, marks)
    worker = _pod("ray-worker", pool.cpu, pool.memory, config, marks)
    return {
        "rayVersion": config.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {"rayStartParams": {"dashboard-host": "0.0.0.0"}, "template": head},  # noqa: S104  a pod's own address
        "workerGroupSpecs": [
            {
                "groupName": "tails",
                "replicas": pool.workers,
                "minReplicas": pool.workers,
                "maxReplicas": pool.workers,
                "rayStartParams": {},
                "template": worker,
            }
        ],
        **pool.ray_cluster,
    }


def _pod(name: str, cpu: str, memory: str, config: Config, marks: Mapping[str, str]) -> Json:
    registry = f"{config.registry.url}/{config.registry.repository}"
    container: dict[str, Any] = {
        "name": name,
        "image": config.images.serving,
        "env": [{"name": "DOVETAIL_REGISTRY", "value": registry}],
        "resources": {
            "requests": {"cpu": cpu, "memory": memory},
            "limits": {"memory": memory},
        },
        "securityContext": _SECURITY,
        "volumeMounts": [{"name": "cache", "mountPath": config.cache}],
    }
    return {
        "metadata": {"labels": dict(marks)},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [container],
            "volumes": [{"name": "cache", "emptyDir": {}}],
        },
    }
