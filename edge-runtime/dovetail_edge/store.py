"""The last plan on disk: what an edge that restarts while offline goes on with.

Written to a temporary name and renamed, so a kill at any moment leaves either the old plan or the
new one.
"""

import logging
import os
from pathlib import Path

from pydantic import ValidationError

from dovetail.plan import Plan

log = logging.getLogger("dovetail.edge")

_NAME = "plan.json"


def save(folder: Path, plan: Plan) -> None:
    """Write the plan; raises `OSError` where the folder can't be written."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{_NAME}.{os.getpid()}"
    with temporary.open("w") as file:
        file.write(plan.model_dump_json(by_alias=True))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / _NAME)


def newest(folder: Path, given: Plan) -> Plan:
    """The plan to start with: the saved one where it is a later generation of the given one.

    A saved plan of another deployment, class or bundle, or one that does not parse, is left out
    and logged: the given plan is always good enough to start.
    """
    path = folder / _NAME
    try:
        saved = Plan.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return given
    except (OSError, ValidationError) as error:
        log.warning("the saved plan %s cannot be used: %s", path, error)
        return given
    same = (saved.deployment, saved.device_class, saved.bundle) == (
        given.deployment,
        given.device_class,
        given.bundle,
    )
    if not same:
        log.warning("the saved plan %s is of another deployment, class or bundle", path)
        return given
    return saved if saved.generation > given.generation else given
