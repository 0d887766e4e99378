"""What a status says of each device class: rung, cut, proof, figures, devices and moves.

What this process does not know yet, because it has just started, is said as the last one said it:
a restart must neither forget a story nor write ten thousand statuses.
"""

from collections.abc import Mapping
from typing import Final

from dovetail.control import Move
from dovetail.status import (
    BestStatus,
    ClassStatus,
    CutStatus,
    DevicesStatus,
    LatencyStatus,
    MeasuredStatus,
    MoveStatus,
    ProofStatus,
    duration,
    moment,
)
from dovetail_operator.figures import Facts, Figures
from dovetail_operator.hands import Hand
from dovetail_operator.ledger import Presence

_TENSORS: Final = 64
_NAME: Final = 512

Before = Mapping[str, ClassStatus]


def class_statuses(
    hands: Mapping[str, Hand], presence: Mapping[str, Presence] | None, before: Before
) -> tuple[ClassStatus, ...]:
    """What is said of each class.

    Args:
        hands: slow hands by class.
        presence: devices by class; None before the ledger was read.
        before: what was said last of the same version.
    """
    return tuple(
        _status(name, hand, presence, before.get(name, ClassStatus(name=name)))
        for name, hand in sorted(hands.items())
    )


def moves_told(before: Before) -> dict[str, tuple[Move, ...]]:
    """The moves that were told of, by class."""
    return {
        name: tuple(
            Move(
                at=one.seconds,
                source=one.source,
                target=one.target,
                reason=one.reason,
                message=one.message,
            )
            for one in said.moves
        )
        for name, said in before.items()
    }


def devices(presence: Presence, said: DevicesStatus | None) -> DevicesStatus:
    """The devices of a class; the time of the last contact is renewed with the counts alone."""
    same = said is not None and (said.known, said.connected) == (presence.known, presence.connected)
    if same and said is not None:
        return said
    last = moment(presence.last) if presence.known else None
    return DevicesStatus(known=presence.known, connected=presence.connected, last_contact=last)


def _status(
    name: str, hand: Hand, presence: Mapping[str, Presence] | None, said: ClassStatus
) -> ClassStatus:
    rung = hand.state.plan.default
    known = said.devices
    if presence is not None:
        known = devices(presence.get(name, Presence(0, 0, 0.0)), said.devices)
    return ClassStatus(
        name=name,
        rung=rung,
        plan_generation=hand.state.plan.generation,
        cut=_cut(hand.facts[rung]),
        proof=_proof(hand.facts[rung]),
        measured=_measured(hand.figures) if hand.figures is not None else said.measured,
        devices=known,
        moves=tuple(
            MoveStatus.of(move.at, move.source, move.target, move.reason, move.message)
            for move in hand.state.moves
        ),
    )


def _cut(facts: Facts) -> CutStatus:
    names = tuple(name[:_NAME] for name in facts.tensors[:_TENSORS])
    return CutStatus(tensors=names, bytes_up=facts.bytes_up, bytes_down=facts.bytes_down)


def _proof(facts: Facts) -> ProofStatus:
    return ProofStatus(max_error=facts.max_error, top1_agreement=facts.top1)


def _measured(figures: Figures) -> MeasuredStatus:
    best = BestStatus(
        rung=figures.best.rung,
        latency=duration(figures.best.seconds),
        by="Measurement" if figures.best.measured else "Model",
    )
    return MeasuredStatus(
        at=moment(figures.at),
        shares=figures.shares,
        latency=LatencyStatus(**{part: duration(one) for part, one in figures.latency.items()}),
        best=best,
        regret=figures.regret,
    )
