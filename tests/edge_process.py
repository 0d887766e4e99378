"""The edge as a process, and what tests ask of it."""

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.http as triton

from dovetail.tensor import Array
from dovetail_cli.ray_pool import free_port

EDGE = ("-m", "dovetail_edge")
JOIN = ("-m", "dovetail_cli.main", "edge", "join")


def until(what: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for a state; fails where it never comes."""
    stop = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < stop, "the state never came"
        time.sleep(0.05)


class Got:
    """An HTTP answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.body = status, body
        self.headers = {name.lower(): value for name, value in headers.items()}


class EdgeProcess:
    """A command that runs an edge, on a free port.

    Args:
        arguments: of the Python interpreter; `--port` is added.
        port: where it is to listen; a free one where not given.
    """

    def __init__(self, *arguments: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.process = subprocess.Popen(
            [sys.executable, *arguments, f"--port={self.port}"], stderr=subprocess.PIPE, text=True
        )

    def settle(self) -> None:
        """Wait until it answers requests, or has ended."""
        until(lambda: self.process.poll() is not None or self.ready())

    def ready(self) -> bool:
        """Whether it says that it can answer."""
        try:
            return self.call("GET", "/v2/health/ready").status == 200
        except OSError:
            return False

    def call(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Got:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Got(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        found: dict[str, Any] = json.loads(self.call("GET", "/dovetail/status").body)
        return found

    def triton(self) -> triton.InferenceServerClient:
        """A client of the protocol."""
        return triton.InferenceServerClient(f"127.0.0.1:{self.port}")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; returns the exit code and what was said on stderr."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        """Wait for the end; returns the exit code and what was said on stderr."""
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@contextmanager
def running(
    arguments: Sequence[str], *, port: int | None = None, settled: bool = True
) -> Iterator[EdgeProcess]:
    """An edge that is gone when this is left.

    Args:
        arguments: of the Python interpreter.
        port: where it is to listen; a free one where not given.
        settled: whether to wait until it answers requests, or has ended.
    """
    edge = EdgeProcess(*arguments, port=port)
    try:
        if settled:
            edge.settle()
        yield edge
    finally:
        if edge.process.poll() is None:
            edge.end(signal.SIGKILL)


def infer(
    client: triton.InferenceServerClient, feed: dict[str, Array], *, binary: bool = True
) -> triton.InferResult:
    """Ask for both outputs of the tiny bundle."""
    tensor = triton.InferInput("x", feed["x"].shape, "FP32")
    tensor.set_data_from_numpy(feed["x"], binary_data=binary)
    asked = [triton.InferRequestedOutput(n, binary_data=binary) for n in ("scores", "brightness")]
    return client.infer("tiny", [tensor], outputs=asked, request_id="r-1")


def is_right(result: triton.InferResult, want: dict[str, Array]) -> bool:
    """Whether an answer is that of the whole model."""
    return all(
        np.allclose(result.as_numpy(name), value, rtol=1e-4, atol=1e-5)
        for name, value in want.items()
    )
