"""A new version beside the old, on a real API server: staged, live, retained, refused, undone.

What Ray Serve would say of each application is written as KubeRay would write it; what edges do
with two versions is tested where edges run.
"""

import json

import pytest
from tests.kube.cluster import RAYS
from tests.kube.controllers import JOBS, finish, merge
from tests.kube.operators import configuration, operator, until

pytestmark = pytest.mark.kube

OTHER = "https://models.example/other.onnx"


@pytest.fixture(scope="module")
def running_operator(rays, registry, tmp_path_factory):
    """One operator for all tests of this module, with a pool of its own for full houses."""
    pools = [{"name": "default"}, {"name": "narrow", "maxTails": 1}]
    folder = tmp_path_factory.mktemp("rollout")
    with operator(rays, folder, configuration(registry, pools=pools)) as process:
        until(lambda: process.probe("/readyz") == 200, "readiness")
        yield process


class Rollout:
    """A deployment whose version is changed."""

    def __init__(self, cluster):
        self.cluster = cluster

    def to(self, said, uri=OTHER, **spec):
        """Ask for another model and end its Job."""
        before = {job["metadata"]["uid"] for job in self.cluster.items(JOBS)}
        self.cluster.patch(model={"uri": uri}, **spec)
        (job,) = until(
            lambda: [j for j in self.cluster.items(JOBS) if j["metadata"]["uid"] not in before],
            "another Job",
        )
        finish(self.cluster.server, job, said, failed="error" in said)

    def applications(self, pool="default"):
        """Versions of the deployment in its pool, each with the bundle that its plans name."""
        prefix = f"{self.cluster.namespace}--page--"
        found = {}
        for item in self.cluster.serve_config(pool)["applications"]:
            if item["name"].startswith(prefix):
                plans = item["deployments"][0]["user_config"]["plans"]
                found[item["name"].removeprefix(prefix)] = plans["camera"]
        return found

    def say(self, said, state="RUNNING", pool="default"):
        """Report the tail of one version; the others stay as they were reported."""
        name = f"{self.cluster.namespace}--page--{short(said)}"
        status = {"applicationStatuses": {name: {"status": state, "message": "no room"}}}
        path = f"{RAYS}/{pool}/status"
        merge(self.cluster.server, path, {"status": {"activeServiceStatus": status}})

    def live(self):
        return self.cluster.get()["status"]["bundle"]

    def states(self):
        versions = self.cluster.get()["status"].get("versions", [])
        return {version["bundle"]: version["state"] for version in versions}

    def plan(self):
        (held,) = self.cluster.items("/api/v1/namespaces/{}/configmaps")
        return json.loads(held["data"]["plan.camera.json"])

    def both(self, said):
        until(lambda: short(said) in self.applications(), "the new version beside the old")


def short(said):
    return said["bundle"].removeprefix("sha256:")[:12]


@pytest.fixture
def rollout(running_operator, cluster, made):
    """A deployment that serves its first version."""
    cluster.create()
    cluster.ready(made)
    return Rollout(cluster)


def test_a_new_version_takes_over_once_its_tail_runs_and_the_old_stays(rollout, made, second):
    """Verify that plans never name a tail that is not there, and that no edge is started anew."""
    cluster = rollout.cluster
    (daemon_set,) = cluster.items("/apis/apps/v1/namespaces/{}/daemonsets")
    first = rollout.plan()

    rollout.to(second)
    rollout.both(second)
    assert {plan["bundle"] for plan in rollout.applications().values()} == {made["bundle"]}
    assert cluster.wait("Ready", "RollingOut")["status"] == "True"
    until(
        lambda: rollout.states() == {made["bundle"]: "Live", second["bundle"]: "Deploying"},
        "the versions",
    )

    rollout.say(second)
    until(lambda: rollout.live() == second["bundle"], "the new version to be live")
    until(lambda: rollout.plan()["bundle"] == second["bundle"], "the plan to name it")
    assert rollout.plan()["generation"] > first["generation"]
    until(
        lambda: (
            {p["generation"] for p in rollout.applications().values()}
            == {rollout.plan()["generation"]}
        ),
        "both tails to hand out the new plan",
    )
    assert set(rollout.applications()) == {short(made), short(second)}
    until(
        lambda: rollout.states() == {made["bundle"]: "Retained", second["bundle"]: "Live"},
        "the versions",
    )
    cluster.wait("Ready", "Ready")
    (after,) = cluster.items("/apis/apps/v1/namespaces/{}/daemonsets")
    assert after["metadata"]["generation"] == daemon_set["metadata"]["generation"]
    events = f"/apis/events.k8s.io/v1/namespaces/{cluster.namespace}/events"
    until(lambda: [e for e in cluster.items(events) if e["reason"] == "RolledOut"], "an Event")


