"""From `helm install` to answers, moves, failures and an end, on two real nodes."""

import pytest
from tests.cluster import example, release
from tests.cluster.traffic import clouds
from tests.kube.operators import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


FEW = 40_000  # bytes that cross a link of 4 Mbit/s in 80 ms


def of_class(cluster):
    return example.get(cluster)["status"]["classes"][0]


def test_a_deployment_becomes_ready_and_every_answer_is_the_whole_models(
    cluster, deployed, traffic, answers
):
    """Verify the way from `helm install` and `kubectl apply` to right answers on an edge node."""
    found = traffic.more(20)

    assert deployed["status"]["observedGeneration"] == deployed["metadata"]["generation"]
    answers(found)
    pods = cluster.pods(example.NAMESPACE, "app.kubernetes.io/component=edge")
    devices = sorted(node["metadata"]["name"] for node in cluster.edges)
    assert sorted(pod["spec"]["nodeName"] for pod in pods) == devices


def test_ray_of_a_pool_answers_nobody_without_its_token(cluster, deployed):
    """Verify that the dashboard, which runs code for whoever may use it, asks for a token."""
    (head,) = cluster.pods(release.NAMESPACE, "ray.io/node-type=head")
    url = f"http://{head['status']['podIP']}:8265/api/serve/applications/"
    asked = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)"
    with pytest.raises(RuntimeError, match="401"):
        cluster.kubectl(
            *("exec", "-n", release.NAMESPACE, head["metadata"]["name"], "--"),
            *("python", "-c", asked, url),
        )


@pytest.mark.usefixtures("hands")
def test_the_cut_follows_the_link_and_no_request_fails(cluster, traffic, answers):
    """Verify that a slow device leans on the cloud over a good link, and not over a thin one."""
    cluster.network.shape("100mbit")
    until(lambda: of_class(cluster)["rung"] != "edge", "the cut to leave the device", 120)
    cluster.network.shape("4mbit")
    until(lambda: of_class(cluster)["cut"]["bytesUp"] <= FEW, "few bytes to cross", 120)
    answers(traffic.more(8))
    cluster.network.shape("400kbit")
    until(lambda: of_class(cluster)["rung"] == "edge", "the device to work alone", 120)
    answers(traffic.more(8))
    cluster.network.shape("100mbit")
    until(lambda: of_class(cluster)["rung"] != "edge", "the cut to leave the device again", 120)
    until(lambda: clouds(traffic.all()[-1]), "an answer of the cloud", 60)
    cluster.network.shape(None)

    assert of_class(cluster)["moves"]
    assert traffic.failed() == []
    answers(traffic.all())
