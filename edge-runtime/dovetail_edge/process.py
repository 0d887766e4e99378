"""The edge as a process: a server that is there at once, and a follower that brings its model.

Told to end (SIGTERM), an edge that serves beyond this machine says first that it is not ready and
goes on answering for some seconds, so that whoever balances requests takes it off the list before
it is gone; then it ends after the requests under way. A second signal ends it without that wait.
"""

import ipaddress
import logging
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Final

import uvicorn

from dovetail import telemetry
from dovetail.errors import AddressRefused, DovetailError
from dovetail_edge.follow import Follower
from dovetail_edge.holder import Holder
from dovetail_edge.server import EdgeServer
from dovetail_edge.start import Options

log = logging.getLogger("dovetail.edge")

_BACKLOG: Final = 2048
_GRACE: Final = 10  # seconds that requests under way have when the server ends
_DRAIN: Final = 5.0  # seconds in which new requests are still answered before that


def run(options: Options, host: str, port: int, *, joining: bool = False) -> int:
    """Run an edge until it is told to end.

    Args:
        options: what it is started with.
        host: address to listen on.
        port: port to listen on.
        joining: whether the first contact must succeed where nothing is here to answer with.

    Returns:
        The exit code; 0 where it ended because it was told to.

    Raises:
        AddressRefused: the address is taken, or not this machine's.
        DovetailError: it cannot start as it was asked to.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    telemetry.setup("dovetail-edge")
    listener = _listen(host, port)
    holder = Holder(options.credentials.device)
    follower = Follower(options, holder)
    try:
        follower.start(joining=joining)
        log.info("endpoint %s, device %s", options.endpoint, options.credentials.device)
        if options.slowdown > 1:
            log.info("slowdown %g: this device is made slower on purpose", options.slowdown)
        return _serve(holder, options.slowdown, host, listener)
    finally:
        follower.close()
        holder.swap(None)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; had before anything else, so that nothing is fetched in vain."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # Python names the address a second time
        raise AddressRefused(
            f"cannot listen on {host}:{port}: {why}; give another --host or --port"
        ) from error


def _serve(holder: Holder, slowdown: float, host: str, listener: socket.socket) -> int:
    config = uvicorn.Config(
        EdgeServer(holder, slowdown).app(),
        http="httptools",
        access_log=False,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=_GRACE,
    )
    server = _Server(config, holder, drain=0.0 if _is_here(host) else _DRAIN)

    def end(*_: object) -> None:
        server.should_exit = True

    # uvicorn hands a signal on to the handler it found once it has shut down: with the default one
    # the process would die there, before the session is closed.
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    server.run(sockets=[listener])
    return 0 if server.started else DovetailError.exit_code


class _Server(uvicorn.Server):
    """A server that goes on for a while after it was told to end."""

    def __init__(self, config: uvicorn.Config, holder: Holder, drain: float) -> None:
        super().__init__(config)
        self._holder, self._drain = holder, drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; called by uvicorn on SIGTERM and SIGINT."""
        if self._holder.leaving or not self._drain:
            self._holder.leaving = True
            super().handle_exit(sig, frame)
            return
        self._holder.leaving = True
        log.info("told to end: not ready from now on, and gone in %.0f s", self._drain)
        timer = threading.Timer(self._drain, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()


def _is_here(host: str) -> bool:
    """Whether an address is one of this machine's own, which nobody balances requests to."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def fail(error: DovetailError) -> int:
    """Say on stderr why the edge does not start; returns the exit code."""
    sys.stderr.write(f"{error.code}: {error}\n")
    return error.exit_code
