"""The edge as a process: `python -m dovetail_edge`.

Serves on loopback only. Ends on SIGTERM after the requests under way. With `--state` the last plan
is kept, so a device that restarts without its cloud goes on from it.
"""

import argparse
import logging
import signal
import sys
from pathlib import Path

import uvicorn
from pydantic import ValidationError

from dovetail import telemetry
from dovetail.errors import DovetailError, ManifestError
from dovetail.plan import Plan
from dovetail_edge.server import EdgeServer
from dovetail_edge.session import Session

log = logging.getLogger("dovetail.edge")

_HOST = "127.0.0.1"
_GRACE = 10  # seconds that requests under way have when the process is told to end


def main() -> int:
    """Run until told to end; returns the exit code."""
    args = _parser().parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    try:
        telemetry.setup("dovetail-edge")
        session = Session(
            args.bundle,
            _read_plan(args.plan, args.device_class),
            endpoint=args.endpoint,
            token=_read_token(args.token_file) if args.token_file else None,
            threads=args.threads,
            slowdown=args.slowdown,
            state=args.state,
        )
    except DovetailError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return error.exit_code
    with session:
        if args.slowdown > 1:
            log.info("slowdown %g: this device is made slower on purpose", args.slowdown)
        plan = session.plan
        log.info("plan %d, rung %s, endpoint %s", plan.generation, plan.default, args.endpoint)
        _serve(session, args.port)
    return 0


def _serve(session: Session, port: int) -> None:
    config = uvicorn.Config(
        EdgeServer(session).app(),
        host=_HOST,
        port=port,
        http="httptools",
        access_log=False,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=_GRACE,
    )
    server = uvicorn.Server(config)

    def end(*_: object) -> None:
        server.should_exit = True

    # uvicorn hands a signal on to the handler it found once it has shut down: with the default one
    # the process would die there, before the session is closed.
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    server.run()


def _read_plan(path: Path, device_class: str) -> Plan:
    try:
        plan = Plan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"plan {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ManifestError(f"plan {path} does not hold: {error}") from error
    if plan.device_class != device_class:
        raise ManifestError(
            f"plan {path} is for device class {plan.device_class!r}, not {device_class!r}"
        )
    return plan


def _read_token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ManifestError(f"token file {path} cannot be read: {error.strerror}") from error


def _slowdown(text: str) -> float:
    value = float(text)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a factor of 1 or more")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("dovetail-edge", description=__doc__)
    add = parser.add_argument
    add("--bundle", type=Path, required=True, help="folder of the bundle")
    add("--plan", type=Path, required=True, help="plan to start with, JSON")
    add("--endpoint", required=True, help="http://host:port of the pool")
    add("--device-class", required=True, help="class this device belongs to")
    add("--token-file", type=Path, help="file with the class's bearer token")
    add("--port", type=int, default=8000, help="port on loopback (default 8000)")
    add("--threads", type=int, default=1, help="intra-op threads (default 1)")
    add("--slowdown", type=_slowdown, default=1.0, help="make this device K times slower")
    add("--state", type=Path, help="folder in which the last plan is kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
