"""What the routes of both applications have in common."""

import json
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from dovetail.errors import DovetailError
from dovetail.wire import error_body

JSON_TYPE = "application/json"

Handler = Callable[[Request], Awaitable[Response]]
Route = tuple[str, str, Handler]


def application(
    routes: Iterable[Route],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """An application of plain routes.

    Plain, because FastAPI's argument injection costs a request more than an empty handler does;
    its schema pages would describe nothing, as bodies are read raw.

    Args:
        routes: method, path and handler.
        lifespan: entered when the replica starts, left when it stops.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    for method, path, handler in routes:
        app.add_route(path, handler, methods=[method])
    app.add_exception_handler(DovetailError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)
    return app


async def _answer_error(_: Request, error: Exception) -> Response:
    """Spell a typed error as the protocol does, marked as ours."""
    assert isinstance(error, DovetailError)
    body, headers = error_body(error)
    return Response(body, status_code=error.http_status, headers=headers)


async def _answer_http_error(_: Request, error: Exception) -> Response:
    """An unknown path or method, in the protocol's spelling."""
    assert isinstance(error, HTTPException)
    body = json.dumps({"error": error.detail})
    return Response(body, error.status_code, error.headers, JSON_TYPE)


async def _answer_bug(_: Request, error: Exception) -> Response:
    """An error nobody expected: marked as ours all the same, told in the replica's log alone."""
    known = DovetailError(f"internal error ({type(error).__name__}); see the replica's log")
    body, headers = error_body(known)
    return Response(body, status_code=known.http_status, headers=headers)
