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


def finish(server: ApiServer, job: Json, said: dict[str, str], *, failed: bool = False) -> None:
    """End a Job: its pod with last words, and its status."""
    namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
    marks = {"batch.kubernetes.io/job-name": name}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": f"{name}-"[:50], "namespace": namespace, "labels": marks},
        "spec": job["spec"]["template"]["spec"],
    }
    pods = f"/api/v1/namespaces/{namespace}/pods"
    made = server.request("POST", pods, pod)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    terminated = {
        "exitCode": int(failed),
        "message": json.dumps(said),
        "startedAt": now,
        "finishedAt": now,
    }
    made["status"] = {
        "phase": "Failed" if failed else "Succeeded",
        "containerStatuses": [
            {
                "name": "partition",
                "image": "x",
                "imageID": "x",
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": terminated},
            }
        ],
    }
    server.request("PUT", f"{pods}/{made['metadata']['name']}/status", made)
    ends = ("FailureTarget", "Failed") if failed else ("SuccessCriteriaMet", "Complete")
    status: Json = {
        "startTime": now,
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
    merge(server, f"{JOBS.format(namespace)}/{name}/status", {"status": status})


def roll_out(server: ApiServer, daemon_set: Json, nodes: int = 1) -> None:
    """Report a DaemonSet as rolled out on so many nodes."""
    namespace, name = daemon_set["metadata"]["namespace"], daemon_set["metadata"]["name"]
    status = {
        "observedGeneration": daemon_set["metadata"]["generation"],
        "currentNumberScheduled": nodes,
        "desiredNumberScheduled": nodes,
        "updatedNumberScheduled": nodes,
        "numberReady": nodes,
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
