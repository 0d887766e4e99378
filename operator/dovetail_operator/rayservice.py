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

from dovetail.placement import Cloud
from dovetail.plan import Plan
from dovetail.pool import SERVE_ENVIRONMENT, LedgerApp, Replicas, TailApp, serve_config
from dovetail.telemetry import ENDPOINT_VARIABLE
from dovetail_operator.client import Json
from dovetail_operator.config import Config, PoolConfig
from dovetail_operator.desired import pull_secrets
from dovetail_operator.names import POOL_LABEL, labels, stamped

PORT: Final = 8000
_VERSION: Final = "ray.io/v1"
_SECURITY: Final[Json] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
_POD_SECURITY: Final[Json] = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_ENVIRONMENT: Final[Mapping[str, str]] = {
    **SERVE_ENVIRONMENT,
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    # only the ingress of its own pod knows a replica's port, so it need not linger when it stops
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_READY: Final[Json] = {
    "httpGet": {"path": "/-/healthz", "port": PORT},
    "periodSeconds": 5,
    "failureThreshold": 1,
}
# bytes; Serve moves no tensors through it, and Ray takes no less
_OBJECT_STORE: Final = str(80 << 20)
# How many tails a pool holds is `maxTails`; CPUs as Ray counts them must not decide it again.
_TAIL_CPUS: Final = 0.005
# bytes; etcd stores objects up to 1.5 MiB, and a status with a line for each tail lies in it too
_MOST_CONFIG: Final = 1_200_000


@dataclass(frozen=True, slots=True)
class Member:
    """A deployment that has a bundle and wants a place.

    Attributes:
        key: `<namespace>/<name>`.
        cloud: how its tail is to run.
        versions: bundles of it that are served beside one another.
        plans: its plans by class; the tail of every version hands out the same.
        tokens: device class -> sha256 hex of its bearer token.
    """

    key: str
    cloud: Cloud
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


def too_large(service: Json) -> str | None:
    """Why a RayService cannot be stored; None where it can.

    How much a tail takes depends on its classes and rungs, from some 3 kB to some 20 kB.
    """
    size = len(service["spec"]["serveConfigV2"])
    if size <= _MOST_CONFIG:
        return None
    return (
        f"its Serve config has {size} bytes, and {_MOST_CONFIG} can be stored. Move deployments "
        "to another pool in spec.cloud.pool"
    )


def _tail(member: Member, digest: str, config: Config) -> TailApp:
    cloud = member.cloud
    return TailApp(
        deployment=member.key,
        bundle=f"{config.cache}/bundles/{digest.removeprefix('sha256:')}",
        digest=digest,
        plans=member.plans,
        tokens=member.tokens,
        settings={"threads": cloud.threads, "max_batch": cloud.max_batch},
        replicas=Replicas(cloud.replicas.min, cloud.replicas.max),
        actor_options={"num_cpus": _TAIL_CPUS},
    )


def _cluster(pool: PoolConfig, config: Config, marks: Mapping[str, str]) -> Json:
    """The Ray cluster: tokens on, because whoever reaches an open Ray runs code on it.

    Without workers the head is the whole pool and has what a worker would have; with workers it
    serves nothing itself, so that a tail never takes memory from what manages it.
    """
    alone = pool.workers == 0
    cpu, memory = (pool.cpu, pool.memory) if alone else ("500m", "2Gi")
    start = {"dashboard-host": "0.0.0.0", "object-store-memory": _OBJECT_STORE}  # noqa: S104  a pod's own address
    head = {
        "rayStartParams": start if alone else {**start, "num-cpus": "0"},
        "template": _pod("ray-head", cpu, memory, config, marks),
    }
    worker = _pod("ray-worker", pool.cpu, pool.memory, config, marks)
    # KubeRay's own probe of a worker asks with wget, which images without it fail for ever
    worker["spec"]["containers"][0]["readinessProbe"] = _READY
    group = {
        "groupName": "tails",
        "replicas": pool.workers,
        "minReplicas": pool.workers,
        "maxReplicas": pool.workers,
        "rayStartParams": {"object-store-memory": _OBJECT_STORE},
        "template": worker,
    }
    return {
        "rayVersion": config.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": head,
        "workerGroupSpecs": [] if alone else [group],
        **pool.ray_cluster,
    }


def _pod(name: str, cpu: str, memory: str, config: Config, marks: Mapping[str, str]) -> Json:
    environment = {**_ENVIRONMENT, "DOVETAIL_REGISTRY": config.registry.target}
    if config.telemetry is not None:
        environment[ENDPOINT_VARIABLE] = config.telemetry
    volumes: list[Json] = [{"name": name, "emptyDir": {}} for name in ("cache", "tmp")]
    mounts: list[Json] = [
        {"name": "cache", "mountPath": config.cache},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  sessions, logs and sockets of Ray
    ]
    if config.registry.secret is not None:
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        login = {"secretName": config.registry.secret, "items": items}
        volumes.append({"name": "registry", "secret": login})
        mounts.append({"name": "registry", "mountPath": "/etc/dovetail/registry", "readOnly": True})
    container: dict[str, Any] = {
        "name": name,
        "image": config.images.serving,
        "imagePullPolicy": config.images.pull_policy,
        "env": [{"name": key, "value": environment[key]} for key in sorted(environment)],
        "resources": {
            "requests": {"cpu": cpu, "memory": memory},
            "limits": {"memory": memory},
        },
        "securityContext": _SECURITY,
        "volumeMounts": mounts,
    }
    return {
        "metadata": {"labels": dict(marks)},
        "spec": {
            **pull_secrets(config),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": _POD_SECURITY,
            "containers": [container],
            "volumes": volumes,
        },
    }
