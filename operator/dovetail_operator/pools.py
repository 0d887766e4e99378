"""One writer a pool: composes its RayService from everything that lives in it, and says how it is.

Who has a place is decided here too, because it depends on all members at once; a deployment's own
reconcile only reads the outcome. A RayService of a pool's name that is not ours is left alone.
"""

from collections.abc import Callable
from typing import Final

from dovetail.api import API_VERSION, HybridDeployment
from dovetail.plan import application_name
from dovetail_operator.client import Api, Json
from dovetail_operator.conditions import WAITS_FOR_BUNDLE, Finding
from dovetail_operator.names import (
    OPERATOR,
    TOKEN_HASH,
    collection,
    owner_reference,
    owner_uids,
    path_of,
    same,
)
from dovetail_operator.rayservice import Member, admitted, ray_service
from dovetail_operator.record import Record
from dovetail_operator.store import key_of
from dovetail_operator.world import POOL, World, dedicated_name

_KUBERAY: Final = (
    "This cluster has no RayService (ray.io/v1), in which tails run. Install the KubeRay operator: "
    "helm install kuberay-operator kuberay/kuberay-operator --version 1.6.0"
)

_NOBODY: Final = "0" * 64  # no token is known that has this digest


def parse(hybrid: Json) -> HybridDeployment:
    """A resource as its types, without what the API server adds; raises `ValidationError`."""
    metadata = hybrid["metadata"]
    return HybridDeployment.model_validate(
        {
            "apiVersion": API_VERSION,
            "kind": "HybridDeployment",
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
            "spec": hybrid["spec"],
        }
    )


