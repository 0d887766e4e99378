"""The edge as a process: `python -m dovetail_edge`.

Plan and bundle may be given; where they are not, they are in the state folder or come from the
pool. With `--state`, a device that restarts without its cloud goes on from what it had.
"""

import argparse
import sys
from pathlib import Path

from dovetail.errors import DovetailError
from dovetail_edge import store
from dovetail_edge.access import Credentials
from dovetail_edge.process import fail, run
from dovetail_edge.start import Options


def main() -> int:
    """Run until told to end; returns the exit code."""
    args = _parser().parse_args()
    device = args.device or store.device(args.state)
    options = Options(
        endpoint=args.endpoint,
        device_class=args.device_class,
        credentials=Credentials(args.token_file, args.ca_file, device),
        plan=args.plan,
        bundle=args.bundle,
        state=args.state,
        threads=args.threads,
        slowdown=args.slowdown,
    )
    try:
        return run(options, args.host, args.port)
    except DovetailError as error:
        return fail(error)


def _slowdown(text: str) -> float:
    value = float(text)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a factor of 1 or more")
    return value


def _device(text: str) -> str:
    if not store.DEVICE_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text} is not a name of 1 to 63 of A-Z a-z 0-9 . _ -")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("dovetail-edge", description=__doc__)
    add = parser.add_argument
    add("--endpoint", required=True, help="http(s)://host:port[/prefix] of the pool")
    add("--device-class", help="class this device belongs to; its token's where not given")
    add("--token-file", type=Path, help="file with the class's bearer token")
    add("--ca-file", type=Path, help="PEM file of whom to trust under https")
    add("--plan", type=Path, help="plan to start with, JSON; the pool's where not given")
    add("--bundle", type=Path, help="folder of a bundle; fetched from the pool where not given")
    add("--state", type=Path, help="folder for the last plan and for fetched bundles")
    add("--device", type=_device, help="this device's name; a random one that is kept in --state")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    add("--port", type=int, default=8000, help="port to listen on (default 8000)")
    add("--threads", type=int, default=1, help="intra-op threads (default 1)")
    add("--slowdown", type=_slowdown, default=1.0, help="make this device K times slower")
    return parser


if __name__ == "__main__":
    sys.exit(main())
