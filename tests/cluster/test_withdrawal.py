"""Upgrades, and ends in every order; the last file, because it takes the deployment away."""

import pytest
from tests.cluster import example, release
from tests.kube.operators import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

DEFINITION = "hybriddeployments.dovetail.dev"
RAYS = f"/apis/ray.io/v1/namespaces/{release.NAMESPACE}/rayservices"


def more_than(stage):
    """What there is beside what was there before the chart, but for namespaces."""
    now = release.everything(stage.cluster)
    return {key: now[key] for key in now.keys() - stage.bare.keys() if key[0] != "namespaces"}


def owned(found, uid):
    """Those that belong to the object of a uid, at whatever distance."""
    owners = {uid}
    while True:
        mine = {
            key: metadata
            for key, metadata in found.items()
            if owners & {one["uid"] for one in metadata.get("ownerReferences", ())}
        }
        if owners == (more := {uid, *(metadata["uid"] for metadata in mine.values())}):
            return set(mine)
        owners = more


def test_an_upgrade_of_the_operator_costs_no_request(cluster, traffic, answers):
    """Verify that another operator takes over what runs, and replaces no edge and no pool."""

    def names(labels):
        places = (example.NAMESPACE, release.NAMESPACE)
        found = [one for place in places for one in cluster.pods(place, labels)]
        return {one["metadata"]["uid"] for one in found}

    labels = {name: f"app.kubernetes.io/component={name}" for name in ("operator", "edge")}
    before = {name: names(label) for name, label in labels.items()}
    heads = names("ray.io/node-type=head")
    release.install(cluster, operator={**release.VALUES["operator"], "logLevel": "debug"})
    until(lambda: not names(labels["operator"]) & before["operator"], "another operator", 60)
    traffic.more(20)

    assert names(labels["edge"]) == before["edge"]
    assert names("ray.io/node-type=head") == heads
    assert example.conditions(cluster)["Ready"][0] == "True"
    assert traffic.failed() == []
    answers(traffic.all())


def test_what_is_uninstalled_leaves_the_definition_the_resources_and_what_is_theirs(
    stage, cluster, traffic, answers
):
    """Verify over every kind of the API server; meanwhile the device goes on answering alone."""
    uid = example.get(cluster)["metadata"]["uid"]
    cluster.helm("uninstall", release.RELEASE, "--namespace", release.NAMESPACE, "--wait")

    def left():
        found = more_than(stage)
        return set(found) - owned(found, uid)

    kept = {
        ("apiservices", "", "v1alpha1.dovetail.dev"),
        ("customresourcedefinitions", "", DEFINITION),
        ("hybriddeployments", example.NAMESPACE, example.NAME),
    }
    try:
        until(lambda: left() == kept, "what the chart brought to be gone", 120)
    except AssertionError:
        assert left() == kept
    alone = traffic.more(12)
    assert {one["rung"] for one in alone} == {"edge"}
    assert traffic.failed() == []
    answers(traffic.all())


def test_what_is_installed_again_takes_over_what_was_left(stage, cluster, traffic):
    """Verify that nothing is partitioned anew and no request fails on the way back."""
    before = example.get(cluster)["status"]["bundle"]
    release.install(cluster, crds={"keep": False})

    def back():
        ready = example.conditions(cluster)["Ready"][0] == "True"
        served = cluster.request("GET", RAYS)["items"]
        return ready and served and served[0].get("status", {}).get("activeServiceStatus")

    until(back, "the pool to be back", 240)
    until(lambda: traffic.all()[-1].get("rung") not in (None, "edge"), "the cloud to answer", 120)
    assert example.get(cluster)["status"]["bundle"] == before
    assert traffic.failed() == []


def test_a_deployment_that_is_deleted_takes_everything_along_also_its_pool(stage, cluster):
    """Verify that of a deployment nothing is left in its namespace nor in the chart's."""
    cluster.kubectl("delete", "hd", "-n", example.NAMESPACE, example.NAME, "--timeout=60s")

    def left():
        found = {key for key in more_than(stage) if key[1] == example.NAMESPACE}
        pods = {("pods", one["metadata"]["name"]) for one in heads()}
        return found | pods | {("rayservices",) for _ in cluster.request("GET", RAYS)["items"]}

    def heads():
        return cluster.pods(release.NAMESPACE, "ray.io/node-type=head")

    try:
        until(lambda: not left(), "everything of it to be gone", 120)
    except AssertionError:
        assert left() == set()


def test_nothing_is_left_of_a_release_that_keeps_no_definitions(stage, cluster):
    """Verify it over every kind, in the middle of making a deployment."""
    example.apply(cluster, example.manifest())
    until(
        lambda: cluster.pods(example.NAMESPACE, "batch.kubernetes.io/job-name"),
        "a Job to be under way",
    )
    cluster.helm("uninstall", release.RELEASE, "--namespace", release.NAMESPACE, "--wait")

    try:
        until(lambda: not more_than(stage), "everything to be gone", 120)
    except AssertionError:
        assert more_than(stage) == {}
