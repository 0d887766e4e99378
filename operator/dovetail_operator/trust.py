"""The authority that devices trust, as its file says now.

A gateway's certificate is renewed while everything runs, and so may be the authority behind it.
The file is read again at each use, which costs microseconds, and looked at now and then, so that
all edges are told of a new one without a restart and without an event to wait for.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dovetail.errors import Unavailable

_LOOK: Final = 30.0  # seconds; a kubelet needs about as long to bring a new one


class Trust:
    """Reads the authority's file.

    Args:
        file: the file; None where devices need no authority of their own.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._stop = threading.Event()

    def pem(self) -> str | None:
        """The authority, as PEM; raises `Unavailable` where it cannot be read now."""
        if self._file is None:
            return None
        try:
            return self._file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable(f"endpointCa {self._file} cannot be read: {error}") from error

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever the file says something else; returns at once."""
        if self._file is not None:
            threading.Thread(target=self._look, args=(changed,), name="trust", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def _look(self, changed: Callable[[], None]) -> None:
        before = self._known()
        while not self._stop.wait(_LOOK):
            now = self._known()
            if now != before:
                before = now
                changed()

    def _known(self) -> str | None:
        try:
            return self.pem()
        except Unavailable:
            return None
