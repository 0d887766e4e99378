"""Builds the images of the rooms, and those that only tests need, once for each content.

`python -m tests.cluster.images` is `make images`: it builds with whichever of podman, docker and
buildah is here and prints what each image adds to its base. An image is known by a key made from
its Dockerfile, the pinned dependencies and every file that goes into it, so nothing is built twice
and nothing stale is used. Where the base image cannot be pulled, debootstrap makes it from this
machine's own Debian mirror.

A package index or authority of this machine's own (PIP_INDEX_URL, PIP_CERT, pip's configuration) is
handed to the build and is in no layer.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tests.kube.binaries import Binary

from dovetail.errors import MissingTool

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = ROOT / ".cache" / "images"
BASE: Final = "docker.io/library/debian:bookworm-slim"
VERSION: Final = importlib.metadata.version("dovetail")
_COMMON: Final = (".dockerignore", "LICENSE", "README.md", "constraints.txt", "pyproject.toml")
_LABEL: Final = "dev.dovetail.key"
_MIRROR: Final = r"^(?:URIs: |deb (?:\[.*\] )?)(https?://\S+/debian/?)\s"
_AUTHORITY: Final = "/run/authority.crt"
EDGE_LIMIT: Final = 250_000_000  # bytes that the edge image may add to its base


@dataclass(frozen=True, slots=True)
class Image:
    """An image and what it is made from.

    Attributes:
        tag: its full name.
        dockerfile: text of its Dockerfile.
        paths: what of the tree goes into it, files and folders.
        programs: programs that are put into its context, by name.
    """

    tag: str
    dockerfile: str
    paths: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()

    def key(self, programs: Mapping[str, Binary]) -> str:
        """Digest of all that it is made from."""
        found = hashlib.sha256(self.dockerfile.encode())
        for path in _files(self.paths):
            found.update(f"{path}\0".encode())
            found.update((ROOT / path).read_bytes())
        for name in self.programs:
            with programs[name].path.open("rb") as stream:
                found.update(hashlib.file_digest(stream, "sha256").digest())
        return found.hexdigest()[:16]


def _room(name: str, folder: str, package: str) -> Image:
    text = (ROOT / folder / "Dockerfile").read_text()
    paths = (*_COMMON, "core/dovetail", f"{folder}/{package}")
    return Image(f"docker.io/dovetail/{name}:{VERSION}", text, paths)


EDGE: Final = _room("edge", "edge-runtime", "dovetail_edge")
OPERATOR: Final = _room("operator", "operator", "dovetail_operator")
PARTITIONER: Final = _room("partitioner", "partitioner", "dovetail_partitioner")
SERVING: Final = _room("serving", "serving", "dovetail_serving")
GATEWAY: Final = Image(
    f"docker.io/dovetail/gateway:{VERSION}", (ROOT / "serving" / "gateway.Dockerfile").read_text()
)
ROOMS: Final = (EDGE, OPERATOR, PARTITIONER, SERVING, GATEWAY)
_TEST: Final = "docker.io/dovetail-test"
PAUSE: Final = Image(f"{_TEST}/pause:1", f'FROM {BASE}\nENTRYPOINT ["sleep", "infinity"]\n')
KUBERAY: Final = Image(
    f"{_TEST}/kuberay-operator:1",
    f'FROM {BASE}\nCOPY kuberay-operator /\nUSER 65532\nENTRYPOINT ["/kuberay-operator"]\n',
    programs=("kuberay-operator",),
)
_REGISTRY: Final = {
    "version": 0.1,
    "log": {"level": "error", "accesslog": {"disabled": True}},
    "storage": {"filesystem": {"rootdirectory": "/var/lib/registry"}},
    "http": {"addr": ":5000"},
}
STORE: Final = Image(
    f"{_TEST}/store:1",
    f"FROM {BASE}\n"
    "RUN apt-get update && apt-get install -y --no-install-recommends docker-registry python3\n"
    f"RUN echo '{json.dumps(_REGISTRY)}' > /registry.json\n",
)
ALL: Final = (*ROOMS, PAUSE, KUBERAY, STORE)


def archives(programs: Mapping[str, Binary]) -> list[tuple[str, str, Path]]:
    """Name, key and OCI archive of every image, built where content changed.

    Args:
        programs: programs by name.

    Raises:
        MissingTool: nothing here builds images, or a build failed; the message has its output.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    found = []
    for image in ALL:
        key, slug = image.key(programs), re.sub(r"[^a-z]+", "-", image.tag.split(":")[0])
        archive = CACHE / f"{slug}-{key}.tar"
        if not archive.is_file():
            build(image, programs)
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                part = Path(folder) / "image.tar"
                _engine().save(image.tag, part)
                for old in CACHE.glob(f"{slug}-*.tar"):
                    old.unlink()
                part.replace(archive)
        found.append((image.tag, key, archive))
    return found


def build(image: Image, programs: Mapping[str, Binary]) -> None:
    """Build an image unless the one of its name has its content.

    Raises:
        MissingTool: as `archives`.
    """
    engine, key = _engine(), image.key(programs)
    if engine.label(image.tag) == key:
        return
    sys.stderr.write(f"building {image.tag}\n")
    engine.base()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "Dockerfile").write_text(image.dockerfile)
        for name in image.programs:
            shutil.copyfile(programs[name].path, folder / name)
            (folder / name).chmod(0o755)
        context = ROOT if image.paths else folder
        engine.build(image.tag, key, folder / "Dockerfile", context)


