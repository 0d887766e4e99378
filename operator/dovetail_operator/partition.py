"""How far the partitioning of a deployment is, from its Job and what the Job's pod said last."""

import json
from dataclasses import dataclass
from typing import Final

from dovetail.errors import Unavailable, UserError
from dovetail.registry import Registry
from dovetail_operator.client import Api, Json
from dovetail_operator.names import collection
from dovetail_operator.record import Record

_LOST: Final = "the Job ended without saying a result; delete it to have it run again"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a Job that ended.

    Attributes:
        record: what it made; None where it failed.
        failure: why it failed; None where it did not.
    """

    record: Record | None = None
    failure: str | None = None


def outcome(api: Api, registry: Registry, job: Json, partition: str) -> Outcome | None:
    """What a Job made; None while it runs.

    Args:
        api: the API server.
        registry: where it pushed the bundle.
        job: the Job, as last seen.
        partition: hash of the spec that it is for.

    Raises:
        Unavailable: API server or registry do not answer; ask again.
    """
    ended = _ended(job)
    if ended is None:
        return None
    said = _last_words(api, job)
    if ended[0] == "Failed" or "bundle" not in said:
        why = said.get("message") or ended[1] or _LOST
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


def _ended(job: Json) -> tuple[str, str] | None:
    """The condition that a Job ended with, and its message."""
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return condition["type"], condition.get("message", "")
    return None


def _last_words(api: Api, job: Json) -> dict[str, str]:
    """What the newest pod of a Job left as its termination message."""
    namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
    selector = f"batch.kubernetes.io/job-name={name}"
    pods = api.get(collection("Pod", namespace), labelSelector=selector).get("items") or []
    for pod in sorted(pods, key=lambda one: one["metadata"]["creationTimestamp"], reverse=True):
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            ended = (container.get("state") or {}).get("terminated") or {}
            try:
                said = json.loads(ended.get("message") or "")
            except ValueError:
                continue
            if isinstance(said, dict):
                return {str(key): str(value) for key, value in said.items()}
    return {}
