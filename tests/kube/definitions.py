"""Definitions of what the chart can make for other operators, so that their schemas judge it.

They come with the Go modules of their projects, which Go downloads and checks; nothing of them is
kept here. `python -m tests.kube.definitions` fetches them into `.cache/kube`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml
from tests.kube.binaries import CACHE

from dovetail.errors import MissingTool

_FOLDER: Final = CACHE / "definitions"
_SOURCES: Final = {
    "httproute": (
        "sigs.k8s.io/gateway-api@v1.3.0",
        "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
    ),
    "certificate": (
        "github.com/cert-manager/cert-manager@v1.18.2",
        "deploy/crds/crd-certificates.yaml",
    ),
    "servicemonitor": (
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
    ),
}


def definitions() -> list[dict[str, Any]]:
    """The CustomResourceDefinitions.

    Raises:
        MissingTool: they were not fetched.
    """
    paths = [_path(name) for name in _SOURCES]
    if not all(path.is_file() for path in paths):
        raise MissingTool("definitions of optional parts are not there; run `make kube`")
    found = [yaml.safe_load(path.read_text()) for path in paths]
    for item in found:
        item["metadata"].pop("labels", None)  # of a chart's template
    return found


def fetch() -> Path:
    """Fetch those that are not there; returns their folder.

    Raises:
        MissingTool: Go is missing, or could not download them.
    """
    _FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (module, file) in _SOURCES.items():
        if _path(name).is_file():
            continue
        if shutil.which("go") is None:
            raise MissingTool(f"the definition in {module} needs Go; see https://go.dev/dl")
        done = subprocess.run(
            ["go", "mod", "download", "-json", module],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        if done.returncode:
            raise MissingTool(f"`go mod download` failed: {done.stdout[-500:]}{done.stderr[-500:]}")
        new = _path(name).with_suffix(".new")
        shutil.copyfile(Path(json.loads(done.stdout)["Dir"]) / file, new)
        new.replace(_path(name))
    return _FOLDER


def _path(name: str) -> Path:
    version = _SOURCES[name][0].rsplit("@", 1)[1]
    return _FOLDER / f"{name}-{version}.yaml"


if __name__ == "__main__":
    try:
        sys.stdout.write(f"definitions of optional parts: {fetch()}\n")
    except MissingTool as missing:
        sys.stderr.write(f"error: {missing}\n")
        sys.exit(missing.exit_code)
