"""What the product adds between head and tail.

A request on one kept-alive connection, fp32, no TLS, with 16 kB and with 600 kB crossing: its round
trip without head and tail compute (and without encode and decode, which have lines of their own),
against the same number of bytes up and down through the same ingress with an empty handler, sent by
the same client code. Both are taken in turn, request by request; p50 over all of them. The model is
a small one made for it, so that nothing hides behind compute. The gateway that ends TLS in a
cluster is not here; Ray's HAProxy ingress is on both sides of the ratio.
"""

import cProfile
import io
import pstats
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tests.tiny_bundle import rows, write_tiny_bundle

from bench import empty, rig, stats
from bench.report import Cell, Context, Figure, Result, Table
from dovetail.measure import Sample
from dovetail_cli.ray_pool import RayPool
from dovetail_edge.link import Call, TailLink
from dovetail_edge.session import Session

_SIZES = {"16 kB": (64, 4), "600 kB": (224, 12)}  # side and width of the small model
_RUNG = "cut1"
_BOUND = 1.5
_LATE = 60.0


@dataclass(frozen=True)
class _Found:
    """Samples and empty round trips, taken in turn."""

    samples: list[Sample]
    empty: stats.Floats
    profile: str

    def of(self, part: Callable[[Sample], float]) -> stats.Floats:
        """One number of every sample, in milliseconds."""
        return np.array([part(sample) for sample in self.samples]) * 1e3


def run(context: Context) -> Result:
    """Measure both sizes."""
    rounds = 300 if context.quick else 3000
    with rig.pool(context) as ray:
        found = {
            label: _measure(context, ray, label, shape, rounds) for label, shape in _SIZES.items()
        }
    return Result(
        figures=tuple(figure for label in found for figure in _figures(label, found[label])),
        tables=(_table(found),),
        data={
            label: {"empty_ms": one.empty, "total_ms": one.of(lambda s: s.total)}
            for label, one in found.items()
        }
        | {"profile": {label: one.profile for label, one in found.items()}},
        method=(__doc__ or "").partition("\n\n")[2].strip(),
    )


def _measure(
    context: Context, ray: RayPool, label: str, shape: tuple[int, int], rounds: int
) -> _Found:
    side, width = shape
    made = write_tiny_bundle(context.scratch / f"tiny-{side}", side=side, width=width)
    feed, plan = rows(1, side=side), rig.plan(made.bundle, made.costs, _RUNG)
    rig.deploy(ray, [(made.bundle, plan)], beside=True)
    context.say(f"{label}: {rounds} requests in turn with as many to the empty handler")
    link = TailLink(rig.endpoint(ray))
    with Session(made.bundle, plan, endpoint=rig.endpoint(ray)) as session:
        for _ in range(30):
            sample = session.infer_detailed(feed, deadline=_LATE).sample
        headers = {empty.ANSWER_HEADER: str(sample.bytes_down)}
        call = Call("POST", f"/{empty.NAME}/infer", headers, (bytes(sample.bytes_up),))
        variants = {
            "empty": lambda: link.call(call, time.monotonic() + _LATE).seconds,
            "rung": lambda: _kept(samples, session.infer_detailed(feed, deadline=_LATE).sample),
        }
        samples: list[Sample] = []
        trips = stats.interleave(variants, rounds, warmup=30)["empty"]
        profile = _profile(lambda: session.infer_detailed(feed, deadline=_LATE))
    link.close()
    return _Found(samples[-rounds:], trips * 1e3, profile)


def _kept(samples: list[Sample], sample: Sample) -> float:
    """Keep a sample; its total is its figure."""
    samples.append(sample)
    return sample.total


def _figures(label: str, found: _Found) -> list[Figure]:
    added, wide = found.of(_added), found.of(_with_codec)
    p50 = f"p50 {stats.median(added):.2f} ms against {stats.median(found.empty):.2f} ms"
    return [
        Figure.of(
            f"added latency, {label} crossing, over an empty handler",
            stats.ratio(added, found.empty),
            "x",
            _BOUND,
            p50,
        ),
        Figure.of(f"the same with encode and decode, {label}", stats.ratio(wide, found.empty), "x"),
    ]


def _added(sample: Sample) -> float:
    parts = sample.parts
    return sample.total - parts.head - parts.tail - parts.encode - parts.decode


def _with_codec(sample: Sample) -> float:
    return sample.total - sample.parts.head - sample.parts.tail


def _table(found: dict[str, _Found]) -> Table:
    """Where a request's time goes, p50 of each part."""
    lines: tuple[tuple[str, Callable[[Sample], float]], ...] = (
        ("round trip as the caller sees it", lambda s: s.total),
        ("head compute", lambda s: s.parts.head),
        ("encode", lambda s: s.parts.encode),
        ("network: socket to socket, less what the tail reports", lambda s: s.parts.network),
        ("of it, receiving the body in the tail", lambda s: s.recv),
        ("queue in the tail", lambda s: s.parts.queue),
        ("decode", lambda s: s.parts.decode),
        ("tail compute", lambda s: s.parts.tail),
        ("the rest: routing, messages, merging, encoding the answer", _rest),
    )
    rows: list[tuple[Cell, ...]] = [
        (name, *(stats.median(one.of(part)) for one in found.values())) for name, part in lines
    ]
    rows.append(("empty handler, round trip", *(stats.median(o.empty) for o in found.values())))
    return Table("Where a request's time goes, ms (p50 of each)", ("part", *found), tuple(rows))


def _rest(sample: Sample) -> float:
    return sample.total - sample.parts.total


def _profile(call: Callable[[], object]) -> str:
    """Where the edge's own thread spends its time, by function."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(200):
        call()
    profiler.disable()
    out = io.StringIO()
    pstats.Stats(profiler, stream=out).strip_dirs().sort_stats("tottime").print_stats(18)
    return out.getvalue()
