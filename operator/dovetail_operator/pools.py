"""One writer a pool: composes its RayService from everything that lives in it, and says how it is.

Who has a place is decided here too, because it depends on all members at once; a deployment's own
reconcile only reads the outcome. A RayService of a pool's name that is not ours is left alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from dovetail.api import API_VERSION, HybridDeployment
from dovetail.errors import Unavailable
from dovetail.placement import Cloud
from dovetail.plan import application_name
from dovetail_operator import applications
from dovetail_operator.applications import Application
from dovetail_operator.client import Api, ApiError, Conflict, Json
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
from dovetail_operator.rayservice import Claim, Member, admitted, ray_service, too_large
from dovetail_operator.record import Record
from dovetail_operator.store import key_of
from dovetail_operator.world import POOL, World, dedicated_name

_KUBERAY: Final = (
    "This cluster has no RayService (ray.io/v1), in which tails run. Install the KubeRay operator: "
    "helm install kuberay-operator kuberay-operator --version 1.6.2 "
    "--repo https://ray-project.github.io/kuberay-helm/"
)

TRIED_AGAIN: Final = "It is tried again in ten minutes, and at once when the spec changes."
_TOO_MANY: Final = 429
_LASTING: Final = 3  # failures in a row that are no hiccup of the API server any more
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


@dataclass(slots=True)
class _Writes:
    """How writing a pool goes: why it cannot be, and failures in a row."""

    refused: str | None = None
    failures: int = 0


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
        self._admitted: dict[str, dict[str, tuple[str, ...]]] = {}
        self._full: dict[str, frozenset[tuple[str, str]]] = {}
        self._writes: dict[str, _Writes] = {}

    def reconcile(self, key: str) -> None:
        """Make a pool's RayService what its members want.

        Raises:
            Conflict: somebody was faster; look again.
            ApiError: the API server refuses what we write.
            Unavailable: the API server does not answer.
        """
        pool = self._world.pool(key)
        living = self._living(key) if pool else []
        if pool is None or not living:
            self._admitted.pop(key, None)
            self._full.pop(key, None)
            self._writes.pop(key, None)
            self._remove(key)
            return
        self._admit(key, living, pool.max_tails)
        found = self._world.stores["RayService"].get(key)
        if not self._world.has_ray or (found is not None and not self._is_ours(found)):
            return
        inside = self._admitted[key]
        placed = [item for item in living if inside.get(key_of(item))]
        members = [m for item in placed if (m := self._member(item, inside[key_of(item)]))]
        # Nobody has anything to run: a pool that is there goes on with its ledger alone, so that
        # no tail and no token outlives its deployment; one that is not there is not made for it.
        if not members and (placed or found is None):
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
        self._put(key, body, found)

    def _put(self, key: str, body: Json, found: Json | None) -> None:
        """Write a pool where it differs, and keep why it cannot be, for those who live in it."""
        writes = self._writes.setdefault(key, _Writes())
        if why := too_large(body):
            self._tell_refused(key, why)
            return
        if not same(body, found):
            try:
                self._api.apply(path_of(body), body, seen=found)
            except Conflict:
                raise
            except (ApiError, Unavailable) as error:
                # A patch that does not fit the schema is answered 500 as well, again and again.
                writes.failures += 1
                busy = isinstance(error, Unavailable) or error.status == _TOO_MANY
                if not busy or writes.failures >= _LASTING:
                    self._tell_refused(key, str(error))
                raise
        writes.failures = 0
        self._tell_refused(key, None)

    def _tell_refused(self, key: str, why: str | None) -> None:
        writes = self._writes[key]
        if writes.refused == why:
            return
        writes.refused = why
        for hybrid in self.members(key):
            self._hybrid(hybrid)

    def refused(self, key: str) -> Finding | None:
        """Why a pool cannot be written; None where it can."""
        writes = self._writes.get(key)
        if writes is None or writes.refused is None:
            return None
        message = (
            f"Pool {key.split('/', 1)[1]} cannot be written, so what runs in it goes on as it is, "
            f"and nothing new begins: {writes.refused}. What a pool asks for is in the chart's "
            "values."
        )
        return Finding("True", "PoolRefused", message)

    def _admit(self, key: str, living: list[Json], places: int) -> None:
        """Decide who has a place, and tell those for whom that changed."""
        claims = [self._claim(item) for item in living]
        now = admitted(claims, places)
        full = frozenset(
            (claim.key, claim.staged)
            for claim in claims
            if claim.staged is not None and claim.staged not in now.get(claim.key, ())
        )
        before = self._admitted.get(key)
        changed = {hybrid for hybrid, _ in full ^ self._full.get(key, frozenset())}
        changed |= set(now) if before is None else set(before) ^ set(now)
        self._admitted[key], self._full[key] = now, full
        for hybrid in sorted(changed):
            self._hybrid(hybrid)

    def _claim(self, hybrid: Json) -> Claim:
        created, key = hybrid["metadata"]["creationTimestamp"], key_of(hybrid)
        record = Record.read(self._world.child("ConfigMap", hybrid, "plan"))
        if record is None:
            return Claim(created, key)
        running, staged = record.stand.applications(record.bundle), record.stand.staged
        if staged is None or staged in record.stand.retained:
            return Claim(created, key, running)
        return Claim(created, key, running[:-1], staged)

    def members(self, key: str) -> list[str]:
        """Keys of the deployments that have a place in a pool."""
        return sorted(self._admitted.get(key, ()))

    def has_place(self, pool: str, hybrid: str) -> bool:
        """Whether a deployment may be in a pool; False also where that is not decided yet."""
        return hybrid in self._admitted.get(pool, ())

    def is_full_for(self, pool: str, hybrid: str, bundle: str) -> bool:
        """Whether a pool has no place for one more version of a deployment that is in it."""
        return (hybrid, bundle) in self._full.get(pool, frozenset())

    def application(self, pool: str, hybrid: str, bundle: str) -> Application | None:
        """How the tail of a version is; None while its pool says nothing of it."""
        found = self._world.stores["RayService"].get(pool)
        if found is None or not self._is_ours(found):
            return None
        status, name = found.get("status") or {}, application_name(hybrid, bundle)
        reachable = status.get("numServeEndpoints", 0) > 0
        for part, active in (("activeServiceStatus", True), ("pendingServiceStatus", False)):
            said = ((status.get(part) or {}).get("applicationStatuses") or {}).get(name)
            if said is not None:
                state, message = said.get("status", ""), said.get("message", "")
                return Application(state, message, active=active, reachable=reachable)
        return None

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
        if mine not in self._admitted.get(key, {mine: ()}):
            message = (
                f"Pool {name} has no place left for another tail. Ask for another pool in "
                "spec.cloud.pool (Dedicated makes one), or raise maxTails of the pool in the chart."
            )
            return Finding("False", "PoolFull", message)
        if record is None:
            return WAITS_FOR_BUNDLE
        refused = record.stand.refused
        if refused is not None and refused.bundle == record.bundle:
            message = f"Ray Serve could not deploy the tail: {refused.message}. {TRIED_AGAIN}"
            return Finding("False", "TailFailed", message)
        now = self.application(key, mine, record.bundle)
        tail = applications.finding(name, now, ran=_ran(hybrid, record))
        wrong = self.refused(key)
        if wrong is not None and tail.status == "False":
            return Finding("False", wrong.reason, wrong.message)
        return tail

    def _refusal(self, hybrid: Json, key: str, name: str) -> Finding | None:
        pool, namespace = self._world.pool(key), hybrid["metadata"]["namespace"]
        if pool is None:
            names = ", ".join(item.name for item in self._world.config.pools) or "none"
            message = f"There is no pool {name!r}; the chart has {names}. Change spec.cloud.pool."
            return Finding("False", "UnknownPool", message)
        if not pool.serves(namespace):
            message = (
                f"Pool {name} does not serve namespace {namespace}. Ask for another in "
                "spec.cloud.pool, or have the namespace listed in the pool's namespaces in the "
                "chart."
            )
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

    def _living(self, key: str) -> list[Json]:
        pool = self._world.pool(key)
        return [
            item
            for item in self._world.stores["HybridDeployment"].by(POOL, key)
            if "deletionTimestamp" not in item["metadata"]
            and pool is not None
            and pool.serves(item["metadata"]["namespace"])
        ]

    def _member(self, hybrid: Json, versions: Sequence[str]) -> Member | None:
        """What a deployment has in a pool; None for nothing yet.

        Not through its whole spec: one that does not hold (its own condition says so), such as
        after an upgrade, must not take what serves out of the pool.
        """
        record = Record.read(self._world.child("ConfigMap", hybrid, "plan"))
        if record is None:
            return None
        kept = {name: plan for name in record.plans if (plan := record.plan(name))}
        named = {item.get("name") for item in hybrid["spec"].get("edge", {}).get("classes", ())}
        # A class without a plan is new and its own reconcile on the way. Where no class has one,
        # every class is another one now, and those of before go on until then.
        plans = {name: plan for name, plan in kept.items() if name in named} or kept
        if not plans:
            return None
        tokens = {
            name: _digest(self._world.child("Secret", hybrid, "token", name)) for name in plans
        }
        return Member(key_of(hybrid), _cloud(hybrid), versions, plans, tokens)

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


def _cloud(hybrid: Json) -> Cloud:
    """How a deployment's tail is to run; as by default where that does not hold."""
    try:
        return Cloud.model_validate(hybrid["spec"].get("cloud", {}))
    except ValidationError:
        return Cloud()


def _digest(secret: Json | None) -> str:
    """Digest of a class's token; of no token at all once its Secret was deleted."""
    annotations = ((secret or {}).get("metadata") or {}).get("annotations") or {}
    return str(annotations.get(TOKEN_HASH, _NOBODY))


def _ran(hybrid: Json, record: Record) -> bool:
    """Whether the tail of this very version was last said to run."""
    status = hybrid.get("status") or {}
    said = {one["type"]: one["status"] for one in status.get("conditions") or ()}
    return status.get("bundle") == record.bundle and said.get("TailAvailable") == "True"
