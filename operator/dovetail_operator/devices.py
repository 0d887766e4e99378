"""Whether the devices of every class serve: those on nodes, and those that join from outside.

One device of a class is enough: in a fleet some are always away, and requests are answered where
they are asked. How many there are is in the message.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dovetail.placement import EdgeClass
from dovetail_operator.client import Json
from dovetail_operator.conditions import Finding


@dataclass(frozen=True, slots=True)
class Joined:
    """A class whose devices join from outside the cluster.

    Attributes:
        secret: name of the Secret with which they join.
        reachable: whether there is an address for them.
        known: devices that the ledger remembers.
        connected: those heard of lately.
    """

    secret: str
    reachable: bool
    known: int = 0
    connected: int = 0


@dataclass(frozen=True, slots=True)
class Count:
    """How many devices of a class there are.

    Attributes:
        ready: those that serve.
        known: all of them.
        text: the same, as a sentence.
    """

    ready: int
    known: int
    text: str


def edge_available(
    classes: Sequence[EdgeClass],
    sets: Mapping[str, Json | None],
    nodes: Mapping[str, int],
    joined: Mapping[str, Joined],
) -> Finding:
    """Whether every class has a device that serves; the message says how many of each do.

    Args:
        classes: the classes wanted.
        sets: the DaemonSet of each, as last seen.
        nodes: how many nodes each class's selector finds.
        joined: what is known of each class whose devices join from outside.
    """
    counts: list[Count] = []
    lacking: list[Finding] = []
    for item in classes:
        if item.name in joined:
            found = _joined(item, joined[item.name])
        else:
            found = _on_nodes(item, nodes.get(item.name, 0), sets.get(item.name))
        if isinstance(found, Count):
            counts.append(found)
        else:
            lacking.append(found)
    if lacking:  # what a person must do goes before what comes by itself
        return min(lacking, key=lambda found: found.reason == "EdgesNotReady")
    counts.sort(key=lambda count: count.ready >= count.known)  # a long message is cut at its end
    return Finding("True", "EdgesReady", " ".join(count.text for count in counts))


def _on_nodes(item: EdgeClass, nodes: int, found: Json | None) -> Finding | Count:
    """What a class of nodes lacks; the count of its edges where one serves."""
    if not nodes:
        return _no_node(item)
    if found is None:
        message = (
            f"Class {item.name} has no edges yet: their DaemonSet is made once the tail has a place"
            " in its pool."
        )
        return Finding("False", "EdgesNotReady", message)
    status, name = found.get("status") or {}, found["metadata"]["name"]
    wanted = status.get("desiredNumberScheduled", 0)
    ready, updated = status.get("numberReady", 0), status.get("updatedNumberScheduled", 0)
    if status.get("observedGeneration", 0) < found["metadata"]["generation"]:
        message = f"DaemonSet {name} of class {item.name} is being rolled out."
        return Finding("False", "EdgesNotReady", message)
    if not wanted:
        return _no_toleration(item, nodes, name)
    text = f"{ready} of {wanted} edges of class {item.name} are ready"
    if not ready or not updated:
        old = "" if updated else ", and none is as the spec wants it now"
        message = f"{text}{old}; kubectl describe daemonset {name} and its pods say why."
        return Finding("False", "EdgesNotReady", message)
    return Count(ready, wanted, f"{text}.")


def _no_node(item: EdgeClass) -> Finding:
    if not item.node_selector:
        message = (
            f"Device class {item.name!r} has no devices; set nodeSelector in spec.edge.classes[] "
            "to labels that your edge nodes have, or deviceGroup for devices outside the cluster."
        )
        return Finding("False", "NoDevices", message)
    wanted = " ".join(f"{k}={v}" for k, v in sorted(item.node_selector.items()))
    message = (
        f"No node has the labels of device class {item.name!r}; label one: "
        f"kubectl label node NODE {wanted}"
    )
    return Finding("False", "NoNodeMatches", message)


def _no_toleration(item: EdgeClass, nodes: int, name: str) -> Finding:
    labels = ",".join(f"{k}={v}" for k, v in sorted(item.node_selector.items()))
    message = (
        f"DaemonSet {name} may run on none of the {nodes} nodes that have the labels of device "
        f"class {item.name!r}: they have taints. Put those into tolerations of the class in "
        f"spec.edge.classes[]; kubectl describe node -l {labels} shows them."
    )
    return Finding("False", "NoNodeTolerated", message)


def _joined(item: EdgeClass, joined: Joined) -> Finding | Count:
    """What a group of devices lacks; the count of them where one is connected."""
    if not joined.reachable:
        message = (
            f"Nothing leads from the devices of group {item.device_group!r} to the pool; set "
            "spec.cloud.endpoint, or gateway.externalUrl in the chart."
        )
        return Finding("False", "NoExternalEndpoint", message)
    if not joined.known:
        message = (
            f"No device of group {item.device_group!r} has joined. On a device, with what Secret "
            f"{joined.secret} holds: dovetail edge join ENDPOINT --token-file FILE"
        )
        return Finding("False", "NoDeviceJoined", message)
    if not joined.connected:
        message = f"No device of group {item.device_group!r} was heard of in the last minute."
        return Finding("False", "DevicesSilent", message)
    text = f"{joined.connected} of {joined.known} devices of class {item.name} are connected."
    return Count(joined.connected, joined.known, text)
