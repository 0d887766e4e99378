"""Bundles and cost profiles in an OCI registry: pushed once, pulled whole or not at all.

A push sends the manifest last, so nothing half is ever visible, and sends no blob that is there. A
pull gathers a layout in a folder beside, which is renamed when every blob in it has the digest it
is named by; a lock lets one process of a machine do it while the others wait for what it made, and
what an interrupted pull brought is gone on from.

A cost profile is an artifact of its own, whose only layer it is: it is measured, and no part of the
version.

References: OCI Image Format v1.1 (manifest, image-layout, guidance for an empty descriptor); OCI
Distribution Specification v1.1.
"""

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from dovetail.bundle import ARTIFACT_TYPE, Bundle, BundleConfig
from dovetail.distribution import Repository
from dovetail.errors import BundleError, ManifestError, Unavailable
from dovetail.http import Report, quiet
from dovetail.ladder import CostProfile
from dovetail.layout import (
    MANIFEST_TYPE,
    Digest,
    Manifest,
    blob_dir,
    canonical_json,
    digest_of,
    parse,
    write_entry,
)
from dovetail.login import Login

TARGET_VARIABLE: Final = "DOVETAIL_REGISTRY"
"""Environment variable of a pool that says where its bundles are, as `URL/REPOSITORY`."""
LOGIN_FILE: Final = Path("/etc/dovetail/registry/config.json")
"""Where the login for that registry is mounted."""
COSTS_TYPE: Final = "application/vnd.dovetail.costs.v1+json"
_EMPTY: Final = b"{}"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_TARGET: Final = re.compile(r"(https?://[^/\s]+)/([a-z0-9][a-z0-9._/-]*)")
_OCI: Final = re.compile(r"oci://([^/\s]+)/([a-z0-9][a-z0-9._/-]*)@(sha256:[0-9a-f]{64})")


class _Layer(BaseModel):
    digest: Digest
    size: int


class _Layers(BaseModel):
    """What is read of anybody's artifact; whatever else is in it does not matter here."""

    layers: tuple[_Layer, ...]


