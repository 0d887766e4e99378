"""Finds the programs of a real Kubernetes and what runs beside it, or builds or downloads them.

Tests of a custom resource against anything but the real API server prove nothing: what it refuses,
drops and defaults is the whole question. Kubernetes publishes no small package with its programs,
but its Go module is everywhere, so what is not found is built from it, once, into `.cache/kube`.
It takes minutes when Go's own cache is cold; that is why `make kube` builds and tests only find.
Where Go is missing or cannot build, the official release is downloaded, and kept only if it is
what its publisher's checksum says.

Looked for in this order: the folder named by KUBEBUILDER_ASSETS (what `setup-envtest use -p path`
prints), PATH, `.cache/kube`. `python -m tests.kube.binaries [NAME...]` finds, builds or downloads.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import urllib3

from dovetail.errors import DovetailError, MissingTool

# 1.34 is the newest minor whose kubelet still accepts cgroup v1 by default.
KUBERNETES: Final = "v1.34.4"
ETCD: Final = "v3.6.4"  # which the go.mod of this Kubernetes requires
KUBERAY: Final = "v1.6.2"
CACHE: Final = Path(__file__).parents[2] / ".cache" / "kube"
_MODULE: Final = "k8s.io/kubernetes"
_RETRIES: Final = urllib3.Retry(5, connect=1, read=1)  # publishers redirect to where files are
API_SERVER: Final = ("etcd", "kube-apiserver")
# what the default suite runs: an API server, its garbage collector, a person's hands on it, the
# chart and its gateway
SUITE: Final = (*API_SERVER, "kube-controller-manager", "kubectl", "helm", "coredns")
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
class Release:
    """Where a program's official release is.

    Attributes:
        host: its publisher's address.
        file: path of the download there.
        sums: path of the file with its SHA-256 there.
        member: the program in it where it is an archive; empty where it is the program.
    """

    host: str
    file: str
    sums: str
    member: str = ""


@dataclass(frozen=True, slots=True)
class Binary:
    """A program and where it was found.

    Attributes:
        path: the executable.
        source: `KUBEBUILDER_ASSETS`, `PATH`, `built` or `downloaded`.
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
    places += [("PATH", os.environ.get("PATH", ""))]
    places += [(source, str(_folder(name, source))) for source in ("built", "downloaded")]
    for source, folder in places:
        if found := shutil.which(name, path=folder):
            return Binary(Path(found), source)
    raise MissingTool(
        f"{name} is neither in KUBEBUILDER_ASSETS ({assets or 'not set'}) nor on PATH nor built "
        "with Go nor downloaded; run `make kube`, which builds it or else downloads it, or set "
        "KUBEBUILDER_ASSETS to what `setup-envtest use -p path` prints"
    )


def get(name: str) -> Binary:
    """Build one program, or download it where it cannot be built.

    Raises:
        MissingTool: neither works; the message says why, and what else there is.
    """
    try:
        return build(name)
    except MissingTool as error:
        unbuilt = error
    try:
        return download(name)
    except MissingTool as error:
        assets = os.environ.get("KUBEBUILDER_ASSETS") or "not set"
        raise MissingTool(
            f"{name} is neither in KUBEBUILDER_ASSETS ({assets}) nor on PATH, it is not built "
            f"({unbuilt}) and not downloaded ({error}); put it on PATH, or set KUBEBUILDER_ASSETS "
            "to what `setup-envtest use -p path` prints"
        ) from error


def build(name: str) -> Binary:
    """Build one program from its Go module into the cache.

    Raises:
        MissingTool: Go is missing, or the build failed; the message ends with what Go said.
    """
    if shutil.which("go") is None:
        raise MissingTool(f"{name} must be built and Go is not on PATH; see https://go.dev/dl")
    target = _folder(name, "built") / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        module = Path(folder)
        (module / "go.mod").write_text(_go_mod(module, _SOURCES[name]))
        flags = " ".join(["-s -w", *_stamps(_SOURCES[name])])
        _go(module, "build", "-o", name, "-ldflags", flags, _SOURCES[name].package)
        (module / name).replace(target)
    return Binary(target, "built")


