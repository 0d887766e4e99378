"""A cluster as the tests use it, whoever made it."""

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
from tests.kube.apiserver import Json, Refused
from tests.kube.binaries import Binary

# what the nodes carry that are devices, and what keeps others away from them
EDGE_LABEL: Final = ("dovetail.dev/edge", "true")
EDGE_TAINT: Final = {"key": "dovetail.dev/edge", "operator": "Exists", "effect": "NoSchedule"}


@dataclass(frozen=True)
class Cluster(ABC):
    """A running cluster.

    Attributes:
        folder: what tests write beside it.
        kubeconfig: for `kubectl`, `helm` and client libraries, as KUBECONFIG has it.
        programs: programs by name, `kubectl` and `helm` among them.
        client: an HTTP client of the API server that may do everything.
    """

    folder: Path
    kubeconfig: str
    programs: Mapping[str, Binary]
    client: httpx2.Client

    @property
    @abstractmethod
    def entry(self) -> str:
        """Address of a node, at which devices outside the cluster come in."""

    @abstractmethod
    def asked(self, service: Json) -> AbstractContextManager[tuple[list[str], str]]:
        """A way to ask a Service of port 8000 as apps on the edge node do.

        Gives the prefix of a command that asks, and the `host:port` that it asks.
        """

    @property
    def edges(self) -> list[Json]:
        """The nodes that are devices."""
        path, selector = "/api/v1/nodes", {"labelSelector": "=".join(EDGE_LABEL)}
        found: list[Json] = self.request("GET", path, params=selector)["items"]
        return found

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> Json:
        """One request to the API server; raises `Refused` where the answer is 400 or above."""
        answer = self.client.request(method, path, json=body, **options)
        content: Json = answer.json()
        if answer.is_error:
            raise Refused(answer.status_code, content.get("message", answer.text))
        return content

    def has(self, path: str) -> bool:
        """Whether there is such an object."""
        return self.client.get(path).is_success

    def pods(self, namespace: str, selector: str) -> list[Json]:
        """Pods that are not on their way out.

        Args:
            namespace: where they are.
            selector: labels, as kubectl takes them.
        """
        path = f"/api/v1/namespaces/{namespace}/pods"
        found = self.request("GET", path, params={"labelSelector": selector})["items"]
        return [item for item in found if "deletionTimestamp" not in item["metadata"]]

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl; returns what it said, raises `RuntimeError` with it where it fails."""
        return self._program("kubectl", *arguments, text=text)

    def helm(self, *arguments: str) -> str:
        """Run helm; returns what it said, raises `RuntimeError` with it where it fails."""
        return self._program("helm", *arguments)

    def _program(self, name: str, *arguments: str, text: str | None = None) -> str:
        command = [str(self.programs[name].path), *arguments]
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"KUBECONFIG": self.kubeconfig},
        )
        if done.returncode:
            raise RuntimeError(f"{name} {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout
