"""Resolves what a manifest points to: a file beside it, or one fetched over HTTP and kept.

A fetched file is kept under the digest that was asked for and is never fetched again; one that was
asked for without a digest is fetched anew each time, because nothing says that it is the same.
"""

import shutil
from pathlib import Path

from dovetail.api import HybridDeployment
from dovetail.bundle import Bundle
from dovetail.errors import BundleError, ManifestError, ModelNotReadable
from dovetail.ladder import CostProfile
from dovetail.layout import canonical_json, digest_of
from dovetail_cli.local.state import State
from dovetail_partitioner.costs_file import COSTS_FILE, read_costs
from dovetail_partitioner.declared import made_from, options
from dovetail_partitioner.partition import partition
from dovetail_partitioner.progress import Report
from dovetail_partitioner.sources import MOST_MODEL, fetch_http, file_digest


def resolve(uri: str, beside: Path, folder: Path, digest: str | None = None) -> Path:
    """Path of the file that a manifest names.

    Args:
        uri: `file:PATH`, relative to the manifest, or `http(s)://…`.
        beside: the manifest's folder.
        folder: where fetched files are kept.
        digest: `sha256:…` the file must have.

    Raises:
        ManifestError: no such file, or one that only a cluster reaches.
        ModelNotReadable: it does not have the digest.
        DovetailError: as `dovetail_partitioner.sources.fetch_http`.
    """
    if uri.startswith(("pvc://", "oci://")):
        raise ManifestError(
            f"{uri}: only a cluster reaches it; on one machine use file: or https://, or --model"
        )
    if uri.startswith("file:"):
        path = beside / uri.removeprefix("file:").removeprefix("//")
        if not path.is_file():
            raise ManifestError(f"{uri}: there is no file {path}; paths are relative to {beside}")
    else:
        path = folder / (digest or digest_of(uri.encode())).removeprefix("sha256:")
        if digest is None or not path.is_file():
            fetch_http(uri, path, MOST_MODEL)
    if digest is not None and (found := file_digest(path)) != digest:
        if path.parent == folder:
            path.unlink()  # or what was fetched wrongly once would be refused for ever
        raise ModelNotReadable(f"{uri} has digest {found}, the manifest expects {digest}")
    return path


def prepare(
    deployment: HybridDeployment, manifest: Path, state: State, model: Path | None, report: Report
) -> tuple[Bundle, CostProfile, bool]:
    """The deployment's bundle and cost profile, made unless the state directory has them.

    Args:
        deployment: the manifest.
        manifest: its file.
        state: the state directory.
        model: a model to use in place of `spec.model.uri`.
        report: told of progress.

    Returns:
        The bundle, its cost profile, and whether they were there already.

    Raises:
        DovetailError: whatever is wrong with model, calibration or manifest, typed.
    """
    spec = deployment.spec
    beside, fetched = manifest.resolve().parent, state.folder("fetched")
    if model is not None and not model.is_file():
        raise ManifestError(f"--model {model}: there is no such file")
    source = model or resolve(spec.model.uri, beside, fetched, spec.model.digest)
    rows = resolve(spec.calibration.uri, beside, fetched) if spec.calibration else None
    inputs = made_from(deployment, file_digest(source), file_digest(rows) if rows else None)
    path = state.folder("bundles") / digest_of(canonical_json(inputs))[7:19]
    if (path / COSTS_FILE).is_file():
        try:
            return Bundle(path), read_costs(path / COSTS_FILE), True
        except BundleError:
            shutil.rmtree(path)  # damaged on disk; it is only a cache
    made = partition(
        source,
        path,
        name=deployment.metadata.name,
        calibration=rows,
        options=options(deployment),
        report=report,
    )
    return Bundle(path), made.costs, False
