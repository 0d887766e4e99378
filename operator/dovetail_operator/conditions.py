"""What is said of a deployment: each condition found by a pure function from what was seen.

A message says what to do wherever a person must do something; a reason is one word that a program
may rely on. `Ready` sums up: it is the first of the others that does not hold, so whoever reads one
line reads the cause. It holds as long as requests are answered: while a new version is on its way,
and when one was refused, the old serves and `Ready` stays, with a reason that says so; and while
some devices are away, which in a fleet some always are. A condition's time changes only when its
status does, and nothing that changes by itself (a count of requests, a time) is in a message, or
every window would write a status; how many devices are there is, because people ask for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from dovetail.api import HybridDeployment
from dovetail.status import (
    ClassStatus,
    Condition,
    ConditionType,
    Status,
    VersionState,
    VersionStatus,
)
from dovetail_operator.client import Json
from dovetail_operator.hands import Hand
from dovetail_operator.record import Record
from dovetail_operator.rollout import short
from dovetail_operator.versions import Progress

Truth = Literal["True", "False", "Unknown"]

_MESSAGE: Final = 1024
_VERSIONS: Final = 16


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
        versions: the versions there are.
        rolling: what a rollout under way does; None where there is none.
    """

    partitioned: Finding
    tail: Finding
    edge: Finding
    moving: Finding
    degraded: Finding
    bundle: str | None = None
    classes: tuple[ClassStatus, ...] = ()
    versions: tuple[VersionStatus, ...] = ()
    rolling: str | None = None


WAITS_FOR_BUNDLE: Final = Finding("Unknown", "WaitingForBundle", "There is no bundle yet.")
AS_EXPECTED: Final = Finding("False", "AsExpected", "Nothing is wrong.")


def partitioned(deployment: HybridDeployment, progress: Progress) -> Finding:
    """Whether there is the version that the spec asks for."""
    if deployment.spec.rollout.rollback is not None:
        return _gone_back(progress)
    uri = deployment.spec.model.uri
    if progress.current:
        return Finding("True", "Partitioned", f"The bundle of {uri} is made and proved.")
    if uri.startswith("file:"):
        message = (
            f"{uri} names a file, which a cluster cannot reach; give model.uri as https://…, "
            "pvc://CLAIM/PATH or oci://REGISTRY/REPOSITORY@sha256:DIGEST."
        )
        return Finding("False", "SourceNotReachable", message)
    if progress.failure is not None:
        return Finding("False", "PartitionFailed", progress.failure)
    if progress.job is None:
        return Finding("False", "Partitioning", f"The Job that partitions {uri} is being made.")
    return _under_way(progress.job["metadata"]["name"], uri, progress.waits)


def _under_way(job: str, uri: str, waits: str | None) -> Finding:
    if waits is not None:
        return Finding("False", "JobWaiting", f"Job {job} waits: {waits}")
    return Finding("False", "Partitioning", f"Job {job} partitions {uri}.")


def _gone_back(progress: Progress) -> Finding:
    if progress.wanted is None:
        return Finding("False", "UnknownVersion", progress.failure or "")
    message = (
        f"spec.rollout.rollback asks for version {short(progress.wanted)}; spec.model is followed "
        "again once it is taken out."
    )
    return Finding("True", "RolledBack", message)


def degraded(found: Finding, record: Record | None, *, full: bool) -> Finding:
    """What is wrong with the version that is asked for, while another serves.

    Args:
        found: what `Partitioned` says.
        record: the live version.
        full: whether the pool has no place for the staged version.
    """
    if record is None:
        return AS_EXPECTED
    live, refused = f"version {short(record.bundle)} goes on serving", record.stand.refused
    if found.status == "False" and found.reason != "Partitioning":
        return Finding("True", found.reason, f"{found.message} Meanwhile {live}.")
    if refused is not None and refused.bundle != record.bundle:
        message = (
            f"Ray Serve could not deploy the tail of version {short(refused.bundle)}, so {live}: "
            f"{refused.message}"
        )
        return Finding("True", "RolloutFailed", message)
    if full:
        message = (
            f"The pool has no place for version {short(record.stand.staged or '')} beside the "
            f"old, so {live}. Raise maxTails of the pool in the chart, or wait for a place."
        )
        return Finding("True", "PoolFull", message)
    return AS_EXPECTED


def rolling(found: Finding, record: Record | None) -> str | None:
    """What a rollout under way does; None where there is none."""
    if record is None:
        return None
    if record.stand.staged is not None:
        old, new = short(record.bundle), short(record.stand.staged)
        return f"The tail of version {new} is starting; {old} serves until it runs."
    return found.message if found.reason == "Partitioning" else None


def version_statuses(progress: Progress) -> tuple[VersionStatus, ...]:
    """The versions there are, the live one first."""
    record = progress.record
    if record is None:
        return ()
    states: dict[str, VersionState] = dict.fromkeys(record.stand.retained, "Retained")
    if record.stand.staged is not None:
        states[record.stand.staged] = "Deploying"
    if record.stand.refused is not None:
        states[record.stand.refused.bundle] = "Refused"
    live = VersionStatus(
        bundle=record.bundle, state="Live", model=record.model or None, made=record.made or None
    )
    kept = (
        VersionStatus(
            bundle=version.bundle,
            state=states.get(version.bundle, "Kept"),
            model=version.model or None,
            made=version.made or None,
        )
        for version in progress.kept
        if version.bundle != record.bundle
    )
    return (live, *kept)[:_VERSIONS]


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
        message = "There is no plan yet; see Partitioned, TailAvailable and Degraded."
        return Finding("Unknown", "WaitingForBundle", message)
    if not ledger:
        message = "The pool's ledger does not answer, so nothing is measured; see TailAvailable."
        return Finding("Unknown", "LedgerNotAnswering", message)
    if not any(hand.measured for hand in hands.values()):
        return Finding("False", "NoRequests", "No requests were seen; the rung in use is kept.")
    return Finding("True", "Measuring", "The cut follows what is measured.")


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
        versions=findings.versions,
    )


def truncated(text: str) -> str:
    """A message that fits, with a mark where it was cut."""
    return text if len(text) <= _MESSAGE else text[: _MESSAGE - 1] + "…"


def _ready(findings: Findings) -> Finding:
    needs = [("TailAvailable", findings.tail), ("EdgeAvailable", findings.edge)]
    if findings.bundle is None:
        needs.insert(0, ("Partitioned", findings.partitioned))
    for name, finding in needs:
        if finding.status != "True":
            return Finding("False", finding.reason, f"{name}: {finding.message}")
    if findings.degraded.status == "True":
        worse = findings.degraded
        return Finding("True", worse.reason, f"Edges and tail serve. Degraded: {worse.message}")
    if findings.rolling is not None:
        return Finding("True", "RollingOut", f"Edges and tail serve. {findings.rolling}")
    return Finding("True", "Ready", "Edges and tail serve.")


def _since(old: Json | None, finding: Finding, now: str) -> str:
    if old is not None and old.get("status") == finding.status:
        return str(old.get("lastTransitionTime", now))
    return now
