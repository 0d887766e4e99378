"""What a machine must have before two nodes are made on it: checked at once, said at once."""

import os
import shutil
from pathlib import Path
from typing import Final

from tests.kube.binaries import CLUSTER, Binary, find

from dovetail.errors import MissingTool

# program -> Debian package
_PROGRAMS: Final = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "ip": "iproute2",
    "tc": "iproute2",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
}
PLUGINS: Final = Path("/usr/lib/cni")


def check() -> dict[str, Binary]:
    """Give the programs of the cluster by name.

    Raises:
        MissingTool: this is not root, or a program is missing; the message names all that is
            missing and how to get it.
    """
    if os.geteuid() != 0:
        raise MissingTool("two nodes need network namespaces and mounts: run as root")
    missing = {package for name, package in _PROGRAMS.items() if shutil.which(name) is None}
    if not all((PLUGINS / name).is_file() for name in ("ptp", "host-local", "portmap")):
        missing.add("containernetworking-plugins")
    if missing:
        raise MissingTool(
            "two nodes need programs that are not here; on Debian: apt-get install "
            + " ".join(sorted(missing))
        )
    found, lacking = {}, []
    for name in CLUSTER:
        try:
            found[name] = find(name)
        except MissingTool:
            lacking.append(name)
    if lacking:
        raise MissingTool(
            f"{', '.join(lacking)}: not built yet; `make kube-cluster` does it with Go, or set "
            "KUBEBUILDER_ASSETS to a folder that has them"
        )
    return found
