"""The empty handler: what the ingress itself costs.

Takes a body, waits for its last byte, answers with as many bytes as the request asks for. Written
the way that costs least (a plain route, no argument injection), behind the same ingress and with
the same settings as the tail, so that a comparison with it is hard on the tail.
"""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

NAME = "bench-empty"
ANSWER_HEADER = "bench-answer-bytes"


def build(_: dict[str, Any]) -> Application:
    """The Serve application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def take(request: Request) -> Response:
        await request.body()
        content = bytes(int(request.headers[ANSWER_HEADER]))
        return Response(content, media_type="application/octet-stream")

    app.add_route("/infer", take, methods=["POST"])

    @serve.deployment(name="Empty")
    @serve.ingress(app)
    class Empty:
        """One replica."""

    return Empty.bind()  # type: ignore[attr-defined]  # untyped library


def application() -> dict[str, Any]:
    """Its entry in a Serve config."""
    return {
        "name": NAME,
        "route_prefix": f"/{NAME}",
        "import_path": "bench.empty:build",
        "args": {},
        "deployments": [
            {
                "name": "Empty",
                "num_replicas": 1,
                "max_ongoing_requests": 1000,
                "ray_actor_options": {"num_cpus": 0.1},
            }
        ],
    }
