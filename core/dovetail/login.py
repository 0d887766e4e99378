"""How a registry is told who asks: a docker `config.json`, and the answer to a challenge.

A registry says by 401 what it wants: the login itself (`Basic`), or a short-lived token that some
other address gives for it (`Bearer`). Both are answered only when asked, so a registry that wants
nothing is sent nothing.

References: docker `config.json` (`auths`); OCI Distribution Specification v1.1 on authentication;
Docker Registry token authentication; RFC 9110 section 11.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import urllib3

from dovetail.errors import ManifestError, Unauthorized, Unavailable
from dovetail.http import Http

_MOST: Final = 1 << 20
_PARAMETER: Final = re.compile(r'([A-Za-z_]+)="([^"]*)"')


class Login:
    """Answers the challenges of one registry.

    Args:
        file: docker `config.json`, read whenever the registry asks, so that a new password needs
            no restart; it need not be there.
        host: `host[:port]` of the registry.
    """

    def __init__(self, file: Path, host: str) -> None:
        self._file, self._host = file, host
        self._where = ""

    def answer(self, challenge: str, http: Http, url: str) -> str:
        """The `Authorization` with which a refused request may be tried again.

        Args:
            challenge: the `WWW-Authenticate` it was refused with.
            http: how to ask for a token.
            url: what was asked for.

        Raises:
            ManifestError: the file is no docker `config.json`.
            Unauthorized: there is no answer to it.
            Unavailable: whoever gives tokens does not answer.
        """
        scheme, secret = challenge.partition(" ")[0].lower(), self._secret()
        if scheme == "basic" and secret is not None:
            return f"Basic {secret}"
        if scheme == "bearer":
            asked = dict(_PARAMETER.findall(challenge))
            return f"Bearer {self._token(asked, secret, http, url)}"
        raise self.refused(url)

    def refused(self, url: str) -> Unauthorized:
        """The error of a request that was refused for good."""
        return Unauthorized(
            f"the registry refuses {url} ({self._where}); give a Secret of type "
            "kubernetes.io/dockerconfigjson that may"
        )

    def _secret(self) -> str | None:
        """Base64 of `user:password`; None where the file has none for this registry."""
        if not self._file.is_file():
            self._where = f"there is no login: no file {self._file}"
            return None
        try:
            entries: dict[str, Any] = json.loads(self._file.read_text()).get("auths") or {}
            found = next((one for key, one in entries.items() if _host(key) == self._host), None)
            if found is None:
                known = ", ".join(sorted(map(_host, entries))) or "nobody"
                self._where = f"{self._file} has a login for {known}, none for {self._host}"
                return None
            self._where = f"with the login of {self._file}"
            if "auth" in found:
                return str(found["auth"])
            pair = f"{found['username']}:{found['password']}"
            return base64.b64encode(pair.encode()).decode()
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise ManifestError(f"{self._file} is not a docker config.json: {error!r}") from error

    def _token(self, asked: dict[str, str], secret: str | None, http: Http, url: str) -> str:
        realm = asked.pop("realm", "")
        if urlsplit(realm).scheme not in {"https", urlsplit(url).scheme}:
            raise Unauthorized(
                f"{url} sends its login to {realm or 'nowhere'}, which is no safe place"
            )
        headers = {} if secret is None else {"Authorization": f"Basic {secret}"}
        wanted: dict[str, str] = {k: v for k, v in asked.items() if k in {"service", "scope"}}
        with http.open("GET", f"{realm}?{urlencode(wanted)}", headers) as answer:
            content = answer.read(_MOST)
            if answer.status in (400, 401, 403):
                raise self.refused(url)
            try:
                given = json.loads(content)
                return str(given.get("token") or given["access_token"])
            except (ValueError, KeyError, AttributeError) as error:
                raise Unavailable(f"{realm} answered {answer.status} and no token") from error


def challenge_of(answer: urllib3.BaseHTTPResponse) -> str:
    """What a refused request is asked for."""
    return str(answer.headers.get("WWW-Authenticate", ""))


def _host(key: str) -> str:
    """`host[:port]` of a key of `auths`, which may be a URL."""
    return key.partition("://")[2].partition("/")[0] if "://" in key else key.partition("/")[0]
