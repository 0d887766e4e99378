"""Takes a request in: who asks, by when, and the body whole.

Bodies are bounded three ways before anything is computed. Size: the declared length is checked
before a byte is read, the real one while reading. Least rate: a body must keep ahead of a floor
rate after a short grace, or a few stalled uploads would pin memory for ever. Decoded size: a few
compressed bytes may not claim gigabytes. Reading is not admission: an upload holds a connection
and its bytes, never a place in the compute queue.

Tokens are compared as digests and in constant time, and only digests are kept, so neither timing
nor a dump of the config gives one away.
"""

import asyncio
import hashlib
import hmac
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request

from dovetail.errors import (
    BodyTooLarge,
    BodyTooSlow,
    InvalidMessage,
    Unauthorized,
)
from dovetail.wire import DEVICE_CLASS_HEADER, TIMEOUT_HEADER

_GRACE = 2.0  # seconds in which a body owes nothing to the least rate
_MARGIN = 0.010  # seconds by which our 504 goes out before the ingress gives up by itself
_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Limits:
    """What a body may be.

    Attributes:
        size: most bytes of a body, and of its tensors once decoded.
        rate: least bytes per second, after a grace of 2 s.
    """

    size: int
    rate: float


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
    """Read a body whole.

    Returns:
        Its bytes and the seconds it took to arrive, from the end of the headers.

    Raises:
        BodyTooLarge: it is, or says it is, larger than `limits.size`.
        BodyTooSlow: it fell behind `limits.rate`.
    """
    loop, begin = asyncio.get_running_loop(), time.perf_counter()
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.size:
        raise _too_large(int(declared), limits)
    chunks: list[bytes] = []
    size, start = 0, loop.time()
    try:
        async with asyncio.timeout_at(start + _GRACE) as floor:
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > limits.size:
                    raise _too_large(size, limits)
                floor.reschedule(start + _GRACE + size / limits.rate)
    except TimeoutError as error:
        raise BodyTooSlow(
            f"the body brought {size} bytes in {loop.time() - start:.1f} s; at least "
            f"{limits.rate:.0f} bytes/s are expected"
        ) from error
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return body, time.perf_counter() - begin


def deadline_of(request: Request) -> float | None:
    """When the caller stops waiting, on the event loop's clock; None where it does not say.

    A little before the moment the caller named: the ingress watches the same header, and its
    answer would carry no `Dovetail-Error`.

    Raises:
        InvalidMessage: the header is not a positive number of seconds.
    """
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidMessage(f"{TIMEOUT_HEADER} is {text!r}; expected a positive number of seconds")
    return asyncio.get_running_loop().time() + seconds - min(_MARGIN, seconds / 10)


def _too_large(size: int, limits: Limits) -> BodyTooLarge:
    return BodyTooLarge(f"the body has {size} bytes or more; at most {limits.size} are accepted")
