"""What a partition Job's pods say, in words: pure values."""

import json

import pytest

from dovetail_operator.partition import last_words, look_again, waiting


def pod(*states, scheduled=None, limit="8Gi"):
    """A Job's pod whose container is, or whose containers are, in a state."""
    conditions = [] if scheduled is None else [{"type": "PodScheduled", **scheduled}]
    statuses = [{"name": "partition", "state": state} for state in states]
    limits = {"limits": {"memory": limit}} if limit else {}
    return {
        "metadata": {"name": "page-partition-x"},
        "spec": {"containers": [{"name": "partition", "resources": limits}]},
        "status": {"conditions": conditions, "containerStatuses": statuses},
    }


def unscheduled(message):
    return pod(scheduled={"status": "False", "reason": "Unschedulable", "message": message})


def stuck(reason, message=""):
    return pod({"waiting": {"reason": reason, "message": message}})


@pytest.mark.parametrize(
    ("item", "parts"),
    [
        pytest.param(
            unscheduled('persistentvolumeclaim "models" not found'),
            ('"models" not found', "spec.model.uri"),
            id="no claim",
        ),
        pytest.param(
            unscheduled("pod has unbound immediate PersistentVolumeClaims"),
            ("unbound", "kubectl get pvc"),
            id="a claim that nothing is bound to",
        ),
        pytest.param(
            unscheduled("0/3 nodes are available: 3 Insufficient memory"),
            ("Insufficient memory", "partitioner in the chart", "delete the Job"),
            id="no room",
        ),
        pytest.param(
            stuck("ImagePullBackOff", 'Back-off pulling image "p:1"'),
            ('ImagePullBackOff: Back-off pulling image "p:1"', "images.partitioner"),
            id="an image that is not there",
        ),
        pytest.param(stuck("InvalidImageName"), ("InvalidImageName.",), id="an image that is none"),
        pytest.param(
            stuck("CreateContainerConfigError", "container has runAsNonRoot"),
            ("runAsNonRoot", "kubectl describe pod page-partition-x"),
            id="a container that cannot be made",
        ),
    ],
)
def test_a_pod_that_cannot_start_is_told_with_a_remedy(item, parts):
    """Verify that Kubernetes' own words are there, and what to do."""
    said = waiting(item)

    assert said is not None
    assert all(part in said for part in parts), said


@pytest.mark.parametrize(
    "item",
    [
        pytest.param({"metadata": {"name": "p"}}, id="just made"),
        pytest.param(pod(scheduled={"status": "True"}), id="on a node"),
        pytest.param(stuck("ContainerCreating"), id="its image is being pulled"),
        pytest.param(pod({"running": {"startedAt": "2026-01-01T00:00:00Z"}}), id="it runs"),
    ],
)
def test_a_pod_that_is_on_its_way_waits_for_nothing(item):
    """Verify that what comes by itself alarms nobody."""
    assert waiting(item) is None


def test_a_secret_that_is_missing_is_told_though_no_status_says_so():
    """Verify the name, the type, and where it is named."""
    said = waiting(stuck("ContainerCreating"), ["login"])

    assert said is not None
    assert "no Secret login" in said
    assert "spec.model.credentials" in said


def test_long_words_of_kubernetes_leave_room_for_the_remedy():
    """Verify it for a cluster of many nodes, each with its reason."""
    said = waiting(unscheduled("x" * 5000))

    assert said is not None
    assert len(said) < 1000
    assert "delete the Job" in said


@pytest.mark.parametrize(
    ("status", "age", "seconds"),
    [
        pytest.param({}, 0, None, id="nobody works on it yet"),
        pytest.param({"active": 0}, 40, 20, id="no pod is made"),
        pytest.param({"active": 1, "ready": 1}, 900, None, id="it works"),
        pytest.param({"active": 1, "ready": 0}, 0, 5, id="just made"),
        pytest.param({"active": 1}, 40, 20, id="not ready"),
        pytest.param({"active": 1}, 3000, 60, id="not ready for long"),
        pytest.param({"failed": 1, "active": 0}, 40, None, id="between two tries"),
    ],
)
def test_a_pod_is_looked_at_again_while_it_is_not_ready_and_more_and_more_rarely(
    status, age, seconds
):
    """Verify it against the Job's start; whatever else happens changes the Job's own status."""
    began = 1767225600
    start = {"startTime": "2026-01-01T00:00:00Z"} if status else {}
    job = {"status": {**status, **start}}

    assert look_again(job, began + age) == seconds


def ended(reason="Error", message="", **more):
    return pod({"terminated": {"exitCode": 1, "reason": reason, "message": message}}, **more)


def test_the_newest_pod_that_said_something_is_heard():
    """Verify that one that was moved away without a word hides nothing."""
    words = {"error": "ProofError", "message": "int8 is 9 % off"}

    assert last_words([ended(), ended(message=json.dumps(words)), ended("OOMKilled")]) == words
    assert last_words([]) == last_words([ended()]) == {}


def test_a_pod_that_took_too_much_memory_says_the_limit_and_what_to_raise():
    """Verify the words for a limit and for none, and that the partitioner's own go before."""
    said = last_words([ended("OOMKilled")])
    own = {"error": "UnsupportedModel", "message": "a Loop"}

    assert said["error"] == "OOMKilled"
    assert "more memory than 8Gi" in said["message"]
    assert "partitioner.resources.limits.memory" in said["message"]
    assert "than its node" in last_words([ended("OOMKilled", limit=None)])["message"]
    assert last_words([ended("OOMKilled", json.dumps(own))]) == own


def test_a_container_that_could_not_be_run_says_why_in_the_runtimes_words():
    """Verify a message that is not the partitioner's."""
    text = 'exec: "python": executable file not found'

    assert last_words([ended("StartError", text)]) == {"error": "StartError", "message": text}
