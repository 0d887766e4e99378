"""The versions of a deployment: the one in use, the one its spec asks for, and those before.

A version that is not live is kept as a `ControllerRevision`, Kubernetes' own object for what a
workload was before: it cannot be changed, so what is gone back to is what was. Of these only
metadata is watched; a bundle's description and costs are read when the version goes live again.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dovetail.api import HybridDeployment
from dovetail.registry import Registry
from dovetail.status import moment
from dovetail_operator import desired
from dovetail_operator.client import Api, Json
from dovetail_operator.names import (
    BUNDLE,
    MADE,
    MODEL,
    PARTITION,
    child,
    child_name,
    collection,
    path_of,
    stamped,
)
from dovetail_operator.partition import Outcome, outcome
from dovetail_operator.record import Record, partition_hash
from dovetail_operator.rollout import short
from dovetail_operator.world import OWNER, World

KIND: Final = "ControllerRevision"
KEPT: Final = 5  # versions that can be gone back to, beside those that run


@dataclass(frozen=True, slots=True)
class Version:
    """A version that is kept.

    Attributes:
        bundle: its manifest digest.
        partition: `partition_hash` of the spec it was made from.
        model: the model's source.
        made: when it was kept, RFC 3339.
        name: name of the object that keeps it.
    """

    bundle: str
    partition: str
    model: str
    made: str
    name: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the version that a spec asks for is.

    Attributes:
        record: the live version; None before there is one.
        wanted: digest of the version asked for; None while there is none.
        job: the Job that makes it, where one is wanted.
        failure: why there is none.
        kept: versions that are kept, newest first.
        waits: what the Job waits for that does not come by itself; None for nothing.
        again: seconds after which to look at the Job again; None for no need.
    """

    record: Record | None
    wanted: str | None = None
    job: Json | None = None
    failure: str | None = None
    kept: Sequence[Version] = ()
    waits: str | None = None
    again: float | None = None

    @property
    def current(self) -> bool:
        """Whether the version asked for is made."""
        return self.wanted is not None


class Versions:
    """Finds, makes and keeps versions.

    Args:
        api: the API server, fenced.
        world: what is known.
        registry: where bundles are.
    """

    def __init__(self, api: Api, world: World, registry: Registry) -> None:
        self._api, self._world, self._registry = api, world, registry

    def kept(self, hybrid: Json) -> list[Version]:
        """Versions that are kept, newest first."""
        found = [
            _version(item)
            for item in self._world.stores[KIND].by(OWNER, hybrid["metadata"]["uid"])
            if BUNDLE in (item["metadata"].get("annotations") or {})
        ]
        return sorted(found, key=lambda version: version.made, reverse=True)

    def progress(self, hybrid: Json, deployment: HybridDeployment, now: float) -> Progress:
        """The version in use, and what is done to have the one that the spec asks for.

        Raises:
            Unavailable: API server or registry do not answer.
        """
        record = Record.read(self._world.child("ConfigMap", hybrid, "plan"))
        kept = self.kept(hybrid)
        back, wanted = deployment.spec.rollout.rollback, partition_hash(deployment)
        if back is not None:
            known = {version.bundle for version in kept} | ({record.bundle} if record else set())
            if back in known:
                return Progress(record, back, kept=kept)
            failure = f"spec.rollout.rollback is {back}, which is no version of this deployment"
            return Progress(record, failure=f"{failure}; see status.versions.", kept=kept)
        if record is not None and record.partition == wanted:
            return Progress(record, record.bundle, kept=kept)
        made = next((version for version in kept if version.partition == wanted), None)
        if made is not None and record is not None:
            return Progress(record, made.bundle, kept=kept)
        if deployment.spec.model.uri.startswith("file:"):
            return Progress(record, kept=kept)
        return replace(self._made(hybrid, deployment, record, wanted, now), kept=kept)

    def _made(
        self,
        hybrid: Json,
        deployment: HybridDeployment,
        record: Record | None,
        wanted: str,
        now: float,
    ) -> Progress:
        """What the Job of this spec made."""
        job = desired.partition_job(hybrid, deployment, self._world.config)
        found = self._world.owned("Job", hybrid, job["metadata"]["name"])
        ended = Outcome()
        if found is not None:
            ended = outcome(self._api, self._registry, found, wanted, now)
        if ended.record is None:
            why = ended.failure
            return Progress(record, None, job, why, waits=ended.waits, again=ended.again)
        source = deployment.spec.model.uri
        made = replace(ended.record, model=source, made=moment(now))
        if record is None:
            return Progress(made, made.bundle, job)
        if record.bundle == made.bundle:  # another spec, and the very same bytes
            made = replace(made, plans=record.plans, stand=record.stand)
            return Progress(made, made.bundle, job)
        self.keep(hybrid, made, now)
        return Progress(record, made.bundle, job)

    def keep(self, hybrid: Json, record: Record, now: float) -> None:
        """Keep a version, so that it can be gone to or back to."""
        body = child(KIND, hybrid, "version", short(record.bundle))
        body["metadata"]["annotations"] = {
            BUNDLE: record.bundle,
            PARTITION: record.partition,
            MODEL: record.model,
            MADE: record.made,
        }
        found = self._world.owned(KIND, hybrid, body["metadata"]["name"])
        if found is None:
            body = stamped({**body, "revision": int(now), "data": record.data})
            self._api.apply(path_of(body), body, seen=None)

    def load(self, hybrid: Json, bundle: str) -> Record | None:
        """A version that is kept, whole; None where somebody deleted it."""
        found = self._world.owned(KIND, hybrid, _name(hybrid, bundle))
        if found is None:
            return None
        path = f"{collection(KIND, found['metadata']['namespace'])}/{found['metadata']['name']}"
        return Record.read(self._api.get(path))


def names_to_keep(hybrid: Json, kept: Sequence[Version], running: Collection[str]) -> set[str]:
    """Names of the objects of the newest versions and of those that run.

    The latter follow from the versions, not from what was seen: one that was kept a moment ago
    must not be taken for one that nobody wants.
    """
    newest = [version.name for version in kept if version.bundle not in running][:KEPT]
    return {*newest, *(_name(hybrid, bundle) for bundle in running)}


def _name(hybrid: Json, bundle: str) -> str:
    return child_name(hybrid["metadata"]["name"], "version", short(bundle))


def _version(item: Json) -> Version:
    said = item["metadata"]["annotations"]
    return Version(
        said[BUNDLE],
        said.get(PARTITION, ""),
        said.get(MODEL, ""),
        said.get(MADE, ""),
        item["metadata"]["name"],
    )
