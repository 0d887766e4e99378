"""Programs of a cluster: started, killed, started again, and ended with who started them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

# A run that is killed runs no clean-up; the kernel then ends what it started.
TIED: Final = ["setpriv", "--pdeathsig", "KILL"]
_STOP_S: Final = 10.0


class ServiceFailed(RuntimeError):
    """A program ended or did not get ready; the message ends with its log."""


class Service:
    """One program.

    Args:
        command: the program and its arguments.
        log: file for what it says; a later start appends.
        environment: more environment variables.
    """

    def __init__(
        self, command: list[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.command, self.log = command, log
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, f"{self.log.stem} was not started"
        return self._process.pid

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                [*TIED, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, by force where asking does not help; nothing happens where it has ended."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait(self, ready: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
        """Wait until something holds.

        Args:
            ready: whether it does.
            what: what is waited for, for the message.
            seconds: how long at most.

        Raises:
            ServiceFailed: the program ended before, or time ran out.
        """
        end = time.monotonic() + seconds
        while not ready():
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > end:
                happened = "ended before" if ended else f"took over {seconds:.0f} s until"
                said = self.log.read_text(errors="replace")[-3000:]
                raise ServiceFailed(f"{self.log.stem} {happened} {what}; it said:\n{said}")
            time.sleep(0.1)
