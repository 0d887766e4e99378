"""Finds the programs of a real Kubernetes and what runs beside it, or builds them with Go.

Tests of a custom resource against anything but the real API server prove nothing: what it refuses,
drops and defaults is the whole question. Kubernetes publishes no small package with its programs,
but its Go module is everywhere, so what is not found is built from it, once, into `.cache/kube`.
It takes minutes when Go's own cache is cold; that is why `make kube` builds and tests only find.

Looked for in this order: the folder named by KUBEBUILDER_ASSETS (what `setup-envtest use -p path`
prints), PATH, `.cache/kube`. `python -m tests.kube.binaries [NAME...]` finds or builds.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dovetail.errors import DovetailError, MissingTool

# 1.34 is the newest minor whose kubelet still accepts cgroup v1 by default.
KUBERNETES: Final = "v1.34.4"
KUBERAY: Final = "v1.6.2"
CACHE: Final = Path(__file__).parents[2] / ".cache" / "kube"
_MODULE: Final = "k8s.io/kubernetes"
API_SERVER: Final = ("etcd", "kube-apiserver")
# what the default suite runs: an API server, its garbage collector, the chart and its gateway
SUITE: Final = (*API_SERVER, "kube-controller-manager", "helm", "coredns")
CLUSTER: Final = (
    *API_SERVER,
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
    "coredns",
    "helm",
    "kuberay-operator",
)


@dataclass(frozen=True, slots=True)
class Source:
    """What a program is built from.

    Attributes:
        module: Go module.
        version: its version.
        package: the program's package in it, or in a module that it requires.
    """

    module: str
    version: str
    package: str


_SOURCES: Final = {
    # in the version that this Kubernetes itself is tested with: its go.mod requires it
    "etcd": Source(_MODULE, KUBERNETES, "go.etcd.io/etcd/server/v3"),
    **{
        name: Source(_MODULE, KUBERNETES, f"{_MODULE}/cmd/{name}")
        for name in CLUSTER
        if name.startswith("kube") and name != "kuberay-operator"
    },
    "coredns": Source("github.com/coredns/coredns", "v1.15.0", "github.com/coredns/coredns"),
    "helm": Source("helm.sh/helm/v3", "v3.22.0", "helm.sh/helm/v3/cmd/helm"),
    "kuberay-operator": Source(
        "github.com/ray-project/kuberay/ray-operator",
        KUBERAY,
        "github.com/ray-project/kuberay/ray-operator",
    ),
}


@dataclass(frozen=True, slots=True)
class Binary:
    """A program and where it was found.

    Attributes:
        path: the executable.
        source: `KUBEBUILDER_ASSETS`, `PATH` or `built`.
    """

    path: Path
    source: str

    def __str__(self) -> str:
        return f"{self.path} ({self.source})"


def find(name: str) -> Binary:
    """Find one program.

    Raises:
        MissingTool: it is in none of the places; the message says how to get it.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    places = [("KUBEBUILDER_ASSETS", assets)] if assets else []
    built = str(_folder(name))
    for source, folder in (*places, ("PATH", os.environ.get("PATH", "")), ("built", built)):
        if found := shutil.which(name, path=folder):
            return Binary(Path(found), source)
    raise MissingTool(
        f"{name} is neither in KUBEBUILDER_ASSETS ({assets or 'not set'}) nor on PATH nor built; "
        "run `make kube`, which needs Go, or set KUBEBUILDER_ASSETS to what "
        "`setup-envtest use -p path` prints"
    )


def build(name: str) -> Binary:
    """Build one program from its Go module into the cache.

    Raises:
        MissingTool: Go is missing, or the build failed; the message ends with what Go said.
    """
    if shutil.which("go") is None:
        raise MissingTool(f"{name} must be built and Go is not on PATH; see https://go.dev/dl")
    target = _folder(name) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        module = Path(folder)
        (module / "go.mod").write_text(_go_mod(module, _SOURCES[name]))
        flags = " ".join(["-s -w", *_stamps(_SOURCES[name])])
        _go(module, "build", "-o", name, "-ldflags", flags, _SOURCES[name].package)
        (module / name).replace(target)
    return Binary(target, "built")


def _folder(name: str) -> Path:
    source = _SOURCES[name]
    return CACHE / (KUBERNETES if source.module == _MODULE else f"{name}-{source.version}")


def _stamps(source: Source) -> list[str]:
    """Linker flags by which a program of Kubernetes knows its version; others know it anyway."""
    if source.module != _MODULE:
        return []
    major, minor, _ = source.version.removeprefix("v").split(".")
    stamp = {"gitVersion": source.version, "gitMajor": major, "gitMinor": minor}
    return [f"-X k8s.io/component-base/version.{key}={value}" for key, value in stamp.items()]


def _go_mod(folder: Path, source: Source) -> str:
    """A module that requires the program's.

    The `go.mod` of Kubernetes replaces its staging modules by folders of its own tree, which only
    the tree has; they are published under their own names, with 0 in place of the major version.
    """
    listed = _go(folder, "mod", "download", "-json", f"{source.module}@{source.version}")
    published = Path(json.loads(listed)["GoMod"]).read_text()
    staged = re.findall(r"^\s*(k8s\.io/[a-z0-9-]+) => \./staging", published, re.MULTILINE)
    go = re.search(r"^go .+$", published, re.MULTILINE)
    version = source.version.replace("v1.", "v0.", 1)
    lines = ["module built", go[0] if go else "", f"require {source.module} {source.version}"]
    return "\n".join([*lines, *(f"replace {name} => {name} {version}" for name in staged), ""])


def _go(folder: Path, *arguments: str) -> str:
    # GOWORK off and a static build: the same result whatever the caller's own Go projects set
    env = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod -buildvcs=false", "GOWORK": "off"}
    done = subprocess.run(
        ["go", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MissingTool(f"`go {arguments[0]}` failed:\n{done.stderr[-2000:]}")
    return done.stdout


def main(names: Sequence[str]) -> int:
    """Find or build programs, print where each is; returns the exit code."""
    for name in names or SUITE:
        try:
            binary = find(name)
        except MissingTool:
            version = _SOURCES[name].version
            sys.stdout.write(f"{name}: building {version} with Go, minutes when cold\n")
            sys.stdout.flush()
            try:
                binary = build(name)
            except DovetailError as error:
                sys.stderr.write(f"error: {error}\n")
                return error.exit_code
        sys.stdout.write(f"{name}: {binary}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
