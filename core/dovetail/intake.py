"""Takes an HTTP body in, bounded; used by every server of ours.

A body is bounded three ways before anything is computed with it. Size: the declared length is
checked before a byte is read, the real one while reading. Least rate: after a short grace a body
must keep ahead of a floor rate, or a few stalled uploads would pin memory for ever. What tensors
decode to is bounded where they are decoded.

Written against an iterator of chunks, so it belongs to no HTTP framework.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterable
from dataclasses import dataclass

from dovetail.errors import BodyTooLarge, BodyTooSlow, InvalidMessage
from dovetail.wire import TIMEOUT_HEADER

_GRACE = 2.0  # seconds in which a body owes nothing to the least rate


@dataclass(frozen=True, slots=True)
class Limits:
    """What a body may be.

    Attributes:
        size: most bytes.
        rate: least bytes per second, after a grace of 2 s.
    """

    size: int
    rate: float


async def read_body(
    chunks: AsyncIterable[bytes], declared: str | None, limits: Limits
) -> tuple[bytes, float]:
    """Read a body whole.

    Args:
        chunks: the body as it arrives.
        declared: value of `Content-Length`; None where the body is chunked.
        limits: its bounds.

    Returns:
        Its bytes, and the seconds it took to arrive.

    Raises:
        BodyTooLarge: it is, or says it is, larger than `limits.size`.
        BodyTooSlow: it fell behind `limits.rate`.
    """
    loop, begin = asyncio.get_running_loop(), time.perf_counter()
    if declared is not None and declared.isdigit() and int(declared) > limits.size:
        raise _too_large(int(declared), limits)
    parts: list[bytes] = []
    size, start = 0, loop.time()
    watch: asyncio.TimerHandle | None = None

    def look() -> None:
        """Give up where the body is behind the rate; else look again when it could be."""
        nonlocal watch
        due = start + _GRACE + size / limits.rate
        if loop.time() < due:
            watch = loop.call_at(due, look)
        else:
            floor.reschedule(due)

    look()
    try:
        async with asyncio.timeout(None) as floor:
            async for chunk in chunks:
                parts.append(chunk)
                size += len(chunk)
                if size > limits.size:
                    raise _too_large(size, limits)
    except TimeoutError as error:
        raise BodyTooSlow(
            f"the body brought {size} bytes in {loop.time() - start:.1f} s; at least "
            f"{limits.rate:.0f} bytes/s are expected"
        ) from error
    finally:
        if watch is not None:
            watch.cancel()
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    return body, time.perf_counter() - begin


def seconds_allowed(header: str | None) -> float | None:
    """Seconds a caller gives a request, from its `x-request-timeout-seconds`; None without one.

    Raises:
        InvalidMessage: the header is not a positive number.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidMessage(
            f"{TIMEOUT_HEADER} is {header!r}; expected a positive number of seconds"
        )
    return seconds


def _too_large(size: int, limits: Limits) -> BodyTooLarge:
    return BodyTooLarge(f"the body has {size} bytes or more; at most {limits.size} are accepted")
