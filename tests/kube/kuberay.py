"""KubeRay's own definitions, so that the real schema judges what we write.

It comes with the Go module of KubeRay's operator, which Go downloads and checks; nothing of it is
kept here. `python -m tests.kube.kuberay` fetches it into `.cache/kube`.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.kube.binaries import CACHE, KUBERAY

from dovetail.errors import MissingTool

_MODULE: Final = "github.com/ray-project/kuberay/ray-operator"
_FOLDER: Final = CACHE / f"kuberay-definitions-{KUBERAY}"


def definitions() -> list[Path]:
    """Files with the CustomResourceDefinitions, one each.

    Raises:
        MissingTool: they were not fetched.
    """
    if not _FOLDER.is_dir():
        raise MissingTool("KubeRay's definitions are not there; run `make kube`")
    return sorted(_FOLDER.glob("*.yaml"))


def ray_service_definition() -> Path:
    """File with the definition of RayService; raises `MissingTool` where it was not fetched."""
    return next(path for path in definitions() if path.name == "ray.io_rayservices.yaml")


def fetch() -> Path:
    """Fetch them unless they are there; returns their folder.

    Raises:
        MissingTool: Go is missing, or could not download them.
    """
    if _FOLDER.is_dir():
        return _FOLDER
    if shutil.which("go") is None:
        raise MissingTool("KubeRay's definitions come with a Go module; see https://go.dev/dl")
    done = subprocess.run(
        ["go", "mod", "download", "-json", f"{_MODULE}@{KUBERAY}"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    if done.returncode:
        raise MissingTool(f"`go mod download` failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    source = Path(json.loads(done.stdout)["Dir"]) / "config" / "crd" / "bases"
    _FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_FOLDER.parent) as folder:
        for path in source.glob("*.yaml"):
            shutil.copyfile(path, Path(folder) / path.name)
        shutil.copytree(folder, _FOLDER, dirs_exist_ok=True)
    return _FOLDER


if __name__ == "__main__":
    try:
        sys.stdout.write(f"KubeRay {KUBERAY}: {fetch()}\n")
    except MissingTool as missing:
        sys.stderr.write(f"error: {missing}\n")
        sys.exit(missing.exit_code)
