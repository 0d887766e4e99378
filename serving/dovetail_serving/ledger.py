"""The ledger: one per pool, no model; it adds up what all replicas saw, and hands out bundles.

Replicas push about once a second; the operator reads once a window for the whole pool, whatever
the number of replicas and devices behind it. What was seen is kept in a ring of 120 buckets of one
second, so reading takes nothing away and any number of readers see the same. A push is known by
its replica and number and counts once, however often it is sent. Nothing is written down: after a
restart the ledger is whole again as soon as the replicas have pushed.

Blobs of the bundles it knows (`directory`) are handed out by digest, with Range, at a bounded rate
that all readers share: a fleet fetching a new bundle must not take the link away from inference. A
bundle that is not on this machine is pulled from the registry when it is first asked for.

Reference: RFC 9110 section 14 (range requests); OCI distribution names blobs by digest.
"""

import asyncio
import hmac
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from dovetail.bundle import Bundle
from dovetail.errors import DovetailError, InvalidMessage, Unauthorized, UnknownBlob, UnknownPlan
from dovetail.measure import Window
from dovetail.pool import LEDGER_DEPLOYMENT
from dovetail_serving.bundles import Shelf
from dovetail_serving.directory import Directory, Guest
from dovetail_serving.intake import bearer_of, token_digest
from dovetail_serving.report import MAX_DEVICES, Report
from dovetail_serving.routes import JSON_TYPE, application

SECONDS = 120  # length of the ring
_CONTACT_SECONDS = 24 * 3600.0


class LedgerArgs(BaseModel):
    """Arguments of the application.

    Attributes:
        blob_rate: bytes per second of blobs, over all readers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    blob_rate: float = Field(default=32e6, gt=0)


@dataclass(slots=True)
class _Second:
    """What was seen in one second: by deployment, windows by class and counts."""

    windows: dict[str, dict[str, Window]] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)


class Book:
    """The ring of seconds and the last contacts; pure but for the clock it is given."""

    def __init__(self) -> None:
        self._ring: dict[int, _Second] = {}
        self._contacts: dict[tuple[str, str, str], float] = {}
        self._devices: dict[tuple[str, str], OrderedDict[str, tuple[str, float]]] = {}
        self._numbers: dict[str, int] = {}

    def enter(self, push: Mapping[str, Any], now: float) -> None:
        """Enter one push of a replica at `now`, seconds since the epoch; a repeat is left out."""
        replica, number = push["replica"], push["number"]
        if number <= self._numbers.get(replica, 0):
            return
        self._numbers[replica] = number
        report, deployment = Report.load(dict(push)), push["deployment"]
        second = self._ring.setdefault(int(now), _Second())
        windows = second.windows.setdefault(deployment, {})
        for name, window in report.windows.items():
            windows.setdefault(name, Window()).merge(window)
        second.counts.setdefault(deployment, Counter()).update(report.counts)
        for name, seen in report.contacts.items():
            self._contacts[deployment, name, push["version"]] = seen
        for name, devices in report.devices.items():
            self._meet((deployment, name), devices, push["version"])
        self._forget(now)

    def read(self, seconds: int, now: float) -> dict[str, Any]:
        """Everything of the last `seconds`, merged, as JSON values."""
        windows: dict[str, dict[str, Window]] = {}
        counts: dict[str, Counter[str]] = {}
        for at, second in self._ring.items():
            if not now - seconds <= at <= now:
                continue
            for deployment, classes in second.windows.items():
                for name, window in classes.items():
                    mine = windows.setdefault(deployment, {})
                    mine.setdefault(name, Window()).merge(window)
            for deployment, counter in second.counts.items():
                counts.setdefault(deployment, Counter()).update(counter)
        contacts: dict[str, dict[str, dict[str, float]]] = {}
        for (deployment, name, version), seen in self._contacts.items():
            contacts.setdefault(deployment, {}).setdefault(name, {})[version] = seen
        return {
            "now": now,
            "windows": {
                deployment: {name: window.dump() for name, window in classes.items()}
                for deployment, classes in windows.items()
            },
            "contacts": contacts,
            "devices": self._met(),
            "counts": {deployment: dict(counter) for deployment, counter in counts.items()},
        }

    def _meet(self, key: tuple[str, str], devices: Mapping[str, float], version: str) -> None:
        """Note who was heard on a version; whoever was heard longest ago makes room."""
        known = self._devices.setdefault(key, OrderedDict())
        for device, seen in sorted(devices.items(), key=lambda item: item[1]):
            if seen < known.get(device, ("", 0.0))[1]:
                continue  # another replica, of another version, heard it since
            known[device] = version, seen
            known.move_to_end(device)
            if len(known) > MAX_DEVICES:
                known.popitem(last=False)

    def _met(self) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
        found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
        for (deployment, name), devices in self._devices.items():
            found.setdefault(deployment, {})[name] = {
                device: {"version": version, "seen": seen}
                for device, (version, seen) in devices.items()
            }
        return found

    def _forget(self, now: float) -> None:
        for at in [at for at in self._ring if at < now - SECONDS]:
            del self._ring[at]
        for key in [k for k, seen in self._contacts.items() if seen < now - _CONTACT_SECONDS]:
            del self._contacts[key]
        for pair in list(self._devices):
            devices = self._devices[pair]
            while devices and next(iter(devices.values()))[1] < now - _CONTACT_SECONDS:
                devices.popitem(last=False)
            if not devices:
                del self._devices[pair]
        while len(self._numbers) > 4096:  # replicas come and go; the oldest are gone
            del self._numbers[next(iter(self._numbers))]


class Allowance:
    """A token bucket in bytes: who takes more than there is waits until it was earned.

    Args:
        rate: bytes per second, and the most that is saved up.
    """

    def __init__(self, rate: float) -> None:
        self._rate, self._saved, self._at = rate, rate, time.monotonic()

    async def take(self, size: int) -> None:
        """Take `size` bytes; returns when they may leave."""
        now = time.monotonic()
        self._saved = min(self._rate, self._saved + (now - self._at) * self._rate) - size
        self._at = now
        if self._saved < 0:
            await asyncio.sleep(-self._saved / self._rate)


class PacedFile(FileResponse):
    """A file answer, ranges included, whose chunks leave as an allowance permits."""

    def __init__(self, path: Path, allowance: Allowance, **options: Any) -> None:
        super().__init__(path, **options)
        self._allowance = allowance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, waiting before each chunk."""

        async def paced(message: Message) -> None:
            await self._allowance.take(len(message.get("body", b"")))
            await send(message)

        await super().__call__(scope, receive, paced)


