"""A real OCI registry for tests, and a push of a bundle into it.

Debian's docker-registry (`apt-get install docker-registry`), on loopback, in a folder of its own.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import yaml
from tests.kube.apiserver import _free_ports

from dovetail.bundle import Bundle
from dovetail.errors import MissingTool
from dovetail.ladder import CostProfile
from dovetail.layout import canonical_json, digest_of

REPOSITORY = "dovetail/bundles"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@contextmanager
def running_registry(folder: Path) -> Iterator[str]:
    """Start a registry; gives its URL.

    Raises:
        MissingTool: it is not installed.
    """
    program = shutil.which("docker-registry")
    if program is None:
        raise MissingTool(
            "docker-registry is not on PATH; on Debian: apt-get install docker-registry"
        )
    (port,) = _free_ports(1)
    settings = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "registry.yaml").write_text(yaml.safe_dump(settings))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(folder / "registry.yaml")], stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx2.get(f"{url}/v2/").is_success:
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
    root = f"{url}/v2/{REPOSITORY}"
    with httpx2.Client(timeout=30) as client:
        manifest = bundle.blob_dir / bundle.digest.removeprefix("sha256:")
        for digest in bundle.blobs:
            _blob(client, root, bundle.blob_path(digest).read_bytes())
        document = manifest.read_bytes()
        _blob(client, root, (bundle.blob_dir / _config(document)).read_bytes())
        _manifest(client, root, bundle.digest, document)
        text = costs.model_dump_json(by_alias=True).encode()
        empty = b"{}"
        _blob(client, root, text)
        _blob(client, root, empty)
        artifact = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "artifactType": "application/vnd.dovetail.costs.v1+json",
                "config": _descriptor("application/vnd.oci.empty.v1+json", empty),
                "layers": [_descriptor("application/vnd.dovetail.costs.v1+json", text)],
            }
        )
        _manifest(client, root, digest_of(artifact), artifact)
    return bundle.digest, digest_of(artifact)


def _config(manifest: bytes) -> str:
    return yaml.safe_load(manifest)["config"]["digest"].removeprefix("sha256:")


def _descriptor(kind: str, data: bytes) -> dict[str, object]:
    return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}


def _blob(client: httpx2.Client, root: str, data: bytes) -> None:
    place = client.post(f"{root}/blobs/uploads/").raise_for_status().headers["Location"]
    client.put(
        place,
        params={**httpx2.URL(place).params, "digest": digest_of(data)},
        content=data,
        headers={"Content-Type": "application/octet-stream"},
    ).raise_for_status()


def _manifest(client: httpx2.Client, root: str, digest: str, data: bytes) -> None:
    client.put(
        f"{root}/manifests/{digest}", content=data, headers={"Content-Type": MANIFEST}
    ).raise_for_status()
