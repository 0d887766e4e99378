"""Everything is killed once while requests come: who must not notice does not."""

import time

import pytest
from tests.cluster import example, release
from tests.cluster.harness import serves
from tests.cluster.traffic import clouds
from tests.kube.operators import until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("hands"),
]

EDGES = "app.kubernetes.io/component=edge"
CHILDREN = ("configmaps", "daemonsets", "services", "secrets")
RAYS = f"/apis/ray.io/v1/namespaces/{release.NAMESPACE}/rayservices"


def made(cluster):
    """Everything that the operator made, by name, with what tells it from one made anew."""
    found = {}
    for kind in CHILDREN:
        root = "/apis/apps/v1" if kind == "daemonsets" else "/api/v1"
        path = f"{root}/namespaces/{example.NAMESPACE}/{kind}"
        for item in cluster.request("GET", path)["items"]:
            if item["metadata"].get("ownerReferences"):
                found[kind, item["metadata"]["name"]] = item["metadata"]["uid"]
    for item in cluster.request("GET", RAYS)["items"]:
        found["rayservices", item["metadata"]["name"]] = item["metadata"]["uid"]
    return found


def stand(cluster):
    """How the deployment stands, without what goes up and down with every window."""
    status = example.get(cluster)["status"]
    return {
        "conditions": {one["type"]: one["status"] for one in status["conditions"]},
        "versions": {one["bundle"]: one["state"] for one in status["versions"]},
        "made": made(cluster),
        "leans on the cloud": {one["name"]: one["rung"] != "edge" for one in status["classes"]},
    }


@pytest.fixture
def before(cluster, traffic, settled):
    """How it stands over a good link, under requests that the cloud answers."""
    cluster.network.shape("100mbit")

    def good():
        found = stand(cluster)
        return found["conditions"]["Ready"] == found["conditions"]["Moving"] == "True" and all(
            found["leans on the cloud"].values()
        )

    settled(good, "a deployment that leans on the cloud", 150)
    yield stand(cluster)
    cluster.network.shape(None)


@pytest.fixture
def same(cluster, traffic, settled, before):
    """Waits until all is as it was before, then sees requests answered by the cloud again."""

    def wait(seconds):
        settled(lambda: stand(cluster) == before, f"the same again: {before}", seconds)
        since = time.time()
        until(lambda: any(clouds(one) for one in traffic.all(since)), "an answer of the cloud")

    return wait


def replaced(cluster, namespace, labels):
    """Delete the only pod of these labels without warning; wait for another in its place."""
    (old,) = cluster.pods(namespace, labels)
    name = old["metadata"]["name"]
    cluster.kubectl("delete", "pod", "-n", namespace, name, "--grace-period=0", "--force")

    def another():
        (new, *_) = cluster.pods(namespace, labels) or [old]
        ready = {one["type"]: one["status"] for one in new["status"].get("conditions", ())}
        return new["metadata"]["uid"] != old["metadata"]["uid"] and ready.get("Ready") == "True"

    until(another, f"a pod in place of {name}", 240)


def test_requests_do_not_notice_that_the_operator_is_killed(cluster, traffic, same, answers):
    """Verify that edges and tail serve on without it, and that it finds all as it left it."""
    replaced(cluster, release.NAMESPACE, "app.kubernetes.io/component=operator")

    same(120)
    assert traffic.failed() == []
    answers(traffic.all())


def test_the_device_answers_while_the_tails_pod_is_gone(cluster, traffic, same, answers):
    """Verify that a pool that loses its only pod costs no request, and comes back by itself."""
    since = time.time()
    replaced(cluster, release.NAMESPACE, "ray.io/node-type=head")
    assert any(one.get("degraded") for one in traffic.all(since))

    same(240)
    assert traffic.failed() == []
    answers(traffic.all())


def test_an_edge_that_is_killed_is_back_with_what_it_had(cluster, traffic, same, answers):
    """Verify that only requests between its end and its return fail; apps have no other edge."""
    (pod,) = cluster.pods(example.NAMESPACE, EDGES)
    killed = time.time()
    cluster.nodes["edge"].kill(pod["metadata"]["name"], "edge")
    until(lambda: [one for one in traffic.all(killed + 0.5) if "rung" in one], "answers again", 60)
    back = next(one["at"] for one in traffic.all(killed + 0.5) if "rung" in one)

    same(120)
    (after,) = cluster.pods(example.NAMESPACE, EDGES)
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
    restarts = [one["status"]["containerStatuses"][0]["restartCount"] for one in (pod, after)]
    assert restarts[1] == restarts[0] + 1
    assert [one for one in traffic.failed() if not killed - 5 <= one["at"] <= back] == []
    answers([one for one in traffic.all() if "error" not in one])


def test_requests_do_not_notice_an_api_server_that_is_gone_for_half_a_minute(
    cluster, traffic, same, answers
):
    """Verify that nothing on a request's way asks the API server, and that all converges after."""
    cluster.control.apiserver.stop()
    time.sleep(30)
    cluster.control.apiserver.start()
    cluster.control.apiserver.wait(lambda: serves(cluster.client), "it is ready")

    same(120)
    assert traffic.failed() == []
    answers(traffic.all())


def test_an_edge_that_restarts_offline_goes_on_from_its_bundle_and_last_plan(
    cluster, traffic, same, answers
):
    """Verify that a container without API server, pool and registry answers by itself."""
    (pod,) = cluster.pods(example.NAMESPACE, EDGES)
    with cluster.network.cut():
        killed = time.time()
        cluster.nodes["edge"].kill(pod["metadata"]["name"], "edge")
        until(lambda: [o for o in traffic.all(killed + 0.5) if "rung" in o], "answers", 60)
        alone = traffic.more(12)

    answers(alone)
    assert {one["rung"] for one in alone} == {"edge"}
    same(180)
    back = next(one["at"] for one in traffic.all(killed + 0.5) if "rung" in one)
    assert [one for one in traffic.failed() if not killed - 5 <= one["at"] <= back] == []
