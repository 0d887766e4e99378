"""A partition Job whose pod cannot start, or was ended by the kernel: said while it is so.

What a scheduler and a kubelet would say of the pod is written; what the operator makes of it, and
that it looks again though nothing that it watches changes, is its own.
"""

import pytest
from tests.kube.controllers import JOBS, finish, held_up, merge, say, start
from tests.kube.operators import until

pytestmark = pytest.mark.kube

UNSCHEDULED = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": 'persistentvolumeclaim "models" not found',
        }
    ]
}


def waits(cluster, text):
    """Wait until the condition says that the Job waits for it; returns the message."""

    def look():
        found = cluster.condition("Partitioned")
        return found["message"] if found["reason"] == "JobWaiting" else None

    until(lambda: text in (look() or ""), f"Partitioned to name {text}; it is {look()}")
    return look()


def test_what_a_jobs_pod_waits_for_is_said_as_it_changes_and_ends_with_it(
    running_operator, cluster, made
):
    """Verify a claim that is not there, then an image, then the bundle; and that people are told.

    Between the two only the pod changes, which nobody watches.
    """
    cluster.create(model={"uri": "pvc://models/page.onnx"})
    pod = start(cluster.server, cluster.job(), UNSCHEDULED)

    condition = cluster.wait("Partitioned", "JobWaiting")
    assert condition["status"] == "False"
    assert cluster.job()["metadata"]["name"] in condition["message"]
    assert 'persistentvolumeclaim "models" not found' in condition["message"]
    assert "spec.model.uri" in condition["message"]
    assert cluster.wait("Ready", "JobWaiting")["status"] == "False"
    events = f"/apis/events.k8s.io/v1/namespaces/{cluster.namespace}/events"
    told = until(lambda: [e for e in cluster.items(events) if e["reason"] == "JobWaiting"], "Event")
    assert told[0]["type"] == "Warning"

    placed = {"conditions": [{"type": "PodScheduled", "status": "True"}]}
    say(cluster.server, pod, {**placed, **held_up("ErrImagePull", "partitioner:1: not found")})
    assert "images.partitioner" in waits(cluster, "ErrImagePull: partitioner:1: not found")

    finish(cluster.server, cluster.job(), made)
    cluster.wait("Partitioned", "Partitioned")


def test_a_job_of_a_new_version_waits_while_the_old_serves(running_operator, cluster, made):
    """Verify that what serves stays Ready, and that Degraded says what the new one waits for."""
    cluster.create()
    cluster.ready(made)
    (first,) = cluster.items(JOBS)

    cluster.patch(model={"uri": "pvc://models/page.onnx"})
    (job,) = until(
        lambda: [
            j for j in cluster.items(JOBS) if j["metadata"]["uid"] != first["metadata"]["uid"]
        ],
        "another Job",
    )
    start(cluster.server, job, UNSCHEDULED)

    message = cluster.wait("Degraded", "JobWaiting")["message"]
    assert '"models" not found' in message
    assert "goes on serving" in message
    assert cluster.wait("Ready", "JobWaiting")["status"] == "True"


def test_a_secret_that_is_not_there_is_named_until_it_is(running_operator, cluster):
    """Verify it though the pod's own status never says so, and that a start alarms nobody."""
    uri = f"oci://r.example/m@sha256:{'0' * 64}"
    cluster.create(model={"uri": uri, "credentials": "login"})
    start(cluster.server, cluster.job(), held_up("ContainerCreating"))

    assert "spec.model.credentials" in waits(cluster, "no Secret login")

    login = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"}}
    cluster.server.request("POST", f"/api/v1/namespaces/{cluster.namespace}/secrets", login)
    cluster.wait("Partitioned", "Partitioning")


def test_a_job_for_which_no_pod_is_made_says_where_to_look(running_operator, cluster):
    """Verify it for a namespace whose quota refuses the pod, of which no status has a word."""
    cluster.create()
    job = cluster.job()
    path = f"{JOBS.format(cluster.namespace)}/{job['metadata']['name']}/status"
    merge(cluster.server, path, {"status": {"startTime": "2026-01-01T00:00:00Z"}})

    message = cluster.wait("Partitioned", "JobWaiting")["message"]
    assert "quota" in message
    assert f"kubectl describe job {job['metadata']['name']}" in message


def test_a_job_whose_pod_is_ready_waits_for_nothing(running_operator, cluster):
    """Verify that the Job's own status is enough from then on."""
    cluster.create(model={"uri": "pvc://models/page.onnx"})
    job = cluster.job()
    start(cluster.server, job, UNSCHEDULED)
    cluster.wait("Partitioned", "JobWaiting")

    path = f"{JOBS.format(cluster.namespace)}/{job['metadata']['name']}/status"
    merge(cluster.server, path, {"status": {"ready": 1}})

    cluster.wait("Partitioned", "Partitioning")


def test_a_job_that_the_kernel_ended_says_how_much_memory_it_had_and_what_to_raise(
    running_operator, cluster
):
    """Verify the reason that a container runtime gives, where the Job's own words are none."""
    cluster.create()
    finish(cluster.server, cluster.job(), {}, failed=True, why="OOMKilled")

    message = cluster.wait("Partitioned", "PartitionFailed")["message"]
    assert message.startswith("OOMKilled: ")
    assert "8Gi" in message
    assert "partitioner.resources.limits.memory" in message
