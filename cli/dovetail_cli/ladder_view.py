"""A ladder as people and scripts read it: one line a rung, and where each is best."""

from collections.abc import Mapping, Sequence
from typing import Any

from dovetail.bundle import BundleConfig
from dovetail.ladder import CostProfile, Ladder
from dovetail_cli.output import columns, note, size
from dovetail_partitioner.proof import Proof
from dovetail_partitioner.rungs import BestAt, best_at

_HEADINGS = (
    "RUNG",
    "UP",
    "DOWN",
    "EDGE MS",
    "CLOUD MS",
    "MAX ERROR",
    "TOP-1",
    "BEST",
    "BEST, INPUT STAYS",
    "CROSSING",
)


def document(
    config: BundleConfig, digest: str, ladder: Ladder, costs: CostProfile, proof: Proof
) -> dict[str, Any]:
    """A ladder with costs and proof as plain values.

    Seconds are the profiling machine's; `best` and `bestInputStays` are the parts of the sweep in
    which a rung is fastest, of all rungs and of those through which no raw input leaves.
    """
    free = best_at(ladder)
    kept = [rung.id for rung in ladder.rungs if rung.cut > 0]
    masked = best_at(ladder.only(kept))
    return {
        "model": config.model.name,
        "modelDigest": config.model.digest,
        "bundle": digest,
        "segments": len(config.segments),
        "wholeSeconds": costs.whole,
        "host": costs.host,
        "calibration": {"rows": proof.count, "generated": proof.generated},
        "rungs": [
            {
                "id": rung.id,
                "cut": rung.cut,
                "codec": rung.codec,
                "crossing": [
                    {"name": name, "shape": list(config.spec(name).shape)}
                    for name in config.crossing(rung.cut)
                ],
                "bytesUp": rung.bytes_up,
                "bytesDown": rung.bytes_down,
                "edgeSeconds": rung.head + rung.encode,
                "cloudSeconds": rung.decode + rung.tail,
                "maxError": config.rung(rung.id).max_error,
                "top1": config.rung(rung.id).top1,
                "best": _range(free[rung.id]),
                "bestInputStays": _range(masked[rung.id]) if rung.id in masked else None,
            }
            for rung in ladder.rungs
        ],
        "dropped": dict(proof.dropped),
        "regret": proof.regret,
        "notes": list(config.model.notes),
    }


def table(shown: Mapping[str, Any]) -> str:
    """The rungs of a document as a table."""
    return columns(_HEADINGS, [_line(rung) for rung in shown["rungs"]])


def remarks(shown: Mapping[str, Any]) -> None:
    """Say on stderr what a table does not."""
    rows = shown["calibration"]
    made = "generated from the model's digest" if rows["generated"] else "given"
    note(
        f"{shown['model']}: {shown['wholeSeconds'] * 1e3:.2f} ms uncut; {shown['segments']} "
        f"segments; proved on {rows['rows']} rows, {made}"
    )
    note(f"regret of the cuts that were not kept: at most {shown['regret']:.1%}")
    for rung, why in shown["dropped"].items():
        note(f"not offered: {rung}: {why}")
    for text in shown["notes"]:
        note(f"note: {text}")


def _range(best: BestAt) -> dict[str, Any] | None:
    if best.bandwidth is None or best.edge is None:
        return None
    return {
        "share": round(best.share, 4),
        "bytesPerSecond": list(best.bandwidth),
        "deviceTimesSlower": list(best.edge),
    }


def _line(rung: Mapping[str, Any]) -> list[str]:
    top1 = rung["top1"]
    return [
        rung["id"],
        size(rung["bytesUp"]),
        size(rung["bytesDown"]),
        f"{rung['edgeSeconds'] * 1e3:.2f}",
        f"{rung['cloudSeconds'] * 1e3:.2f}",
        f"{rung['maxError']:.1e}",
        "-" if top1 is None else f"{top1:.1%}",
        _where(rung["best"]),
        _where(rung["bestInputStays"]),
        ", ".join(_tensor(tensor) for tensor in rung["crossing"]) or "-",
    ]


def _where(best: Mapping[str, Any] | None) -> str:
    if best is None:
        return "-"
    low, high = (speed * 8e-6 for speed in best["bytesPerSecond"])
    slow, slower = best["deviceTimesSlower"]
    return f"{low:g}-{high:g} Mbit/s, device {slow:g}-{slower:g}x, {best['share']:.0%}"


def _tensor(tensor: Mapping[str, Any]) -> str:
    shape: Sequence[int | str] = tensor["shape"]
    return f"{tensor['name']}[{'x'.join(str(dim) for dim in shape)}]"
