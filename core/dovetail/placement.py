"""Where the two halves run: device classes on edge nodes, the tail in a pool of the cluster.

The part of `HybridDeployment` that speaks of machines. `dovetail up` runs both halves on the one
machine there is, so it reads what an engine needs (threads, replicas, batches) and leaves what
only a cluster has (node selectors, tolerations, resources, the pool); the same manifest serves
both.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema

from dovetail.plan import Fallback
from dovetail.rules import RULES, Checked, Keyed, Matches, Rule, without_nulls

DEDICATED: Final = "Dedicated"

_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_LABEL_KEY = (
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_NAME = "must be lower case letters, digits and -, at most 63, starting and ending with no -"
_IS_KEY = "must be the key of a label, such as example.com/kind"
_IS_VALUE = "must be the value of a label: at most 63 letters, digits, - _ and ."

Label = Annotated[str, StringConstraints(max_length=63), Matches(_LABEL, _NAME)]
LabelKey = Annotated[
    str,
    StringConstraints(max_length=317),
    Matches(_LABEL_KEY, _IS_KEY),
]
LabelValue = Annotated[
    str,
    StringConstraints(max_length=63),
    Matches(_LABEL_VALUE, _IS_VALUE),
]


def _keys_are_labels(labels: Mapping[str, Any]) -> Mapping[str, Any]:
    wrong = sorted(key for key in labels if not re.fullmatch(_LABEL_KEY, key))
    if wrong:
        raise ValueError(f"{wrong[0]!r} {_IS_KEY}")
    return labels


# A structural schema cannot say what the keys of a map are like; a CEL rule can.
NodeLabels = Annotated[
    Mapping[str, LabelValue],
    Field(max_length=16),
    BeforeValidator(without_nulls),
    AfterValidator(_keys_are_labels),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": 16,
            "additionalProperties": {"type": "string", "maxLength": 63},
            RULES: [
                {
                    "rule": f"self.all(key, key.matches(r'{_LABEL_KEY}'))",
                    "message": f"every key {_IS_KEY}",
                },
                {
                    "rule": f"self.all(key, self[key].matches(r'{_LABEL_VALUE}'))",
                    "message": f"every value {_IS_VALUE}",
                },
            ],
        }
    ),
]
PoolName = Annotated[
    str,
    StringConstraints(max_length=40),
    Matches(
        r"^(Dedicated|[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?)$",
        "must be Dedicated, or the name of a pool of the chart: lower case letters, digits and -",
    ),
]
Endpoint = Annotated[
    str,
    StringConstraints(max_length=2048),
    Matches(r"^https?://[^/]+(/.*)?$", "must be a URL such as https://tails.example:8443"),
]
Cpu = Annotated[
    str,
    StringConstraints(max_length=16),
    Matches(r"^[1-9][0-9]{0,5}m?$", "must be CPUs such as 2 or 500m"),
]
Bytes = Annotated[
    str,
    StringConstraints(max_length=16),
    Matches(r"^[1-9][0-9]{0,8}(Ki|Mi|Gi)$", "must be memory such as 512Mi or 2Gi"),
]


class Toleration(Checked):
    """A taint of a node that does not keep the edge away, as Kubernetes has it.

    Attributes:
        key: the taint's key; all taints where not given, which needs operator `Exists`.
        operator: `Exists` for any value, `Equal` for the one given.
        value: the taint's value, for `Equal`.
        effect: the taint's effect; all where not given.
    """

    key: LabelKey | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    rules: ClassVar = (
        Rule(
            holds=lambda self: self.operator == "Exists" or self.key is not None,
            cel="self.operator == 'Exists' || has(self.key)",
            message="a toleration without a key needs operator: Exists",
        ),
        Rule(
            holds=lambda self: self.operator == "Equal" or self.value is None,
            cel="self.operator == 'Equal' || !has(self.value)",
            message="a toleration with operator: Exists has no value",
        ),
    )


class Resources(Checked):
    """What one edge is given of its node: reserved, and of memory no more than this.

    Attributes:
        cpu: CPUs to reserve, such as 500m.
        memory: memory to reserve and to be held to, such as 512Mi.
    """

    cpu: Cpu = "100m"
    memory: Bytes = "512Mi"


class EdgeClass(Checked):
    """Devices of one kind.

    Attributes:
        name: the device class.
        runtime: the engine that runs the head.
        threads: threads the engine may use.
        offline: `Local` answers on the device when the cloud is gone, `Fail` refuses.
        node_selector: labels of the nodes that are devices of this class; each of them runs one
            edge. Only in a cluster, where a class has either this or `deviceGroup`.
        device_group: name of a group of devices outside the cluster, which join with
            `dovetail edge join` and the address and token of a Secret that the operator makes; it
            has the label `dovetail.dev/device-group`. Deleting that Secret makes a new token and
            has the old one refused.
        tolerations: taints of those nodes that do not keep the edge away.
        resources: what one edge is given of its node.
    """

    name: Label
    runtime: Literal["onnxruntime"] = "onnxruntime"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    offline: Fallback = "Local"
    node_selector: NodeLabels = Field(default_factory=dict)
    device_group: Label | None = None
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    resources: Resources = Resources()

    rules: ClassVar = (
        Rule(
            holds=lambda self: self.device_group is None or not self.node_selector,
            cel="!has(self.deviceGroup) || !has(self.nodeSelector) || size(self.nodeSelector) == 0",
            message="a device class has nodeSelector, for nodes, or deviceGroup, for devices "
            "outside the cluster, not both",
        ),
    )


class Edge(Checked):
    """The devices.

    Attributes:
        classes: device classes, each with a plan of its own.
    """

    classes: Annotated[tuple[EdgeClass, ...], Field(min_length=1, max_length=32), Keyed("name")] = (
        EdgeClass(name="default"),
    )


class Replicas(Checked):
    """How many replicas of the tail run; Ray Serve scales between them.

    Attributes:
        min: fewest, also when idle.
        max: most, under load; not below `min`.
    """

    min: Annotated[int, Field(ge=1, le=1000)] = 1
    max: Annotated[int, Field(ge=1, le=1000)] = 1

    rules: ClassVar = (
        Rule(
            holds=lambda self: self.min <= self.max,
            cel="self.min <= self.max",
            message="replicas.max must not be below replicas.min",
        ),
    )


class Cloud(Checked):
    """The tail.

    Attributes:
        pool: the Ray cluster it runs in: the name of a shared one of the chart, or `Dedicated` for
            one of its own. Only in a cluster.
        endpoint: address at which devices reach the pool; where not given, its Service in the
            cluster.
        replicas: how many.
        threads: threads of each replica's engine.
        max_batch: most rows computed together.
    """

    pool: PoolName = "default"
    endpoint: Endpoint | None = None
    replicas: Replicas = Replicas()
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 16
