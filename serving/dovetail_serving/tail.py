"""The tail: a Ray Serve application that finishes the requests a head began.

One application serves one bundle, with all its segments loaded once, so that every rung is
answered and a move loads nothing. What changes while it runs is only the plans it hands out:
Serve gives them to `reconfigure`, which checks them and swaps a pointer. A plan that is wrong or
older than the one at hand is left out and logged, because raising there makes Serve kill the
replica.

Reference: Open Inference Protocol v2 (REST); W3C Server Timing.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application

from dovetail.bundle import Bundle
from dovetail.errors import DovetailError, UnknownRung
from dovetail.plan import Plan
from dovetail.pool import TAIL_DEPLOYMENT
from dovetail.runtime import SegmentRuntime
from dovetail.wire import (
    HEADER_LENGTH,
    PLAN_HEADER,
    TIMING_HEADER,
    error_body,
    format_timing,
)
from dovetail_serving.engine import Engine
from dovetail_serving.intake import Access, Limits, deadline_of, read_body
from dovetail_serving.model import Model

log = logging.getLogger("ray.serve")  # Serve's logger writes into the replica's own log file

_PROBE_BYTES = 256 << 10
_SAMPLES_BYTES = 256 << 10
_JSON = "application/json"


class TailArgs(BaseModel):
    """Arguments of the application.

    Attributes:
        bundle: folder of the bundle.
        deployment: `<namespace>/<name>`.
        tokens: device class -> sha256 hex of its bearer token; empty leaves the tail open.
        threads: intra-op threads of one computation.
        concurrency: computations at the same time.
        max_batch: most rows computed together.
        max_queue: most requests that wait for a computation.
        max_body_bytes: most bytes of a body, and of its tensors once decoded.
        min_body_rate: least bytes per second a body must arrive with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path
    deployment: str
    tokens: dict[str, str] = {}
    threads: int = Field(default=1, ge=1)
    concurrency: int = Field(default=1, ge=1)
    max_batch: int = Field(default=8, ge=1)
    max_queue: int = Field(default=64, ge=1)
    max_body_bytes: int = Field(default=64 << 20, ge=1)
    min_body_rate: float = Field(default=4096.0, gt=0)


