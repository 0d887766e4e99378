"""The main job, shown: a real network on a slow device, over a link that collapses and recovers.

Two acts, each a plain `dovetail up` that ends by itself. In the first everything is allowed, and
honest scoring decides: the input is an image, so JPEG may carry it to the cloud for fewer bytes
than any cut needs. In the second the raw page may not leave the device (`privacy: Masked`), and the
cuts carry it. Beside each, in interleaved rounds on the same link, run all-edge (the uncut model)
and all-cloud (the best input codec), where they are allowed.

Exits 0 only if no request failed, the rung moved both ways in both acts, and answers are as right
as the whole model's.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # examples are no package of the distribution

from examples.page_orientation import pages  # noqa: E402  after the path above

from dovetail.api import load_manifest  # noqa: E402
from dovetail_cli.link import load_trace  # noqa: E402
from dovetail_cli.local.run import Job, run  # noqa: E402

HERE = Path(__file__).resolve().parent
DATA = ROOT / ".cache" / "page_orientation"
SLOWDOWN = 30.0  # a small ARM board (Pi Zero 2 class) against one core of a server
SECONDS = 54.0
RATE = 4.0  # rounds per second: about what a document camera asks for
SLACK = 0.02  # share of answers by which the whole model may be better

ACTS = (
    ("deployment.yaml", "Act 1: everything may leave the device"),
    ("masked.yaml", "Act 2: the raw page may not leave the device (privacy: Masked)"),
)


def main() -> int:
    """Run both acts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the reports")
    parser.add_argument("--picture", type=Path, help="also draw act 2 as PNG here")
    args = parser.parse_args()
    say(
        f"A document camera asks which way up a page is. Its device is {SLOWDOWN:g} times slower "
        "than a core of this machine (simulated, by waiting); the link is Wi-Fi (50 Mbit/s, 10 ms),"
        " then poor cellular (0.6 Mbit/s, 80 ms), then Wi-Fi again."
    )
    pages.write(DATA)
    problems = []
    for file, title in ACTS:
        say(f"\n=== {title} ===")
        picture = args.picture if file == ACTS[-1][0] else None
        summary, text = run(job(file, args.out, picture))
        sys.stdout.write(f"\n{text}\n")
        say(conclusion(summary))
        problems += [f"{title}: {problem}" for problem in check(summary)]
    for problem in problems:
        say(f"NOT SHOWN: {problem}")
    return 1 if problems else 0


def job(file: str, out: Path, picture: Path | None) -> Job:
    """What `dovetail up` is asked for in one act."""
    manifest = HERE / file
    deployment = load_manifest(manifest)
    name = deployment.metadata.name
    return Job(
        manifest=manifest,
        deployment=deployment,
        state=DATA / "state" / name,
        trace=load_trace(HERE / "link.trace"),
        slowdown=SLOWDOWN,
        duration=SECONDS,
        report=out / f"{name}.html",
        picture=picture,
        drive=DATA / "evaluation.npz",
        rate=RATE,
        compare=True,
    )


def conclusion(summary: Mapping[str, Any]) -> str:
    """What the act showed, in words, from its figures."""
    adaptive, *others = summary["classes"]
    against = [
        f"{adaptive['meanMs'] / other['meanMs']:.2f}x the mean of {other['class']}"
        for other in others
    ]
    used = [r["rung"] for r in adaptive["rungs"] if r["requests"] > adaptive["requests"] / 10]
    middle = [rung for rung in used if rung.startswith("cut")]
    text = (
        f"adaptive took {' and '.join(against)}; {adaptive['failed']} of {adaptive['requests']} "
        f"requests failed; {adaptive['accuracy']:.1%} of the answers were right, the whole model's "
        f"{others[0]['accuracy']:.1%}.\nRungs that carried it: {', '.join(used)}."
    )
    if not middle:
        text += (
            "\nNo middle cut was worth it: the page is an image, and as JPEG it costs less to send "
            "than what crosses at any cut. Honest scoring says so and does not cut."
        )
    return text


def check(summary: Mapping[str, Any]) -> list[str]:
    """What the act should have shown and did not."""
    adaptive, whole = summary["classes"][0], summary["classes"][1]
    found = [
        f"{one['failed']} requests of {one['class']} failed"
        for one in summary["classes"]
        if one["failed"]
    ]
    targets = [move["target"] for move in adaptive["moves"]]
    if "edge" not in targets or not any(target != "edge" for target in targets):
        found.append(f"the rung did not move both ways: {targets}")
    if adaptive["accuracy"] < whole["accuracy"] - SLACK:
        found.append(f"right answers: {adaptive['accuracy']:.1%} against {whole['accuracy']:.1%}")
    return found


def say(text: str) -> None:
    """Tell a person, beside the data."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
