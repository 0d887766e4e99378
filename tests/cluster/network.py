"""Two network namespaces, a link between them that can be shaped or cut, and a way in.

`cloud` and `edge` are nodes with addresses of their own; the control plane lives in `cloud`. Pods
are routed, not bridged and not masqueraded. Nothing of it is in the machine's own namespace but one
end of a veth pair, by which tests reach the API server and the nodes' pods: no rule, no sysctl and
no route beside the one of that link. The names carry the owner's process id, so two clusters stand
side by side and what a killed one left is known by its owner being gone.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CLOUD: Final = "10.99.0.1"
EDGE: Final = "10.99.0.2"
ADDRESSES: Final = {"cloud": CLOUD, "edge": EDGE}
PODS: Final = {"cloud": "10.244.0.0/24", "edge": "10.244.1.0/24"}
SERVICES: Final = "10.96.0.0/16"
_PREFIX: Final = "dovetail-"
_NAMES: Final = Path("/run/netns")


@dataclass(frozen=True, slots=True)
class Network:
    """The namespaces of one cluster.

    Attributes:
        owner: process id that names them.
    """

    owner: int

    def namespace(self, node: str) -> str:
        """Name of a node's namespace."""
        return f"{_PREFIX}{self.owner}-{node}"

    def inside(self, node: str) -> list[str]:
        """Prefix of a command that should run in a node's namespace.

        `ip netns exec` would mount another /sys, in which there are no cgroups.
        """
        return ["nsenter", f"--net={_NAMES / self.namespace(node)}"]

    @property
    def entry(self) -> str:
        """Address of `cloud` as the machine's own namespace reaches it."""
        return _entry(self.owner)[1]

    @property
    def link(self) -> str:
        """Name of the link in the machine's own namespace."""
        return f"dvt{self.owner}"

    def shape(self, rate: str | None) -> None:
        """Shape the link between the nodes, both ways.

        Args:
            rate: as `tc` writes it, such as `8mbit`; None for as fast as it goes.
        """
        for node in ADDRESSES:
            command = [*self.inside(node), "tc", "qdisc"]
            if rate is None:
                _run(*command, "del", "dev", "peer", "root", check=False)
            else:
                queue = ["tbf", "rate", rate, "burst", "32kbit", "latency", "400ms"]
                _run(*command, "replace", "dev", "peer", "root", *queue)

    @contextmanager
    def cut(self) -> Iterator[None]:
        """No packet crosses meanwhile, as with a pulled cable: nothing is refused or comes."""
        rule = ["PREROUTING", "-i", "peer", "-j", "DROP"]
        for node in ADDRESSES:
            _run(*self.inside(node), "iptables", "-t", "raw", "-I", *rule)
        try:
            yield
        finally:
            for node in ADDRESSES:
                _run(*self.inside(node), "iptables", "-t", "raw", "-D", *rule)


def make(owner: int) -> Network:
    """Make the namespaces and links of a cluster."""
    network = Network(owner)
    cloud, edge = (network.namespace(node) for node in ADDRESSES)
    for name in (cloud, edge):
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", cloud, "link", "add", "peer", "type", "veth", "peer", "name", "peer", "netns", edge)
    for node, name in (("cloud", cloud), ("edge", edge)):
        other = "edge" if node == "cloud" else "cloud"
        _ip("-n", name, "address", "add", f"{ADDRESSES[node]}/24", "dev", "peer")
        _ip("-n", name, "link", "set", "peer", "up")
        _ip("-n", name, "route", "add", PODS[other], "via", ADDRESSES[other])
        _run(*network.inside(node), "sysctl", "-qw", "net.ipv4.ip_forward=1")
    _ip("-n", edge, "route", "add", "default", "via", CLOUD)
    outside, inside = _entry(owner)
    _ip("link", "add", network.link, "type", "veth", "peer", "name", "entry", "netns", cloud)
    _ip("address", "add", f"{outside}/30", "dev", network.link)
    _ip("link", "set", network.link, "up")
    _ip("-n", cloud, "address", "add", f"{inside}/30", "dev", "entry")
    _ip("-n", cloud, "link", "set", "entry", "up")
    return network


def remove(owner: int) -> None:
    """Remove what `make` made for an owner, all of it or what there is."""
    network = Network(owner)
    for node in ADDRESSES:
        _ip("netns", "delete", network.namespace(node), check=False)
    _ip("link", "delete", network.link, check=False)  # gone with its peer, but not at once
    if _NAMES.is_dir() and not any(_NAMES.iterdir()):  # `ip` made it and mounted it on itself
        _run("umount", str(_NAMES), check=False)
        with suppress(OSError):  # somebody has just made one
            _NAMES.rmdir()


def owners() -> list[int]:
    """Process ids that name namespaces on this machine."""
    names = [path.name for path in _NAMES.glob(f"{_PREFIX}*")]
    found = [re.fullmatch(rf"{_PREFIX}(\d+)-(?:cloud|edge)", name) for name in names]
    return sorted({int(match[1]) for match in found if match})


def _entry(owner: int) -> tuple[str, str]:
    """Both addresses of the way in: a /30 of its own for each of many owners."""
    block = owner % (1 << 14)
    return tuple(f"10.98.{block >> 6}.{(block & 63) * 4 + host}" for host in (1, 2))  # type: ignore[return-value]


def _ip(*arguments: str, check: bool = True) -> None:
    _run("ip", *arguments, check=check)


def _run(*command: str, check: bool = True) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