class Tail:
    """One replica."""

    def __init__(self, args: TailArgs) -> None:
        bundle = Bundle(args.bundle)
        self._args, self._bundle = args, bundle
        self._model = Model(bundle, args.max_body_bytes)
        runtime = SegmentRuntime(
            bundle, {rung.cut for rung in bundle.config.rungs}, threads=args.threads
        )
        self._engine = Engine(
            runtime,
            concurrency=args.concurrency,
            max_batch=args.max_batch,
            max_queue=args.max_queue,
        )
        self._access = Access(args.tokens)
        self._limits = Limits(args.max_body_bytes, args.min_body_rate)
        self._plans: dict[str, Plan] = {}
        self._plan_bodies: dict[str, bytes] = {}

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over plans; never loads anything and never raises."""
        self._plans = adopt(self._plans, user_config, self._args.deployment)
        self._plan_bodies = {
            name: plan.model_dump_json(by_alias=True).encode() for name, plan in self._plans.items()
        }

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes, bound to this replica."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        model = "/v2/models/{name}"
        version = model + "/versions/{version}"
        for path, handler, method in (
            ("/v2", self.server, "GET"),
            ("/v2/health/live", self.health, "GET"),
            ("/v2/health/ready", self.health, "GET"),
            (model, self.metadata, "GET"),
            (version, self.metadata, "GET"),
            (model + "/ready", self.ready, "GET"),
            (version + "/ready", self.ready, "GET"),
            (model + "/infer", self.infer, "POST"),
            (version + "/infer", self.infer, "POST"),
            ("/dovetail/plan", self.plan, "GET"),
            ("/dovetail/probe", self.probe, "POST"),
        ):
            # Plain routes: FastAPI's argument injection would cost more than an empty handler.
            app.add_route(path, handler, methods=[method])
        app.add_exception_handler(DovetailError, answer_error)
        return app

    async def infer(self, request: Request) -> Response:
        """Compute one request."""
        deadline, device_class = deadline_of(request), self._access.admit(request)
        call = self._model.call(request.path_params["name"], request.path_params.get("version"))
        body, recv = await read_body(request, self._limits)
        job = self._model.job(call, body, request.headers.get(HEADER_LENGTH), deadline)
        done = await self._engine.compute(job)
        content, headers = done.answer
        timing = {
            "recv": recv,
            "queue": done.queue,
            "decode": done.decode,
            "compute": done.compute,
            "encode": done.encode,
        }
        headers[TIMING_HEADER] = format_timing(timing)
        return Response(content, headers={**headers, **self._generation(device_class)})

    async def plan(self, request: Request) -> Response:
        """The plan of the caller's class."""
        device_class = self._access.admit(request)
        body = self._plan_bodies.get(device_class or "")
        if body is None:
            raise UnknownRung(
                f"no plan for device class {device_class!r}; there are plans for "
                f"{sorted(self._plans)}"
            )
        return Response(body, media_type=_JSON, headers=self._generation(device_class))

    async def probe(self, request: Request) -> Response:
        """Take bytes and say how long they took: how an idle edge measures its link."""
        device_class = self._access.admit(request)
        _, recv = await read_body(request, Limits(_PROBE_BYTES, self._limits.rate))
        headers = {TIMING_HEADER: format_timing({"recv": recv}), **self._generation(device_class)}
        return Response(status_code=204, headers=headers)

    async def metadata(self, request: Request) -> Response:
        """What a model takes and gives."""
        self._access.admit(request)
        call = self._model.call(request.path_params["name"], request.path_params.get("version"))
        return Response(self._model.metadata(call), media_type=_JSON)

    async def ready(self, request: Request) -> Response:
        """Whether a model can be called: it can, or this replica would not be here."""
        self._model.call(request.path_params["name"], request.path_params.get("version"))
        return Response(status_code=200)

    async def health(self, _: Request) -> Response:
        """Whether the replica is live and ready."""
        return Response(status_code=200)

    async def server(self, _: Request) -> Response:
        """The protocol's server metadata."""
        content = b'{"name":"dovetail-tail","version":"1","extensions":["binary_tensor_data"]}'
        return Response(content, media_type=_JSON)

    def _generation(self, device_class: str | None) -> dict[str, str]:
        plan = self._plans.get(device_class or "")
        return {PLAN_HEADER: str(plan.generation)} if plan else {}


def adopt(
    current: Mapping[str, Plan], user_config: Mapping[str, Any], deployment: str
) -> dict[str, Plan]:
    """The plans to hand out after a `user_config` arrived.

    A class that is no longer named loses its plan. A plan that does not hold, is for another
    deployment or class, or is older than the current one, leaves the current one standing.
    """
    offered = user_config.get("plans")
    if not isinstance(offered, Mapping):
        log.warning("user_config has no mapping 'plans'; the plans at hand stay")
        return dict(current)
    adopted: dict[str, Plan] = {}
    for name, document in offered.items():
        held, plan = current.get(name), _plan(document, deployment, name)
        if plan is None or (held is not None and plan.generation < held.generation):
            plan = held
        if plan is not None:
            adopted[name] = plan
    return adopted


def _plan(document: object, deployment: str, device_class: str) -> Plan | None:
    try:
        plan = Plan.model_validate(document)
    except ValidationError as error:
        log.warning("the plan for class %r does not hold: %s", device_class, error)
        return None
    if (plan.deployment, plan.device_class) != (deployment, device_class):
        log.warning(
            "a plan for %s, class %r, came to %s, class %r",
            plan.deployment,
            plan.device_class,
            deployment,
            device_class,
        )
        return None
    return plan


async def answer_error(_: Request, error: Exception) -> Response:
    """Spell a typed error as the protocol does, marked as ours."""
    known = error if isinstance(error, DovetailError) else DovetailError(str(error))
    body, headers = error_body(known)
    return Response(body, status_code=known.http_status, headers=headers)


def build(args: TailArgs) -> Application:
    """The Serve application, from its arguments."""
    deployment = serve.deployment(name=TAIL_DEPLOYMENT)(serve.ingress()(Tail))
    return deployment.bind(args)
