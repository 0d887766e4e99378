"""Whom the ledger serves: each deployment's tokens, bundles, and where its devices begin.

It comes as Serve's `user_config`, so that a deployment that comes or goes, a new version and a new
token reach the running ledger, whose windows a restart would lose. `reconfigure` must not raise,
because Serve kills a replica for it: what does not hold leaves the directory at hand.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from dovetail.errors import Unauthorized
from dovetail.layout import Digest
from dovetail_serving.intake import Access, TokenDigest

log = logging.getLogger("ray.serve")

# Until the first `user_config` nobody may: no token is known that has this digest.
_NOBODY = "0" * 64


class Deployment(BaseModel):
    """One deployment.

    Attributes:
        tokens: device class -> sha256 hex of its bearer token; empty leaves it open.
        bundles: digest of each version that is handed out -> its folder.
        placement: device class -> the Serve application where its devices begin.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Mapping[str, TokenDigest] = {}
    bundles: Mapping[Digest, Path] = {}
    placement: Mapping[str, str] = {}


class Known(BaseModel):
    """Everything there is to know.

    Attributes:
        operator_token: sha256 hex of the token that may read windows; empty leaves them open.
        deployments: by `<namespace>/<name>`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    operator_token: TokenDigest | Literal[""] = _NOBODY
    deployments: Mapping[str, Deployment] = {}


@dataclass(frozen=True, slots=True)
class Guest:
    """A deployment that a request may speak for.

    Attributes:
        key: `<namespace>/<name>`.
        deployment: what is known of it.
        device_class: the class the request speaks for; None where it is open and none is named.
    """

    key: str
    deployment: Deployment
    device_class: str | None


class Directory:
    """What is known, replaced whole."""

    def __init__(self) -> None:
        self._known, self._access = Known(), dict[str, Access]()

    @property
    def operator_token(self) -> str:
        """Digest of the token that may read windows; empty where anybody may."""
        return self._known.operator_token

    @property
    def bundles(self) -> frozenset[str]:
        """Digests of all bundles that are handed out."""
        every = self._known.deployments.values()
        return frozenset(digest for one in every for digest in one.bundles)

    def replace(self, user_config: Mapping[str, Any]) -> None:
        """Take over what arrived, or leave what is at hand where it does not hold."""
        try:
            known = Known.model_validate(user_config)
        except ValidationError as error:
            log.warning("the ledger's user_config does not hold; what is known stays: %s", error)
            return
        access = {key: Access(one.tokens) for key, one in known.deployments.items()}
        self._known, self._access = known, access

    def admit(self, request: Request) -> list[Guest]:
        """The deployments that a request may speak for, those that know its token first.

        Raises:
            Unauthorized: every deployment asks for a token, and none knows the request's.
        """
        refused = Unauthorized("no deployment is served here; join the device again")
        closed: list[Guest] = []
        opened: list[Guest] = []
        for key, deployment in self._known.deployments.items():
            try:
                device_class = self._access[key].admit(request)
            except Unauthorized as error:
                refused = error
                continue
            guest = Guest(key, deployment, device_class)
            (closed if deployment.tokens else opened).append(guest)
        if not closed and not opened:
            raise refused
        return [*closed, *opened]

    def bundles_for(self, guests: list[Guest]) -> Iterator[tuple[str, Path]]:
        """Digest and folder of every bundle that these may fetch."""
        for guest in guests:
            yield from guest.deployment.bundles.items()
