"""Fetching a bundle: from the pool's ledger, by digest, and only what this device will load.

Blobs come in ranges of some seconds each, so a cut connection costs one range, and a killed process
goes on where it stopped; how large a range is follows the link. The manifest is what its digest
says, every other blob is what the manifest says, and a blob that is not is thrown away whole.

Reference: RFC 9110 section 14 (range requests).
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pydantic import BaseModel, Field, ValidationError

from dovetail.bundle import Bundle
from dovetail.errors import (
    BundleCorrupt,
    BundleError,
    DeadlineExceeded,
    FetchFailed,
    TailUnavailable,
)
from dovetail.layout import (
    Descriptor,
    Manifest,
    blob_dir,
    digest_of,
    parse,
    verify_blob,
    write_entry,
)
from dovetail.plan import Plan
from dovetail_edge.access import LEDGER, Access
from dovetail_edge.cache import PARTIAL, Cache, missing, needed
from dovetail_edge.link import Call, Reply
from dovetail_edge.tail import Quit, raise_for

log = logging.getLogger("dovetail.edge")

_TIMEOUT: Final = 30.0
_LEAST, _FIRST, _MOST = 64 << 10, 1 << 20, 4 << 20  # bytes of a range
_QUICK: Final = 1.0  # seconds below which ranges grow
_MANIFEST: Final = 4 << 20
_ENVELOPE: Final = 64 << 10
_TOLD_EVERY: Final = 2.0

Told = Callable[[int, int], object]


class _Placement(BaseModel):
    """Where a device begins; what else a pool says of that is left out."""

    application: str = Field(pattern=r"^[A-Za-z0-9._-]+$")  # it becomes part of a path


class Cloud:
    """What an edge asks its pool before, and beside, a session.

    Args:
        access: how to reach it.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self._quit = Quit()

    def get(
        self, path: str, limit: int = _ENVELOPE, extent: tuple[int, int] | None = None
    ) -> Reply:
        """One request.

        Args:
            path: below the endpoint.
            limit: most bytes of the answer.
            extent: first byte and number of bytes; None for everything.

        Raises:
            DeadlineExceeded: no answer in time.
            TailUnavailable: no answer, or not the pool's.
            DovetailError: the typed error it answered with.
            Overtaken: `quit` was called.
        """
        headers = dict(self.access.headers)
        if extent is not None:
            headers["Range"] = f"bytes={extent[0]}-{sum(extent) - 1}"
        call = Call("GET", path, headers, (), limit)
        reply = self.access.link.call(call, time.monotonic() + _TIMEOUT, alarm=self._quit)
        raise_for(reply)
        return reply

    def plan(self) -> Plan:
        """The plan of the version that devices of this token begin with; raises as `get`."""
        reply = self.get(f"{LEDGER}/placement")
        try:
            application = _Placement.model_validate_json(bytes(reply.body)).application
        except ValidationError as error:
            raise TailUnavailable(
                f"what answers at {self.access.link.endpoint} is no pool: its placement does not "
                "hold"
            ) from error
        reply = self.get(f"/{application}/dovetail/plan", _MANIFEST)
        try:
            return Plan.model_validate_json(bytes(reply.body))
        except ValidationError as error:
            raise TailUnavailable(f"the tail's plan does not hold: {error}") from error

    def quit(self) -> None:
        """End a request that is under way."""
        self._quit.over()

    def close(self) -> None:
        """Close the connections."""
        self._quit.close()
        self.access.link.close()