def test_a_version_whose_partition_fails_leaves_the_old_ready_and_says_why(rollout, made):
    """Verify that what serves stays Ready, that Degraded names the fault, and no tail is added."""
    cluster = rollout.cluster

    rollout.to({"error": "ProofError", "message": "int8 changes 9 of 10 answers"})

    message = cluster.wait("Degraded", "PartitionFailed")["message"]
    assert "int8 changes 9 of 10 answers" in message
    assert short(made) in message
    ready = cluster.wait("Ready", "PartitionFailed")
    assert ready["status"] == "True"
    assert cluster.condition("Partitioned")["status"] == "False"
    assert set(rollout.applications()) == {short(made)}

    cluster.patch(model={"uri": "https://models.example/page.onnx"})
    cluster.wait("Ready", "Ready")
    assert cluster.condition("Degraded")["status"] == "False"


def test_a_version_whose_tail_cannot_be_deployed_leaves_the_pool_again(rollout, made, second):
    """Verify that the old stays live and Ready, and that a change of the spec tries again."""
    cluster = rollout.cluster
    rollout.to(second)
    rollout.both(second)

    rollout.say(second, "DEPLOY_FAILED")
    message = cluster.wait("Degraded", "RolloutFailed")["message"]
    assert "no room" in message
    assert short(second) in message
    assert cluster.wait("Ready", "RolloutFailed")["status"] == "True"
    until(lambda: set(rollout.applications()) == {short(made)}, "the failed tail gone")
    until(
        lambda: rollout.states() == {made["bundle"]: "Live", second["bundle"]: "Refused"},
        "the versions",
    )

    cluster.patch(cloud={"threads": 2})
    rollout.both(second)
    rollout.say(second)
    until(lambda: rollout.live() == second["bundle"], "the new version to be live")


def test_one_field_goes_back_and_forth_between_versions(rollout, made, second):
    """Verify a rollback to a version that still runs, and that taking it out goes forward."""
    cluster = rollout.cluster
    rollout.to(second)
    rollout.both(second)
    rollout.say(second)
    until(lambda: rollout.live() == second["bundle"], "the new version to be live")
    jobs = len(cluster.items(JOBS))

    cluster.patch(rollout={"rollback": made["bundle"]})
    until(lambda: rollout.live() == made["bundle"], "the old version to be live")
    assert cluster.wait("Partitioned", "RolledBack")["status"] == "True"
    back = rollout.plan()
    assert back["bundle"] == made["bundle"]

    cluster.patch(rollout={"rollback": None})
    until(lambda: rollout.live() == second["bundle"], "the new version to be live again")
    until(lambda: rollout.plan()["generation"] > back["generation"], "a higher generation")
    assert len(cluster.items(JOBS)) <= jobs


def test_a_rollback_to_a_version_that_never_was_is_said_and_changes_nothing(rollout, made):
    """Verify the reason, what serves meanwhile, and where to look."""
    cluster = rollout.cluster

    cluster.patch(rollout={"rollback": f"sha256:{'ab' * 32}"})

    assert "status.versions" in cluster.wait("Degraded", "UnknownVersion")["message"]
    assert cluster.condition("Ready")["status"] == "True"
    assert rollout.live() == made["bundle"]


def test_a_full_pool_keeps_the_old_version_and_says_that_there_is_no_place(
    running_operator, cluster, made, second
):
    """Verify that a rollout needs a place of its own, and takes nobody's."""
    cluster.create(cloud={"pool": "narrow"})
    finish(cluster.server, cluster.job(), made)
    rollout = Rollout(cluster)
    until(lambda: rollout.applications("narrow"), "the tail")

    rollout.to(second)

    assert "maxTails" in cluster.wait("Degraded", "PoolFull")["message"]
    assert set(rollout.applications("narrow")) == {short(made)}
