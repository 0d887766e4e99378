"""What is reported of a `HybridDeployment`: its status, as the operator writes it.

Only the operator writes a status, through the `/status` subresource; it is typed here because the
`CustomResourceDefinition` is generated from it and because whoever reads it must not guess.
Conditions follow `metav1.Condition`, so that `kubectl wait --for=condition=Ready` works: `Ready`
sums up, and `Partitioned`, `TailAvailable`, `EdgeAvailable`, `Moving` and `Degraded` say why.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints

from dovetail.api import Digest, RungId
from dovetail.placement import Label
from dovetail.rules import Checked, Keyed, Matches

Generation = Annotated[int, Field(ge=0, le=2**53)]  # bounds are floats to the API server
Message = Annotated[str, StringConstraints(max_length=4096)]
Reason = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128),
    Matches(r"^[A-Z][A-Za-z0-9]*$", "must be one word in PascalCase"),
]
Moment = Annotated[
    str,
    StringConstraints(max_length=32),
    Matches(
        r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
        "must be a time in UTC such as 2026-01-31T12:00:00Z",
    ),
]
ConditionType = Literal[
    "Ready", "Partitioned", "TailAvailable", "EdgeAvailable", "Moving", "Degraded"
]


def moment(at: float) -> str:
    """A time, seconds since the epoch, as Kubernetes writes it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Condition(Checked):
    """One thing that holds or does not, since when and why.

    Attributes:
        type: what is said to hold or not.
        status: `True`, `False`, or `Unknown` while it cannot be told.
        observed_generation: `metadata.generation` of the spec that this was found for.
        last_transition_time: when `status` last changed.
        reason: why, in one word for programs.
        message: why, in a sentence for people, with what to do where something must be done.
    """

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    observed_generation: Generation
    last_transition_time: Moment
    reason: Reason
    message: Message


class MoveStatus(Checked):
    """A move of the cut.

    Attributes:
        at: when it was made.
        source: the rung left.
        target: the rung chosen.
        reason: why, in one word.
        message: why, with figures.
    """

    at: Moment
    source: RungId
    target: RungId
    reason: Annotated[str, StringConstraints(max_length=128)]
    message: Annotated[str, StringConstraints(max_length=1024)]

    @classmethod
    def of(cls, at: float, source: str, target: str, reason: str, message: str) -> Self:
        """A move made at `at`, seconds since the epoch."""
        return cls(
            at=moment(at), source=source, target=target, reason=reason, message=message[:1024]
        )


class ClassStatus(Checked):
    """What one device class runs.

    Attributes:
        name: the device class, as in `spec.edge.classes`.
        rung: the rung that its edges start from.
        plan_generation: generation of the plan that says so.
        moves: the last moves, newest last.
    """

    name: Label
    rung: RungId | None = None
    plan_generation: Generation = 0
    moves: Annotated[tuple[MoveStatus, ...], Field(max_length=10)] = ()


VersionState = Literal["Live", "Deploying", "Retained", "Refused", "Kept"]


class VersionStatus(Checked):
    """A version of the deployment: a bundle that was made from it.

    Attributes:
        bundle: digest of the bundle; what `spec.rollout.rollback` takes.
        state: `Live` is what devices are told; the tail of a `Deploying` one is starting, that of
            a `Retained` one still runs for devices that have not changed over, that of a `Refused`
            one could not be deployed; a `Kept` one can be gone back to.
        model: the model it was made from.
        made: when it was made.
    """

    bundle: Digest
    state: VersionState
    model: Annotated[str, StringConstraints(max_length=2048)] | None = None
    made: Moment | None = None


class Status(Checked):
    """What is the case.

    Attributes:
        observed_generation: `metadata.generation` of the spec that this status is about; while it
            is lower than the object's, a change has not been seen yet.
        bundle: digest of the bundle that is served, which is the deployment's version.
        conditions: what holds and what does not; `Ready` sums up the others.
        classes: what each device class runs.
        versions: the versions there are, the live one first, then the newest.
    """

    observed_generation: Generation = 0
    bundle: Digest | None = None
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), Keyed("type")] = ()
    classes: Annotated[tuple[ClassStatus, ...], Field(max_length=32), Keyed("name")] = ()
    versions: Annotated[tuple[VersionStatus, ...], Field(max_length=16), Keyed("bundle")] = ()
