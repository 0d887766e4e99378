"""How the long parts of partitioning say where they are.

A room below the command line has no screen, so it reports to whoever called it.
"""

from typing import Protocol


class Report(Protocol):
    """Told how far a part of the work is."""

    def __call__(self, part: str, done: int, total: int) -> None:
        """`done` of `total` steps of the named part are finished."""


def silent(part: str, done: int, total: int) -> None:
    """Report nothing."""
