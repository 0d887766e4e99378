"""How far the partitioning of a deployment is, from its Job and what the Job's pods say.

A Job says only that it ended. What it waits for (a claim, a Secret, an image, a node with room) is
said of its pod, and pods are not watched: a cluster has many, and these are of use for minutes. So
while the pod of a Job is not ready, which the Job's own status tells, it is looked at again, more
and more rarely. Of Secrets only metadata is read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from dovetail.errors import Unavailable, UserError
from dovetail.registry import Registry
from dovetail_operator.client import Api, Json
from dovetail_operator.names import collection
from dovetail_operator.record import Record

_LOST: Final = "the Job ended without saying a result"
_SOON, _LATE = 5.0, 60.0  # seconds between two looks at a pod that is not ready
_TEXT: Final = 600  # characters of Kubernetes' own words; what to do must fit behind them
_STARTING: Final = frozenset({"ContainerCreating", "PodInitializing"})
_OF_IMAGES: Final = frozenset(
    {
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RegistryUnavailable",
    }
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a Job.

    Attributes:
        record: what it made; None where it made nothing, or not yet.
        failure: why it failed; None where it did not.
        waits: what it waits for that does not come by itself; None for nothing.
        again: seconds after which to look again though nobody tells of a change; None for no need.
    """

    record: Record | None = None
    failure: str | None = None
    waits: str | None = None
    again: float | None = None


def outcome(api: Api, registry: Registry, job: Json, partition: str, now: float) -> Outcome:
    """What became of a Job so far.

    Args:
        api: the API server.
        registry: where it pushed the bundle.
        job: the Job, as last seen.
        partition: hash of the spec that it is for.
        now: seconds since the epoch.

    Raises:
        Unavailable: API server or registry do not answer; ask again.
    """
    ended = _ended(job)
    if ended is None:
        return _under_way(api, job, now)
    said = last_words(_pods(api, job))
    if ended[0] == "Failed" or "bundle" not in said:
        why = said.get("message") or (ended[0] == "Failed" and ended[1]) or _LOST
        why += "" if "message" in said else "; delete it to have it run again"
        code = said.get("error")
        return Outcome(failure=f"{code}: {why}" if code else why)
    try:
        config = registry.description(said["bundle"])
        costs = registry.costs(said.get("costs", ""))
    except Unavailable as error:
        raise Unavailable(f"the registry cannot be read: {error}") from error
    except UserError as error:
        return Outcome(failure=f"the Job's bundle cannot be read: {error}")
    return Outcome(Record.of(partition, said["bundle"], config, costs))


def waiting(pod: Json, missing: Sequence[str] = ()) -> str | None:
    """What a pod waits for that does not come by itself, and what to do; None for nothing.

    Args:
        pod: the pod.
        missing: Secrets that it mounts and its namespace does not have. Nothing in a pod's status
            says so.
    """
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _no_place(condition.get("message", condition.get("reason", "")))
    if missing:
        return (
            f"this namespace has no Secret {', '.join(missing)}. Make it, of type "
            "kubernetes.io/dockerconfigjson; spec.model.credentials names it, or "
            "registry.existingSecret in the chart."
        )
    for container in status.get("containerStatuses") or ():
        state = (container.get("state") or {}).get("waiting") or {}
        reason = state.get("reason", "")
        if reason and reason not in _STARTING:
            return _not_started(pod["metadata"]["name"], reason, state.get("message", ""))
    return None


def last_words(pods: Sequence[Json]) -> dict[str, str]:
    """What the last of a Job's pods said when it ended, or what is said of its end.

    Args:
        pods: the pods, newest first.
    """
    for pod in pods:
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            ended = (container.get("state") or {}).get("terminated") or {}
            reason, text = ended.get("reason", ""), ended.get("message", "")
            said = _parsed(text)
            if said:
                return said
            if reason == "OOMKilled":
                return {"error": reason, "message": _out_of_memory(pod)}
            if text:
                return {"error": reason, "message": text}
    return {}


