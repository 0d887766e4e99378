"""Nodes that come, go and are away: whether edges serve follows, and says how many of them do.

What the DaemonSet controller counts is written; which nodes there are is the API server's.
"""

import pytest
from tests.kube.cluster import CAMERA, CHILDREN
from tests.kube.controllers import finish, merge, roll_out
from tests.kube.operators import until

pytestmark = pytest.mark.kube

NODES = "/api/v1/nodes"


@pytest.fixture
def place(running_operator, cluster, made):
    """A deployment whose tail is there and whose devices, lamps, are not."""
    with Place(cluster) as place:
        cluster.create(edge={"classes": [place.lamp]})
        finish(cluster.server, cluster.job(), made)
        cluster.wait("EdgeAvailable", "NoNodeMatches")
        yield place


class Place:
    """Nodes of one test."""

    def __init__(self, cluster):
        self.cluster, self.server, self.made = cluster, cluster.server, set()
        self.lamp = {"name": "lamp", "nodeSelector": {"place": cluster.namespace}}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for name in set(self.made):
            self.leave(name)

    def join(self, name, labels=None):
        """A node joins the cluster."""
        metadata = {"name": f"{self.cluster.namespace}-{name}", "labels": labels or {}}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        self.server.request("POST", NODES, node)
        self.made.add(name)

    def leave(self, name):
        """A node is deleted."""
        self.made.discard(name)
        self.server.request("DELETE", f"{NODES}/{self.cluster.namespace}-{name}")

    def label(self, name, value):
        """A node is labelled as a lamp, or no more with None."""
        body = {"metadata": {"labels": {"place": value}}}
        merge(self.server, f"{NODES}/{self.cluster.namespace}-{name}", body)

    def count(self, nodes, ready):
        """The DaemonSet controller counts."""
        (found,) = until(lambda: self.cluster.items(CHILDREN[-1]), "a DaemonSet")
        roll_out(self.server, found, nodes, ready=ready)

    def says(self, reason, text):
        """Wait until the condition gives a reason and says so; returns the condition."""

        def look():
            found = self.cluster.condition("EdgeAvailable")
            return found if found["reason"] == reason and text in found["message"] else None

        try:
            return until(look, f"{reason} with {text!r}")
        except AssertionError as error:
            now = self.cluster.condition("EdgeAvailable")
            raise AssertionError(f"{error}; it is {now}") from None


def test_nodes_join_and_leave_a_deployment_that_is_there(place):
    """Verify a label put on and taken off, and a node that is deleted; no object is made anew."""
    (before,) = until(lambda: place.cluster.items(CHILDREN[-1]), "a DaemonSet")
    place.join("a")
    place.label("a", place.cluster.namespace)
    place.count(1, 0)
    assert place.says("EdgesNotReady", "0 of 1 edges of class lamp")["status"] == "False"
    place.count(1, 1)
    assert place.says("EdgesReady", "1 of 1 edges of class lamp are ready.")["status"] == "True"

    place.join("b", {"place": place.cluster.namespace})
    place.count(2, 1)
    place.says("EdgesReady", "1 of 2 edges")
    place.count(2, 2)
    place.says("EdgesReady", "2 of 2 edges")

    place.label("a", None)
    place.count(1, 1)
    place.says("EdgesReady", "1 of 1 edges")
    place.leave("b")
    place.count(0, 0)
    assert place.says("NoNodeMatches", "kubectl label node")["status"] == "False"
    (after,) = place.cluster.items(CHILDREN[-1])
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


def test_a_deployment_is_ready_while_one_of_its_edges_is(place):
    """Verify that a fleet with a device that is away is Ready, and none left is not."""
    for name in ("a", "b", "c"):
        place.join(name, {"place": place.cluster.namespace})
    place.cluster.serving()

    place.count(3, 2)
    assert place.says("EdgesReady", "2 of 3 edges of class lamp")["status"] == "True"
    place.cluster.wait("Ready", "Ready")

    place.count(3, 0)
    place.says("EdgesNotReady", "0 of 3 edges")
    ready = place.cluster.wait("Ready", "EdgesNotReady")
    assert ready["status"] == "False"
    assert "kubectl describe daemonset" in ready["message"]


def test_every_class_needs_an_edge_of_its_own(place, cluster):
    """Verify that one class does not stand for another."""
    place.join("a", {"place": cluster.namespace})
    cluster.patch(edge={"classes": [place.lamp, CAMERA]})
    sets = until(lambda: len(found := cluster.items(CHILDREN[-1])) == 2 and found, "DaemonSets")
    lamps, cameras = sorted(
        sets, key=lambda one: one["metadata"]["labels"]["dovetail.dev/device-class"], reverse=True
    )

    roll_out(cluster.server, lamps, 1)
    place.says("EdgesNotReady", "class camera")
    roll_out(cluster.server, cameras, 2, ready=1)
    place.says("EdgesReady", "1 of 2 edges of class camera are ready. 1 of 1 edges of class lamp")


def test_nodes_whose_taints_are_not_tolerated_are_told_from_nodes_that_are_away(place):
    """Verify the reason where the DaemonSet may run nowhere, and that tolerations mend it."""
    place.join("a", {"place": place.cluster.namespace})
    place.count(0, 0)

    found = place.says("NoNodeTolerated", "tolerations of the class")
    assert found["status"] == "False"
    assert f"kubectl describe node -l place={place.cluster.namespace}" in found["message"]

    tolerant = {**place.lamp, "tolerations": [{"key": "edge", "operator": "Exists"}]}
    place.cluster.patch(edge={"classes": [tolerant]})
    until(
        lambda: place.cluster.items(CHILDREN[-1])[0]["spec"]["template"]["spec"]["tolerations"],
        "the tolerations",
    )
    place.count(1, 1)
    place.says("EdgesReady", "1 of 1 edges")
