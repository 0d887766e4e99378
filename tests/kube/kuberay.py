"""KubeRay's own definition of RayService, so that the real schema judges what we write.

It comes with the Go module of KubeRay's operator, which Go downloads and checks; nothing of it is
kept here. `python -m tests.kube.kuberay` fetches it into `.cache/kube`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.kube.binaries import CACHE

from dovetail.errors import MissingTool

VERSION: Final = "v1.6.0"
_MODULE: Final = "github.com/ray-project/kuberay/ray-operator"
_FILE: Final = CACHE.parent / f"kuberay-{VERSION}" / "ray.io_rayservices.yaml"


def ray_service_definition() -> Path:
    """File with the CustomResourceDefinition.

    Raises:
        MissingTool: it was not fetched.
    """
    if not _FILE.is_file():
        raise MissingTool("KubeRay's RayService definition is not there; run `make kube`")
    return _FILE


def fetch() -> Path:
    """Fetch it unless it is there.

    Raises:
        MissingTool: Go is missing, or could not download it.
    """
    if _FILE.is_file():
        return _FILE
    if shutil.which("go") is None:
        raise MissingTool("KubeRay's definitions come with a Go module; see https://go.dev/dl")
    done = subprocess.run(
        ["go", "mod", "download", "-json", f"{_MODULE}@{VERSION}"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    if done.returncode:
        raise MissingTool(f"`go mod download` failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    source = Path(json.loads(done.stdout)["Dir"]) / "config" / "crd" / "bases" / _FILE.name
    _FILE.parent.mkdir(parents=True, exist_ok=True)
    temporary = _FILE.with_suffix(".new")
    shutil.copyfile(source, temporary)
    temporary.replace(_FILE)
    return _FILE


if __name__ == "__main__":
    try:
        sys.stdout.write(f"KubeRay {VERSION}: {fetch()}\n")
    except MissingTool as missing:
        sys.stderr.write(f"error: {missing}\n")
        sys.exit(missing.exit_code)