class Pools:
    """Reconciles pools.

    Args:
        api: the API server, fenced.
        world: what is known.
        release: the ConfigMap of the release, which owns shared pools.
        operator_token: sha256 hex of the token that may read ledgers.
        hybrid: told the key of a deployment whose place changed.
    """

    def __init__(
        self,
        api: Api,
        world: World,
        release: Json,
        operator_token: str,
        hybrid: Callable[[str], None],
    ) -> None:
        self._api, self._world, self._release = api, world, release
        self._operator_token, self._hybrid = operator_token, hybrid
        self._admitted: dict[str, frozenset[str]] = {}

    def reconcile(self, key: str) -> None:
        """Make a pool's RayService what its members want."""
        pool = self._world.pool(key)
        living = self._living(key) if pool else []
        if pool is None or not living:
            self._admitted.pop(key, None)
            self._remove(key)
            return
        arrivals = [(item["metadata"]["creationTimestamp"], key_of(item)) for item in living]
        before, now = self._admitted.get(key), admitted(arrivals, pool.max_tails)
        self._admitted[key] = now
        for changed in (before or frozenset()) ^ now if before is not None else now:
            self._hybrid(changed)
        found = self._world.stores["RayService"].get(key)
        if not self._world.has_ray or (found is not None and not self._is_ours(found)):
            return
        inside = [item for item in living if key_of(item) in now]
        members = [one for one in map(self._member, inside) if one is not None]
        if not members:
            return
        namespace, name = key.split("/", 1)
        owner = self._release if namespace == self._world.config.namespace else living[0]
        body = ray_service(
            name,
            namespace,
            owner_reference(owner),
            members=members,
            pool=pool,
            config=self._world.config,
            operator_token=self._operator_token,
        )
        if not same(body, found):
            self._api.apply(path_of(body), body, seen=found)

    def members(self, key: str) -> list[str]:
        """Keys of the deployments that have a place in a pool."""
        return sorted(self._admitted.get(key, ()))

    def known(self) -> list[str]:
        """Keys of the pools that have members."""
        return sorted(self._admitted)

    def tail_available(self, hybrid: Json, key: str, record: Record | None) -> Finding:
        """Whether a deployment's tail serves.

        Args:
            hybrid: the deployment.
            key: the pool it asks for.
            record: its bundle.
        """
        name, mine = key.split("/", 1)[1], key_of(hybrid)
        refusal = self._refusal(hybrid, key, name)
        if refusal is not None:
            return refusal
        if mine not in self._admitted.get(key, frozenset({mine})):
            message = (
                f"Pool {name} has no place left for another tail. Ask for another pool in "
                "spec.cloud.pool (Dedicated makes one), or raise maxTails of the pool in the chart."
            )
            return Finding("False", "PoolFull", message)
        if record is None:
            return WAITS_FOR_BUNDLE
        return self._application(key, name, application_name(mine, record.bundle))

    def _refusal(self, hybrid: Json, key: str, name: str) -> Finding | None:
        pool, namespace = self._world.pool(key), hybrid["metadata"]["namespace"]
        if pool is None:
            names = ", ".join(item.name for item in self._world.config.pools) or "none"
            message = f"There is no pool {name!r}; the chart has {names}. Change spec.cloud.pool."
            return Finding("False", "UnknownPool", message)
        if not pool.serves(namespace):
            message = f"Pool {name} does not serve namespace {namespace}; the chart lists those."
            return Finding("False", "NamespaceNotServed", message)
        if not self._world.has_ray:
            return Finding("False", "KubeRayMissing", _KUBERAY)
        found = self._world.stores["RayService"].get(key)
        if found is not None and not self._is_ours(found):
            message = (
                f"RayService {key} was not made by this operator, so it is not written. Rename "
                "it, or the pool in the chart."
            )
            return Finding("False", "PoolNotOurs", message)
        return None

    def _application(self, key: str, pool: str, name: str) -> Finding:
        found = self._world.stores["RayService"].get(key)
        active = ((found or {}).get("status") or {}).get("activeServiceStatus") or {}
        application = (active.get("applicationStatuses") or {}).get(name)
        if application is None:
            return Finding("False", "TailDeploying", f"Pool {pool} is starting the tail.")
        status = application.get("status", "")
        if status == "RUNNING":
            return Finding("True", "TailRunning", f"The tail runs in pool {pool}.")
        if status in ("DEPLOY_FAILED", "UNHEALTHY"):
            said = application.get("message", "")
            return Finding("False", "TailFailed", f"Application {name} is {status}: {said}")
        return Finding("False", "TailDeploying", f"Application {name} is being deployed.")

    def _living(self, key: str) -> list[Json]:
        pool = self._world.pool(key)
        return [
            item
            for item in self._world.stores["HybridDeployment"].by(POOL, key)
            if "deletionTimestamp" not in item["metadata"]
            and pool is not None
            and pool.serves(item["metadata"]["namespace"])
        ]

    def _member(self, hybrid: Json) -> Member | None:
        record = Record.read(self._world.child("ConfigMap", hybrid, "plan"))
        if record is None:
            return None
        deployment = parse(hybrid)
        plans, tokens = {}, {}
        for item in deployment.spec.edge.classes:
            plan = record.plan(item.name)
            secret = self._world.child("Secret", hybrid, "token", item.name)
            if plan is not None:  # otherwise the class is new and its own reconcile on the way
                plans[item.name] = plan
                tokens[item.name] = _digest(secret)
        if not plans:
            return None
        created = hybrid["metadata"]["creationTimestamp"]
        return Member(deployment.key, created, deployment.spec, record.bundle, plans, tokens)

    def _remove(self, key: str) -> None:
        found = self._world.stores["RayService"].get(key)
        if found is not None and self._is_ours(found):
            namespace, name = key.split("/", 1)
            path = f"{collection('RayService', namespace)}/{name}"
            self._api.delete(path, found["metadata"]["uid"])

    def _is_ours(self, item: Json) -> bool:
        """Whether this release, or a deployment, has it; a label alone anyone may set."""
        labels = item["metadata"].get("labels") or {}
        if labels.get("app.kubernetes.io/managed-by") != OPERATOR:
            return False
        metadata = item["metadata"]
        if metadata["namespace"] == self._world.config.namespace:
            return self._release["metadata"]["uid"] in owner_uids(item)
        for reference in metadata.get("ownerReferences") or ():
            key = f"{metadata['namespace']}/{reference['name']}"
            owner = self._world.stores["HybridDeployment"].get(key)
            if metadata["name"] == dedicated_name(reference["name"]):
                return owner is None or owner["metadata"]["uid"] == reference["uid"]
        return False


def _digest(secret: Json | None) -> str:
    """Digest of a class's token; of no token at all once its Secret was deleted."""
    annotations = ((secret or {}).get("metadata") or {}).get("annotations") or {}
    return str(annotations.get(TOKEN_HASH, _NOBODY))
