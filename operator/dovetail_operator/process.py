"""One operator process: watches always, writes only while it leads.

A standby keeps its stores full, so that taking over is a matter of the Lease alone. A leader that
loses the Lease ends with exit code 1 and is started again: what it was about to write was decided
on a state that may be another operator's past.
"""

import base64
import hashlib
import logging
import os
import random
import threading
from collections.abc import Mapping
from functools import partial
from typing import Final

from kubernetes.client import ApiClient

from dovetail.registry import Registry
from dovetail_operator.client import Absent, Api, Conflict, Json
from dovetail_operator.config import Config
from dovetail_operator.controller import Controller
from dovetail_operator.edges import token_secret
from dovetail_operator.events import Events
from dovetail_operator.hands import Hands
from dovetail_operator.lease import Lease, Terms
from dovetail_operator.ledger import Ledger
from dovetail_operator.moving import Mover
from dovetail_operator.names import collection
from dovetail_operator.pools import Pools
from dovetail_operator.reconcile import Reconciler
from dovetail_operator.reporting import Reporter
from dovetail_operator.trust import Trust
from dovetail_operator.versions import Versions
from dovetail_operator.workqueue import WorkQueue
from dovetail_operator.world import World

log = logging.getLogger("dovetail.operator")

LEASE: Final = "dovetail-operator"
_WORKERS: Final = 12
_POOL_WORKERS: Final = 2
_GATHER: Final = 0.3  # seconds in which changes of a pool's members become one write
_RESYNC: Final = 10 * 3600.0  # seconds
_GRACE: Final = 5.0  # shorter than the Lease is sure for


class Operator:
    """Everything that one process runs.

    Args:
        client: the connection to the API server.
        config: what the chart decides.
        namespace: the only namespace to watch; empty for all.
        identity: who this process is.
        terms: how long the Lease lasts.
    """

    def __init__(
        self, client: ApiClient, config: Config, *, namespace: str, identity: str, terms: Terms
    ) -> None:
        self._api, self._config = Api(client), config
        self._hybrids, self._pools = WorkQueue("hybriddeployment"), WorkQueue("pool")
        self.world = World(
            self._api,
            config,
            namespace,
            hybrid=self._hybrids.add,
            pool=partial(self._pools.add_after, seconds=_GATHER),
        )
        path = collection("Lease", config.namespace)
        self.lease = Lease(self._api, path, LEASE, identity, terms, owner=self._release)
        self._identity = identity
        self._trust = Trust(config.endpoint_ca)
        self._ended = threading.Event()
        self._stop: list[Controller] = []
        self._mover: Mover | None = None

    def run(self) -> int:
        """Run until stopped; returns the exit code."""
        self.world.start()
        kept = self.lease.run(self._lead)
        if not kept:
            log.error("the Lease is lost; ending")
            return 1
        if self._mover is not None:
            self._mover.stop()
        self._trust.stop()
        self._ended.set()
        for controller in self._stop:
            controller.stop(_GRACE)
        self.lease.release()
        self.world.stop()
        return 0

    def stop(self) -> None:
        """Let `run` return once the work at hand is done."""
        self.lease.stop()

    def _lead(self) -> None:
        """Begin to write; called once, when the Lease is held."""
        threading.Thread(target=self._work, name="work", daemon=True).start()

    def _work(self) -> None:
        try:
            for informer in self.world.informers.values():
                informer.synced.wait()
            self._begin()
        except Exception:
            log.exception("the operator cannot begin")
            os._exit(1)

    def _begin(self) -> None:
        api, config = self._api.fenced(self.lease.remaining), self._config
        release = self._release()
        token = ledger_token(api, release)
        hands, events = Hands(), Events(api, self._identity)
        digest = hashlib.sha256(token.encode()).hexdigest()
        pools = Pools(api, self.world, release, digest, self._hybrids.add)
        self._mover = Mover(self.world, hands, Ledger(token), self._hybrids.add)
        reconciler = Reconciler(
            api,
            self.world,
            Versions(api, self.world, Registry.at(config.registry.target)),
            hands=hands,
            pools=pools,
            mover=self._mover,
            reporter=Reporter(api, events),
            trust=self._trust,
        )
        self._stop = self._controllers(reconciler, pools)
        self.world.everything()
        for controller in self._stop:
            controller.start()
        self._trust.watch(self.world.everything)
        threading.Thread(target=self._resync, name="resync", daemon=True).start()
        self._mover.run(pools)

    def _controllers(self, reconciler: Reconciler, pools: Pools) -> list[Controller]:
        return [
            Controller(
                "hybriddeployment",
                reconciler.reconcile,
                self._lost,
                workers=_WORKERS,
                queue=self._hybrids,
                about=self._known,
            ),
            Controller(
                "pool",
                pools.reconcile,
                self._lost,
                workers=_POOL_WORKERS,
                rest=_rest,
                queue=self._pools,
            ),
        ]

    def _release(self) -> Json:
        """The ConfigMap of the release, with which all goes that the operator made for itself."""
        path = f"{collection('ConfigMap', self._config.namespace)}/{self._config.release}"
        return self._api.get(path) | {"apiVersion": "v1", "kind": "ConfigMap"}

    def _known(self, key: str) -> Mapping[str, object]:
        """What logs say of a deployment besides its name."""
        metadata = (self.world.stores["HybridDeployment"].get(key) or {}).get("metadata", {})
        return {name: metadata.get(name) for name in ("uid", "generation")}

    def _resync(self) -> None:
        """Look at everything now and then, whatever events were lost."""
        while not self._ended.wait(_RESYNC * random.uniform(0.9, 1.1)):  # noqa: S311  spreads load
            self.world.everything()

    def _lost(self) -> None:
        log.error("the Lease is lost; ending")
        os._exit(1)


def _rest(took: float) -> float:
    """How long a worker of pools rests after `took` seconds of work.

    No write costs the API server as much as a pool's. So at most a tenth of a worker's time goes
    into it, and a slow API server is asked less; not for long, as it may have been away.
    """
    return min(10.0 * took, 2.0)


def ledger_token(api: Api, release: Json) -> str:
    """The token with which the operator reads ledgers, made once and kept in a Secret."""
    body = token_secret(release, "ledger")
    path = collection("Secret", release["metadata"]["namespace"])
    try:
        found = api.get(f"{path}/{body['metadata']['name']}")
    except Absent:
        try:
            found = api.create(path, body)
        except Conflict:
            found = api.get(f"{path}/{body['metadata']['name']}")
    return base64.b64decode(found["data"]["token"]).decode()
