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
        versions: bundles of it that are served beside one another.
        plans: its plans by class; the tail of every version hands out the same.
        tokens: device class -> sha256 hex of its bearer token.
    """

    key: str
    created: str
    spec: Spec
    versions: Sequence[str]
    plans: Mapping[str, Plan]
    tokens: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a deployment asks of a pool.

    Attributes:
        created: when it was created, RFC 3339; who came first goes first.
        key: `<namespace>/<name>`.
        running: its versions that devices may be sent to, the live one first.
        staged: the version that is to be live next.
    """

    created: str
    key: str
    running: tuple[str, ...] = ()
    staged: str | None = None


def admitted(claims: Iterable[Claim], most: int) -> dict[str, tuple[str, ...]]:
    """Versions for which there is a place, by deployment; none is there for who has no place.

    A place is an application. A deployment takes one before it has a version, so that it is not
    told to come and sent away later. New versions of those inside come after all that runs.

    Args:
        claims: what each asks for.
        most: places.
    """
    inside: dict[str, tuple[str, ...]] = {}
    left = most
    ordered = sorted(claims, key=lambda claim: (claim.created, claim.key))
    for claim in ordered:
        if left > 0:
            inside[claim.key] = claim.running[:left]
            left -= max(1, len(inside[claim.key]))
    for claim in ordered:
        # The first version takes the place that was kept for it.
        free = claim.staged is not None and claim.key in inside and not inside[claim.key]
        if claim.staged is not None and claim.key in inside and (left > 0 or free):
            inside[claim.key] += (claim.staged,)
            left -= not free
    return inside


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
    tails = [_tail(member, digest, config) for member in members for digest in member.versions]
    ledger = LedgerApp(operator_token)
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


def _tail(member: Member, digest: str, config: Config) -> TailApp:
    cloud = member.spec.cloud
    return TailApp(
        deployment=member.key,
        bundle=f"{config.cache}/bundles/{digest.removeprefix('sha256:')}",
        digest=digest,
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
