"""The cost profile as a file: beside a bundle, or given with `--costs`."""

import os
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from dovetail.errors import CostsError
from dovetail.ladder import CostProfile
from dovetail.layout import canonical_json

COSTS_FILE: Final = "costs.json"


def read_costs(path: Path) -> CostProfile:
    """Read a cost profile; raises `CostsError` where it is none."""
    try:
        return CostProfile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CostsError(f"{path}: {error.strerror}; expected a cost profile") from error
    except ValidationError as error:
        where, what = ".".join(map(str, error.errors()[0]["loc"])), error.errors()[0]["msg"]
        raise CostsError(f"{path} is not a cost profile: {where} {what}") from error


def write_costs(path: Path, costs: CostProfile) -> None:
    """Write a cost profile in one step."""
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    temp.write_bytes(canonical_json(costs.model_dump(mode="json", by_alias=True)))
    temp.replace(path)
