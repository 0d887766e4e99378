"""What the chart decides for the whole operator, as one file read and checked at start.

One versioned document instead of flags, because the chart writes it and a person reviews it; a key
that nobody knows is refused, so a typing error in the values never becomes a silent default.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError

from dovetail.errors import ManifestError
from dovetail.tensor import Document


class Images(Document):
    """Images of the rooms that the operator starts.

    Attributes:
        edge: the edge runtime.
        partitioner: the partition Job.
        serving: Ray with the serving room.
        pull_policy: when a node pulls them anew.
        pull_secrets: Secrets of type kubernetes.io/dockerconfigjson with which it does, in the
            namespace of the pod.
    """

    edge: str
    partitioner: str
    serving: str
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


class Partitioner(Document):
    """What a partition Job is given, and where it runs.

    Attributes:
        resources: requests and limits of its container.
        node_selector: labels that its node must have.
        tolerations: taints of nodes that do not keep it away.
    """

    resources: Mapping[str, Any] = {
        "requests": {"cpu": "1", "memory": "2Gi"},
        "limits": {"memory": "8Gi"},
    }
    node_selector: Mapping[str, str] = {}
    tolerations: tuple[Mapping[str, Any], ...] = ()


class Registry(Document):
    """Where bundles are kept.

    Attributes:
        url: `http(s)://host[:port]` as the operator reaches it.
        repository: repository of all bundles, which are told apart by digest.
        secret: Secret of type kubernetes.io/dockerconfigjson with the login, where the registry
            asks for one: in the release's namespace for shared pools and the operator, in a
            deployment's own for its Job and its dedicated pool.
    """

    url: str = Field(pattern=r"^https?://[^/]+$")
    repository: str = "dovetail/bundles"
    secret: str | None = None

    @property
    def target(self) -> str:
        """`URL/REPOSITORY`, as Job and pool are told it."""
        return f"{self.url}/{self.repository}"


class PoolConfig(Document):
    """A pool that the operator may run.

    Attributes:
        name: its name, as `cloud.pool` says it.
        namespaces: namespaces it serves; `*` for all.
        max_tails: most tails in it; its whole Serve config is one string in one object.
        workers: Ray workers.
        cpu: CPUs of a worker.
        memory: memory of a worker.
        ray_cluster: fields of `rayClusterConfig` that replace ours.
    """

    name: str
    namespaces: tuple[str, ...] = ("*",)
    max_tails: int = Field(default=100, ge=1, le=500)
    workers: int = Field(default=1, ge=0)
    cpu: str = "2"
    memory: str = "4Gi"
    ray_cluster: Mapping[str, Any] = {}

    def serves(self, namespace: str) -> bool:
        """Whether deployments of a namespace may use it."""
        return "*" in self.namespaces or namespace in self.namespaces


class Config(Document):
    """Everything the chart decides.

    Attributes:
        release: the ConfigMap of the release, which owns shared pools.
        namespace: the operator's namespace, where shared pools are.
        images: what is started.
        partitioner: what a partition Job is given, and where it runs.
        registry: where bundles are kept.
        ray_version: version of Ray in the serving image.
        pools: shared pools.
        dedicated: what a pool of `cloud.pool: Dedicated` is like.
        cache: folder on edge nodes and in pools where bundles are kept.
        pool_url: address of a pool inside the cluster; `{pool}` and `{namespace}` are filled in.
        endpoint: the same as devices on nodes reach it, such as a gateway's; `pool_url` where not
            given.
        external_endpoint: the same as devices outside the cluster reach it; None where they do not.
        endpoint_ca: PEM file of the authority that devices trust beside the usual ones; it is read
            again, so a renewed one needs no restart.
        telemetry: `OTEL_EXPORTER_OTLP_ENDPOINT` of edges and pools; None for no telemetry.
        pool_ingress: rules of a NetworkPolicy by which a dedicated pool is reached from beyond its
            own pods; None for no NetworkPolicy.
    """

    release: str
    namespace: str
    images: Images
    partitioner: Partitioner = Partitioner()
    registry: Registry
    ray_version: str
    pools: tuple[PoolConfig, ...] = (PoolConfig(name="default"),)
    dedicated: PoolConfig = PoolConfig(name="dedicated")
    cache: str = "/var/lib/dovetail"
    pool_url: str = "http://{pool}-serve-svc.{namespace}.svc:8000"
    endpoint: str | None = None
    external_endpoint: str | None = None
    endpoint_ca: Path | None = None
    telemetry: str | None = None
    pool_ingress: tuple[Mapping[str, Any], ...] | None = None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            ManifestError: no such file, not YAML, or a value that is not what was expected.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except OSError as error:
            raise ManifestError(f"configuration {path}: {error.strerror}") from error
        except (yaml.YAMLError, ValidationError) as error:
            raise ManifestError(f"configuration {path} does not hold: {error}") from error

    def pool(self, name: str) -> PoolConfig | None:
        """The shared pool of that name."""
        return next((pool for pool in self.pools if pool.name == name), None)
