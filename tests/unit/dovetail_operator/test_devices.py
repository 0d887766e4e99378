"""Whether edges serve, from what DaemonSets and the ledger say: pure values."""

import pytest

from dovetail.placement import EdgeClass
from dovetail_operator.devices import Joined, edge_available

CAMERA = EdgeClass(name="camera", node_selector={"kind": "camera"})
LAMP = EdgeClass(name="lamp", node_selector={"kind": "lamp"})
PHONE = EdgeClass(name="phone", device_group="phones")


def daemon_set(wanted=3, ready=3, updated=3, *, behind=False):
    """A DaemonSet as its controller left it."""
    status = {
        "observedGeneration": 1 if behind else 2,
        "desiredNumberScheduled": wanted,
        "numberReady": ready,
        "updatedNumberScheduled": updated,
    }
    return {"metadata": {"name": "page-edge-1", "generation": 2}, "status": status}


def found(*classes, nodes=3, joined=None, **sets):
    everywhere = {item.name: nodes for item in classes}
    return edge_available(classes, sets, everywhere, joined or {})


@pytest.mark.parametrize(
    ("item", "reason", "text"),
    [
        pytest.param(daemon_set(), "EdgesReady", "3 of 3 edges of class camera are", id="all"),
        pytest.param(daemon_set(ready=2), "EdgesReady", "2 of 3 edges of", id="one is away"),
        pytest.param(daemon_set(ready=1, updated=1), "EdgesReady", "1 of 3", id="one is left"),
        pytest.param(daemon_set(ready=0), "EdgesNotReady", "0 of 3 edges", id="none"),
        pytest.param(
            daemon_set(updated=0), "EdgesNotReady", "none is as the spec", id="only old ones"
        ),
        pytest.param(daemon_set(behind=True), "EdgesNotReady", "rolled out", id="just changed"),
        pytest.param(daemon_set(0, 0, 0), "NoNodeTolerated", "tolerations", id="all tainted"),
        pytest.param(None, "EdgesNotReady", "no edges yet", id="not made"),
    ],
)
def test_a_class_has_edges_while_one_of_them_serves(item, reason, text):
    """Verify reason and counts for each state of a DaemonSet."""
    finding = found(CAMERA, camera=item)

    assert finding.reason == reason
    assert (finding.status == "True") == (reason == "EdgesReady")
    assert text in finding.message


def test_every_class_needs_one_and_what_is_not_whole_is_read_first():
    """Verify two classes of nodes and a group of devices."""
    joined = {"phone": Joined("s", reachable=True, known=4, connected=1)}

    whole = found(CAMERA, LAMP, PHONE, joined=joined, camera=daemon_set(), lamp=daemon_set(ready=2))
    assert whole.status == "True"
    assert whole.message == (
        "2 of 3 edges of class lamp are ready. 1 of 4 devices of class phone are connected. "
        "3 of 3 edges of class camera are ready."
    )
    one_none = found(CAMERA, LAMP, camera=daemon_set(), lamp=daemon_set(ready=0))
    assert one_none.reason == "EdgesNotReady"
    assert "class lamp" in one_none.message


def test_what_a_person_must_do_goes_before_what_comes_by_itself():
    """Verify it whatever the order of the classes."""
    nodes = {"camera": 1, "lamp": 0}
    for classes in ((CAMERA, LAMP), (LAMP, CAMERA)):
        assert edge_available(classes, {}, nodes, {}).reason == "NoNodeMatches"
