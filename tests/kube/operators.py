"""Operator processes for tests: the real program, against the real API server."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from tests.kube.apiserver import ApiServer, Json, Refused, running
from tests.kube.binaries import find
from tests.kube.kuberay import ray_service_definition

from dovetail.crd import render
from dovetail.errors import MissingTool

NAMESPACE = "dovetail-system"
WAIT = 60.0
_STOP = 15.0


@dataclass(frozen=True, slots=True)
class OperatorProcess:
    """A running operator.

    Attributes:
        process: the process.
        log: its log.
        port: port of its probes.
    """

    process: subprocess.Popen[bytes]
    log: Path
    port: int

    def probe(self, path: str) -> int:
        """Status of a probe."""
        return httpx2.get(f"http://127.0.0.1:{self.port}{path}", timeout=10).status_code

    def metrics(self) -> dict[str, float]:
        """Every series."""
        text = httpx2.get(f"http://127.0.0.1:{self.port}/metrics", timeout=10).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def said(self) -> list[Json]:
        """Its log, parsed."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line[:1] == "{"]


def configuration(registry: str, **more: Any) -> Json:
    """A chart's decisions, for tests."""
    return {
        "release": "dovetail-release",
        "namespace": NAMESPACE,
        "images": {"edge": "edge:1", "partitioner": "partitioner:1", "serving": "serving:1"},
        "registry": {"url": registry},
        "rayVersion": "2.60.0",
        "poolUrl": "http://127.0.0.1:9",
        **more,
    }


def install(server: ApiServer) -> None:
    """Make what the chart makes before an operator starts."""
    for path, kind, name in (
        ("/api/v1/namespaces", "Namespace", NAMESPACE),
        (f"/api/v1/namespaces/{NAMESPACE}/configmaps", "ConfigMap", "dovetail-release"),
    ):
        body = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}
        try:
            server.request("POST", path, body)
        except Refused as error:
            if error.code != 409:
                raise


@contextmanager
def prepared(
    folder: Path, *, rays: bool = True, hybrids: Json | None = None
) -> Iterator[ApiServer]:
    """An API server for an operator, skipped, with what to do, where none is.

    Args:
        folder: where its state goes, empty.
        rays: whether KubeRay's `RayService` is defined beside `HybridDeployment`.
        hybrids: another definition of `HybridDeployment` than this release's.
    """
    try:
        etcd, program = find("etcd"), find("kube-apiserver")
        definitions = [yaml.safe_load(ray_service_definition().read_text())] if rays else []
    except MissingTool as error:
        pytest.skip(str(error))
    with running(folder, etcd, program) as server:
        for definition in (hybrids or yaml.safe_load(render()), *definitions):
            server.define(definition)
        install(server)
        yield server


@contextmanager
def operator(
    server: ApiServer, folder: Path, config: Json, *flags: str
) -> Iterator[OperatorProcess]:
    """Start an operator and end it, whatever happens."""
    number = len(list(folder.glob("operator-*.log")))
    file, log = folder / f"operator-{number}.yaml", folder / f"operator-{number}.log"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "dovetail_operator", f"--config={file}"]
    command += [f"--kubeconfig={server.kubeconfig}", "--host=127.0.0.1", "--port=0", *flags]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=sink, env=os.environ | {"PYTHONFAULTHANDLER": "1"}
        )
    try:
        lines = until(lambda: [x for x in _lines(log) if "port" in x], f"{log} to say its port")
        yield OperatorProcess(process, log, lines[0]["port"])
    finally:
        process.terminate()  # gives the Lease up, or the next operator would wait for its end
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(look: Callable[[], Any], what: str, seconds: float = WAIT) -> Any:
    """Look until there is something; fails with what was missed."""
    end = time.monotonic() + seconds
    while True:
        try:
            found = look()
        except (Refused, LookupError, StopIteration) as error:
            found, missed = None, repr(error)
        else:
            missed = repr(found)
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:.0f} s for {what}; last: {missed}")
        time.sleep(0.1)


def _lines(log: Path) -> list[Json]:
    return [json.loads(line) for line in log.read_text().splitlines() if line[:1] == "{"]
