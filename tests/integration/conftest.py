"""One real pool for all integration tests; each test adds the tails it needs."""

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.integration.joins import Group

from dovetail.pool import LEDGER_APPLICATION, LedgerApp, TailApp, serve_config
from dovetail_cli.ray_pool import RayPool
from dovetail_serving.intake import token_digest

OPERATOR_TOKEN = "operator"


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A pool and what runs in it."""

    pool: RayPool
    tails: dict[str, TailApp] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Host and port of the ingress."""
        return f"{self.pool.host}:{self.pool.port}"

    def serve(self, *tails: TailApp) -> None:
        """Add tails, or replace those of the same application, and wait until they run."""
        self.tails |= {tail.application: tail for tail in tails}
        self._apply()

    def drop(self, *tails: TailApp) -> None:
        """Take tails away again."""
        for tail in tails:
            self.tails.pop(tail.application, None)
        self._apply()

    def _apply(self) -> None:
        ledger = LedgerApp(token_digest(OPERATOR_TOKEN))
        self.pool.apply(
            serve_config(self.tails.values(), ledger, host=self.pool.host, port=self.pool.port)
        )

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(self.pool.host, self.pool.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def ledger(self, seconds: int = 60) -> dict[str, Any]:
        """What the ledger has to say."""
        headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
        path = f"/{LEDGER_APPLICATION}/v1/windows?seconds={seconds}"
        found: dict[str, Any] = self.call("GET", path, headers=headers).json()
        return found

    def replica_pids(self, application: str) -> list[int]:
        """Pids of the running replicas of an application."""
        deployments = self.pool.status()["applications"][application]["deployments"]
        return [
            replica["pid"]
            for deployment in deployments.values()
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        ]


@pytest.fixture(scope="session")
def ray_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A real Ray Serve, started once and ended with the session."""
    with RayPool(tmp_path_factory.mktemp("pool"), cpus=8) as pool:
        yield Served(pool)


@pytest.fixture(scope="session")
def group(ray_pool: Served, tmp_path_factory: pytest.TempPathFactory) -> Group:
    """A deployment with two versions, whose devices join."""
    return Group(ray_pool, tmp_path_factory.mktemp("joins"))
