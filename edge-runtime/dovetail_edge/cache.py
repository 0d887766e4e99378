"""Bundles on a device's disk: the one in use, the one before, and nothing else.

Each is a folder named by its digest, in which only the blobs are that this device's plans need. A
blob has its name when its bytes are right, and never before, so a kill at any moment leaves
nothing half that looks whole; what a disk does to it later is found when it is loaded.
"""

import logging
import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from dovetail.bundle import Bundle
from dovetail.errors import BundleCorrupt, BundleError
from dovetail.layout import verify_blob
from dovetail.plan import Plan
from dovetail_edge.route import needs

log = logging.getLogger("dovetail.edge")

PARTIAL = "partial"  # in a bundle's folder: what is not whole yet


def needed(plan: Plan, bundle: Bundle) -> Sequence[str]:
    """Digests of the blobs that a plan needs on this device: those of the segments it loads."""
    cuts, whole = needs(plan)
    return bundle.needs(0, len(bundle.config.segments) if whole else max(cuts))


def missing(plan: Plan, bundle: Bundle) -> list[str]:
    """Those of them that are not on disk in their full size."""
    return [
        one for one in needed(plan, bundle) if _size(bundle.blob_path(one)) != bundle.blobs[one]
    ]


class Cache:
    """The folder of bundles.

    Args:
        folder: it; made when something is put in.
        given: a bundle that lies elsewhere and is never changed; None where there is none.
    """

    def __init__(self, folder: Path, given: Bundle | None = None) -> None:
        self._folder, self._given = folder, given

    def path(self, digest: str) -> Path:
        """Where a bundle is, or will be."""
        return self._folder / digest.removeprefix("sha256:")

    def find(self, plan: Plan) -> Bundle | None:
        """The plan's bundle, where everything is here that the plan needs."""
        if self._given is not None and self._given.digest == plan.bundle:
            return self._given
        bundle = self.open(plan.bundle)
        return bundle if bundle is not None and not missing(plan, bundle) else None

    def open(self, digest: str) -> Bundle | None:
        """A bundle whose description is here; None where it is not, or not right."""
        try:
            bundle = Bundle(self.path(digest))
        except BundleError:
            return None
        return bundle if bundle.digest == digest else None

    def mend(self, digest: str) -> None:
        """Remove blobs whose bytes are not right any more, so that they are fetched again."""
        bundle = self.open(digest)
        if bundle is None:
            return
        for name, size in bundle.blobs.items():
            path = bundle.blob_path(name)
            try:
                verify_blob(path.parent, name, size)
            except BundleCorrupt:
                if path.is_file():
                    log.warning("%s is damaged and is fetched again", path)
                path.unlink(missing_ok=True)

    def used(self, digest: str) -> None:
        """Note that a bundle is in use from now on."""
        with suppress(OSError):
            os.utime(self.path(digest))

    def keep(self, digests: Collection[str], spare: int = 0) -> None:
        """Remove all bundles but these, and `spare` others, those that were used last."""
        names = {digest.removeprefix("sha256:") for digest in digests}
        try:
            others = [path for path in self._folder.iterdir() if path.name not in names]
        except OSError:
            return
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others[spare:]:
            log.info("removing bundle %s: it is no longer needed", path.name[:12])
            shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
