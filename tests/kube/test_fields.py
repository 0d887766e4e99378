"""Every value that the resource offers reaches whom it concerns: Job, edge, plan or pool."""

import json
from pathlib import Path

import pytest
import yaml
from tests.kube.cluster import CAMERA, CHILDREN
from tests.kube.controllers import JOBS, finish
from tests.kube.operators import until

from dovetail.status import Status

pytestmark = pytest.mark.kube

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "kubernetes").glob("*.yaml"))


def plan_of(cluster, name="camera"):
    """The plan of a class, as edges boot from it."""
    (held,) = cluster.items("/api/v1/namespaces/{}/configmaps")
    return json.loads(held["data"][f"plan.{name}.json"])


def tail_of(cluster):
    """The deployment's tail in its pool."""
    apps = cluster.serve_config()["applications"]
    return next(app for app in apps if app["name"].startswith(cluster.namespace))


def told(job):
    """The spec that a Job is told."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (manifest,) = [i["value"] for i in container["env"] if i["name"] == "DOVETAIL_MANIFEST"]
    return json.loads(manifest)["spec"]


def test_what_an_edge_is_given_reaches_its_pod(running_operator, cluster, made):
    """Verify threads, resources and tolerations of a class, and its offline policy in the plan."""
    toleration = {"key": "k.io/a", "operator": "Equal", "value": "b", "effect": "NoSchedule"}
    given = {
        **CAMERA,
        "threads": 3,
        "offline": "Fail",
        "tolerations": [toleration],
        "resources": {"cpu": "250m", "memory": "1Gi"},
    }
    cluster.create(edge={"classes": [given]})
    cluster.ready(made)

    (pods,) = cluster.items(CHILDREN[-1])
    pod = pods["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "--threads=3" in container["args"]
    assert pod["tolerations"] == [toleration]
    assert container["resources"] == {
        "requests": {"cpu": "250m", "memory": "1Gi"},
        "limits": {"memory": "1Gi"},
    }
    assert plan_of(cluster)["fallback"] == "Fail"


def test_what_a_tail_is_given_reaches_its_application(running_operator, cluster, made):
    """Verify replicas, threads and batch in the pool, and deadline and endpoint on the devices."""
    cluster.create(
        cloud={
            "replicas": {"min": 2, "max": 5},
            "threads": 3,
            "maxBatch": 7,
            "endpoint": "https://tails.example:8443/a",
        },
        objective={"deadline": "250ms"},
    )
    cluster.ready(made)

    tail = tail_of(cluster)
    scale = tail["deployments"][0]["autoscaling_config"]
    assert (scale["min_replicas"], scale["max_replicas"]) == (2, 5)
    assert {"threads": 3, "max_batch": 7}.items() <= json.loads(json.dumps(tail["args"])).items()
    (pods,) = cluster.items(CHILDREN[-1])
    arguments = pods["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--endpoint=https://tails.example:8443/a" in arguments
    assert plan_of(cluster)["deadline"] == 0.25


@pytest.mark.parametrize(
    ("privacy", "forbidden"),
    [("Open", set()), ("Masked", {"cloud"}), ("Private", {"cloud", "cut1", "cut2"})],
)
def test_a_privacy_class_takes_rungs_off_every_ladder(
    running_operator, cluster, made, privacy, forbidden
):
    """Verify that plan and pool say the same, and that a deployment of each class serves."""
    cluster.create(privacy=privacy)
    cluster.ready(made)

    plan = plan_of(cluster)
    assert plan == tail_of(cluster)["deployments"][0]["user_config"]["plans"]["camera"]
    cuts = {rung["id"].split("-")[0] for rung in plan["ladder"]}
    assert plan["privacy"] == privacy
    assert "edge" in cuts
    assert not cuts & forbidden
    assert cuts | forbidden >= {"cloud", "cut1", "cut2"}


def test_a_codec_that_is_not_allowed_is_on_no_ladder(running_operator, cluster, made):
    """Verify `wire.codecs`, which the Job hears of too."""
    cluster.create(wire={"codecs": ["raw"]})
    job = cluster.job()
    assert told(job)["wire"] == {"codecs": ["raw"]}

    cluster.ready(made)
    assert {rung["id"] for rung in plan_of(cluster)["ladder"]} <= {"edge", "cloud", "cut1", "cut2"}


def test_a_paused_deployment_keeps_its_rung_and_says_so(running_operator, cluster, made):
    """Verify `adapt.mode: Paused`, and that going on needs no new plan."""
    cluster.create()
    cluster.ready(made)
    before = plan_of(cluster)

    cluster.patch(adapt={"mode": "Paused"})
    assert cluster.wait("Moving", "Paused")["status"] == "False"
    assert plan_of(cluster)["default"] == before["default"]
    assert Status.model_validate(cluster.get()["status"]).classes[0].rung == before["default"]


def test_what_a_bundle_is_made_from_is_what_the_job_is_told(running_operator, cluster, made):
    """Verify that inputs, rows, quality and pieces reach the Job, and that each is another Job."""
    said = {
        "inputs": [{"name": "x", "shape": [0, 3]}],
        "calibration": {"uri": "https://models.example/rows.npz"},
        "quality": {"minTop1Agreement": 0.9, "maxError": 0.2},
        "split": {"maxSegments": 4},
    }
    cluster.create()
    finish(cluster.server, cluster.job(), made)
    names = {job["metadata"]["name"] for job in cluster.items(JOBS)}
    for field, value in said.items():
        cluster.patch(**{field: value})
        (job,) = until(
            lambda: [j for j in cluster.items(JOBS) if j["metadata"]["name"] not in names],
            f"a Job for another {field}",
        )
        names.add(job["metadata"]["name"])
        assert told(job)[field] == value


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_becomes_job_plan_and_tail(running_operator, cluster, made, path):
    """Verify that each example, as it is in the tree, is taken and worked on."""
    example = yaml.safe_load(path.read_text())
    name = example["metadata"]["name"]
    cluster.server.request("POST", cluster.path, example, params={"fieldValidation": "Strict"})
    finish(cluster.server, cluster.job(), made)

    assert cluster.wait("Partitioned", "Partitioned", name)["status"] == "True"
    (held,) = until(lambda: cluster.items("/api/v1/namespaces/{}/configmaps"), "the plans")
    classes = {item["name"] for item in example["spec"]["edge"]["classes"]}
    assert {f"plan.{item}.json" for item in classes} <= held["data"].keys()
