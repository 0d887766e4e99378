"""The tail: a Ray Serve application that finishes the requests a head began.

One application serves one bundle, with all its segments loaded once, so that every rung is
answered and a move loads nothing. What changes while it runs is only the plans it hands out:
Serve gives them to `reconfigure`, which checks them and swaps a pointer. A plan that is wrong or
older than the one at hand is left out and logged, because raising there makes Serve kill the
replica.

Reference: Open Inference Protocol v2 (REST); W3C Server Timing.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from opentelemetry.trace import SpanKind
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ray import serve
from ray.serve import Application

from dovetail import telemetry
from dovetail.errors import (
    DeadlineExceeded,
    DovetailError,
    InvalidMessage,
    Unauthorized,
    UnknownPlan,
)
from dovetail.intake import Limits
from dovetail.layout import Digest
from dovetail.measure import Window
from dovetail.plan import Plan
from dovetail.pool import LEDGER_APPLICATION, TAIL_DEPLOYMENT
from dovetail.runtime import SegmentRuntime
from dovetail.wire import (
    DEVICE_CLASS_HEADER,
    HEADER_LENGTH,
    PLAN_HEADER,
    TIMEOUT_HEADER,
    TIMING_HEADER,
    format_timing,
)
from dovetail_serving.bundles import look_up, provide
from dovetail_serving.engine import Engine, Job
from dovetail_serving.intake import Access, TokenDigest, deadline_of, device_of, read_body
from dovetail_serving.model import Call, Model
from dovetail_serving.report import Reporter
from dovetail_serving.routes import JSON_TYPE, application

log = logging.getLogger("ray.serve")  # Serve's logger writes into the replica's own log file

_PROBE_BYTES = 256 << 10
_SAMPLES_BYTES = 256 << 10
_MUCH_JSON = 64 << 10
_SERVER = b'{"name":"dovetail-tail","version":"2","extensions":["binary_tensor_data"]}'

_NOBODY = "0" * 64  # no token is known that has this digest
_TOKENS = TypeAdapter(dict[str, TokenDigest])


class TailArgs(BaseModel):
    """Arguments of the application.

    Attributes:
        bundle: folder of the bundle; pulled into it where it is not there.
        deployment: `<namespace>/<name>`.
        digest: the bundle's manifest digest.
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
    digest: Digest
    threads: int = Field(default=1, ge=1)
    concurrency: int = Field(default=1, ge=1)
    max_batch: int = Field(default=8, ge=1)
    max_queue: int = Field(default=64, ge=1)
    max_body_bytes: int = Field(default=64 << 20, ge=1)
    min_body_rate: float = Field(default=4096.0, gt=0)


