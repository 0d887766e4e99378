"""Callers that never pause: the load under which tests and benchmarks look at what happens."""

import threading
from collections.abc import Callable, Iterable
from typing import Self


class Callers:
    """A thread for each caller, from when this is entered until it is left.

    Args:
        callers: each calls on and on until the event is set.
    """

    def __init__(self, callers: Iterable[Callable[[threading.Event], object]]) -> None:
        self._end = threading.Event()
        self._threads = [threading.Thread(target=caller, args=(self._end,)) for caller in callers]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
