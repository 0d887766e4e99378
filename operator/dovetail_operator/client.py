"""The one door to the API server: lists, watches and writes as plain JSON.

The `kubernetes` package carries the connection: configuration, TLS, tokens that rotate. Its typed
models are left out, because turning ten thousand objects into them costs more time and memory than
all the rest of the operator, and because a server-side apply must send exactly what we own and no
field that a model adds.

Two failures are prevented here. A watch on a half-open connection hangs for ever, so every read
has a bound. A process that was paused past its lease wakes up in the middle of its work, so every
write first asks the fence whether this process still leads; nothing below retries on its own, or
a write could leave after the question.

References: Kubernetes API concepts (list chunks, watches, bookmarks, server-side apply).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import urllib3
from kubernetes import config as kubeconfig
from kubernetes.client import ApiClient, ApiException, Configuration

from dovetail.errors import DovetailError, Unavailable

Json = dict[str, Any]

MANAGER: Final = "dovetail-operator/hybriddeployment"
STATUS_MANAGER: Final = "dovetail-operator/status"

_PAGE: Final = 500
_TIMEOUT: Final = 30.0  # seconds for one request
_AUTH: Final = ["BearerToken"]
_METADATA: Final = "application/json;as={kind};g=meta.k8s.io;v=v1"


class ApiError(DovetailError):
    """The API server refused a request.

    Attributes:
        status: HTTP status code.
        retry_after: seconds it asks to wait; 0 where it does not say.
    """

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Absent(ApiError):
    """There is no such object, or no such kind of objects (404)."""


class Conflict(ApiError):
    """The object is not what it was when we read it, or is there already (409)."""


class Expired(ApiError):
    """The resource version is too old to go on from; list again (410)."""


class ApiUnavailable(Unavailable):
    """The API server does not answer, or answers that it cannot now."""


class LeaseLost(DovetailError):
    """This process no longer leads, so it may not write."""


_ERRORS: Final[Mapping[int, type[ApiError]]] = {404: Absent, 409: Conflict, 410: Expired}


def connect(file: str | None) -> ApiClient:
    """A client from a kubeconfig file, or from what a pod is given where there is none."""
    settings = Configuration()
    settings.retries = False  # who retries decides anew first
    settings.connection_pool_maxsize = 32
    if file is not None:
        load = cast(
            "Callable[..., None]", kubeconfig.load_kube_config
        )  # the package has no types here
        load(config_file=file, client_configuration=settings)
    else:
        load = cast("Callable[..., None]", kubeconfig.load_incluster_config)
        load(client_configuration=settings)
    return ApiClient(settings)


def _unfenced() -> float:
    return _TIMEOUT


class Api:
    """Requests to the API server.

    Args:
        client: the connection.
        fence: seconds for which this process may surely write; raises `LeaseLost` when it may not.
    """

    def __init__(self, client: ApiClient, fence: Callable[[], float] = _unfenced) -> None:
        self._client, self._fence = client, fence

    def fenced(self, fence: Callable[[], float]) -> "Api":
        """The same connection behind a fence."""
        return Api(self._client, fence)

    def get(self, path: str, **params: Any) -> Json:
        """Read one object; raises `Absent`, `ApiError` or `ApiUnavailable`."""
        return self._json("GET", path, params)

    def pages(self, path: str, params: Mapping[str, Any], *, slim: bool) -> Iterator[Json]:
        """Read a list in chunks.

        Args:
            path: path of the collection.
            params: selectors.
            slim: metadata only.

        Raises:
            Absent: there is no such kind.
            Expired: the list went stale on the way; begin anew.
            ApiUnavailable: the API server does not answer.
        """
        token = ""
        while True:
            more = {"continue": token} if token else {}
            page = self._json(
                "GET",
                path,
                {**params, "limit": _PAGE, **more},
                accept=_METADATA.format(kind="PartialObjectMetadataList") if slim else None,
            )
            yield page
            token = page["metadata"].get("continue", "")
            if not token:
                return

    def watch(
        self, path: str, params: Mapping[str, Any], *, slim: bool, silence: float
    ) -> Iterator[Json]:
        """Events of a collection as they come, until the server ends the watch.

        Args:
            path: path of the collection.
            params: selectors, resource version and `timeoutSeconds`.
            slim: metadata only.
            silence: seconds without a byte after which the connection is taken for dead.

        Raises:
            Expired: the resource version is too old.
            ApiUnavailable: the connection broke or went silent.
        """
        accept = _METADATA.format(kind="PartialObjectMetadata") if slim else None
        query = {**params, "watch": "true", "allowWatchBookmarks": "true"}
        answer = self._send("GET", path, query, accept=accept, timeout=(_TIMEOUT, silence))
        try:
            for line in _lines(answer):
                event: Json = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error(event["object"].get("code", 500), event["object"])
                yield event
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ApiUnavailable(f"the watch of {path} broke: {error}") from error
        finally:
            answer.close()

    def apply(self, path: str, body: Json, *, seen: Json | None, manager: str = MANAGER) -> Json:
        """Server-side apply.

        Args:
            path: path of the object or its status.
            body: our fields and no others.
            seen: the object that the decision was made on: it lands only on that very version, so
                it never overwrites a newer one. None where there was none: then fields that
                somebody else owns are not taken.
            manager: whose fields they are.

        Raises:
            Conflict: the object is another version, or somebody else's.
        """
        params = {"fieldManager": manager, "force": "true" if seen else "false"}
        if seen is not None:
            version = seen["metadata"]["resourceVersion"]
            body = {**body, "metadata": {**body["metadata"], "resourceVersion": version}}
        return self._json("PATCH", path, params, body, content="application/apply-patch+yaml")

    def create(self, path: str, body: Json) -> Json:
        """Create; raises `Conflict` where it is there already."""
        return self._json("POST", path, {"fieldManager": MANAGER}, body)

    def replace(self, path: str, body: Json) -> Json:
        """Replace; raises `Conflict` where it is no longer the one that was read."""
        return self._json("PUT", path, {"fieldManager": MANAGER}, body)

    def merge(self, path: str, body: Json) -> Json:
        """Merge patch."""
        return self._json("PATCH", path, {}, body, content="application/merge-patch+json")

    def delete(self, path: str, uid: str) -> None:
        """Delete the very object with that uid and what it owns; one that is gone is fine."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self._json("DELETE", path, {}, body)
        except Absent:
            return

    def _json(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any],
        body: Json | None = None,
        *,
        content: str = "application/json",
        accept: str | None = None,
    ) -> Json:
        timeout = _TIMEOUT if method == "GET" else min(_TIMEOUT, self._fence())
        answer = self._send(
            method, path, params, body, content=content, accept=accept, timeout=(timeout, timeout)
        )
        try:
            document: Json = json.loads(answer.read())
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ApiUnavailable(f"{method} {path}: {error}") from error
        finally:
            answer.release_conn()
        return document

    def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any],
        body: Json | None = None,
        *,
        content: str = "application/json",
        accept: str | None = None,
        timeout: tuple[float, float],
    ) -> urllib3.HTTPResponse:
        headers = {"Accept": accept or "application/json", "Content-Type": content}
        request = self._client.param_serialize(
            method,
            path,
            query_params=list(params.items()),
            header_params=headers,
            auth_settings=_AUTH,
        )
        try:
            answer: urllib3.HTTPResponse = self._client.call_api(
                method, request[1], request[2], body, _request_timeout=timeout
            ).response
        except (urllib3.exceptions.HTTPError, OSError, ApiException) as error:
            raise ApiUnavailable(f"{method} {path}: {error}") from error
        if answer.status >= 400:
            raise _refusal(method, path, answer)
        return answer


def _refusal(method: str, path: str, answer: urllib3.HTTPResponse) -> DovetailError:
    try:
        status = json.loads(answer.read())
    except (urllib3.exceptions.HTTPError, OSError, ValueError):
        status = {}
    finally:
        answer.release_conn()
    if not isinstance(status, dict) or status.get("kind") != "Status":
        status = {"message": f"{method} {path}: {answer.status} {answer.reason}"}
    if answer.status >= 500:
        return ApiUnavailable(str(status.get("message"))[:1000])
    wait = answer.headers.get("Retry-After", "")
    return _error(answer.status, status, float(wait) if wait.isdigit() else 0.0)


def _error(code: int, status: Mapping[str, Any], retry_after: float = 0.0) -> ApiError:
    message = str(status.get("message", "no message"))[:1000]
    return _ERRORS.get(code, ApiError)(code, message, retry_after)


def _lines(answer: urllib3.HTTPResponse) -> Iterator[bytes]:
    """Whole lines of a stream, as soon as each is there."""
    rest = b""
    for chunk in answer.stream(1 << 16, decode_content=False):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line)
