"""What a deployment should own, and what is said of it: pure values."""

import pytest

from dovetail.api import parse_manifest
from dovetail_operator import conditions, desired
from dovetail_operator.conditions import Finding, Findings
from dovetail_operator.config import Config
from dovetail_operator.names import child_name, same, stamped
from dovetail_operator.rayservice import admitted
from dovetail_operator.record import partition_hash

CONFIG = Config.model_validate(
    {
        "release": "r",
        "namespace": "system",
        "images": {"edge": "e", "partitioner": "p", "serving": "s"},
        "registry": {"url": "http://registry:5000"},
        "rayVersion": "2.60.0",
    }
)


def hybrid(name="page", **spec):
    return {
        "apiVersion": "dovetail.dev/v1alpha1",
        "kind": "HybridDeployment",
        "metadata": {"name": name, "namespace": "default", "uid": "u", "generation": 1},
        "spec": {"model": {"uri": "https://models.example/page.onnx"}, **spec},
    }


def parsed(item):
    metadata = {key: item["metadata"][key] for key in ("name", "namespace")}
    return parse_manifest({**item, "metadata": metadata}, "test")


def test_the_same_spec_is_the_same_job_and_another_model_another():
    """Verify that a Job's name follows from what the bundle is made from and nothing else."""
    first, again = hybrid(), hybrid(objective={"deadline": "1s"}, privacy="Masked")
    other = hybrid(model={"uri": "https://models.example/other.onnx"})

    names = [desired.partition_job_name(parsed(item)) for item in (first, again, other)]

    assert names[0] == names[1] != names[2]
    assert partition_hash(parsed(first)) != partition_hash(parsed(other))


def test_a_claim_and_credentials_are_mounted_where_the_job_looks():
    """Verify the volumes of a model on a claim and of one in a registry that asks for a login."""
    claim = hybrid(model={"uri": "pvc://models/page/model.onnx"})
    login = hybrid(model={"uri": "oci://r.example/m@sha256:" + "0" * 64, "credentials": "login"})

    def volumes(item):
        spec = desired.partition_job(item, parsed(item), CONFIG)["spec"]["template"]["spec"]
        return {volume["name"]: volume for volume in spec["volumes"]}

    assert volumes(claim)["model"]["persistentVolumeClaim"]["claimName"] == "models"
    assert volumes(login)["login"]["secret"]["secretName"] == "login"


def test_pods_run_without_rights_and_without_privileges():
    """Verify the restricted profile of Job and edge, but for the path where bundles are kept."""
    item = hybrid(edge={"classes": [{"name": "camera", "nodeSelector": {"kind": "camera"}}]})
    (edge_class,) = parsed(item).spec.edge.classes
    daemon_set, _ = desired.edge(
        item, edge_class, bundle="sha256:" + "0" * 64, endpoint="http://pool", config=CONFIG
    )
    for body in (daemon_set, desired.partition_job(item, parsed(item), CONFIG)):
        pod = body["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize(
    ("owner", "role", "part"), [("a", "edge", "b"), ("a" * 63, "edge", "b" * 63), ("a", "plan", "")]
)
def test_a_childs_name_is_a_name(owner, role, part):
    """Verify the length, and that it depends on all three."""
    name = child_name(owner, role, part)

    assert len(name) <= 63
    assert name != child_name(owner, role, part + "x")
    assert child_name("a-edge", "edge", "b") != child_name("a", "edge", "edge-b")


def test_only_what_differs_is_written():
    """Verify that the digest of the content decides, not what the API server added."""
    wanted = stamped({"kind": "X", "metadata": {"name": "a"}, "spec": {"a": 1}})
    found = {**wanted, "spec": {"a": 1, "defaulted": True}}

    assert same(wanted, found)
    assert not same(wanted, None)
    assert not same(stamped({**wanted, "spec": {"a": 2}}), found)


def test_who_came_first_stays_when_a_pool_is_full():
    """Verify that a newcomer never takes a place, whatever its name."""
    members = [("2026-01-02", "b/late"), ("2026-01-01", "z/early"), ("2026-01-03", "a/last")]

    assert admitted(members, 2) == {"z/early", "b/late"}


FINE = Finding("True", "Fine", "it is fine")


def findings(**other):
    every = dict.fromkeys(("partitioned", "tail", "edge", "moving"), FINE)
    return Findings(**{**every, "degraded": conditions.AS_EXPECTED, **other})


def ready(status):
    return next(one for one in status.conditions if one.type == "Ready")


def test_ready_says_the_first_cause():
    """Verify that Ready holds if all hold, and otherwise names what does not."""
    broken = findings(
        tail=Finding("False", "PoolFull", "no place"), edge=Finding("False", "X", "y")
    )

    assert ready(conditions.status_of(findings(), 1, {}, "2026-01-01T00:00:00Z")).status == "True"
    found = ready(conditions.status_of(broken, 1, {}, "2026-01-01T00:00:00Z"))
    assert (found.status, found.reason, found.message) == (
        "False",
        "PoolFull",
        "TailAvailable: no place",
    )


def test_a_conditions_time_changes_only_with_its_status():
    """Verify that a new reason alone leaves the transition time."""
    old = {"Ready": {"status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}}
    broken = findings(tail=Finding("False", "PoolFull", "no place"))
    now = "2026-02-02T00:00:00Z"

    stays = ready(conditions.status_of(broken, 1, old, now))
    turns = ready(conditions.status_of(findings(), 1, old, now))

    assert stays.last_transition_time == "2026-01-01T00:00:00Z"
    assert turns.last_transition_time == now


def test_a_long_message_is_cut_with_a_mark():
    """Verify that a traceback does not break the status."""
    long = findings(tail=Finding("False", "TailFailed", "x" * 9000))

    status = conditions.status_of(long, 1, {}, "2026-01-01T00:00:00Z")

    assert all(len(one.message) <= 1024 for one in status.conditions)
    assert ready(status).message.endswith("…")
