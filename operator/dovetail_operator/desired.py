"""What a deployment should own in its namespace, as values: no client, no clock.

The same deployment gives the same objects, whatever happened before, so applying them again after
any crash changes nothing. What is left out here is deleted there. Pods run under Kubernetes'
restricted profile but for one thing: an edge (`edges`) keeps its bundles on a path of its node,
because a container that restarts while the node is offline must find them there.

How a Job tells its result: as its termination message, see docs/adr/0008.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from dovetail.api import HybridDeployment
from dovetail.errors import UserError
from dovetail_operator.client import Json
from dovetail_operator.config import Config
from dovetail_operator.names import POOL_LABEL, child, child_name, stamped
from dovetail_operator.record import partition_hash

PARTITION: Final = "partition"
USER: Final = 65532

CONTAINER_SECURITY: Final[Json] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_POD_SECURITY: Final[Json] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_JOB_SECONDS: Final = 3600
_JOB_RETRIES: Final = 2
# What a person must change fails at once; a pod that was moved away does not count as a try.
_JOB_FAILURES: Final[Json] = {
    "rules": [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": PARTITION,
                "operator": "In",
                "values": [UserError.exit_code],
            },
        },
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
    ]
}


def service_account(hybrid: Json) -> Json:
    """An account without rights and without a token, for Job and edges."""
    body = child("ServiceAccount", hybrid, "workload")
    return stamped({**body, "automountServiceAccountToken": False})


def partition_job(hybrid: Json, deployment: HybridDeployment, config: Config) -> Json:
    """The Job that makes the bundle, pushes it and says its digest.

    Its name holds what the bundle is made from: another model is another Job, and the same one is
    never made twice.
    """
    body = child("Job", hybrid, PARTITION)
    body["metadata"]["name"] = partition_job_name(deployment)
    volumes, mounts = _model_volumes(deployment, config)
    container = {
        "name": PARTITION,
        "image": config.images.partitioner,
        "imagePullPolicy": config.images.pull_policy,
        "command": ["python", "-m", "dovetail_partitioner.job"],
        "args": [f"--push={config.registry.target}"],
        "env": [{"name": "DOVETAIL_MANIFEST", "value": _manifest(deployment)}],
        "terminationMessagePolicy": "File",
        "resources": dict(config.partitioner.resources),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "work", "mountPath": "/tmp"}, *mounts],  # noqa: S108  in a container of its own
    }
    pod = {
        **pod_of(hybrid, config),
        "nodeSelector": dict(config.partitioner.node_selector),
        "tolerations": [dict(item) for item in config.partitioner.tolerations],
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": "work", "emptyDir": {}}, *volumes],
    }
    body["spec"] = {
        "backoffLimit": _JOB_RETRIES,
        "podFailurePolicy": _JOB_FAILURES,
        "activeDeadlineSeconds": _JOB_SECONDS,
        "template": {"metadata": {"labels": body["metadata"]["labels"]}, "spec": pod},
    }
    return stamped(body)


def partition_job_name(deployment: HybridDeployment) -> str:
    """Name of the Job that makes the bundle of this spec."""
    return child_name(deployment.metadata.name, PARTITION, partition_hash(deployment))


def pool_policy(hybrid: Json, pool: str, config: Config) -> list[Json]:
    """Who may reach the pool that a deployment has to itself; nothing where the chart says so.

    Shared pools have theirs from the chart, which knows their names.
    """
    if config.pool_ingress is None:
        return []
    pods: Json = {"matchLabels": {POOL_LABEL: pool.split("/", 1)[1]}}
    own: Json = {"from": [{"podSelector": pods}]}  # Ray's processes talk on any port
    body = child("NetworkPolicy", hybrid, "pool")
    body["spec"] = {
        "podSelector": pods,
        "policyTypes": ["Ingress"],
        "ingress": [own, *config.pool_ingress],
    }
    return [stamped(body)]


def pod_of(hybrid: Json, config: Config) -> Json:
    """What every pod of a deployment has: an account without rights, and no privileges."""
    return {
        **pull_secrets(config),
        "serviceAccountName": child_name(hybrid["metadata"]["name"], "workload"),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _POD_SECURITY,
    }


def pull_secrets(config: Config) -> Json:
    """What a pod says of the Secrets with which its images are pulled; nothing where none are."""
    named = [{"name": name} for name in config.images.pull_secrets]
    return {"imagePullSecrets": named} if named else {}


def _manifest(deployment: HybridDeployment) -> str:
    document = deployment.model_dump(mode="json", by_alias=True, exclude_none=True)
    document["metadata"] = {k: document["metadata"][k] for k in ("name", "namespace")}
    return json.dumps(document, sort_keys=True)


def _model_volumes(deployment: HybridDeployment, config: Config) -> tuple[list[Json], list[Json]]:
    """What the Job mounts to reach the model and the registry: a claim, and credentials."""
    model = deployment.spec.model
    volumes: list[Json] = []
    mounts: list[Json] = []
    if model.uri.startswith("pvc://"):
        claim = model.uri.removeprefix("pvc://").split("/", 1)[0]
        source: Mapping[str, Any] = {"claimName": claim, "readOnly": True}
        volumes.append({"name": "model", "persistentVolumeClaim": source})
        mounts.append({"name": "model", "mountPath": "/model", "readOnly": True})
    for name, secret in (("login", model.credentials), ("registry", config.registry.secret)):
        if secret is not None:
            volumes.append(login_volume(name, secret))
            mounts.append({"name": name, "mountPath": f"/etc/dovetail/{name}", "readOnly": True})
    return volumes, mounts


def login_volume(name: str, secret: str) -> Json:
    """A volume that holds a registry login as `config.json`."""
    items = [{"key": ".dockerconfigjson", "path": "config.json"}]
    return {"name": name, "secret": {"secretName": secret, "items": items}}
