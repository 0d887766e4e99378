"""`python -m bench.resident whole|loaded PATH NAME`: what a loaded model keeps resident.

A process of its own, so that what one variant leaves behind cannot count for the other. Prints the
megabytes that loading and answering added to what the process had before.
"""

import json
import sys
from pathlib import Path

import psutil

from bench import networks
from dovetail.bundle import Bundle
from dovetail.runtime import SegmentRuntime, session_options
from dovetail_partitioner.whole import open_session

_ANSWERS = 5


def main() -> int:
    """Load, answer, measure."""
    kind, path, name = sys.argv[1:]
    row = dict(networks.find(name).rows()[0])
    process = psutil.Process()
    before = process.memory_info().rss
    if kind == "whole":
        session = open_session(Path(path), session_options(threads=1, optimize=True))
        for _ in range(_ANSWERS):
            session.run(None, row)
    else:
        bundle = Bundle(Path(path))
        count = len(bundle.config.segments)
        runtime = SegmentRuntime(bundle, range(count + 1))
        for _ in range(_ANSWERS):
            runtime.run(row, 0, count)
            live = row
            for index in range(count):
                live, _ = runtime.run(live, index, index + 1)
    print(json.dumps({"mb": (process.memory_info().rss - before) / 1e6}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
