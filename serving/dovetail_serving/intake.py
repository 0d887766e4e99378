"""Takes a request in: who asks, by when, and the body whole, bounded by `dovetail.intake`.

Reading is not admission: an upload holds a connection and its bytes, never a place in the compute
queue.

Tokens are compared as digests and in constant time, and only digests are kept, so neither timing
nor a dump of the config gives one away.
"""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from starlette.requests import Request

from dovetail import intake
from dovetail.errors import Unauthorized
from dovetail.intake import Limits, seconds_allowed
from dovetail.wire import DEVICE_CLASS_HEADER, DEVICE_HEADER, TIMEOUT_HEADER

_MARGIN = 0.010  # seconds by which our 504 goes out before the ingress gives up by itself
_BEARER = "bearer "
_DEVICE = re.compile(r"[A-Za-z0-9._-]{1,63}")

TokenDigest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Access:
    """Knows the tokens of one deployment.

    Args:
        tokens: device class -> sha256 hex of its bearer token; empty admits everyone.
    """

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens = dict(tokens)

    def admit(self, request: Request) -> str | None:
        """The device class a request speaks for; None where it names none.

        Raises:
            Unauthorized: tokens are configured and the request's is missing, unknown, or belongs
                to another class than the request names.
        """
        named = request.headers.get(DEVICE_CLASS_HEADER)
        if not self._tokens:
            return named
        given = token_digest(bearer_of(request))
        # Every token is compared, so that time says nothing about which one was close.
        owners = [name for name, want in self._tokens.items() if hmac.compare_digest(given, want)]
        if not owners or (named is not None and named not in owners):
            whose = f"device class {named!r}" if named else "any device class"
            raise Unauthorized(f"the bearer token is not valid for {whose}; join the device again")
        return named or owners[0]


def device_of(request: Request) -> str | None:
    """Who the calling device says it is; None where it does not, or not as it should.

    Only a name in a list that people read: a request is not refused for it.
    """
    named = request.headers.get(DEVICE_HEADER)
    return named if named is not None and _DEVICE.fullmatch(named) else None


def bearer_of(request: Request) -> str:
    """The bearer token a request brings; raises `Unauthorized` where it brings none."""
    value = request.headers.get("authorization", "")
    if not value.lower().startswith(_BEARER):
        raise Unauthorized("a bearer token is required: Authorization: Bearer TOKEN")
    return value[len(_BEARER) :].strip()


def token_digest(token: str) -> str:
    """How a token is kept: the sha256 of its UTF-8 bytes, in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


async def read_body(request: Request, limits: Limits) -> tuple[bytes, float]:
    """Read a request's body whole; see `dovetail.intake.read_body`."""
    return await intake.read_body(request.stream(), request.headers.get("content-length"), limits)


def deadline_of(request: Request) -> float | None:
    """When the caller stops waiting, on the event loop's clock; None where it does not say.

    A little before the moment the caller named: the ingress watches the same header, and its
    answer would carry no `Dovetail-Error`.

    Raises:
        InvalidMessage: the header is not a positive number of seconds.
    """
    seconds = seconds_allowed(request.headers.get(TIMEOUT_HEADER))
    if seconds is None:
        return None
    return asyncio.get_running_loop().time() + seconds - min(_MARGIN, seconds / 10)
