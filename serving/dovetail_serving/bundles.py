"""Finds the bundle that a digest names: in its folder, or pulled into it from the registry.

On one machine the folder is there before Serve is. In a cluster every node begins with none, and
whoever needs one first pulls it: tails of several replicas and the ledger may share a folder, so
pulling is safe for several at once and what is there is whole (see `dovetail.registry`).
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from dovetail.bundle import Bundle
from dovetail.errors import BundleError, DovetailError, FetchFailed, Unavailable
from dovetail.registry import LOGIN_FILE, TARGET_VARIABLE, Registry

_PATIENCE: Final = 120.0  # seconds a registry may be away before a replica gives up
_PAUSES: Final = (1.0, 2.0, 4.0, 8.0)  # the last one again and again
_WAIT: Final = 2.0  # seconds a request for a blob waits for its bundle


def registry() -> Registry:
    """The registry that this pool pulls from; raises `BundleError` where it has none."""
    target = os.environ.get(TARGET_VARIABLE)
    if target is None:
        raise BundleError(f"there is no registry to pull it from: {TARGET_VARIABLE} is not set")
    return Registry.at(target, LOGIN_FILE)


def look_up(folder: Path, digest: str) -> None:
    """Make sure that a bundle can be had, without fetching what is large.

    A registry that is away for now is left to the replicas, which wait for it.

    Raises:
        BundleError: neither folder nor registry has it, or not it but something else.
        Unauthorized: the registry refuses the login.
    """
    if folder.is_dir():
        _opened(folder, digest)
        return
    try:
        registry().description(digest)
    except Unavailable:
        return
    except DovetailError as error:
        raise _named(error, digest) from None


def provide(folder: Path, digest: str, patience: float = _PATIENCE) -> Bundle:
    """The bundle of a digest; pulled where its folder is not there.

    Args:
        folder: where it is, or will be.
        digest: its manifest digest.
        patience: seconds for which a registry that is away is asked again.

    Raises:
        BundleError: neither folder nor registry has it, or not it but something else.
        Unauthorized: the registry refuses the login.
        Unavailable: the registry was away all the time.
    """
    end, pauses = time.monotonic() + patience, list(_PAUSES)
    while not folder.is_dir():
        try:
            registry().pull(digest, folder)
        except Unavailable as error:
            if time.monotonic() > end:
                raise _named(error, digest) from None
            time.sleep(pauses[0])
            pauses = pauses[1:] or pauses
        except DovetailError as error:
            raise _named(error, digest) from None
    return _opened(folder, digest)


def _opened(folder: Path, digest: str) -> Bundle:
    bundle = Bundle(folder)
    if bundle.digest != digest:
        raise BundleError(f"{folder} holds bundle {bundle.digest}; expected {digest}; remove it")
    return bundle


def _named(error: DovetailError, digest: str) -> DovetailError:
    """The same error, saying first what could not be had."""
    return type(error)(f"bundle {digest} cannot be pulled: {error}")


class Shelf:
    """Bundles that are open, each provided when it is first asked for.

    Args:
        provide: gives the bundle of a folder and digest; called in a thread.
    """

    def __init__(self, provide: Callable[[Path, str, float], Bundle] = provide) -> None:
        self._provide = provide
        self._open: dict[str, Bundle] = {}
        self._coming: dict[str, asyncio.Task[Bundle]] = {}

    def keep(self, digests: Iterable[str]) -> None:
        """Close all others."""
        self._open = {one: self._open[one] for one in digests if one in self._open}

    def holds(self, digest: str) -> bool:
        """Whether a bundle is open."""
        return digest in self._open

    async def take(self, folder: Path, digest: str) -> Bundle:
        """A bundle; call from the event loop.

        Raises:
            FetchFailed: it is still being pulled; ask again.
            DovetailError: as `provide`.
        """
        if digest in self._open:
            return self._open[digest]
        task = self._coming.get(digest)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._provide, folder, digest, 0.0))
            self._coming[digest] = task
        await asyncio.wait({task}, timeout=_WAIT)
        if not task.done():
            raise FetchFailed(f"bundle {digest} is being pulled from the registry; ask again")
        self._coming.pop(digest, None)
        self._open[digest] = task.result()
        return task.result()
