"""The partition Job: a deployment's manifest in, its bundle in the registry, the result said last.

A Job has no credential of the API server (docs/adr/0008): what it made, or why it made nothing, is
its termination message, at most 4096 bytes. Everything else it says are lines for `kubectl logs`.

The bundle follows from model, rows, spec and cost profile, and times differ from one run to the
next. So the profile is kept in the registry under a tag that names the rest: the same spec gives
the same bundle, whoever runs it again and why. Nothing but times is taken from there: a profile
that somebody else put there may make a ladder worse, never an answer wrong.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dovetail.api import HybridDeployment, parse_manifest
from dovetail.bundle import Bundle
from dovetail.errors import BundleError, CostsError, DovetailError, ManifestError
from dovetail.layout import canonical_json, digest_of
from dovetail.registry import LOGIN_FILE, Registry
from dovetail_partitioner.costs_file import write_costs
from dovetail_partitioner.declared import made_from, options
from dovetail_partitioner.partition import PartitionResult, partition
from dovetail_partitioner.progress import Report
from dovetail_partitioner.sources import (
    MOST_ROWS,
    Places,
    fetch_http,
    fetch_model,
    file_digest,
    refuse_local,
)

log = logging.getLogger("dovetail.job")

MANIFEST_VARIABLE: Final = "DOVETAIL_MANIFEST"
MOST_WORDS: Final = 4096  # bytes that Kubernetes keeps of a termination message
_CLAIM: Final = "model"
_LOGIN: Final = "etc/dovetail/login/config.json"
_LAST_WORDS: Final = "dev/termination-log"
_EVERY: Final = 5.0  # seconds between two lines about the same part


@dataclass(frozen=True)
class Made:
    """What a Job pushed.

    Attributes:
        bundle: digest of the bundle.
        costs: digest of the artifact whose only layer is its cost profile.
    """

    bundle: str
    costs: str


class Lines:
    """Progress as lines: one when a part begins, and then one every few seconds."""

    def __init__(self) -> None:
        self._part, self._next = "", 0.0

    def __call__(self, part: str, done: int, total: int) -> None:
        """Say how far a part is."""
        now = time.monotonic()
        if part == self._part and now < self._next:
            return
        share = f" {100 * done // total} %" if total > 1 and part == self._part else ""
        self._part, self._next = part, now + _EVERY
        log.info("%s%s", part, share)


def run(
    deployment: HybridDeployment, registry: Registry, places: Places, scratch: Path, report: Report
) -> Made:
    """Make a deployment's bundle and push it.

    Args:
        deployment: the deployment.
        registry: where the bundle goes.
        places: where the model may be.
        scratch: an empty folder.
        report: told of progress.

    Raises:
        DovetailError: whatever is wrong with model, rows, manifest or registry, typed.
    """
    spec = deployment.spec
    if spec.calibration is not None:
        refuse_local(spec.calibration.uri, "spec.calibration.uri")
    model = fetch_model(spec.model.uri, spec.model.digest, scratch, places, report)
    rows, fetched = None, None
    if spec.calibration is not None:
        rows = scratch / "rows.npz"
        fetched = fetch_http(spec.calibration.uri, rows, MOST_ROWS, report, "fetching the rows")
    inputs = made_from(deployment, file_digest(model), fetched)
    tag = f"made-from-{digest_of(canonical_json(inputs))[7:39]}"
    costs = _known_costs(registry, tag, scratch)
    made = _partition(deployment, model, scratch / "bundle", rows=rows, costs=costs, report=report)
    digest = registry.push(Bundle(made.path), report)
    return Made(digest, registry.push_costs(made.costs, tag))


def _known_costs(registry: Registry, tag: str, scratch: Path) -> Path | None:
    """The cost profile of an earlier run of the same; None where there is none."""
    try:
        costs = registry.tagged_costs(tag)
    except BundleError:
        return None
    write_costs(scratch / "known-costs.json", costs)
    return scratch / "known-costs.json"


def _partition(
    deployment: HybridDeployment,
    model: Path,
    path: Path,
    *,
    rows: Path | None,
    costs: Path | None,
    report: Report,
) -> PartitionResult:
    """Partition; with the times of an earlier run, or without where they are of other segments."""
    for profile in (costs, None) if costs is not None else (None,):
        try:
            return partition(
                model,
                path,
                name=deployment.metadata.name,
                calibration=rows,
                costs=profile,
                options=options(deployment),
                report=report,
            )
        except CostsError:
            if profile is None:
                raise
    raise AssertionError


def last_words(result: Made | DovetailError) -> bytes:
    """The termination message of a Job, in at most `MOST_WORDS` bytes."""
    if isinstance(result, Made):
        return canonical_json({"bundle": result.bundle, "costs": result.costs})
    message = str(result)
    while True:
        words = canonical_json({"error": result.code, "message": message})
        over = len(words) - MOST_WORDS
        if over <= 0:
            return words
        message = message[: -max(over // 4, 4)].rstrip("…") + "…"


def main(arguments: list[str] | None = None) -> int:
    """Run one Job; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m dovetail_partitioner.job", description=__doc__)
    parser.add_argument("--push", required=True, metavar="URL/REPOSITORY", help="where to push")
    parser.add_argument(
        "--root", type=Path, default=Path("/"), help="where the container's paths begin"
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    result = _tried(given.push, given.root)
    words = last_words(result)
    (given.root / _LAST_WORDS).write_bytes(words)
    log.info("%s", words.decode())
    return result.exit_code if isinstance(result, DovetailError) else 0


def _tried(target: str, root: Path) -> Made | DovetailError:
    """What was made, or why nothing was."""
    try:
        text = os.environ.get(MANIFEST_VARIABLE, "")
        try:
            document = json.loads(text)
        except ValueError as error:
            raise ManifestError(f"{MANIFEST_VARIABLE} is not JSON: {error}") from error
        deployment = parse_manifest(document, MANIFEST_VARIABLE)
        registry = Registry.at(target, root / LOGIN_FILE.relative_to("/"))
        places = Places(root / _CLAIM, root / _LOGIN, target)
        with tempfile.TemporaryDirectory(prefix="dovetail-job-") as scratch:
            return run(deployment, registry, places, Path(scratch), Lines())
    except DovetailError as error:
        return error
    except Exception as error:  # the operator must learn of it, whatever it is
        log.exception("nobody expected this")
        return DovetailError(f"internal error, see the Job's log: {error!r}")


if __name__ == "__main__":
    sys.exit(main())