class Ledger:
    """The one replica."""

    def __init__(self, args: LedgerArgs) -> None:
        self._book, self._directory, self._shelf = Book(), Directory(), Shelf()
        self._allowance = Allowance(args.blob_rate)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over whom to serve; never loads anything and never raises."""
        self._directory.replace(user_config)
        self._shelf.keep(self._directory.bundles)

    def push(self, report: dict[str, Any]) -> None:
        """Take a replica's push; called through a Serve handle."""
        self._book.enter(report, time.time())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes, bound to this replica."""
        return application(
            [
                ("GET", "/v1/windows", self.windows),
                ("GET", "/v1/placement", self.placement),
                ("GET", "/v1/blobs/{digest}", self.blob),
            ]
        )

    async def windows(self, request: Request) -> Response:
        """What the whole pool saw in the last `seconds`."""
        want = self._directory.operator_token
        if want and not hmac.compare_digest(token_digest(bearer_of(request)), want):
            raise Unauthorized("only the operator's token may read windows")
        text = request.query_params.get("seconds", "60")
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= SECONDS:
            raise InvalidMessage(f"seconds is {text!r}; expected a number from 1 to {SECONDS}")
        return Response(json.dumps(self._book.read(int(text), time.time())), media_type=JSON_TYPE)

    async def placement(self, request: Request) -> Response:
        """Where a device begins that knows no more than this address and its token."""
        guests = self._directory.admit(request)
        for guest in guests:
            application = guest.deployment.placement.get(guest.device_class or "")
            if application is not None:
                place = {
                    "deployment": guest.key,
                    "deviceClass": guest.device_class,
                    "application": application,
                }
                return Response(json.dumps(place), media_type=JSON_TYPE)
        raise UnknownPlan(
            f"no version is served yet for device class {guests[0].device_class!r} of "
            f"{guests[0].key}; ask again"
        )

    async def blob(self, request: Request) -> Response:
        """A blob of a bundle that the caller may fetch, whole or a range of it."""
        digest = request.path_params["digest"]
        bundle = await self._bundle(digest, self._directory.admit(request))
        return PacedFile(
            bundle.blob_dir / digest.removeprefix("sha256:"),
            self._allowance,
            media_type="application/octet-stream",
            headers={"ETag": f'"{digest}"'},
        )

    async def _bundle(self, digest: str, guests: list[Guest]) -> Bundle:
        """The bundle that has a blob; those that are open are looked through first.

        Raises:
            UnknownBlob: none has.
            DovetailError: none of those at hand has, and another cannot be had now.
        """
        problem: DovetailError = UnknownBlob(f"no bundle served here has a blob {digest!r}")
        choice = list(self._directory.bundles_for(guests))
        for name, folder in sorted(choice, key=lambda item: not self._shelf.holds(item[0])):
            try:
                bundle = await self._shelf.take(folder, name)
            except DovetailError as error:
                problem = error
                continue
            if digest == bundle.digest or digest in bundle.blobs:
                return bundle
        raise problem


def build(args: LedgerArgs) -> Application:
    """The Serve application, from its arguments."""
    deployment = serve.deployment(name=LEDGER_DEPLOYMENT)(serve.ingress()(Ledger))
    return deployment.bind(args)
