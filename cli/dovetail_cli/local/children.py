"""Processes that `dovetail up` starts beside Ray: edges and shaped links.

A child that dies is started again, soon at first and then ever later, so that one that cannot live
does not keep the machine busy. All of them carry a mark that `dovetail_cli.ray_guard` ends them by
when we are gone for any reason, kill -9 included.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from dovetail.errors import ChildFailed
from dovetail_cli.link import LinkSpec
from dovetail_cli.ray_guard import MARK

_PATIENCE = 10.0  # seconds a child is given to end by itself
_HEALTHY = 20.0  # seconds after which a child's earlier deaths are forgotten
_LONGEST_WAIT = 30.0
_LOG_LINES = 15


class Guard:
    """Ends every child when we are gone; use as a context manager.

    Args:
        folder: a folder that is removed with them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._mark = folder, secrets.token_hex(8)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dovetail_cli.ray_guard", self._mark, str(self._folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()  # it ends what is left, then itself

    @property
    def environment(self) -> dict[str, str]:
        """What a child is started with."""
        return {**os.environ, MARK: self._mark}


@dataclass
class Child:
    """One process and how to start it again.

    Attributes:
        name: for people.
        command: argument list.
        log: file that its output is appended to.
        environment: its environment.
        deaths: times it died since it last lived for a while.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: dict[str, str]
    deaths: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _started: float = field(default=0.0)
    _again: float | None = None

    @property
    def pid(self) -> int | None:
        """Its process id; None while it is dead."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process else None

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to handle, in our order
            )
        self._started, self._again = time.monotonic(), None

    def ensure(self) -> str | None:
        """Bring it back if it died; returns what happened, for people, or None."""
        if self._process is None or self._process.poll() is None:
            return None
        now = time.monotonic()
        if self._again is None:
            self.deaths = 1 if now - self._started > _HEALTHY else self.deaths + 1
            wait = 0.0 if self.deaths == 1 else min(2.0 ** (self.deaths - 2), _LONGEST_WAIT)
            self._again = now + wait
            return f"{self.name} ended ({_how(self._process.returncode)}); again in {wait:.0f} s"
        if now < self._again:
            return None
        self.start()
        return f"{self.name} started again"

    def stop(self) -> None:
        """Ask it to end, then end it."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def said(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        return "\n".join(lines[-_LOG_LINES:])


class ShapedLink:
    """The shaping proxy in a process of its own; use as a context manager.

    Args:
        port: loopback port of its near end.
        to: port of its far end.
        link: the link to begin with.
        environment: of the process.
    """

    def __init__(self, port: int, to: int, link: LinkSpec, environment: dict[str, str]) -> None:
        self.link = link
        module = [sys.executable, "-m", "dovetail_cli.shaper", "--listen", str(port)]
        self._command = [*module, "--to", f"127.0.0.1:{to}", "--link", str(link)]
        self._environment = environment

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise ChildFailed(f"the shaped link did not start: {' '.join(self._command)}")
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()

    def apply(self, link: LinkSpec) -> None:
        """Use another link from now on."""
        self.link = link
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{link}\n")


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit {code}"