def download(name: str, host: str = "") -> Binary:
    """Download one program's official release for this machine into the cache.

    Args:
        name: the program.
        host: address that stands in place of its publisher's.

    Raises:
        MissingTool: there is none for this machine, its host does not answer, or what came is not
            what the published SHA-256 says; nothing is kept then.
    """
    release = _release(name)
    url = f"{host or release.host}/{release.file}"
    target = _folder(name, "downloaded") / name
    target.parent.mkdir(parents=True, exist_ok=True)
    timeout = urllib3.Timeout(connect=10, read=60)
    with (
        tempfile.TemporaryDirectory(dir=target.parent) as folder,
        urllib3.PoolManager(timeout=timeout, retries=_RETRIES) as client,
    ):
        file = Path(folder) / "release"
        expected = _published(client, f"{host or release.host}/{release.sums}", url)
        found = _fetched(client, url, file)
        if found != expected:
            raise MissingTool(f"{url} has the SHA-256 {found}, and {expected} is published for it")
        program = _unpacked(file, release.member) if release.member else file
        program.chmod(0o755)
        program.replace(target)
    return Binary(target, "downloaded")


def _release(name: str) -> Release:
    if name != "etcd" and _SOURCES[name].module != _MODULE:
        raise MissingTool(f"{name} is neither of Kubernetes nor etcd, whose releases are known")
    known = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}
    machine = known.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        system = f"{platform.system()} on {platform.machine()}"
        raise MissingTool(f"there is no official release of {name} for {system}")
    if name == "etcd":
        stem = f"etcd-{ETCD}-linux-{machine}"
        return Release(
            "https://github.com/etcd-io/etcd/releases/download",
            f"{ETCD}/{stem}.tar.gz",
            f"{ETCD}/SHA256SUMS",
            f"{stem}/etcd",
        )
    file = f"{KUBERNETES}/bin/linux/{machine}/{name}"
    return Release("https://dl.k8s.io/release", file, f"{file}.sha256")


def _published(client: urllib3.PoolManager, sums: str, url: str) -> str:
    """SHA-256 of a download, as its publisher says: alone in a file, or in a line with its name."""
    text = _asked(client, sums).data.decode(errors="replace")
    lines = [line.split() for line in text.splitlines()]
    for digest, *name in filter(None, lines):
        if [url.rpartition("/")[2]] == name or not name:
            return digest
    raise MissingTool(f"{sums} does not name {url.rpartition('/')[2]}")


def _fetched(client: urllib3.PoolManager, url: str, file: Path) -> str:
    """Write a download to a file; returns its SHA-256."""
    digest = hashlib.sha256()
    answer = _asked(client, url, preload_content=False)
    try:
        with file.open("wb") as sink:
            for chunk in answer.stream(1 << 20, decode_content=False):
                digest.update(chunk)
                sink.write(chunk)
    except urllib3.exceptions.HTTPError as error:
        raise MissingTool(f"{url} broke off: {error}") from error
    finally:
        answer.close()
    return digest.hexdigest()


def _asked(
    client: urllib3.PoolManager, url: str, *, preload_content: bool = True
) -> urllib3.BaseHTTPResponse:
    try:
        answer = client.request("GET", url, preload_content=preload_content)
    except urllib3.exceptions.HTTPError as error:
        raise MissingTool(f"{url} cannot be fetched: {error}") from error
    if answer.status != 200:
        answer.close()
        raise MissingTool(f"{url} is answered with {answer.status}")
    return answer


def _unpacked(archive: Path, member: str) -> Path:
    target = archive.with_name("program")
    try:
        with tarfile.open(archive) as packed, target.open("wb") as sink:
            stream = packed.extractfile(member)
            assert stream is not None, f"{member} is no file"
            shutil.copyfileobj(stream, sink)
    except (KeyError, tarfile.TarError) as error:
        raise MissingTool(f"the archive of the release holds no {member}: {error}") from error
    return target


def _folder(name: str, source: str) -> Path:
    made = _SOURCES[name]
    folder = CACHE / (KUBERNETES if made.module == _MODULE else f"{name}-{made.version}")
    return folder if source == "built" else folder / source


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
    """Find, build or download programs, print where each is; returns the exit code."""
    code = 0
    for name in names or SUITE:
        try:
            binary = find(name)
        except MissingTool:
            version = _SOURCES[name].version
            sys.stdout.write(f"{name}: building {version} with Go, minutes when cold\n")
            sys.stdout.flush()
            try:
                binary = get(name)
            except DovetailError as error:
                sys.stderr.write(f"error: {error}\n")
                code = error.exit_code
                continue
        sys.stdout.write(f"{name}: {binary}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
