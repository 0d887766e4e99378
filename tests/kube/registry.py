"""A real OCI registry for tests, one with a login too, and a push of a bundle into it.

Debian's docker-registry (`apt-get install docker-registry`), on loopback, in a folder of its own.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import yaml
from tests.kube.apiserver import _free_ports

from dovetail.bundle import Bundle
from dovetail.distribution import Repository
from dovetail.errors import MissingTool
from dovetail.ladder import CostProfile
from dovetail.layout import MANIFEST_TYPE, digest_of
from dovetail.login import Login
from dovetail.registry import Registry

REPOSITORY = "dovetail/bundles"
USER, PASSWORD = "ali", "open sesame"  # the same with bcrypt, as the registry wants it:
_HASH = "$2b$04$7Iip0J8DFHb71/amPxNmY.wuBRjEbDCGjJbomE6o/B8dCVlCG0GLK"


@contextmanager
def running_registry(folder: Path, *, login: bool = False, port: int = 0) -> Iterator[str]:
    """Start a registry, which keeps what it has in the folder; gives its URL.

    Args:
        folder: its own.
        login: whether it asks who one is.
        port: where it listens; free where 0.

    Raises:
        MissingTool: it is not installed.
    """
    program = shutil.which("docker-registry")
    if program is None:
        raise MissingTool(
            "docker-registry is not on PATH; on Debian: apt-get install docker-registry"
        )
    port = port or _free_ports(1)[0]
    settings: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if login:
        (folder / "htpasswd").write_text(f"{USER}:{_HASH}\n")
        settings["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    (folder / "registry.yaml").write_text(yaml.safe_dump(settings))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(folder / "registry.yaml")], stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx2.get(f"{url}/v2/").status_code in (200, 401):
                    break
            except httpx2.TransportError:
                assert process.poll() is None, (folder / "registry.log").read_text()
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def push(url: str, bundle: Bundle, costs: CostProfile) -> tuple[str, str]:
    """Push a bundle and its costs; returns the manifest digests of both."""
    registry = Registry.at(f"{url}/{REPOSITORY}")
    return registry.push(bundle), registry.push_costs(costs)


def push_artifact(url: str, repository: str, *layers: bytes) -> str:
    """Push files as `oras push` does; returns the artifact's digest."""
    target = Repository(url, repository, Login(Path("/nowhere"), ""))
    for data in (b"{}", *layers):
        target.put_blob(digest_of(data), len(data), data)
    title = {"org.opencontainers.image.title": "model.onnx"}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _described("application/vnd.unknown.config.v1+json", b"{}"),
        "layers": [
            _described("application/octet-stream", data) | {"annotations": title} for data in layers
        ],
    }
    return target.put_manifest("latest", json.dumps(manifest).encode())


def _described(kind: str, data: bytes) -> dict[str, object]:
    return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}
