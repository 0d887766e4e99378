"""Calls an edge server as any application would, by the Open Inference Protocol."""

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dovetail.errors import DovetailError, Unavailable, UserError, by_code
from dovetail.tensor import Array
from dovetail.wire import (
    ERROR_HEADER,
    HEADER_LENGTH,
    TIMING_HEADER,
    InferRequest,
    WireTensor,
    build_request,
    parse_response,
    parse_timing,
)

_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer and what is known of how it was made.

    Attributes:
        outputs: arrays by output name.
        rung: the rung that made it.
        degraded: whether the device answered because the cloud did not.
        generation: generation of the plan it was made by.
        seconds: what the caller waited.
        timing: seconds by part, as the edge says.
    """

    outputs: dict[str, Array]
    rung: str
    degraded: bool
    generation: int
    seconds: float
    timing: Mapping[str, float]


class EdgeClient:
    """One kept-alive connection to an edge server; for one thread.

    Args:
        url: `http://host:port` of the edge.

    Raises:
        UserError: not such a URL.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise UserError(f"{url!r} is not the URL of an edge; expected http://host:port")
        self._base = parts.path.rstrip("/")
        self._connection = http.client.HTTPConnection(
            parts.hostname, parts.port or 80, timeout=_TIMEOUT
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def status(self) -> dict[str, Any]:
        """What the edge says of itself; raises `Unavailable` where no edge answers."""
        _, body = self._call("GET", "/dovetail/status")
        try:
            status: dict[str, Any] = json.loads(body)
        except ValueError as error:
            where = f"{self._connection.host}:{self._connection.port}"
            raise Unavailable(f"what answers at {where} is no edge: {error}") from error
        return status

    def infer(self, model: str, feed: Mapping[str, Array]) -> Reply:
        """One request.

        Args:
            model: name of the model.
            feed: arrays by input name.

        Raises:
            DovetailError: the edge's own error, by its type; `Unavailable` where it is gone.
        """
        request = InferRequest(tuple(WireTensor.of(name, array) for name, array in feed.items()))
        body, headers = build_request(request)
        began = time.perf_counter()
        answer, content = self._call("POST", f"/v2/models/{model}/infer", body, headers)
        seconds = time.perf_counter() - began
        parsed = parse_response(content, answer.getheader(HEADER_LENGTH))
        return Reply(
            parsed.arrays(),
            str(parsed.parameters.get("rung", "")),
            bool(parsed.parameters.get("degraded", False)),
            int(parsed.parameters.get("generation", 0)),
            seconds,
            parse_timing(answer.getheader(TIMING_HEADER) or ""),
        )

    def _call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            self._connection.request(method, self._base + path, body, dict(headers))
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # the next call opens another one
            raise Unavailable(f"no edge answers at {self._connection.host}: {error}") from error
        if answer.status != http.client.OK:
            raise _error(answer, content)
        return answer, content


def _error(answer: http.client.HTTPResponse, content: bytes) -> DovetailError:
    text = content.decode(errors="replace")[:2000]
    try:
        text = str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        text = f"the edge answered {answer.status}: {text[:200]}"
    return by_code(answer.getheader(ERROR_HEADER) or "")(text)
