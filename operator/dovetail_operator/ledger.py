"""What a pool's ledger says: windows to decide on, and which devices were heard of.

One read tells of the whole pool, whatever the number of its deployments. Times are the ledger's;
they become ours here, so that a pool whose clock is off retires no version early.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import urllib3

from dovetail.errors import InvalidMessage, Unavailable
from dovetail.measure import Window
from dovetail.pool import LEDGER_APPLICATION
from dovetail_operator.rollout import short

Windows = Mapping[str, Mapping[str, Window]]

CONNECTED: Final = 60.0  # seconds; an idle device asks for its plan every 3


@dataclass(frozen=True, slots=True)
class Presence:
    """The devices of one class.

    Attributes:
        known: devices the ledger remembers.
        connected: those that were heard of within a minute.
        last: when one was last heard of, seconds since the epoch.
    """

    known: int
    connected: int
    last: float


@dataclass(frozen=True, slots=True)
class Reading:
    """One read of a ledger.

    Attributes:
        windows: deployment -> class -> what its devices saw.
        versions: deployment -> first 12 digits of a version -> when a device last reported it.
        devices: deployment -> class -> when each device was last heard of.
        at: when it was read; all times are seconds since the epoch.
    """

    windows: Windows
    versions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    devices: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    at: float = 0.0

    def presence(self, key: str) -> dict[str, Presence]:
        """The devices of each class of a deployment."""
        return {
            name: Presence(
                len(seen), sum(self.at - one <= CONNECTED for one in seen), max(seen, default=0.0)
            )
            for name, seen in self.devices.get(key, {}).items()
        }


class Ledger:
    """Reads ledgers.

    Args:
        token: the bearer token that may.
    """

    def __init__(self, token: str) -> None:
        self._headers = {"Authorization": f"Bearer {token}"}
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=2.0, read=5.0), retries=False, maxsize=2
        )

    def read(self, url: str, span: int) -> Reading:
        """What every class of every deployment saw in the last `span` seconds.

        Args:
            url: address of the pool.
            span: seconds.

        Raises:
            Unavailable: the ledger does not answer, or in no form that we know.
        """
        path = f"{url}/{LEDGER_APPLICATION}/v1/windows?seconds={span}"
        try:
            answer = self._http.request("GET", path, headers=self._headers)
            if answer.status != 200:
                raise Unavailable(f"{path} answered {answer.status}")
            return parse(json.loads(answer.data), time.time())
        except (urllib3.exceptions.HTTPError, OSError, ValueError, InvalidMessage) as error:
            raise Unavailable(f"the ledger at {url} does not answer: {error}") from error


def parse(document: Mapping[str, Any], now: float) -> Reading:
    """A ledger's answer, with its times as ours.

    Args:
        document: the answer.
        now: when it came, seconds since the epoch.

    Raises:
        InvalidMessage: it is none.
    """
    try:
        ahead = now - float(document["now"])
        versions: dict[str, dict[str, float]] = {}
        devices: dict[str, dict[str, tuple[float, ...]]] = {}
        for key, classes in document.get("contacts", {}).items():
            for seen in classes.values():
                for version, at in seen.items():
                    _latest(versions.setdefault(key, {}), version, float(at) + ahead)
        for key, classes in document.get("devices", {}).items():
            for name, known in classes.items():
                times = tuple(float(one["seen"]) + ahead for one in known.values())
                devices.setdefault(key, {})[name] = times
                for one, at in zip(known.values(), times, strict=True):
                    _latest(versions.setdefault(key, {}), str(one["version"]), at)
        windows = {
            key: {name: Window.load(item) for name, item in classes.items()}
            for key, classes in document["windows"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidMessage(f"the ledger's answer is none: {error!r}") from error
    return Reading(windows, versions, devices, now)


def _latest(times: dict[str, float], version: str, at: float) -> None:
    times[short(version)] = max(at, times.get(short(version), 0.0))
