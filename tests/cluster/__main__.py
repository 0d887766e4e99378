"""`python -m tests.cluster up|down|status|images`: the two-node cluster, for a person.

`up` stays in the background until `down`; it prints the KUBECONFIG to use. Logs and state are in
`.cache/cluster/run`. `images` writes the images that another cluster needs, and says where.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Final

import psutil
from tests.cluster import images
from tests.cluster.harness import CACHE, ROOT, running, sweep
from tests.kube import binaries

from dovetail.errors import DovetailError

RUN: Final = CACHE / "run"
_OWNER: Final = CACHE / "owner"  # process id of who holds the cluster
_READY: Final = CACHE / "ready"  # its kubeconfig, once it is up


def main() -> int:
    """Do what was asked for; returns the exit code."""
    commands = {
        "up": _up,
        "down": _down,
        "status": _status,
        "images": _images,
        "hold": _hold,
    }
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("command", choices=commands, metavar="up|down|status|images")
    return commands[parser.parse_args().command]()


def _up() -> int:
    if _owner() is not None:
        return _status()
    _READY.unlink(missing_ok=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "hold.log").open("wb") as log:
        holder = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster", "hold"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while not _READY.is_file():
        if holder.poll() is not None:
            sys.stderr.write((CACHE / "hold.log").read_text())
            return holder.returncode or 1
        time.sleep(0.2)
    return _status()


def _hold() -> int:
    """Hold the cluster until asked to end."""
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir(parents=True)
    _OWNER.write_text(str(os.getpid()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with running(RUN) as cluster:
            _READY.write_text(str(cluster.kubeconfig))
            while True:
                signal.pause()
    except DovetailError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    finally:
        _READY.unlink(missing_ok=True)
        _OWNER.unlink(missing_ok=True)


def _down() -> int:
    owner = _owner()
    if owner is not None:
        owner.terminate()
        owner.wait()
    sweep()
    return 0


def _status() -> int:
    if _owner() is None or not _READY.is_file():
        print("down")
        return 1
    print(f"up; state and logs in {RUN}\nexport KUBECONFIG={_READY.read_text()}")
    return 0


def _images() -> int:
    """Write every image as an archive."""
    if code := binaries.main(["kuberay-operator"]):
        return code
    try:
        found = images.archives({"kuberay-operator": binaries.find("kuberay-operator")})
    except DovetailError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    print("into kind: kind load image-archive", *(str(path) for _, _, path in found))
    return 0


def _owner() -> psutil.Process | None:
    """Who holds the cluster; None for nobody."""
    try:
        found = psutil.Process(int(_OWNER.read_text()))
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
    return found if "tests.cluster" in found.cmdline() else None


if __name__ == "__main__":
    sys.exit(main())
