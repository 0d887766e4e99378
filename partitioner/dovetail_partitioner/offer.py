"""Decides which rungs a bundle offers.

Cost and quality pull apart: the rung that would win a condition may change the answers too much.
So rungs are chosen by cost, proved, and chosen again without those that failed, until all that
would win somewhere are within quality. Only winners are proved: a proof runs the tail on every row.
"""

from dovetail.api import Quality
from dovetail.bundle import RungSpec, rung_id
from dovetail.errors import ProofError
from dovetail.ladder import Ladder
from dovetail_partitioner.compare import Effect, Trial, effects
from dovetail_partitioner.progress import Report
from dovetail_partitioner.proof import Precision, fault
from dovetail_partitioner.rungs import choose


class Offer:
    """Chooses rungs by cost, proves them, and chooses again without those that fail."""

    def __init__(self, trial: Trial, precision: Precision, quality: Quality) -> None:
        self._trial, self._precision, self._quality = trial, precision, quality
        self.effects: dict[str, Effect] = {}
        self.dropped: dict[str, str] = {}
        self.regret = 0.0

    def choose(self, ladder: Ladder, *, repeatable: bool, report: Report) -> tuple[RungSpec, ...]:
        """The rungs to offer, by cut depth, then bytes.

        Raises:
            ProofError: `cloud` or `edge`, which change nothing, are not the whole model.
        """
        config = self._trial.config
        count = len(config.segments)
        inputs = {spec.name for spec in config.inputs}
        raw = [cut for cut in range(count) if inputs.intersection(config.crossing(cut))]
        always = {rung_id(0, "raw", count), rung_id(count, "raw", count)}
        chosen = frozenset(always)
        while True:
            usable = Ladder(rungs=tuple(r for r in ladder.rungs if r.id not in self.dropped))
            if repeatable:
                choice = choose(usable, always, raw)
                chosen, self.regret = choice.rungs, choice.regret
            todo = {
                r.id: (r.cut, r.codec) for r in usable.rungs if r.id in chosen - self.effects.keys()
            }
            if not todo:
                break
            self.effects |= effects(self._trial, todo, report=report)
            for rung, (_, codec) in todo.items() if repeatable else ():
                why = fault(self.effects[rung], codec, self._precision, self._quality)
                if why and rung in always:
                    raise ProofError(f"rung {rung!r} is not the whole model: {why}")
                if why:
                    self.dropped[rung] = why
        offered = [r for r in ladder.rungs if r.id in chosen]
        return tuple(
            RungSpec(
                id=r.id,
                cut=r.cut,
                codec=r.codec,
                bytes_up=r.bytes_up,
                bytes_down=r.bytes_down,
                max_error=self.effects[r.id].worst,
                top1=self.effects[r.id].top1,
            )
            for r in sorted(offered, key=lambda r: (r.cut, r.bytes_up, r.id))
        )
