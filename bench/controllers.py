"""What the Job controller, kubelets and KubeRay would write, as soon as there is work for them.

For a fleet on an API server without nodes: every Job ends well with the last words given, every
DaemonSet is rolled out on one node, every application of a RayService runs.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import httpx2
from tests.kube.apiserver import ApiServer, Json
from tests.kube.controllers import finish, roll_out, serve

_WORKERS = 4


def watch(server: ApiServer, path: str, seconds: float) -> Iterator[Json]:
    """Everything in a collection and every change of it, for so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        params = {"watch": "true", "timeoutSeconds": str(max(1, int(end - time.monotonic())))}
        try:
            with server.client.stream("GET", path, params=params, timeout=None) as answer:
                answer.raise_for_status()  # a kind defined a moment ago may not be served yet
                for line in answer.iter_lines():
                    event: Json = json.loads(line)
                    if event["type"] in ("ADDED", "MODIFIED"):
                        yield event
        except httpx2.HTTPError:
            time.sleep(1.0)


class Controllers:
    """Answers until it is left.

    Args:
        server: the API server.
        said: last words of every Job.
    """

    def __init__(self, server: ApiServer, said: Mapping[str, str]) -> None:
        self._server, self._said = server, dict(said)
        self._stop = threading.Event()
        self._workers = ThreadPoolExecutor(_WORKERS, "controllers")
        self._answered: set[tuple[str, int]] = set()

    def __enter__(self) -> Self:
        for path, act in (
            ("/apis/batch/v1/jobs", lambda item: finish(self._server, item, self._said)),
            ("/apis/apps/v1/daemonsets", lambda item: roll_out(self._server, item)),
            ("/apis/ray.io/v1/rayservices", lambda item: serve(self._server, item)),
        ):
            threading.Thread(target=self._follow, args=(path, act), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._workers.shutdown(cancel_futures=True)

    def _follow(self, path: str, act: Callable[[Json], Any]) -> None:
        for event in watch(self._server, path, 24 * 3600.0):
            if self._stop.is_set():
                return
            metadata = event["object"]["metadata"]
            mark = (metadata["uid"], metadata.get("generation", 0))
            if mark not in self._answered:
                self._answered.add(mark)
                self._workers.submit(act, event["object"])
