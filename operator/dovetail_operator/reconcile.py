"""One deployment: see, decide, act; the same whatever happened before.

Nothing here asks what event led to it. It looks at the whole deployment in the stores, works out
what should be, writes what differs by its digest, deletes what should not be, and says how things
stand. It may be killed between any two writes: the next run sees what is there and goes on. What
cannot be written now raises, and its key comes back later and later; what a person must change
becomes a condition and does not come back by itself.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from pydantic import ValidationError

from dovetail.api import HybridDeployment, seconds
from dovetail.errors import BundleError, ManifestError, Unavailable, UnknownRung
from dovetail.placement import DEDICATED
from dovetail_operator import conditions, desired, edges
from dovetail_operator.classes import class_statuses, moves_told
from dovetail_operator.client import Api, ApiError, Conflict, Json
from dovetail_operator.conditions import (
    AS_EXPECTED,
    WAITS_FOR_BUNDLE,
    Finding,
    Findings,
)
from dovetail_operator.devices import Joined, edge_available
from dovetail_operator.hands import Hand, Hands
from dovetail_operator.ledger import Presence
from dovetail_operator.metrics import TERMINAL_ERRORS
from dovetail_operator.moving import Mover
from dovetail_operator.names import child_name, collection, path_of, same, stamped
from dovetail_operator.pools import Pools, parse
from dovetail_operator.record import Record
from dovetail_operator.reporting import Reporter, found_before, invalid, retrying, said, taken
from dovetail_operator.rollout import Stand
from dovetail_operator.trust import Trust
from dovetail_operator.versions import KIND, Progress, Versions, names_to_keep
from dovetail_operator.world import CHILDREN, OWNER, World, pool_key

_CONTROLLER: Final = "hybriddeployment"
_BEHIND: Final = 0.2  # seconds; a status that comes back is no event that brings a key back
_LASTING: Final = 6  # conflicts in a row, over some ten seconds, that are no race any more
_MEASURED: Final = ("Measuring", "NoRequests")


class Reconciler:
    """Reconciles deployments.

    Args:
        api: the API server, fenced.
        world: what is known.
        versions: finds and keeps versions.
        hands: slow hands.
        pools: places of tails.
        mover: whether ledgers answer.
        reporter: writes statuses.
        trust: the authority that devices trust.
    """

    def __init__(
        self,
        api: Api,
        world: World,
        versions: Versions,
        *,
        hands: Hands,
        pools: Pools,
        mover: Mover,
        reporter: Reporter,
        trust: Trust,
    ) -> None:
        self._api, self._world, self._versions = api, world, versions
        self._hands, self._pools, self._mover = hands, pools, mover
        self._reporter, self._trust = reporter, trust
        self._conflicts: Counter[str] = Counter()

    def reconcile(self, key: str) -> float | None:
        """Make one deployment what it should be.

        Returns:
            Seconds after which to look again though nothing changes; None for no need to.

        Raises:
            Conflict: somebody was faster; look again.
            ApiError: the API server refuses what we write.
            Unavailable: API server or registry do not answer.
        """
        hybrid = self._world.stores["HybridDeployment"].get(key)
        if hybrid is None or "deletionTimestamp" in hybrid["metadata"]:
            self._hands.drop(key)
            self._mover.forget(key)
            self._reporter.forget(key)
            self._conflicts.pop(key, None)
            return None
        if self._reporter.is_behind(hybrid):
            return _BEHIND
        try:
            deployment = parse(hybrid)
        except ValidationError as error:
            TERMINAL_ERRORS.labels(_CONTROLLER).inc()
            self._reporter.report(hybrid, invalid(hybrid, error))
            return None
        try:
            progress, findings = self._act(hybrid, deployment)
        except Conflict as error:
            self._conflicts[key] += 1
            if self._conflicts[key] >= _LASTING:
                with contextlib.suppress(Conflict, Unavailable):
                    self._reporter.report(hybrid, taken(hybrid, error))
            raise
        except (ApiError, Unavailable) as error:
            with contextlib.suppress(Unavailable):  # where it is the API server, nobody hears it
                self._reporter.report(hybrid, retrying(hybrid, error))
            raise
        self._conflicts.pop(key, None)
        self._reporter.report(hybrid, findings)
        waits = [progress.again]
        if progress.record is not None:
            retain = seconds(deployment.spec.rollout.retain)
            waits.append(progress.record.stand.look_again(retain, time.time()))
        return min((wait for wait in waits if wait is not None), default=None)

    def _act(self, hybrid: Json, deployment: HybridDeployment) -> tuple[Progress, Findings]:
        now = time.time()
        progress = self._roll(hybrid, deployment, now)
        record, wrong, hands = progress.record, AS_EXPECTED, dict[str, Hand]()
        wanted: list[Json] = []
        if deployment.spec.cloud.pool == DEDICATED:
            config = self._world.config
            wanted += desired.pool_policy(hybrid, pool_key(hybrid, config), config)
        if progress.job is not None or record is not None:
            wanted.append(desired.service_account(hybrid))
        if progress.job is not None:
            wanted.append(progress.job)
        if record is not None and self._may_serve(hybrid, deployment):
            try:
                generation = hybrid["metadata"]["generation"]
                slower = edges.slowdown(hybrid)
                told = moves_told(said(hybrid))
                hands = self._hands.ensure(deployment, generation, record, told)
                wanted += self._serving(hybrid, deployment, record, hands, slower)
            except (ManifestError, UnknownRung, BundleError) as error:
                TERMINAL_ERRORS.labels(_CONTROLLER).inc()
                wrong = Finding("True", error.code, str(error))
        self._write(hybrid, wanted, deployment, progress, keep=wrong is not AS_EXPECTED)
        return progress, self._find(hybrid, deployment, progress, hands, wrong)

    def _roll(self, hybrid: Json, deployment: HybridDeployment, now: float) -> Progress:
        """The next step of a rollout: what is asked for is staged, goes live, or is refused."""
        progress = self._versions.progress(hybrid, deployment, now)
        record = progress.record
        if record is None:
            return progress
        key, pool = deployment.key, pool_key(hybrid, self._world.config)
        generation, live = hybrid["metadata"]["generation"], record.bundle
        stand = record.stand.towards(live, progress.wanted, generation, now)
        for bundle in filter(None, (stand.staged, live)):
            tail = self._pools.application(pool, key, bundle)
            if tail is None or not stand.settled(bundle, now):
                continue
            if tail.running and bundle == stand.staged:
                return self._switch(hybrid, progress, stand, now)
            # In a cluster that is in service the live tail stays: it ran, and may again.
            if tail.failed and not (tail.active and bundle == live):
                stand = stand.without(bundle, generation, tail.message, now)
        retain = seconds(deployment.spec.rollout.retain)
        stand = stand.released(self._mover.reported(pool, key), retain)
        return replace(progress, record=replace(record, stand=stand))

    def _switch(self, hybrid: Json, progress: Progress, stand: Stand, now: float) -> Progress:
        """The staged version's tail serves: have plans name it, and keep what was live."""
        old, staged = progress.record, stand.staged
        assert old is not None
        assert staged is not None
        loaded = self._versions.load(hybrid, staged)
        if loaded is None:
            return replace(progress, record=replace(old, stand=stand))
        self._versions.keep(hybrid, old, now)
        record = replace(loaded, plans=old.plans, stand=stand.switched(old.bundle, now))
        return replace(progress, record=record)

    def _may_serve(self, hybrid: Json, deployment: HybridDeployment) -> bool:
        """Whether the tail has a place, without which edges never get a bundle, or once had one."""
        pool = pool_key(hybrid, self._world.config)
        made = self._world.child("ConfigMap", hybrid, "plan")
        return made is not None or self._pools.has_place(pool, deployment.key)

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
        self,
        hybrid: Json,
        wanted: list[Json],
        deployment: HybridDeployment,
        progress: Progress,
        *,
        keep: bool,
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
        record = progress.record
        running = {progress.wanted} if progress.wanted is not None else set[str]()
        if record is not None:
            running |= {record.bundle, *record.stand.applications(record.bundle)}
        names |= {(KIND, name) for name in names_to_keep(hybrid, progress.kept, running)}
        self._prune(hybrid, names)

    def _tokens(self, hybrid: Json, deployment: HybridDeployment) -> set[tuple[str, str]]:
        """Make the tokens that are missing, before the plan: a tail starts with them all.

        Raises:
            Conflict: a Secret of that name is there and is not seen as ours.
        """
        names: set[tuple[str, str]] = set()
        for item in deployment.spec.edge.classes:
            found = self._world.child("Secret", hybrid, "token", item.name)
            secret = found or edges.token_secret(hybrid, item.name, item.device_group)
            names.add(("Secret", secret["metadata"]["name"]))
            if found is None:
                # Where it is there already the store will say so soon, or it is somebody else's.
                self._api.create(collection("Secret", hybrid["metadata"]["namespace"]), secret)
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
        wrong: Finding,
    ) -> Findings:
        record, pool = progress.record, pool_key(hybrid, self._world.config)
        found = conditions.partitioned(deployment, progress)
        full = record is not None and self._pools.is_full_for(
            pool, deployment.key, record.stand.staged or ""
        )
        if wrong is AS_EXPECTED:
            wrong = conditions.degraded(found, record, full=full)
        if wrong is AS_EXPECTED and record is not None:
            wrong = self._pools.refused(pool) or wrong
        return Findings(
            partitioned=found,
            tail=self._pools.tail_available(hybrid, pool, record),
            edge=self._edge_available(hybrid, deployment, record),
            moving=self._moving(hybrid, deployment, hands),
            degraded=wrong,
            bundle=record.bundle if record is not None else None,
            classes=class_statuses(
                hands,
                self._mover.presence(deployment.key),
                said(hybrid, record.bundle) if record is not None else {},
            ),
            versions=conditions.version_statuses(progress),
            rolling=conditions.rolling(found, record),
        )

    def _moving(
        self, hybrid: Json, deployment: HybridDeployment, hands: Mapping[str, Hand]
    ) -> Finding:
        answers = self._mover.answers(pool_key(hybrid, self._world.config))
        before = found_before(hybrid, "Moving")
        if answers is None and hands and before is not None and before.reason in _MEASURED:
            return before  # this process has just started
        return conditions.moving(deployment, hands, ledger=bool(answers))

    def _edge_available(
        self, hybrid: Json, deployment: HybridDeployment, record: Record | None
    ) -> Finding:
        classes = deployment.spec.edge.classes
        sets = {c.name: self._world.child("DaemonSet", hybrid, "edge", c.name) for c in classes}
        nodes = {c.name: self._world.nodes(c.node_selector) for c in classes}
        joined = {
            c.name: self._joined(hybrid, deployment, c.name) for c in classes if c.device_group
        }
        edge = edge_available(classes, sets, nodes, joined)
        waits = ("EdgesNotReady", "NoDeviceJoined", "DevicesSilent")
        return WAITS_FOR_BUNDLE if record is None and edge.reason in waits else edge

    def _joined(self, hybrid: Json, deployment: HybridDeployment, name: str) -> Joined:
        """What is known of a class whose devices join from outside the cluster."""
        config = self._world.config
        reach = edges.external_access(deployment, pool_key(hybrid, config), config, None)
        secret = child_name(hybrid["metadata"]["name"], "token", name)
        presence = self._mover.presence(deployment.key)
        if presence is not None:
            seen = presence.get(name, Presence(0, 0, 0.0))
            return Joined(secret, reach is not None, seen.known, seen.connected)
        before = said(hybrid).get(name)
        if before is None or before.devices is None:
            return Joined(secret, reach is not None)
        return Joined(secret, reach is not None, before.devices.known, before.devices.connected)
