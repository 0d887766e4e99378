"""What a device keeps on disk: its last plan, with which it goes on offline, and its name.

The plan is written to a temporary name and renamed, so a kill at any moment leaves either the old
plan or the new one.
"""

import logging
import os
import re
import secrets
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from dovetail.plan import Plan

log = logging.getLogger("dovetail.edge")

DEVICE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,63}")

_NAME, _DEVICE = "plan.json", "device"


def save(folder: Path, plan: Plan) -> None:
    """Write the plan; raises `OSError` where the folder can't be written."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{_NAME}.{os.getpid()}"
    with temporary.open("w") as file:
        file.write(plan.model_dump_json(by_alias=True))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / _NAME)


def keep(folder: Path | None, plan: Plan) -> None:
    """Write a plan down before it is in use, so that a device that is killed goes on from there.

    Nothing without a folder; a folder that can't be written is logged and keeps nobody from using
    the plan.
    """
    if folder is None:
        return
    try:
        save(folder, plan)
    except OSError as error:
        log.warning("plan %d could not be saved: %s", plan.generation, error)


def load(folder: Path) -> Plan | None:
    """The saved plan; None where there is none, or none that holds, which is logged."""
    path = folder / _NAME
    try:
        return Plan.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("the saved plan %s cannot be used: %s", path, error)
        return None


def newest(folder: Path, given: Plan) -> Plan:
    """The plan to start with: the saved one where it is a later generation of the given one.

    A saved plan of another deployment, class or bundle, or one that does not parse, is left out:
    the given plan is always good enough to start.
    """
    saved = load(folder)
    if saved is None or saved.bundle != given.bundle:
        return given
    if (saved.deployment, saved.device_class) != (given.deployment, given.device_class):
        log.warning("the saved plan in %s is of another deployment or class", folder)
        return given
    return saved if saved.generation > given.generation else given


def device(folder: Path | None) -> str:
    """A name for this device: random, and the same at the next start where it can be kept."""
    made = f"edge-{secrets.token_hex(8)}"
    if folder is None:
        return made
    path = folder / _DEVICE
    try:
        kept = path.read_text("ascii").strip()
        if DEVICE_NAME.fullmatch(kept):
            return kept
    except (OSError, UnicodeDecodeError):
        pass  # the first start, or a file that is damaged
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(made)
    except OSError as error:
        log.warning("this device's name cannot be kept in %s: %s", path, error.strerror)
    return made
