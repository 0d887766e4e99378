"""What the Job controller, a kubelet and KubeRay would write, for tests on an API server alone.

No program of a node runs here, so nobody runs a Job's pod or a pool. These write the very objects
and statuses that those would, through the API server and its validation; what runs inside pods is
tested on nodes.
"""

import json
from datetime import UTC, datetime
from typing import Any

from tests.kube.apiserver import ApiServer, Json

JOBS = "/apis/batch/v1/namespaces/{}/jobs"
PODS = "/api/v1/namespaces/{}/pods"


def start(server: ApiServer, job: Json, said: Json) -> Json:
    """Start a Job: its pod, with what is said of it before it is ready; returns the pod.

    Args:
        server: the API server.
        job: the Job.
        said: fields of the pod's status, as a scheduler or a kubelet writes them.
    """
    pod = _pod(server, job, {"phase": "Pending", **said})
    status = {"startTime": _now(), "active": 1, "ready": 0}
    merge(server, f"{_path(JOBS, job)}/status", {"status": status})
    return pod


def say(server: ApiServer, pod: Json, said: Json) -> None:
    """Write fields of a pod's status; what a list held is replaced."""
    merge(server, f"{_path(PODS, pod)}/status", {"status": said})


def held_up(reason: str, message: str = "") -> Json:
    """What a kubelet says of a pod whose container it cannot start."""
    return {"containerStatuses": [_container({"waiting": {"reason": reason, "message": message}})]}


def finish(
    server: ApiServer, job: Json, said: dict[str, str], *, failed: bool = False, why: str = ""
) -> None:
    """End a Job: its pod with last words, and its status.

    Args:
        server: the API server.
        job: the Job.
        said: the pod's last words; none for one that was ended by the kernel.
        failed: whether it failed.
        why: what the container runtime says of the end.
    """
    now = _now()
    terminated = {
        "exitCode": int(failed),
        "reason": why or ("Error" if failed else "Completed"),
        "message": json.dumps(said) if said else "",
        "startedAt": now,
        "finishedAt": now,
    }
    phase, ended = "Failed" if failed else "Succeeded", _container({"terminated": terminated})
    _pod(server, job, {"phase": phase, "containerStatuses": [ended]})
    ends = ("FailureTarget", "Failed") if failed else ("SuccessCriteriaMet", "Complete")
    status: Json = {
        "startTime": job.get("status", {}).get("startTime", now),
        "active": 0,
        "ready": 0,
        "conditions": [
            {
                "type": kind,
                "status": "True",
                "lastTransitionTime": now,
                "lastProbeTime": now,
                "reason": "Ended",
                "message": "the Job has ended",
            }
            for kind in ends
        ],
        "failed" if failed else "succeeded": 1,
    }
    if not failed:
        status["completionTime"] = now
    merge(server, f"{_path(JOBS, job)}/status", {"status": status})


def _pod(server: ApiServer, job: Json, status: Json) -> Json:
    """A pod of a Job, with a status."""
    namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
    marks = {"batch.kubernetes.io/job-name": name}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": f"{name}-"[:50], "namespace": namespace, "labels": marks},
        "spec": job["spec"]["template"]["spec"],
    }
    made = server.request("POST", PODS.format(namespace), pod)
    made["status"] = status
    return server.request("PUT", f"{_path(PODS, made)}/status", made)


def _container(state: Json) -> Json:
    """What is said of the container of a Job's pod."""
    named = {"name": "partition", "image": "x", "imageID": "x"}
    return {**named, "ready": False, "restartCount": 0, "state": state}


def _path(collection: str, item: Json) -> str:
    return f"{collection.format(item['metadata']['namespace'])}/{item['metadata']['name']}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def roll_out(
    server: ApiServer, daemon_set: Json, nodes: int = 1, *, ready: int | None = None
) -> None:
    """Report a DaemonSet as rolled out on so many nodes.

    Args:
        server: the API server.
        daemon_set: the DaemonSet.
        nodes: on how many nodes it should run.
        ready: on how many of them it is ready; on all where not given.
    """
    namespace, name = daemon_set["metadata"]["namespace"], daemon_set["metadata"]["name"]
    status = {
        "observedGeneration": daemon_set["metadata"]["generation"],
        "currentNumberScheduled": nodes,
        "desiredNumberScheduled": nodes,
        "updatedNumberScheduled": nodes,
        "numberReady": nodes if ready is None else ready,
        "numberMisscheduled": 0,
    }
    path = f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}/status"
    merge(server, path, {"status": status})


def serve(server: ApiServer, service: Json, state: str = "RUNNING", *, endpoints: int = 1) -> None:
    """Report every application in a RayService's config as in that state, behind so many pods."""
    config = json.loads(service["spec"]["serveConfigV2"])
    applications = {
        item["name"]: {"status": state, "message": "as asked"} for item in config["applications"]
    }
    namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
    active = {"applicationStatuses": applications}
    status = {"status": {"activeServiceStatus": active, "numServeEndpoints": endpoints}}
    merge(server, f"/apis/ray.io/v1/namespaces/{namespace}/rayservices/{name}/status", status)


def merge(server: ApiServer, path: str, body: Any) -> Json:
    """Merge patch."""
    return server.request(
        "PATCH", path, body, headers={"Content-Type": "application/merge-patch+json"}
    )
