"""What a cluster must leave as it was on the machine that it ran on: read before, read after.

The machine has other work, whose processes and files come and go; so of those only what names a
cluster's folder or namespaces counts, while rules, links, routes, settings and mounts are compared
whole.
"""

import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

_SETTINGS: Final = Path("/proc/sys")
# counters and random numbers among the settings; those of a link are gone with it
_MOVING: Final = re.compile(
    r"random/|ns_last_pid|pty/nr|/nr_|_nr$|file-nr|inode-|dentry-|aio-|quota/|epoll|conntrack_count"
    r"|sched_domain|perf_|sem_|msg_next|shm_next|neigh/|/conf/"
)
_COUNTERS: Final = re.compile(r"\[\d+:\d+\]|^#.*$", re.MULTILINE)
_COMMANDS: Final = {
    "rules": ["iptables-save"],
    "rules6": ["ip6tables-save"],
    "links": ["ip", "-brief", "link"],
    "addresses": ["ip", "-brief", "address"],
    "routes": ["ip", "route", "show", "table", "all"],
    "policies": ["ip", "rule"],
    "namespaces": ["ip", "netns", "list"],
}
_FOLDERS: Final = ("/var/lib", "/var/log", "/run")


def state() -> dict[str, object]:
    """Rules, links, routes, settings, mounts and folders of this machine."""
    found: dict[str, object] = {}
    for name, command in _COMMANDS.items():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found[name] = _COUNTERS.sub("", done.stdout).split("\n")
    found["settings"] = _settings()
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found["mounts"] = sorted(line.split(" ")[1] for line in mounts)
    found["folders"] = {
        name: sorted(path.name for path in Path(name).iterdir() if path.is_dir())
        for name in _FOLDERS
        if Path(name).is_dir()
    }
    cgroups = Path("/sys/fs/cgroup")
    found["cgroups"] = sorted(
        map(str, [*cgroups.glob("dovetail-*"), *cgroups.glob("*/dovetail-*")])
    )
    return found


def left(before: Mapping[str, object], folder: Path, seconds: float = 20.0) -> dict[str, object]:
    """What a cluster left on the machine; the kernel has some seconds to end what it ends later.

    Args:
        before: the state before the cluster.
        folder: the cluster's folder, which its processes were called with.
        seconds: how long to wait at most until there is nothing.
    """
    end = time.monotonic() + seconds
    while True:
        after = state()
        found: dict[str, object] = {
            name: {"before": before[name], "after": after[name]}
            for name in before
            if before[name] != after[name]
        }
        if running := _processes(folder):
            found["processes"] = running
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.2)


def _processes(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(str(folder) in word for word in words):
            found.append(" ".join(words))
    return found


def _settings() -> dict[str, str]:
    found = {}
    for folder, _, files in os.walk(_SETTINGS):  # which passes over what goes with its link
        for path in (Path(folder, file) for file in files):
            name = str(path.relative_to(_SETTINGS))
            if not _MOVING.search(name):
                try:
                    found[name] = path.read_text()
                except (OSError, UnicodeDecodeError):  # write-only, or gone with its link
                    continue
    return found