class Fetcher:
    """Brings bundles into the cache.

    Args:
        cloud: whence.
        cache: where to.
    """

    def __init__(self, cloud: Cloud, cache: Cache) -> None:
        self._cloud, self._cache, self._range = cloud, cache, _FIRST

    def fetch(self, plan: Plan, told: Told) -> Bundle:
        """Bring what a plan needs of its bundle, going on with what is there.

        Args:
            plan: the plan.
            told: told of bytes on disk, and of all bytes.

        Raises:
            FetchFailed: wrong bytes came, or there is no room for them.
            BundleError: what the digest names is not a bundle.
            DovetailError: the pool does not answer, or answers with this error.
            Overtaken: the process ends.
        """
        bundle = self.prepare(plan)
        with self._writing(plan.bundle), _alone(bundle.path):
            todo = missing(plan, bundle)
            total = sum(bundle.blobs[one] for one in needed(plan, bundle))
            progress = _Progress(plan.bundle, total, told)
            progress.have = total - sum(bundle.blobs[one] for one in todo)
            for digest in todo:
                self._blob(bundle.path, digest, bundle.blobs[digest], progress)
        return bundle

    def prepare(self, plan: Plan) -> Bundle:
        """Bring a bundle's description and see that there is room for the rest; as `fetch`."""
        with self._writing(plan.bundle):
            bundle = self._described(plan.bundle)
            self._room(bundle, missing(plan, bundle))
        return bundle

    @contextmanager
    def _writing(self, digest: str) -> Iterator[None]:
        """Gives a failure to write the name of the folder."""
        try:
            yield
        except OSError as error:
            folder = self._cache.path(digest)
            raise FetchFailed(f"{folder} cannot be written: {error.strerror}") from error

    def _described(self, digest: str) -> Bundle:
        """The bundle with its manifest and its description, and perhaps nothing else."""
        bundle = self._cache.open(digest)
        if bundle is not None:
            return bundle
        folder = self._cache.path(digest)
        document = bytes(self._cloud.get(f"{LEDGER}/blobs/{digest}", _MANIFEST).body)
        if digest_of(document) != digest:
            raise FetchFailed(f"the pool answers with other bytes than those of {digest}")
        config: Descriptor = parse(Manifest, document, digest).config
        blob_dir(folder).mkdir(parents=True, exist_ok=True)
        partial = _partial(folder, digest)
        partial.write_bytes(document)
        partial.replace(blob_dir(folder) / partial.name)
        self._blob(folder, config.digest, config.size, _Progress(digest, config.size, None))
        write_entry(folder, digest, len(document))
        bundle = Bundle(folder)
        if bundle.digest != digest:
            raise BundleError(f"{folder} holds bundle {bundle.digest}; expected {digest}")
        return bundle

    def _room(self, bundle: Bundle, todo: Sequence[str]) -> None:
        size = sum(bundle.blobs[one] for one in todo)
        for digest in todo:
            with suppress(FileNotFoundError):
                size -= _partial(bundle.path, digest).stat().st_size
        free = shutil.disk_usage(bundle.path).free
        if size > free:
            raise FetchFailed(
                f"{bundle.path} has room for {free} bytes, and {size} of bundle {bundle.version} "
                "are still to come; free some, or give another folder with --state"
            )

    def _blob(self, folder: Path, digest: str, size: int, progress: "_Progress") -> None:
        """Bring one blob, from where an earlier try stopped."""
        partial = _partial(folder, digest)
        with partial.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
            at = os.fstat(file.fileno()).st_size
            progress.add(at)
            while at < size:
                data = self._part(digest, at, min(self._range, size - at))
                file.write(data)
                file.flush()
                at += len(data)
                progress.add(len(data))
            os.fsync(file.fileno())
        try:
            verify_blob(partial.parent, digest, size)
        except BundleCorrupt as error:
            partial.unlink()
            raise FetchFailed(
                f"what came for blob {digest} has other bytes than its name says; "
                "they are thrown away and fetched again"
            ) from error
        partial.replace(blob_dir(folder) / partial.name)

    def _part(self, digest: str, first: int, count: int) -> bytearray:
        limit = max(count, _ENVELOPE)
        try:
            reply = self._cloud.get(f"{LEDGER}/blobs/{digest}", limit, (first, count))
        except DeadlineExceeded:
            self._range = max(self._range // 4, _LEAST)
            raise
        if reply.status != 206 or len(reply.body) != count:
            raise FetchFailed(
                f"the pool was asked for bytes {first} to {first + count - 1} of blob {digest} and "
                f"answered with {len(reply.body)} bytes, status {reply.status}"
            )
        if reply.seconds < _QUICK:
            self._range = min(2 * self._range, _MOST)
        return reply.body


class _Progress:
    """Tells of bytes, and logs them every few seconds; nothing where nobody is to be told."""

    def __init__(self, digest: str, total: int, told: Told | None) -> None:
        self._name, self._total, self._told = digest.removeprefix("sha256:")[:12], total, told
        self._logged = time.monotonic()
        self.have = 0

    def add(self, count: int) -> None:
        self.have += count
        if self._told is None:
            return
        self._told(self.have, self._total)
        now = time.monotonic()
        if now - self._logged >= _TOLD_EVERY or self.have == self._total:
            self._logged = now
            share = 100 * self.have // max(self._total, 1)
            log.info("bundle %s: %d of %d bytes, %d %%", self._name, self.have, self._total, share)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps others of this device out: where one edge takes another's place, both are there.

    The lock ends with whoever holds it, however that ends.
    """
    with _partial(folder, "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchFailed(f"another process fetches into {folder}; it is waited for") from None
        yield


def _partial(folder: Path, digest: str) -> Path:
    """Where a blob is until it is whole; its folder is there."""
    path = folder / PARTIAL / digest.removeprefix("sha256:")
    path.parent.mkdir(exist_ok=True)
    return path
