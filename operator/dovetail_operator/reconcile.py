"""One deployment: see, decide, act; the same whatever happened before.

Nothing here asks what event led to it. It looks at the whole deployment in the stores, works out
what should be, writes what differs by its digest, deletes what should not be, and says how things
stand. It may be killed between any two writes: the next run sees what is there and goes on. What
cannot be written now raises, and its key comes back later and later; what a person must change
becomes a condition and does not come back by itself.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from pydantic import ValidationError

from dovetail.api import HybridDeployment
from dovetail.errors import BundleError, DovetailError, ManifestError, Unavailable, UnknownRung
from dovetail.status import Status, moment
from dovetail_operator import conditions, desired, edges
from dovetail_operator.client import STATUS_MANAGER, Api, ApiError, Conflict, Json
from dovetail_operator.conditions import AS_EXPECTED, WAITS_FOR_BUNDLE, Finding, Findings
from dovetail_operator.events import Events
from dovetail_operator.hands import Hand, Hands
from dovetail_operator.moving import Mover
from dovetail_operator.names import HYBRIDS, collection, path_of, same, stamped
from dovetail_operator.partition import outcome
from dovetail_operator.pools import Pools, parse
from dovetail_operator.record import Record, partition_hash
from dovetail_operator.registry import RegistryReader
from dovetail_operator.trust import Trust
from dovetail_operator.world import CHILDREN, OWNER, World, pool_key

_TOLD: Final = ("Partitioned", "TailAvailable", "EdgeAvailable", "Degraded", "Ready")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the bundle is.

    Attributes:
        record: the bundle in use; None before there is one.
        job: the Job that makes this spec's, where one is wanted.
        failure: why there is no bundle of this spec.
    """

    record: Record | None
    job: Json | None = None
    failure: str | None = None


