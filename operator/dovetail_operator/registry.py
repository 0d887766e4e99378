"""Reads what a partition Job pushed: the bundle's description and its costs, by digest.

The operator reads two small documents of a bundle and none of its weights. Everything is named by
its digest and checked against it, so a registry can refuse or be late, but cannot lie.

Reference: OCI Distribution Specification v1.1 (pulling manifests and blobs).
"""

import hashlib
import json
from typing import Any, Final

import urllib3
from pydantic import ValidationError

from dovetail.bundle import BundleConfig
from dovetail.errors import BundleCorrupt, BundleError, Unavailable
from dovetail.ladder import CostProfile
from dovetail_operator.config import Registry

_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_MOST: Final = 16 << 20  # bytes of one document
_TIMEOUT: Final = urllib3.Timeout(connect=5.0, read=30.0)


class RegistryReader:
    """Reads one registry.

    Args:
        registry: where it is.
    """

    def __init__(self, registry: Registry) -> None:
        self._root = f"{registry.url}/v2/{registry.repository}"
        self._http = urllib3.PoolManager(timeout=_TIMEOUT, retries=False, maxsize=8)

    def bundle(self, digest: str, costs: str) -> tuple[BundleConfig, CostProfile]:
        """Description and costs of a bundle.

        Args:
            digest: the bundle's manifest digest.
            costs: manifest digest of the artifact whose only layer is the cost profile.

        Raises:
            BundleError: it is not there, or not what it should be.
            BundleCorrupt: the bytes do not have the digest they are named by.
            Unavailable: the registry does not answer.
        """
        try:
            described = self._manifest(digest)["config"]["digest"]
            measured = self._manifest(costs)["layers"][0]["digest"]
            return (
                BundleConfig.model_validate_json(self._read(f"blobs/{described}", described)),
                CostProfile.model_validate_json(self._read(f"blobs/{measured}", measured)),
            )
        except (ValueError, KeyError, IndexError, TypeError, ValidationError) as error:
            raise BundleError(f"{self._root}@{digest} is not a bundle: {error}") from error

    def _manifest(self, digest: str) -> Any:
        return json.loads(self._read(f"manifests/{digest}", digest))

    def _read(self, what: str, digest: str) -> bytes:
        url = f"{self._root}/{what}"
        try:
            answer = self._http.request(
                "GET", url, headers={"Accept": _MANIFEST}, preload_content=False
            )
            content = answer.read(_MOST + 1)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"the registry does not answer {url}: {error}") from error
        answer.release_conn()
        if answer.status >= 500:
            raise Unavailable(f"the registry answered {answer.status} for {url}")
        if answer.status != 200:
            raise BundleError(f"the registry answered {answer.status} for {url}")
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise BundleCorrupt(f"{url} does not have the digest it is named by")
        return content