def look_again(job: Json, now: float) -> float | None:
    """Seconds after which to look at a Job's pod again; None where its status will tell.

    Args:
        job: the Job, as last seen.
        now: seconds since the epoch.
    """
    status = job.get("status") or {}
    active, ready = status.get("active", 0), status.get("ready", 0)
    if "startTime" not in status or 0 < active <= ready or (not active and status.get("failed")):
        return None  # nobody works on it yet, or its pod works, or the next try is due
    return min(max(_age(status, now) / 2, _SOON), _LATE)


def _under_way(api: Api, job: Json, now: float) -> Outcome:
    """Of a Job that has not ended: what its pod waits for, where it is not ready."""
    again = look_again(job, now)
    if again is None:
        return Outcome()
    pods = _pods(api, job)
    if pods:
        return Outcome(waits=waiting(pods[0], _missing(api, pods[0])), again=again)
    waits = _no_pod(job["metadata"]["name"]) if _age(job["status"], now) >= _SOON else None
    return Outcome(waits=waits, again=again)


def _age(status: Json, now: float) -> float:
    return now - datetime.fromisoformat(status["startTime"]).timestamp()


def _ended(job: Json) -> tuple[str, str] | None:
    """The condition that a Job ended with, and its message."""
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return condition["type"], condition.get("message", "")
    return None


def _pods(api: Api, job: Json) -> list[Json]:
    """The pods of a Job, newest first."""
    namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
    selector = f"batch.kubernetes.io/job-name={name}"
    pods = api.get(collection("Pod", namespace), labelSelector=selector).get("items") or []
    return sorted(pods, key=lambda one: str(one["metadata"]["creationTimestamp"]), reverse=True)


def _missing(api: Api, pod: Json) -> list[str]:
    """Secrets that a pod mounts and its namespace does not have."""
    path = collection("Secret", pod["metadata"]["namespace"])
    names = [v["secret"]["secretName"] for v in pod["spec"].get("volumes") or () if "secret" in v]

    def there(name: str) -> bool:
        params = {"fieldSelector": f"metadata.name={name}"}
        return any(page.get("items") for page in api.pages(path, params, slim=True))

    return [name for name in names if not there(name)]


def _no_pod(job: str) -> str:
    return (
        "no pod is made for it, most often because a quota of this namespace has no room or asks "
        f"for limits that partitioner.resources in the chart does not give; kubectl describe job "
        f"{job} says why."
    )


def _no_place(text: str) -> str:
    if "persistentvolumeclaim" in text.lower():
        return (
            f"{text[:_TEXT]}. Make the claim that spec.model.uri names in this namespace, or have "
            "it bound; kubectl get pvc shows those there are."
        )
    return (
        f"{text[:_TEXT]}. Make room, or change partitioner in the chart, which says what a Job "
        "asks for and on which nodes it may run, and delete the Job."
    )


def _not_started(pod: str, reason: str, text: str) -> str:
    said = f"{reason}: {text[:_TEXT]}" if text else reason
    if reason in _OF_IMAGES:
        return (
            f"{said}. Put images.partitioner in the chart right and delete the Job, or have the "
            "image pulled: images.pullSecrets must be in this namespace too."
        )
    return f"{said}. kubectl describe pod {pod} says more."


def _out_of_memory(pod: Json) -> str:
    (container, *_) = pod["spec"]["containers"]
    limit = ((container.get("resources") or {}).get("limits") or {}).get("memory", "its node")
    return (
        f"partitioning this model takes more memory than {limit}; raise "
        "partitioner.resources.limits.memory in the chart, and delete the Job to have it run again"
    )


def _parsed(text: str) -> dict[str, str]:
    """What the partitioner left as its termination message; nothing where it is not its own."""
    try:
        said = json.loads(text)
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in said.items()} if isinstance(said, dict) else {}