class Reconciler:
    """Reconciles deployments.

    Args:
        api: the API server, fenced.
        world: what is known.
        registry: where bundles are.
        hands: slow hands.
        pools: places of tails.
        mover: whether ledgers answer.
        events: what people are told.
        trust: the authority that devices trust.
    """

    def __init__(
        self,
        api: Api,
        world: World,
        registry: RegistryReader,
        *,
        hands: Hands,
        pools: Pools,
        mover: Mover,
        events: Events,
        trust: Trust,
    ) -> None:
        self._api, self._world, self._registry = api, world, registry
        self._hands, self._pools, self._mover, self._events = hands, pools, mover, events
        self._trust = trust
        self._written: dict[str, int] = {}

    def reconcile(self, key: str) -> None:
        """Make one deployment what it should be.

        Raises:
            Conflict: somebody was faster; look again.
            ApiError: the API server refuses what we write.
            Unavailable: API server or registry do not answer.
        """
        hybrid = self._world.stores["HybridDeployment"].get(key)
        if hybrid is None or "deletionTimestamp" in hybrid["metadata"]:
            self._hands.drop(key)
            self._written.pop(key, None)
            return
        if int(hybrid["metadata"]["resourceVersion"]) < self._written.get(key, 0):
            return  # our own write is not back yet; it brings the key back
        try:
            deployment = parse(hybrid)
        except ValidationError as error:
            self._report(hybrid, _invalid(error))
            return
        try:
            findings = self._act(hybrid, deployment)
        except Conflict:
            raise
        except (ApiError, Unavailable) as error:
            with contextlib.suppress(Unavailable):  # where it is the API server, nobody hears it
                self._report(hybrid, _retrying(error))
            raise
        self._report(hybrid, findings)

    def _act(self, hybrid: Json, deployment: HybridDeployment) -> Findings:
        progress = self._partition(hybrid, deployment)
        record = progress.record
        degraded, hands = AS_EXPECTED, dict[str, Hand]()
        wanted: list[Json] = []
        if progress.job is not None or record is not None:
            wanted.append(desired.service_account(hybrid))
        if progress.job is not None:
            wanted.append(progress.job)
        if record is not None:
            try:
                generation = hybrid["metadata"]["generation"]
                slower = edges.slowdown(hybrid)
                hands = self._hands.ensure(deployment, generation, record)
                wanted += self._serving(hybrid, deployment, record, hands, slower)
            except (ManifestError, UnknownRung, BundleError) as error:
                degraded = Finding("True", error.code, str(error))
        self._write(hybrid, wanted, deployment, keep=degraded is not AS_EXPECTED)
        return self._find(hybrid, deployment, progress, hands, degraded)

    def _partition(self, hybrid: Json, deployment: HybridDeployment) -> Progress:
        """The bundle in use, and what is done to have the one of this spec."""
        record = Record.read(self._world.child("ConfigMap", hybrid, "plan"))
        wanted = partition_hash(deployment)
        if record is not None and record.partition == wanted:
            return Progress(record)
        if deployment.spec.model.uri.startswith("file:"):
            return Progress(record)
        job = desired.partition_job(hybrid, deployment, self._world.config)
        found = self._world.owned("Job", hybrid, job["metadata"]["name"])
        if found is None:
            return Progress(record, job)
        ended = outcome(self._api, self._registry, found, wanted)
        if ended is None:
            return Progress(record, job)
        return Progress(ended.record or record, job, ended.failure)

    def _serving(
        self,
        hybrid: Json,
        deployment: HybridDeployment,
        record: Record,
        hands: Mapping[str, Hand],
        slower: str | None,
    ) -> list[Json]:
        """The plan's ConfigMap, what runs on edge nodes, and where groups of devices join."""
        config, ca = self._world.config, self._trust.pem()
        pool = pool_key(hybrid, config)
        reach = edges.access(deployment, pool, config, ca)
        outside = edges.external_access(deployment, pool, config, ca)
        plans = {name: hand.state.plan for name, hand in hands.items()}
        wanted = [stamped(record.config_map(hybrid, plans, ca))]
        for item in deployment.spec.edge.classes:
            if item.node_selector:
                wanted += edges.edge(hybrid, item, reach, config, slower=slower)
            elif item.device_group is not None and outside is not None:
                wanted.append(edges.joining(hybrid, item, outside))
        return wanted

    def _write(
        self, hybrid: Json, wanted: list[Json], deployment: HybridDeployment, *, keep: bool
    ) -> None:
        """Create missing tokens; apply what differs; delete what is ours and not wanted."""
        names = {(item["kind"], item["metadata"]["name"]) for item in wanted}
        if any(kind == "ConfigMap" for kind, _ in names):
            names |= self._tokens(hybrid, deployment)
        for item in wanted:
            found = self._world.owned(item["kind"], hybrid, item["metadata"]["name"])
            if item["kind"] == "Secret" and found is None:
                continue  # its token was just made; the store will say so
            if not same(item, found) and not (found is not None and item["kind"] == "Job"):
                self._api.apply(path_of(item), item, seen=found)
        if keep:
            return  # what runs goes on until a person has put it right
        names.add(("Job", desired.partition_job_name(deployment)))
        self._prune(hybrid, names)

    def _tokens(self, hybrid: Json, deployment: HybridDeployment) -> set[tuple[str, str]]:
        """Make the tokens that are missing, before the plan: a tail starts with them all."""
        names: set[tuple[str, str]] = set()
        for item in deployment.spec.edge.classes:
            found = self._world.child("Secret", hybrid, "token", item.name)
            secret = found or edges.token_secret(hybrid, item.name, item.device_group)
            names.add(("Secret", secret["metadata"]["name"]))
            if found is None:
                try:
                    self._api.create(collection("Secret", hybrid["metadata"]["namespace"]), secret)
                except Conflict:
                    continue  # it is there; the store will say so
        return names

    def _prune(self, hybrid: Json, names: set[tuple[str, str]]) -> None:
        for kind in CHILDREN:
            for item in self._world.stores[kind].by(OWNER, hybrid["metadata"]["uid"]):
                metadata = item["metadata"]
                if (kind, metadata["name"]) not in names:
                    path = f"{collection(kind, metadata['namespace'])}/{metadata['name']}"
                    self._api.delete(path, metadata["uid"])

    def _find(
        self,
        hybrid: Json,
        deployment: HybridDeployment,
        progress: Progress,
        hands: Mapping[str, Hand],
        degraded: Finding,
    ) -> Findings:
        record, pool = progress.record, pool_key(hybrid, self._world.config)
        classes = deployment.spec.edge.classes
        sets = {c.name: self._world.child("DaemonSet", hybrid, "edge", c.name) for c in classes}
        nodes = {c.name: self._world.nodes(c.node_selector) for c in classes}
        current = record is not None and record.partition == partition_hash(deployment)
        edge = conditions.edge_available(classes, sets, nodes)
        if record is None and edge.reason == "EdgesNotReady":
            edge = WAITS_FOR_BUNDLE
        return Findings(
            partitioned=conditions.partitioned(
                deployment, progress.job, progress.failure, current=current
            ),
            tail=self._pools.tail_available(hybrid, pool, record),
            edge=edge,
            moving=conditions.moving(deployment, hands, ledger=self._mover.answers(pool)),
            degraded=degraded,
            bundle=record.bundle if record is not None else None,
            classes=conditions.class_statuses(hands),
        )

    def _report(self, hybrid: Json, findings: Findings) -> None:
        """Write the status where it differs, and tell people of conditions that changed."""
        stored = hybrid.get("status") or {}
        previous = {one["type"]: one for one in stored.get("conditions") or ()}
        if not findings.classes and findings.degraded.status == "True":
            known = Status.model_validate(stored).classes if _readable(stored) else ()
            findings = replace(findings, classes=known, bundle=stored.get("bundle"))
        status = conditions.status_of(
            findings, hybrid["metadata"]["generation"], previous, moment(time.time())
        )
        document = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        if document == stored:
            return
        metadata = {key: hybrid["metadata"][key] for key in ("name", "namespace")}
        head = {"apiVersion": hybrid["apiVersion"], "kind": hybrid["kind"], "metadata": metadata}
        root, leaf = HYBRIDS.rsplit("/", 1)
        path = f"{root}/namespaces/{metadata['namespace']}/{leaf}/{metadata['name']}/status"
        written = self._api.apply(
            path, {**head, "status": document}, seen=hybrid, manager=STATUS_MANAGER
        )
        key = f"{metadata['namespace']}/{metadata['name']}"
        self._written[key] = int(written["metadata"]["resourceVersion"])
        self._tell(hybrid, document["conditions"], previous)

    def _tell(self, hybrid: Json, now: list[Json], before: Mapping[str, Json]) -> None:
        for condition in now:
            name, old = condition["type"], before.get(condition["type"]) or {}
            if not _is_news(condition, old):
                continue
            good = condition["status"] == ("False" if name == "Degraded" else "True")
            kind: Literal["Normal", "Warning"] = "Warning"
            if good or condition["reason"] in _UNDER_WAY:
                kind = "Normal"
            self._events.emit(hybrid, kind, condition["reason"], name, condition["message"])


_UNDER_WAY: Final = frozenset({"Partitioning", "TailDeploying", "EdgesNotReady"})


def _is_news(condition: Json, old: Json) -> bool:
    """Whether people are told: what sums up when it turns, a cause when its reason changes."""
    name, status = condition["type"], condition["status"]
    if name not in _TOLD or status == "Unknown":
        return False
    if name in ("Ready", "Degraded"):
        return bool(status != old.get("status", "False"))
    return bool(condition["reason"] != old.get("reason"))


def _readable(stored: Json) -> bool:
    try:
        Status.model_validate(stored)
    except ValidationError:
        return False
    return True


def _invalid(error: ValidationError) -> Findings:
    """The resource was admitted by another version of its definition."""
    faults = "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
    )
    return _nothing(Finding("True", "InvalidSpec", f"The spec does not hold: {faults}"))


def _retrying(error: DovetailError) -> Findings:
    message = f"What this deployment needs could not be done, and is tried again: {error}"
    return _nothing(Finding("True", "Retrying", message))


def _nothing(degraded: Finding) -> Findings:
    unknown = Finding("Unknown", degraded.reason, degraded.message)
    return Findings(unknown, unknown, unknown, unknown, degraded)
