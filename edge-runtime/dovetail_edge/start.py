"""What an edge starts with: what it was told, and what it knows before it has asked anybody."""

import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dovetail.errors import ManifestError
from dovetail.plan import Plan
from dovetail_edge import store
from dovetail_edge.access import Credentials

log = logging.getLogger("dovetail.edge")


@dataclass(frozen=True, slots=True)
class Options:
    """What an edge is started with.

    Attributes:
        endpoint: `http://host:port[/prefix]` of the pool, or `https://…`.
        device_class: the class this device belongs to; None where its token tells.
        credentials: what to show there, whom to trust.
        plan: file with a plan; None where the state or the pool has one.
        bundle: folder of a bundle that is here already.
        state: folder for the last plan and for fetched bundles; None fetches none.
        threads: intra-op threads.
        slowdown: makes the device this many times slower, in the open.
    """

    endpoint: str
    device_class: str | None
    credentials: Credentials
    plan: Path | None = None
    bundle: Path | None = None
    state: Path | None = None
    threads: int = 1
    slowdown: float = 1.0


def first_plans(options: Options) -> list[Plan]:
    """The plans at hand, the newest first: the given one, and the one that was kept.

    Raises:
        ManifestError: the given one does not hold, or is for another class.
    """
    known = []
    if options.plan is not None:
        plan = read_plan(options.plan)
        check_class(options, plan, f"plan {options.plan}")
        known.append(plan)
    saved = store.load(options.state) if options.state else None
    if saved is not None:
        named = options.device_class in (None, saved.device_class)
        if named and all(saved.deployment == plan.deployment for plan in known):
            known.append(saved)
        else:
            log.warning("the saved plan is of another deployment or class, and is left out")
    return sorted(known, key=lambda plan: plan.generation, reverse=True)


def check_class(options: Options, plan: Plan, what: str) -> None:
    """Raise `ManifestError` where a plan is for another class than this device was told."""
    if options.device_class not in (None, plan.device_class):
        raise ManifestError(
            f"{what} is for device class {plan.device_class!r}, not {options.device_class!r}"
        )


def read_plan(path: Path) -> Plan:
    """The plan in a file; raises `ManifestError` where there is none that holds."""
    try:
        return Plan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"plan {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ManifestError(f"plan {path} does not hold: {error}") from error
