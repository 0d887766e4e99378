"""`python -m bench [SECTION...] [--quick] [--write-docs]`.

Tables go to standard output, progress to standard error, the record to bench/out/SECTION.json.
A section that fails does not stop the others; the exit code then is 1.
"""

import argparse
import importlib
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rich.console import Console

from bench import docs, report

_WIDTH = 150  # columns

SECTIONS = {
    "cut_time": "Exact cut, ladder, file to bundle",
    "peers": "Cutting beside onnx.utils.extract_model and ssp4onnx",
    "segments": "Segments against the uncut model",
    "added_latency": "Added latency",
    "rungs": "Chosen rung against every rung, measured",
    "move": "A move under load",
    "throughput": "Throughput under load",
    "outage": "The cloud vanishes",
    "fleet": "Ten thousand deployments",
    "cluster": "The cut follows a link between two real nodes",
}


def _measure(section: str, *, quick: bool, out: Console, log: Console) -> bool:
    begin, host = time.monotonic(), report.machine()
    command = f"python -m bench {section}{' --quick' if quick else ''}"
    log.rule(f"[bold]{SECTIONS[section]}[/]  ({command})", align="left")

    def say(line: str) -> None:
        log.print(f"[dim]{time.monotonic() - begin:6.1f} s[/]  {line}", highlight=False)

    with tempfile.TemporaryDirectory(prefix="dovetail-bench-") as scratch:
        try:
            run = importlib.import_module(f"bench.{section}").run
            found = run(report.Context(quick=quick, scratch=Path(scratch), say=say))
        except Exception:  # noqa: BLE001  the other sections still run
            log.print(traceback.format_exc(), markup=False, highlight=False)
            return False
    report.show(out, SECTIONS[section], found)
    path = report.save(section, command, host, time.monotonic() - begin, found)
    say(f"wrote {path.relative_to(report.ROOT)}")
    return True


def _console(*, error: bool) -> Console:
    """A console that does not fold tables where its output is not a terminal."""
    console = Console(stderr=error)
    return console if console.is_terminal else Console(stderr=error, width=_WIDTH)


def main() -> int:
    """Run the sections asked for, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="a small part, in little time")
    parser.add_argument(
        "--write-docs", action="store_true", help="write docs/benchmarks.md from bench/out"
    )
    args = parser.parse_args()
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    out, log = (_console(error=error) for error in (False, True))
    wanted = args.sections or ([] if args.write_docs else list(SECTIONS))
    good = [_measure(name, quick=args.quick, out=out, log=log) for name in wanted]
    if args.write_docs:
        path = docs.write(SECTIONS)
        log.print(f"wrote {path.relative_to(report.ROOT)}")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