@dataclass(frozen=True, slots=True)
class Engine:
    """What builds images here.

    Attributes:
        program: `podman`, `docker` or `buildah`.
    """

    program: str

    def build(self, tag: str, key: str, dockerfile: Path, context: Path) -> None:
        """Build an image."""
        verb = ["bud"] if self.program == "buildah" else ["build"]
        _run([*self._runtime(), *verb, *self._options(), "--label", f"{_LABEL}={key}",
              "-f", str(dockerfile), "-t", tag, str(context)])  # fmt: skip

    def label(self, tag: str) -> str:
        """Key of the image of a name; empty for none."""
        return (self._inspect(tag).get("Labels") or {}).get(_LABEL, "")

    def size(self, tag: str) -> int:
        """Bytes of an image, unpacked."""
        return int(self._inspect(tag)["Size"])

    def save(self, tag: str, archive: Path) -> None:
        """Write an image as an archive that containerd imports."""
        if self.program == "buildah":
            _run([self.program, "push", tag, f"oci-archive:{archive}:{tag}"])
        else:
            form = ["--format", "oci-archive"] if self.program == "podman" else []
            _run([self.program, "save", *form, "-o", str(archive), tag])

    def base(self) -> None:
        """Get the base image: what is here, what can be pulled, what debootstrap makes."""
        if self._inspect(BASE):
            return
        pulled = subprocess.run([self.program, "pull", BASE], capture_output=True, check=False)
        if pulled.returncode == 0:
            return
        if self.program == "buildah" or shutil.which("debootstrap") is None:
            raise MissingTool(
                f"{BASE} can neither be pulled nor made here; apt-get install podman debootstrap"
            )
        with tempfile.TemporaryDirectory() as scratch:
            archive = _bootstrap(Path(scratch))
            _run([self.program, "import", str(archive), BASE])

    def _inspect(self, tag: str) -> dict[str, object]:
        command = [self.program, "inspect", "--type", "image", tag]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {}
        (found,) = json.loads(done.stdout)
        return {**found, "Labels": found.get("Labels") or found.get("Config", {}).get("Labels")}

    def _runtime(self) -> list[str]:
        """Podman's usual crun refuses machines with both versions of cgroups; runc does not."""
        runc = self.program == "podman" and shutil.which("runc") is not None
        return [self.program, *(["--runtime", "runc"] if runc else [])]

    def _options(self) -> list[str]:
        options = ["--network", "host"]
        options += [f"--build-arg=PIP_INDEX_URL={index}" for index in _pip("index-url")]
        if self.program != "docker":
            # an engine raises these where nobody says less, and fails where it may not
            options += ["--ulimit=nofile=1024:2048", "--ulimit=nproc=1024:2048"]
            for authority in _pip("cert"):
                options += ["-v", f"{authority}:{_AUTHORITY}:ro"]
                options += [f"--build-arg=PIP_CERT={_AUTHORITY}"]
        return options


@cache
def _engine() -> Engine:
    for name in ("podman", "docker", "buildah"):
        if shutil.which(name):
            return Engine(name)
    raise MissingTool("nothing here builds images; on Debian: apt-get install podman debootstrap")


def _pip(option: str) -> list[str]:
    """What pip is told on this machine; empty or one value."""
    named = os.environ.get(f"PIP_{option.replace('-', '_').upper()}")
    if named:
        return [named]
    command = [sys.executable, "-m", "pip", "config", "get", f"global.{option}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [done.stdout.strip()] if done.returncode == 0 else []


def _bootstrap(folder: Path) -> Path:
    """A minimal Debian from the mirror this machine uses, as an archive."""
    root, archive = folder / "root", folder / "root.tar"
    _run(["debootstrap", "--variant=minbase", "bookworm", str(root), _mirror()])
    for path in ("var/cache/apt", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/man",
                 "usr/share/locale", "usr/share/info"):  # fmt: skip
        for item in (root / path).iterdir():
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    _run(["tar", "-C", str(root), "-cf", str(archive), "."])
    return archive


def _mirror() -> str:
    places = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    texts = [path.read_text() for path in places if path.is_file()]
    for text in texts:
        if match := re.search(
            r"^(?:URIs: |deb (?:\[.*\] )?)(https?://\S+/debian/?)\s", text, re.MULTILINE
        ):
            return match[1]
    return "http://deb.debian.org/debian"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise MissingTool(f"`{' '.join(command[:3])} …` failed:\n{said}")


def _files(paths: Iterable[str]) -> list[str]:
    found: list[Path] = []
    for path in paths:
        top = ROOT / path
        found += [top] if top.is_file() else [item for item in top.rglob("*") if item.is_file()]
    return sorted(str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts)


def main(say: Callable[[str], object] = print) -> int:
    """Build the rooms' images and print their sizes; returns the exit code."""
    try:
        for image in ROOMS:
            build(image, {})
    except MissingTool as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    engine = _engine()
    base = engine.size(BASE)
    say(f"{'image':42} {'MB':>5} {'adds':>5}")
    added = {image.tag: engine.size(image.tag) - base for image in ROOMS}
    for tag, more in added.items():
        say(f"{tag:42} {(base + more) / 1e6:5.0f} {more / 1e6:5.0f}")
    if added[EDGE.tag] > EDGE_LIMIT:
        sys.stderr.write(f"error: the edge image adds over {EDGE_LIMIT / 1e6:.0f} MB to its base\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
