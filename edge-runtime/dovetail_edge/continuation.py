"""The edge's own continuation: what answers when the tail does not.

A request that has left for the tail keeps its crossing tensors here. If the tail fails, the
request's own thread runs the remaining segments at once. If the tail is merely late, `TailLink`
rings this alarm at `deadline - predicted remaining edge time - margin`; the segments then run in
another thread while the request still listens, and whichever finishes first answers. That is a
hedged request with the device as the second server.

Reference: Dean, Barroso, "The Tail at Scale", CACM 2013 (hedged requests).
"""

import socket
from collections.abc import Callable
from concurrent.futures import Executor, Future

from dovetail.tensor import Array

Result = tuple[dict[str, Array], float]


class Continuation:
    """Runs the remaining segments at most once.

    Args:
        work: runs them; returns the outputs and the seconds it took.
        at: when to begin if the tail is late, on `time.monotonic`.
        pool: where to run them while the request waits.

    Attributes:
        at: as given.
    """

    def __init__(self, work: Callable[[], Result], at: float, pool: Executor) -> None:
        self.at = at
        self._work, self._pool = work, pool
        self._future: Future[Result] | None = None
        self._done: socket.socket | None = None

    def ring(self) -> int:
        """Begin in the pool; returns a descriptor that turns readable when it is done."""
        if self._done is None:
            self._done, other = socket.socketpair()
            self._future = self._pool.submit(self._work)
            self._future.add_done_callback(lambda _: other.close())
        return self._done.fileno()

    def result(self) -> Result:
        """The outputs: waits where the work has begun, runs it here where it has not."""
        return self._future.result() if self._future is not None else self._work()

    def close(self) -> None:
        """Forget the work; what has begun runs to its end unheard."""
        if self._future is not None:
            self._future.cancel()
        if self._done is not None:
            self._done.close()