class Registry:
    """One repository with bundles in it.

    Args:
        repository: it.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    @classmethod
    def at(cls, target: str, login: Path = LOGIN_FILE) -> Self:
        """The registry that a `URL/REPOSITORY` names.

        Raises:
            ManifestError: it names none.
        """
        match = _TARGET.fullmatch(target)
        if match is None:
            raise ManifestError(f"{target!r} is not http(s)://HOST[:PORT]/REPOSITORY")
        url, name = match[1], match[2].rstrip("/")
        return cls(Repository(url, name, Login(login, url.partition("://")[2])))

    def description(self, digest: str) -> BundleConfig:
        """The description of a bundle, without the rest of it.

        Raises:
            BundleError: there is none, or it is not a bundle's.
            BundleCorrupt: the bytes do not have the digest they are named by.
            Unauthorized: the registry refuses the login.
            Unavailable: the registry does not answer.
        """
        manifest = self._manifest(self._repository.manifest(digest), ARTIFACT_TYPE)
        document = self._repository.blob(manifest.config.digest)
        try:
            return BundleConfig.model_validate_json(document)
        except ValidationError as error:
            raise BundleError(f"{self._repository}@{digest} is not a bundle: {error}") from error

    def costs(self, digest: str) -> CostProfile:
        """A cost profile by the digest of its artifact; raises as `description`."""
        return self._costs(self._repository.manifest(digest), digest)

    def tagged_costs(self, tag: str) -> CostProfile:
        """The cost profile that somebody put under a tag; raises as `description`."""
        return self._costs(self._repository.tagged(tag), tag)

    def _costs(self, document: bytes, reference: str) -> CostProfile:
        manifest = self._manifest(document, COSTS_TYPE)
        if len(manifest.layers) != 1:
            raise BundleError(f"{self._repository}@{reference} is no cost profile")
        content = self._repository.blob(manifest.layers[0].digest)
        try:
            return CostProfile.model_validate_json(content)
        except ValidationError as error:
            raise BundleError(f"{self._repository}@{reference}: {error}") from error

    def push(self, bundle: Bundle, report: Report = quiet) -> str:
        """Send a bundle; returns its digest.

        Args:
            bundle: it.
            report: told of blobs.

        Raises:
            BundleCorrupt: a blob of it is damaged on disk.
            Unauthorized: the registry refuses the login.
            Unavailable: the registry does not answer.
        """
        for done, (digest, size) in enumerate(bundle.blobs.items()):
            report("pushing", done, len(bundle.blobs))
            bundle.ensure([digest])
            self._repository.put_blob(digest, size, bundle.blob_path(digest))
        report("pushing", len(bundle.blobs), len(bundle.blobs))
        document = (bundle.blob_dir / bundle.digest.removeprefix("sha256:")).read_bytes()
        return self._repository.put_manifest(f"bundle-{bundle.version}", document)

    def push_costs(self, costs: CostProfile, tag: str | None = None) -> str:
        """Send a cost profile as an artifact of its own; returns its digest.

        Args:
            costs: it.
            tag: a tag to find it by; made from its digest where None.

        Raises:
            DovetailError: as `push`.
        """
        layer = canonical_json(costs.model_dump(mode="json", by_alias=True))
        for data in (layer, _EMPTY):
            self._repository.put_blob(digest_of(data), len(data), data)
        manifest = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": COSTS_TYPE,
                "config": _described(_EMPTY_TYPE, _EMPTY),
                "layers": [_described(COSTS_TYPE, layer)],
            }
        )
        return self._repository.put_manifest(tag or f"costs-{digest_of(manifest)[7:19]}", manifest)

    def pull(self, digest: str, folder: Path, report: Report = quiet) -> None:
        """Bring a bundle into a folder, unless it is there.

        Args:
            digest: the bundle's.
            folder: where it will be; whoever waits for the same one finds it there.
            report: told of bytes.

        Raises:
            DovetailError: as `description`; `Unavailable` also where there is no room for it.
        """
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                if not folder.is_dir():
                    self._gather(digest, folder.with_name(f".{folder.name}.coming"), report)
                    folder.with_name(f".{folder.name}.coming").rename(folder)
        except OSError as error:
            raise Unavailable(f"{folder} cannot be written: {error.strerror}") from error

    def _manifest(self, document: bytes, artifact_type: str) -> Manifest:
        manifest = parse(Manifest, document, str(self._repository))
        if manifest.artifact_type != artifact_type:
            raise BundleError(
                f"{self._repository}: artifact type {manifest.artifact_type!r} is not "
                f"{artifact_type!r}"
            )
        return manifest

    def _gather(self, digest: str, coming: Path, report: Report) -> None:
        """Bring everything that a layout has into a folder, going on with what is in it."""
        document = self._repository.manifest(digest)
        manifest = self._manifest(document, ARTIFACT_TYPE)
        blobs = blob_dir(coming)
        blobs.mkdir(parents=True, exist_ok=True)
        for one in (manifest.config, *manifest.layers):
            file = blobs / one.digest.removeprefix("sha256:")
            if not file.is_file():  # it got that name when it was whole
                self._repository.fetch(one.digest, one.size, file, report)
        (blobs / digest.removeprefix("sha256:")).write_bytes(document)
        write_entry(coming, digest, len(document))
        Bundle(coming)  # refused here rather than by everybody who opens it


def fetch_only_layer(
    uri: str, file: Path, *, ours: str, login: Path, most: int, report: Report = quiet
) -> None:
    """Bring the only layer of an artifact into a file.

    Args:
        uri: `oci://REGISTRY/REPOSITORY@sha256:…`.
        file: where it will be.
        ours: `http(s)://host[:port]…` of the registry that bundles go to, which is asked as it is
            written there; any other is asked by https.
        login: docker `config.json` with the login.
        most: bytes that it may have.
        report: told of bytes.

    Raises:
        ManifestError: not such a URI, not one layer, or a larger one than `most`.
        DovetailError: as `Registry.description`.
    """
    match = _OCI.fullmatch(uri)
    if match is None:
        raise ManifestError(f"{uri} is not oci://REGISTRY/REPOSITORY@sha256:DIGEST")
    host, name, digest = match.groups()
    known = urlsplit(ours)
    scheme = known.scheme if known.netloc == host else "https"
    repository = Repository(f"{scheme}://{host}", name, Login(login, host))
    try:
        layers = _Layers.model_validate_json(repository.manifest(digest)).layers
    except ValidationError as error:
        raise ManifestError(f"{uri} is no artifact: {error}") from error
    if len(layers) != 1:
        raise ManifestError(f"{uri} has {len(layers)} layers; expected one, which is the file")
    if layers[0].size > most:
        raise ManifestError(f"{uri} has {layers[0].size} bytes; at most {most} are taken")
    repository.fetch(layers[0].digest, layers[0].size, file, report)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process, and one thread of it, at a time; the kernel frees it when its holder dies."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _described(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
