"""Which versions of a deployment run beside one another, decided without a client and a clock.

One version is live: plans name it, and edges are sent to its tail. A wanted one that is not live is
staged: its tail runs beside the live one's, and only once that serves do plans name it, so no edge
is ever sent to a tail that is not there. The version that was live is retained until no device has
reported it for a while: a device that was away, or is slow to fetch the new bundle, finds its tail.

A tail that cannot be deployed is refused: its application leaves the pool again, because KubeRay
does not bring a Ray cluster into service while any application in it fails, and a pool is shared.
It is tried again after a while, and at once when the spec changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from dovetail.tensor import Document

SETTLE: Final = 5.0  # seconds a state of a tail that was just asked for may be of an earlier one
RETRY: Final = 600.0  # seconds after which a refused tail is tried again


@dataclass(frozen=True, slots=True)
class Reports:
    """Versions that devices reported.

    Attributes:
        at: when the ledger was read, seconds since the epoch.
        last: first 12 digits of a version -> when a device last reported it.
    """

    at: float
    last: Mapping[str, float] = field(default_factory=dict)

    def joined(self, more: Mapping[str, float], at: float) -> Self:
        """These and what a later read says: a ledger that was restarted forgets, we do not."""
        names = self.last.keys() | more.keys()
        last = {name: max(self.last.get(name, 0.0), more.get(name, 0.0)) for name in names}
        return type(self)(at, last)


class Refusal(Document):
    """A tail that could not be deployed.

    Attributes:
        bundle: its version.
        at: when, seconds since the epoch.
        generation: of the spec that wanted it.
        message: what Ray Serve said.
    """

    bundle: str
    at: float
    generation: int
    message: str


class Stand(Document):
    """What runs beside the live version.

    Attributes:
        staged: the version that is to be live next; None for none.
        asked_at: when a tail was last asked for, seconds since the epoch.
        retained: versions that were live and still run, each with since when it is live no more.
        refused: the last tail that could not be deployed.
    """

    staged: str | None = None
    asked_at: float = 0.0
    retained: Mapping[str, float] = {}
    refused: Refusal | None = None

    def towards(self, live: str, wanted: str | None, generation: int, now: float) -> Self:
        """The stand in which `wanted` is staged, where it is neither live nor refused.

        Args:
            live: the live version.
            wanted: the version that the spec asks for; None where there is none yet.
            generation: of the spec.
            now: seconds since the epoch.
        """
        refused, asked = self.refused, self.asked_at
        if refused is not None and (refused.generation != generation or now - refused.at >= RETRY):
            refused, asked = None, now
        staged = wanted
        if wanted == live or (refused is not None and refused.bundle == wanted):
            staged = None
        if staged is not None and staged != self.staged:
            asked = now
        update = {"staged": staged, "asked_at": asked, "refused": refused}
        return self.model_copy(update=update)

    def settled(self, bundle: str, now: float) -> bool:
        """Whether what is said of a version's tail can be of no earlier one of its name."""
        return bundle in self.retained or now - self.asked_at >= SETTLE

    def switched(self, live: str, now: float) -> Self:
        """The stand once the staged version is live and `live` is no more."""
        retained = {key: at for key, at in self.retained.items() if key != self.staged}
        update = {"staged": None, "retained": {**retained, live: now}}
        return self.model_copy(update=update)

    def without(self, bundle: str, generation: int, message: str, now: float) -> Self:
        """The stand once the tail of a version could not be deployed."""
        if self.refused is not None and self.refused.bundle == bundle:
            return self
        refusal = Refusal(bundle=bundle, at=now, generation=generation, message=message)
        staged = None if self.staged == bundle else self.staged
        return self.model_copy(update={"staged": staged, "refused": refusal})

    def released(self, reports: Reports | None, retain: float) -> Self:
        """The stand without versions that no device reported for `retain` seconds.

        Args:
            reports: what devices reported; None where that is not known now, and then nothing is
                released. What happened since the ledger was read is not known either.
            retain: seconds.
        """
        if reports is None:
            return self
        kept = {
            bundle: since
            for bundle, since in self.retained.items()
            if reports.at - max(since, reports.last.get(short(bundle), 0.0)) < retain
        }
        if len(kept) == len(self.retained):
            return self
        return self.model_copy(update={"retained": kept})

    def applications(self, live: str) -> tuple[str, ...]:
        """Versions whose tails should run, the one that may not be pushed out first."""
        first = () if self.refused is not None and self.refused.bundle == live else (live,)
        newest = sorted(self.retained, key=lambda bundle: -self.retained[bundle])
        last = () if self.staged is None or self.staged in self.retained else (self.staged,)
        return (*first, *newest, *last)

    def look_again(self, retain: float, now: float) -> float | None:
        """Seconds after which something may have to be done though nothing changes."""
        left = [since + retain - now for since in self.retained.values()]
        # One that should be gone by now is still reported by some device: ask again later.
        waits = [wait if wait > 0 else max(retain / 4, 1.0) for wait in left]
        if self.staged is not None and not self.settled(self.staged, now):
            waits.append(self.asked_at + SETTLE - now)
        if self.refused is not None:
            waits.append(max(self.refused.at + RETRY - now, 1.0))
        return min(waits, default=None)


def short(bundle: str) -> str:
    """How a version is named where its whole digest is too long to read."""
    return bundle.removeprefix("sha256:")[:12]