class Tail:
    """One replica."""

    def __init__(self, args: TailArgs) -> None:
        telemetry.setup("dovetail-tail")
        bundle = provide(args.bundle, args.digest)
        self._args = args
        self._model = Model(bundle, args.max_body_bytes)
        rungs = bundle.config.rungs
        self._engine = Engine(
            SegmentRuntime(bundle, {rung.cut for rung in rungs}, threads=args.threads),
            concurrency=args.concurrency,
            max_batch=args.max_batch,
            max_queue=args.max_queue,
        )
        self._access = Access({"": _NOBODY})
        self._limits = Limits(args.max_body_bytes, args.min_body_rate)
        self._plans: dict[str, Plan] = {}
        self._reporter = Reporter(
            serve.get_replica_context().replica_id.unique_id,
            args.deployment,
            bundle.version,
            [rung.id for rung in rungs],
            _push,
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over plans and whom to serve; never loads anything and never raises."""
        self._plans = adopt(self._plans, user_config, self._args.deployment)
        tokens = _tokens(user_config)
        if tokens is not None:
            self._access = Access(tokens)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes, bound to this replica."""
        model = "/v2/models/{name}"
        version = model + "/versions/{version}"
        return application(
            [
                # Routes are tried in order: the one that matters first.
                ("POST", version + "/infer", self.infer),
                ("POST", model + "/infer", self.infer),
                ("GET", "/v2", self.server),
                ("GET", "/v2/health/live", self.health),
                ("GET", "/v2/health/ready", self.health),
                ("GET", model, self.metadata),
                ("GET", version, self.metadata),
                ("GET", model + "/ready", self.ready),
                ("GET", version + "/ready", self.ready),
                ("GET", "/dovetail/plan", self.plan),
                ("POST", "/dovetail/samples", self.samples),
                ("POST", "/dovetail/probe", self.probe),
            ],
            self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._reporter.start()
        yield
        await self._reporter.stop()
        self._engine.close()

    async def infer(self, request: Request) -> Response:
        """Compute one request."""
        parent = telemetry.extract(request.headers)
        if parent is None:
            return await self._infer(request)
        with telemetry.span(telemetry.SPAN_TAIL, parent, SpanKind.SERVER):
            return await self._infer(request)

    async def _infer(self, request: Request) -> Response:
        try:
            with self._engine.visit():
                return await self._compute(request)
        except DovetailError as error:
            self._reporter.count(f"error.{error.code}")
            raise

    async def _compute(self, request: Request) -> Response:
        deadline, device_class = deadline_of(request), self._admit(request)
        call = self._call(request)
        try:
            async with asyncio.timeout_at(deadline):
                body, recv = await read_body(request, self._limits)
                job = await self._job(call, body, request.headers.get(HEADER_LENGTH))
                done = await self._engine.compute(job)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the time given in {TIMEOUT_HEADER} ran out; give more, or send less"
            ) from error
        self._reporter.count("requests")
        self._reporter.count("rows", job.rows)
        content, headers = done.answer
        timing = format_timing(
            {
                "recv": recv,
                "queue": done.queue,
                "decode": done.decode,
                "compute": done.compute,
                "encode": done.encode,
            }
        )
        headers |= {TIMING_HEADER: timing, **self._generation(device_class)}
        return Response(content, headers=headers)

    async def _job(self, call: Call, body: bytes, header_length: str | None) -> Job:
        """Parse a message; a large one of JSON numbers would hold up everybody here."""
        if header_length is None and len(body) > _MUCH_JSON:
            return await asyncio.to_thread(self._model.job, call, body, header_length)
        return self._model.job(call, body, header_length)

    async def plan(self, request: Request) -> Response:
        """The plan of the caller's class."""
        device_class = self._admit(request)
        plan = self._plans.get(device_class or "")
        if plan is None:
            raise UnknownPlan(
                f"no plan for device class {device_class!r}; there are plans for "
                f"{sorted(self._plans)}; name yours in {DEVICE_CLASS_HEADER}"
            )
        body = plan.model_dump_json(by_alias=True)
        return Response(body, headers=self._generation(device_class), media_type=JSON_TYPE)

    async def samples(self, request: Request) -> Response:
        """Take what an edge saw: {"deviceClass": …, "window": …}."""
        device_class = self._admit(request)
        body, _ = await read_body(request, Limits(_SAMPLES_BYTES, self._limits.rate))
        named, window = _samples(body)
        if device_class not in (None, named):
            raise Unauthorized(
                f"samples of class {named!r} came with the credential of {device_class!r}"
            )
        self._reporter.samples(named, window)
        return Response(status_code=204, headers=self._generation(named))

    async def probe(self, request: Request) -> Response:
        """Take bytes and say how long they took: how an idle edge measures its link."""
        device_class = self._admit(request)
        _, recv = await read_body(request, Limits(_PROBE_BYTES, self._limits.rate))
        headers = {TIMING_HEADER: format_timing({"recv": recv}), **self._generation(device_class)}
        return Response(status_code=204, headers=headers)

    async def metadata(self, request: Request) -> Response:
        """What a model takes and gives."""
        self._admit(request)
        return Response(self._model.metadata(self._call(request)), media_type=JSON_TYPE)

    async def ready(self, request: Request) -> Response:
        """Whether a model can be called: it can, or this replica would not be here."""
        self._call(request)
        return Response()

    async def health(self, _: Request) -> Response:
        """Whether the replica is live and ready."""
        return Response()

    async def server(self, _: Request) -> Response:
        """The protocol's server metadata."""
        return Response(_SERVER, media_type=JSON_TYPE)

    def _admit(self, request: Request) -> str | None:
        device_class = self._access.admit(request)
        self._reporter.contact(device_class, device_of(request))
        return device_class

    def _call(self, request: Request) -> Call:
        path = request.path_params
        return self._model.call(path["name"], path.get("version"))

    def _generation(self, device_class: str | None) -> dict[str, str]:
        plan = self._plans.get(device_class or "")
        return {PLAN_HEADER: str(plan.generation)} if plan else {}


async def _push(report: dict[str, Any]) -> None:
    """Hand a report to the pool's ledger; raises where there is none."""
    await serve.get_app_handle(LEDGER_APPLICATION).push.remote(report)


def _samples(body: bytes) -> tuple[str, Window]:
    try:
        document = json.loads(body)
        return str(document["deviceClass"]), Window.load(document["window"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidMessage(
            f'samples are {{"deviceClass": …, "window": …}}; this is not: {error!r}'
        ) from error


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


def _tokens(user_config: Mapping[str, Any]) -> dict[str, str] | None:
    """Digests of tokens by class, where none opens the tail; None where they do not hold."""
    try:
        return _TOKENS.validate_python(user_config.get("tokens"))
    except ValidationError as error:
        log.warning("the tokens of user_config do not hold; those at hand stay: %s", error)
        return None


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


def build(args: TailArgs) -> Application:
    """The Serve application, from its arguments.

    Raises:
        BundleError: the bundle cannot be had; said here, before any replica starts.
        Unauthorized: the registry refuses the login.
    """
    look_up(args.bundle, args.digest)
    deployment = serve.deployment(name=TAIL_DEPLOYMENT)(serve.ingress()(Tail))
    return deployment.bind(args)
