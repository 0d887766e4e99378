"""The edge's server: the Open Inference Protocol on localhost, for any Triton or KServe client.

Applications on the device call the whole model by its name; which rung answered, and whether the
answer is degraded, they read in the answer's parameters. `GET /dovetail/status` is the edge's view
of itself.

Bodies are bounded in size and least rate, and so is the number of requests inside: beyond it a
caller is told to come back, because on a device that is behind, waiting longer helps nobody.

The server is there before a model is and stays while one follows another: a request begins and ends
on the session it found.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException
from opentelemetry import context as otel_context

from dovetail import telemetry
from dovetail.errors import (
    DovetailError,
    InvalidTensor,
    NotReady,
    Overloaded,
    UnknownModel,
    UnknownVersion,
)
from dovetail.intake import Limits, read_body, seconds_allowed
from dovetail.measure import PARTS
from dovetail.tensor import OIP_TYPE, Array, TensorSpec
from dovetail.wire import (
    HEADER_LENGTH,
    TIMEOUT_HEADER,
    TIMING_HEADER,
    InferRequest,
    InferResponse,
    WireTensor,
    build_response,
    error_body,
    format_timing,
    parse_request,
)
from dovetail_edge.holder import Holder
from dovetail_edge.request import Answer
from dovetail_edge.session import WORKERS, Session

_LIMITS = Limits(size=64 << 20, rate=4096.0)
_MOST_INSIDE = WORKERS  # requests; one more would wait for a thread, beyond its deadline's sight
_JSON: Final = "application/json"


class EdgeServer:
    """The HTTP face of the session in use.

    Args:
        holder: holds it.
        slowdown: how many times slower the device is made.
    """

    def __init__(self, holder: Holder, slowdown: float) -> None:
        self._holder, self._slowdown = holder, slowdown
        self._inside = 0

    def app(self) -> FastAPI:
        """The ASGI application."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        model = "/v2/models/{name}"
        version = model + "/versions/{version}"
        for path, handler, method in (
            ("/v2", self.server, "GET"),
            ("/v2/health/live", self.live, "GET"),
            ("/v2/health/ready", self.ready, "GET"),
            (model, self.metadata, "GET"),
            (version, self.metadata, "GET"),
            (model + "/ready", self.model_ready, "GET"),
            (version + "/ready", self.model_ready, "GET"),
            (model + "/infer", self.infer, "POST"),
            (version + "/infer", self.infer, "POST"),
            ("/dovetail/status", self.status, "GET"),
        ):
            # Plain routes: FastAPI's argument injection would cost more than an empty handler.
            app.add_route(path, handler, methods=[method])
        app.add_exception_handler(DovetailError, answer_error)
        app.add_exception_handler(HTTPException, answer_error)
        app.add_exception_handler(Exception, answer_error)
        return app

    async def infer(self, request: Request) -> Response:
        """Answer one request."""
        with self._holder.lease() as session:  # a senseless request is refused before its body
            _check(session, request)
        deadline = seconds_allowed(request.headers.get(TIMEOUT_HEADER))
        declared = request.headers.get("content-length")
        body, recv = await read_body(request.stream(), declared, _LIMITS)
        with self._holder.lease() as session:
            _check(session, request)
            asked = parse_request(body, request.headers.get(HEADER_LENGTH))
            _check_outputs(session, asked)
            answer = await self._ask(session, request, asked.arrays(), deadline)
            return _answer(session, asked, answer, recv)

    async def metadata(self, request: Request) -> Response:
        """What the model takes and gives."""
        with self._holder.lease() as session:
            _check(session, request)
            config = session.bundle.config
            return _json(
                {
                    "name": config.model.name,
                    "versions": [session.bundle.version],
                    "platform": "onnx_dovetail",
                    "inputs": [_describe(spec) for spec in config.inputs],
                    "outputs": [_describe(spec) for spec in config.outputs],
                }
            )

    async def model_ready(self, request: Request) -> Response:
        """Whether a model can be called."""
        with self._holder.lease() as session:
            _check(session, request)
        return Response(status_code=200)

    async def ready(self, _: Request) -> Response:
        """Whether requests should come here: a model is loaded, and the process is to stay."""
        if self._holder.leaving:
            raise NotReady("this edge was told to end")
        with self._holder.lease():
            return Response(status_code=200)

    async def live(self, _: Request) -> Response:
        """Whether the process is alive: it is, also while it waits for its model."""
        return Response(status_code=200)

    async def server(self, _: Request) -> Response:
        """The protocol's server metadata, with the simulated slowdown in the open."""
        return _json(
            {
                "name": "dovetail-edge",
                "version": "1",
                "extensions": ["binary_tensor_data"],
                "parameters": {"slowdown": self._slowdown},
            }
        )

    async def status(self, _: Request) -> Response:
        """The edge's view of itself: a `Status`."""
        text = self._holder.status().model_dump_json(by_alias=True)
        return Response(text, media_type=_JSON)

    async def _ask(
        self, session: Session, request: Request, feed: Mapping[str, Array], deadline: float | None
    ) -> Answer:
        """Have the session answer, as a child of the caller's span."""
        if self._inside >= _MOST_INSIDE:
            raise Overloaded(f"{self._inside} requests are under way on this device")
        self._inside += 1
        parent = telemetry.extract(request.headers)
        token = otel_context.attach(parent) if parent is not None else None
        try:
            return await session.ainfer_detailed(feed, deadline=deadline)
        finally:
            self._inside -= 1
            if token is not None:
                otel_context.detach(token)


def _check(session: Session, request: Request) -> None:
    """Check that a request names the model, and the version of it, that the session has."""
    name, version = request.path_params["name"], request.path_params.get("version")
    here, served = session.bundle.config.model.name, session.bundle.version
    if name != here:
        raise UnknownModel(f"model {name!r} is not served here; this edge serves {here!r}")
    if version not in (None, served):
        raise UnknownVersion(f"version {version!r} of {name!r} is not served here; {served!r} is")


def _check_outputs(session: Session, asked: InferRequest) -> None:
    names = [spec.name for spec in session.bundle.config.outputs]
    for name in asked.outputs:
        if name not in names:
            raise InvalidTensor(f"unknown output {name!r}; the model's outputs are {names}")


def _answer(session: Session, asked: InferRequest, answer: Answer, recv: float) -> Response:
    tensors = tuple(WireTensor.of(name, array) for name, array in answer.outputs.items())
    parameters = {
        "rung": answer.rung,
        "degraded": answer.degraded,
        "generation": answer.generation,
    }
    bundle = session.bundle
    response = InferResponse(
        bundle.config.model.name, bundle.version, tensors, asked.id, parameters
    )
    content, headers = build_response(response, asked)
    parts = {part: getattr(answer.sample.parts, part) for part in PARTS}
    headers[TIMING_HEADER] = format_timing({"recv": recv, **parts})
    return Response(content, headers=headers)


async def answer_error(_: Request, error: Exception) -> Response:
    """Spell any error as the protocol does; ours are marked as ours."""
    if isinstance(error, HTTPException):
        return _json({"error": error.detail}, error.status_code)
    if not isinstance(error, DovetailError):
        return _json({"error": "internal error; see the edge's log"}, 500)
    body, headers = error_body(error)
    return Response(body, status_code=error.http_status, headers=headers)


def _json(document: Mapping[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(document), status_code=status, media_type=_JSON)


def _describe(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if isinstance(dim, str) else dim for dim in spec.shape]
    return {"name": spec.name, "datatype": OIP_TYPE[spec.dtype], "shape": shape}
