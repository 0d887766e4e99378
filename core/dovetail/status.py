"""What is reported of a `HybridDeployment`: its status, as the operator writes it.

Only the operator writes a status, through the `/status` subresource; it is typed here because the
`CustomResourceDefinition` is generated from it and because whoever reads it must not guess.
Conditions follow `metav1.Condition`, so that `kubectl wait --for=condition=Ready` works: `Ready`
sums up, and `Partitioned`, `TailAvailable`, `EdgeAvailable`, `Moving` and `Degraded` say why.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints

from dovetail.api import Digest, Duration, RungId
from dovetail.placement import Label
from dovetail.rules import Checked, Keyed, Matches

Generation = Annotated[int, Field(ge=0, le=2**53)]  # bounds are floats to the API server
Count = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, StringConstraints(max_length=512)]
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
_MOMENT = "%Y-%m-%dT%H:%M:%SZ"
ConditionType = Literal[
    "Ready", "Partitioned", "TailAvailable", "EdgeAvailable", "Moving", "Degraded"
]


def moment(at: float) -> str:
    """A time, seconds since the epoch, as Kubernetes writes it."""
    return datetime.fromtimestamp(at, UTC).strftime(_MOMENT)


def duration(seconds: float) -> str:
    """A time as a `Duration` of three digits or so, such as 0.25ms, 12.3ms or 1500ms."""
    ms = seconds * 1e3
    digits = 0 if ms >= 100 else 1 if ms >= 10 else 2
    return f"{ms:.{digits}f}ms"


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

    @property
    def seconds(self) -> float:
        """When it was made, seconds since the epoch."""
        return datetime.strptime(self.at, _MOMENT).replace(tzinfo=UTC).timestamp()

    @classmethod
    def of(cls, at: float, source: str, target: str, reason: str, message: str) -> Self:
        """A move made at `at`, seconds since the epoch."""
        return cls(
            at=moment(at), source=source, target=target, reason=reason, message=message[:1024]
        )


class CutStatus(Checked):
    """Where a class's rung cuts the model.

    Attributes:
        tensors: names of the tensors that cross from edge to cloud; none on rung `edge`.
        bytes_up: bytes that cross for one row, coded.
        bytes_down: bytes of the answer that come back for one row.
    """

    tensors: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    bytes_up: Count = 0
    bytes_down: Count = 0


class ProofStatus(Checked):
    """How near the answers of a class's rung are to the whole model's, over the calibration rows.

    Attributes:
        max_error: worst max|a-b| / max|a|.
        top1_agreement: share of rows with the same argmax; not given where no output is a score.
    """

    max_error: Annotated[float, Field(ge=0)]
    top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = None


class LatencyStatus(Checked):
    """Median time of requests on the rung in use, whole and by part.

    Attributes:
        total: from call to answer.
        head: the edge's segments.
        encode: coding the crossing tensors.
        network: on the way, both ways.
        queue: waiting in the cloud.
        decode: decoding them there.
        tail: the cloud's segments.
    """

    total: Duration
    head: Duration | None = None
    encode: Duration | None = None
    network: Duration | None = None
    queue: Duration | None = None
    decode: Duration | None = None
    tail: Duration | None = None


class BestStatus(Checked):
    """The rung that is expected to be fastest now.

    Attributes:
        rung: its id.
        latency: time of a request on it.
        by: `Measurement` where requests ran on it lately, `Model` where its costs say so.
    """

    rung: RungId
    latency: Duration
    by: Literal["Measurement", "Model"]


class MeasuredStatus(Checked):
    """What was measured of a class when requests last came.

    Renewed at most every 30 s, and only where it tells something new.

    Attributes:
        at: when.
        shares: per cent of requests that each rung answered.
        latency: median time on the rung in use.
        best: the rung expected to be fastest, which may not be worth a move.
        regret: per cent by which the rung in use is slower than that.
    """

    at: Moment
    shares: Annotated[Mapping[str, Annotated[int, Field(ge=0, le=100)]], Field(max_length=64)] = {}
    latency: LatencyStatus
    best: BestStatus
    regret: Count = 0


class DevicesStatus(Checked):
    """The devices of a class, as the tail hears of them.

    Attributes:
        known: devices heard of in the last day.
        connected: devices heard of within a minute of the last look.
        last_contact: when one was last heard of; renewed when one of the counts changes.
    """

    known: Count = 0
    connected: Count = 0
    last_contact: Moment | None = None


class ClassStatus(Checked):
    """What one device class runs.

    Attributes:
        name: the device class, as in `spec.edge.classes`.
        rung: the rung that its edges start from.
        plan_generation: generation of the plan that says so.
        cut: where that rung cuts.
        proof: how near its answers are to the whole model's.
        measured: what was measured when requests last came.
        devices: its devices.
        moves: the last moves, newest last.
    """

    name: Label
    rung: RungId | None = None
    plan_generation: Generation = 0
    cut: CutStatus | None = None
    proof: ProofStatus | None = None
    measured: MeasuredStatus | None = None
    devices: DevicesStatus | None = None
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
