"""What is said of a deployment: each condition found by a pure function from what was seen.

A message says what to do wherever a person must do something; a reason is one word that a program
may rely on. `Ready` sums up: it is the first of the others that does not hold, so whoever reads one
line reads the cause. A condition's time changes only when its status does, and nothing that changes
by itself (a count of requests, a time) is in a message, or every window would write a status.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from dovetail.api import HybridDeployment
from dovetail.control import Move
from dovetail.placement import EdgeClass
from dovetail.status import ClassStatus, Condition, ConditionType, MoveStatus, Status
from dovetail_operator.client import Json
from dovetail_operator.hands import Hand

Truth = Literal["True", "False", "Unknown"]

_MESSAGE: Final = 1024
_READY_NEEDS: Final = ("Partitioned", "TailAvailable", "EdgeAvailable")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one condition says.

    Attributes:
        status: whether it holds.
        reason: why, one word in PascalCase.
        message: why, in a sentence.
    """

    status: Truth
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a status says.

    Attributes:
        partitioned: whether the model became a bundle.
        tail: whether the tail serves.
        edge: whether edges serve.
        moving: whether the cut is moved by measurement.
        degraded: whether something is wrong that the others do not say.
        bundle: digest of the bundle; None before there is one.
        classes: what each class runs.
    """

    partitioned: Finding
    tail: Finding
    edge: Finding
    moving: Finding
    degraded: Finding
    bundle: str | None = None
    classes: tuple[ClassStatus, ...] = ()


WAITS_FOR_BUNDLE: Final = Finding("Unknown", "WaitingForBundle", "There is no bundle yet.")
AS_EXPECTED: Final = Finding("False", "AsExpected", "Nothing is wrong.")


def partitioned(
    deployment: HybridDeployment, job: Json | None, failure: str | None, *, current: bool
) -> Finding:
    """Whether the bundle in use was made from this spec.

    Args:
        deployment: the resource.
        job: the Job that makes the bundle.
        failure: what it, or reading its result, ended with.
        current: whether the record's bundle is this spec's.
    """
    uri = deployment.spec.model.uri
    if current:
        return Finding("True", "Partitioned", f"The bundle of {uri} is made and proved.")
    if uri.startswith("file:"):
        message = (
            f"{uri} names a file, which a cluster cannot reach; give model.uri as https://…, "
            "pvc://CLAIM/PATH or oci://REGISTRY/REPOSITORY@sha256:DIGEST."
        )
        return Finding("False", "SourceNotReachable", message)
    if failure is not None:
        return Finding("False", "PartitionFailed", failure)
    if job is None:
        return Finding("False", "Partitioning", f"The Job that partitions {uri} is being made.")
    name = job["metadata"]["name"]
    return Finding("False", "Partitioning", f"Job {name} partitions {uri}.")


def edge_available(
    classes: Sequence[EdgeClass], sets: Mapping[str, Json | None], nodes: Mapping[str, int]
) -> Finding:
    """Whether every class has devices and all of them serve.

    Args:
        classes: the classes wanted.
        sets: the DaemonSet of each, as last seen.
        nodes: how many nodes each class's selector finds.
    """
    for item in classes:
        if item.device_group is not None:
            continue
        if not item.node_selector:
            message = (
                f"Device class {item.name!r} has no devices; set nodeSelector in "
                "spec.edge.classes[] to labels that your edge nodes have, or deviceGroup for "
                "devices outside the cluster."
            )
            return Finding("False", "NoDevices", message)
        if not nodes.get(item.name):
            wanted = ",".join(f"{k}={v}" for k, v in sorted(item.node_selector.items()))
            message = (
                f"No node has the labels of device class {item.name!r}; label one: "
                f"kubectl label node NODE {wanted.replace(',', ' ')}"
            )
            return Finding("False", "NoNodeMatches", message)
    waiting = [
        item.name for item in classes if item.node_selector and not _rolled_out(sets.get(item.name))
    ]
    if waiting:
        message = f"Not every edge of class {', '.join(waiting)} is ready; see their DaemonSets."
        return Finding("False", "EdgesNotReady", message)
    return Finding("True", "EdgesReady", "Every node of every class runs a ready edge.")


def moving(deployment: HybridDeployment, hands: Mapping[str, Hand], *, ledger: bool) -> Finding:
    """Whether cuts are moved by what is measured.

    Args:
        deployment: the resource.
        hands: its slow hands by class.
        ledger: whether the pool's ledger answered last.
    """
    mode = deployment.spec.adapt.mode
    if mode == "Manual":
        rung = deployment.spec.split.rung
        return Finding("False", "Pinned", f"adapt.mode is Manual: rung {rung} is kept.")
    if mode == "Paused":
        return Finding("False", "Paused", "adapt.mode is Paused: the rung in use is kept.")
    if not hands:
        return WAITS_FOR_BUNDLE
    if not ledger:
        message = "The pool's ledger does not answer, so nothing is measured; see TailAvailable."
        return Finding("Unknown", "LedgerNotAnswering", message)
    if not any(hand.measured for hand in hands.values()):
        return Finding("False", "NoRequests", "No requests were seen; the rung in use is kept.")
    return Finding("True", "Measuring", "The cut follows what is measured.")


def class_statuses(hands: Mapping[str, Hand]) -> tuple[ClassStatus, ...]:
    """What each class runs, and its last moves."""
    return tuple(
        ClassStatus(
            name=name,
            rung=hand.state.plan.default,
            plan_generation=hand.state.plan.generation,
            moves=tuple(_move(move) for move in hand.state.moves),
        )
        for name, hand in sorted(hands.items())
    )


def status_of(
    findings: Findings, generation: int, previous: Mapping[str, Json], now: str
) -> Status:
    """The whole status.

    Args:
        findings: what was found.
        generation: generation of the spec that it was found for.
        previous: the conditions written last, by type.
        now: the time, RFC 3339 in UTC.
    """
    found: dict[ConditionType, Finding] = {
        "Ready": _ready(findings),
        "Partitioned": findings.partitioned,
        "TailAvailable": findings.tail,
        "EdgeAvailable": findings.edge,
        "Moving": findings.moving,
        "Degraded": findings.degraded,
    }
    return Status(
        observed_generation=generation,
        bundle=findings.bundle,
        conditions=tuple(
            Condition(
                type=kind,
                status=finding.status,
                observed_generation=generation,
                last_transition_time=_since(previous.get(kind), finding, now),
                reason=finding.reason,
                message=truncated(finding.message),
            )
            for kind, finding in found.items()
        ),
        classes=findings.classes,
    )


def truncated(text: str) -> str:
    """A message that fits, with a mark where it was cut."""
    return text if len(text) <= _MESSAGE else text[: _MESSAGE - 1] + "…"


def _ready(findings: Findings) -> Finding:
    needs = (findings.partitioned, findings.tail, findings.edge)
    for name, finding in zip(_READY_NEEDS, needs, strict=True):
        if finding.status != "True":
            return Finding("False", finding.reason, f"{name}: {finding.message}")
    if findings.degraded.status == "True":
        degraded = findings.degraded
        return Finding("False", degraded.reason, f"Degraded: {degraded.message}")
    return Finding("True", "Ready", "Edges and tail serve.")


def _since(old: Json | None, finding: Finding, now: str) -> str:
    if old is not None and old.get("status") == finding.status:
        return str(old.get("lastTransitionTime", now))
    return now


def _rolled_out(item: Json | None) -> bool:
    status = (item or {}).get("status") or {}
    if item is None or status.get("observedGeneration", 0) < item["metadata"]["generation"]:
        return False
    wanted = status.get("desiredNumberScheduled", 0)
    updated, ready = status.get("updatedNumberScheduled", 0), status.get("numberReady", 0)
    return bool(wanted and updated >= wanted and ready >= wanted)


def _move(move: Move) -> MoveStatus:
    return MoveStatus.of(move.at, move.source, move.target, move.reason, move.message)
