"""The ladder: every rung that can ever be best, with what it costs.

A rung's cost is split into parts that scale with different things (the device, the cloud, the
link), so that one measured profile predicts every device, link and load. The whole chain from file
to figure is: segment times and codec times in the *cost profile*, bytes in the *bundle*, speeds and
link in *conditions*; `RungCost.predict` multiplies them out.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

import pydantic.dataclasses

from dovetail.bundle import BundleConfig
from dovetail.errors import BundleError, UnknownRung
from dovetail.tensor import DOCUMENT, Document

COSTS_FORMAT: Final = "dovetail.dev/costs.v1"


class CodecCost(Document):
    """Seconds to encode a row's crossing tensors on the edge and to decode them in the cloud."""

    encode: float
    decode: float


class CostProfile(Document):
    """Times measured on one machine; everything the bundle may not contain.

    Attributes:
        format: format version.
        model: digest of the model the times belong to.
        host: what they were measured on, for people.
        threads: intra-op threads.
        ops: seconds by operator name, batch 1; what cuts are searched with.
        whole: seconds of the uncut model, batch 1, graph optimisation on.
        bundle: digest of the bundle the rest was measured on; None before there is one.
        cuts: crossing tensors of each cut between the segments, which tells whose times they are.
        segments: seconds of each segment, batch 1, graph optimisation on.
        codecs: encode and decode seconds by rung id.
    """

    format: Literal["dovetail.dev/costs.v1"] = COSTS_FORMAT
    model: str
    host: str
    threads: int
    ops: Mapping[str, float]
    whole: float
    bundle: str | None = None
    cuts: tuple[tuple[str, ...], ...] = ()
    segments: tuple[float, ...] = ()
    codecs: Mapping[str, CodecCost] = {}


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a rung is priced under.

    Attributes:
        edge: edge seconds per profiled second (6 = a device six times slower).
        cloud: cloud seconds per profiled second.
        bandwidth: bytes per second of the link, each way.
        rtt: seconds a tiny request takes to the tail and back.
        queue: seconds a request waits in the tail.
    """

    edge: float = 1.0
    cloud: float = 1.0
    bandwidth: float = 12.5e6
    rtt: float = 0.002
    queue: float = 0.0


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of one request by part; the parts add up to what the caller waits."""

    head: float = 0.0
    encode: float = 0.0
    network: float = 0.0
    queue: float = 0.0
    decode: float = 0.0
    tail: float = 0.0

    @property
    def total(self) -> float:
        """Seconds from call to answer."""
        return self.head + self.encode + self.network + self.queue + self.decode + self.tail


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=DOCUMENT)
class RungCost:
    """A rung with its profiled cost: seconds on the profiling machine, bytes of one row.

    Slots, because an operator keeps some ten of them for each of ten thousand deployments, and a
    `BaseModel` takes nine times the memory.
    """

    id: str
    cut: int
    codec: str
    head: float
    encode: float
    decode: float
    tail: float
    bytes_up: float
    bytes_down: int

    @property
    def crosses(self) -> bool:
        """Whether a request on this rung needs the cloud."""
        return self.id != "edge"

    def predict(self, at: Conditions) -> Parts:
        """Seconds by part of one request, batch 1."""
        if not self.crosses:
            return Parts(head=self.head * at.edge)
        wire = (self.bytes_up + self.bytes_down) / at.bandwidth
        return Parts(
            head=self.head * at.edge,
            encode=self.encode * at.edge,
            network=at.rtt + wire,
            queue=at.queue,
            decode=self.decode * at.cloud,
            tail=self.tail * at.cloud,
        )


class Ladder(Document):
    """Rungs by cut depth, then bytes."""

    rungs: tuple[RungCost, ...]

    @classmethod
    def of(cls, config: BundleConfig, costs: CostProfile) -> Self:
        """Price a bundle's rungs with a cost profile.

        Raises:
            BundleError: the profile was not measured on a bundle of these segments.
        """
        if len(costs.segments) != len(config.segments):
            raise BundleError(
                f"the cost profile has times for {len(costs.segments)} segments, the bundle has "
                f"{len(config.segments)}; measure again with `dovetail partition`"
            )

        def seconds(first: int, last: int) -> float:
            uncut = config.keeps_whole and (first, last) == (0, len(config.segments))
            return costs.whole if uncut else sum(costs.segments[first:last])

        rungs = []
        for rung in config.rungs:
            codec = costs.codecs.get(rung.id, CodecCost(encode=0.0, decode=0.0))
            rungs.append(
                RungCost(
                    id=rung.id,
                    cut=rung.cut,
                    codec=rung.codec,
                    head=seconds(0, rung.cut),
                    encode=codec.encode,
                    decode=codec.decode,
                    tail=seconds(rung.cut, len(config.segments)),
                    bytes_up=rung.bytes_up,
                    bytes_down=rung.bytes_down,
                )
            )
        return cls(rungs=tuple(rungs))

    def __iter__(self) -> Iterator[RungCost]:  # type: ignore[override]  # a ladder is its rungs
        return iter(self.rungs)

    def ids(self) -> tuple[str, ...]:
        """Ids of all rungs, in ladder order."""
        return tuple(rung.id for rung in self.rungs)

    def get(self, rung_id: str) -> RungCost:
        """Find a rung; raises `UnknownRung`."""
        for rung in self.rungs:
            if rung.id == rung_id:
                return rung
        raise UnknownRung(f"rung {rung_id!r} is not on the ladder; it has {list(self.ids())}")

    def only(self, allowed: Collection[str]) -> "Ladder":
        """The ladder without rungs that are not allowed; raises `UnknownRung` on a strange id."""
        for rung_id in allowed:
            self.get(rung_id)
        return Ladder(rungs=tuple(rung for rung in self.rungs if rung.id in allowed))

    def best(self, at: Conditions) -> RungCost:
        """The cheapest rung; the first of equals."""
        return min(self.rungs, key=lambda rung: rung.predict(at).total)


def sweep() -> Iterable[Conditions]:
    """The conditions a ladder is made for: 10 bandwidths x 8 device speeds x 2 round trips.

    0.05 to 125 MB/s (a poor cellular link to a gigabit LAN), a device as fast as the cloud to 50
    times slower, 2 and 30 ms.
    """
    for bandwidth in (0.05e6, 0.125e6, 0.3e6, 0.6e6, 1.25e6, 2.5e6, 6e6, 12.5e6, 40e6, 125e6):
        for edge in (1.0, 2.0, 4.0, 6.0, 10.0, 16.0, 25.0, 50.0):
            for rtt in (0.002, 0.030):
                yield Conditions(edge=edge, bandwidth=bandwidth, rtt=rtt)
