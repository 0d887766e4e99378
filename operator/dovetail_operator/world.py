"""Everything the operator knows of the cluster: one store a kind, kept by one informer each.

What is watched is what is needed to decide: of what the operator itself writes, only objects with
its label; of Secrets, Services and earlier versions, only metadata; of Jobs, DaemonSets and
RayServices, no spec, because whether they must be written is told by the digest in their
annotations; of no child its labels.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from dovetail.placement import DEDICATED
from dovetail_operator.client import Api, Json
from dovetail_operator.config import Config, PoolConfig
from dovetail_operator.informer import Informer, Kind
from dovetail_operator.names import (
    HYBRIDS,
    MANAGED,
    SLOWDOWN,
    child_name,
    collection,
    owner_uids,
)
from dovetail_operator.store import Index, Store, key_of

OWNER: Final = "owner"
POOL: Final = "pool"
LABEL: Final = "label"

# KubeRay puts names behind a RayService's; it refuses longer ones.
_POOL_NAME: Final = 40
_STATUS: Final = frozenset({"apiVersion", "kind", "metadata", "status"})
CHILDREN: Final = (
    "Job",
    "ConfigMap",
    "ServiceAccount",
    "Secret",
    "DaemonSet",
    "Service",
    "ControllerRevision",
    "NetworkPolicy",
)
_SLIM: Final = frozenset(
    {"ServiceAccount", "Secret", "Service", "ControllerRevision", "NetworkPolicy"}
)

# what a pool is composed from, beside the deployments; of the rest there is much more
_IN_POOLS: Final = frozenset({"ConfigMap", "Secret"})

Notify = Callable[[str], None]


def pool_key(hybrid: Json, config: Config) -> str:
    """`<namespace>/<name>` of the pool that a deployment asks for."""
    metadata = hybrid["metadata"]
    name = ((hybrid.get("spec") or {}).get("cloud") or {}).get("pool", "default")
    if name == DEDICATED:
        return f"{metadata['namespace']}/{dedicated_name(metadata['name'])}"
    return f"{config.namespace}/{name}"


def dedicated_name(hybrid: str) -> str:
    """Name of the pool that a deployment has to itself."""
    return child_name(hybrid, "pool", most=_POOL_NAME)


class World:
    """The stores and what keeps them.

    Args:
        api: the API server.
        config: what the chart decides.
        namespaces: namespaces to watch; empty for all.
        hybrid: told the key of a deployment that may need work.
        pool: told the key of a pool that may need work.

    Attributes:
        stores: by kind.
    """

    def __init__(
        self, api: Api, config: Config, namespace: str, *, hybrid: Notify, pool: Notify
    ) -> None:
        self.config = config
        self._hybrid, self._pool = hybrid, pool
        by_owner: Mapping[str, Index] = {OWNER: owner_uids}
        self.stores: dict[str, Store] = {kind: Store(by_owner) for kind in CHILDREN}
        self.stores["HybridDeployment"] = Store({POOL: lambda item: [pool_key(item, config)]})
        self.stores["RayService"] = Store()
        self.stores["Node"] = Store({LABEL: _labels})
        root, leaf = HYBRIDS.rsplit("/", 1)
        scope = f"/namespaces/{namespace}" if namespace else ""
        kinds = [
            (Kind("hybriddeployments", f"{root}{scope}/{leaf}"), self._hybrid_changed),
            (
                Kind("rayservices", collection("RayService"), keep=_STATUS, optional=True),
                self._pool_changed,
            ),
            (Kind("nodes", collection("Node"), slim=True), self._node_changed),
        ]
        names = ["HybridDeployment", "RayService", "Node", *CHILDREN]
        selector: Mapping[str, Any] = {"labelSelector": MANAGED}
        for kind in CHILDREN:
            keep = _STATUS if kind in ("Job", "DaemonSet") else frozenset[str]()
            path = collection(kind, namespace)
            plural, slim = path.rsplit("/", 1)[1], kind in _SLIM
            kinds.append(
                (
                    Kind(plural, path, selector, slim=slim, keep=keep, labels=False),
                    partial(self._child_changed, kind in _IN_POOLS),
                )
            )
        self.informers: dict[str, Informer] = {
            name: Informer(api, kind, self.stores[name], changed, self.everything)
            for name, (kind, changed) in zip(names, kinds, strict=True)
        }

    def start(self) -> None:
        """Begin to watch; returns at once."""
        for informer in self.informers.values():
            informer.start()

    def stop(self) -> None:
        """Stop watching."""
        for informer in self.informers.values():
            informer.stop()

    @property
    def synced(self) -> bool:
        """Whether every store has held its whole collection."""
        return all(informer.synced.is_set() for informer in self.informers.values())

    @property
    def healthy(self) -> bool:
        """Whether every watch is alive."""
        return all(informer.healthy for informer in self.informers.values())

    def everything(self) -> None:
        """Have every deployment and every pool looked at."""
        hybrids = self.stores["HybridDeployment"]
        for key in hybrids.keys():  # noqa: SIM118  a store is no dict
            self._hybrid(key)
        for key in {*hybrids.values(POOL), *self.stores["RayService"].keys()}:
            self._pool(key)

    @property
    def has_ray(self) -> bool:
        """Whether the cluster has KubeRay's RayService."""
        return not self.informers["RayService"].absent

    def child(self, kind: str, hybrid: Json, role: str, part: str = "") -> Json | None:
        """A deployment's child, as last seen; None for one that somebody else owns."""
        metadata = hybrid["metadata"]
        name = child_name(metadata["name"], role, part)
        return self.owned(kind, hybrid, name)

    def owned(self, kind: str, hybrid: Json, name: str) -> Json | None:
        """An object of that name that the deployment owns, as last seen."""
        item = self.stores[kind].get(f"{hybrid['metadata']['namespace']}/{name}")
        mine = item is not None and hybrid["metadata"]["uid"] in owner_uids(item)
        return item if mine else None

    def nodes(self, selector: Mapping[str, str]) -> int:
        """How many nodes have all of these labels."""
        pairs = [f"{key}={value}" for key, value in selector.items()]
        if not pairs:
            return 0
        found = self.stores["Node"].by(LABEL, pairs[0])
        return sum(set(pairs) <= set(_labels(node)) for node in found)

    def pool(self, key: str) -> PoolConfig | None:
        """What the pool of that key is like; None where the chart has no such pool."""
        namespace, name = key.split("/", 1)
        shared = self.config.pool(name) if namespace == self.config.namespace else None
        if shared is not None:
            return shared
        members = self.stores["HybridDeployment"].by(POOL, key)
        dedicated = any(item["spec"]["cloud"]["pool"] == DEDICATED for item in members)
        return self.config.dedicated if dedicated else None

    def _hybrid_changed(self, old: Json | None, new: Json | None) -> None:
        if old is not None and new is not None and not _differs(old, new):
            return  # a status, which we wrote
        for item in (old, new):
            if item is not None:
                self._hybrid(key_of(item))
                self._pool(pool_key(item, self.config))

    def _child_changed(self, in_pool: bool, old: Json | None, new: Json | None) -> None:
        item = new or old
        assert item is not None
        for reference in item["metadata"].get("ownerReferences") or ():
            if reference["kind"] != "HybridDeployment":
                continue
            key = f"{item['metadata']['namespace']}/{reference['name']}"
            self._hybrid(key)
            hybrid = self.stores["HybridDeployment"].get(key)
            if in_pool and hybrid is not None:
                self._pool(pool_key(hybrid, self.config))

    def _pool_changed(self, old: Json | None, new: Json | None) -> None:
        item = new or old
        assert item is not None
        key = key_of(item)
        self._pool(key)
        for hybrid in self.stores["HybridDeployment"].by(POOL, key):
            self._hybrid(key_of(hybrid))

    def _node_changed(self, old: Json | None, new: Json | None) -> None:
        before, after = (_labels(item) if item else [] for item in (old, new))
        if before != after:
            for key in self.stores["HybridDeployment"].keys():  # noqa: SIM118  a store is no dict
                self._hybrid(key)


def _labels(node: Json) -> list[str]:
    labels: Mapping[str, str] = node["metadata"].get("labels") or {}
    return sorted(f"{key}={value}" for key, value in labels.items())


def _differs(old: Json, new: Json) -> bool:
    """Whether anything changed that the operator reads, which the status is not."""

    def rest(item: Json) -> Iterable[object]:
        metadata = item["metadata"]
        slower = (metadata.get("annotations") or {}).get(SLOWDOWN)
        return (metadata["uid"], metadata["generation"], metadata.get("deletionTimestamp"), slower)

    return rest(old) != rest(new)
