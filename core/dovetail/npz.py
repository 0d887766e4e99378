"""Arrays in files: what a person hands to a command, and gets back from it."""

import os
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

from dovetail.errors import UserError
from dovetail.tensor import Array


def read_npz(path: Path, refusal: type[UserError]) -> dict[str, Array]:
    """The arrays of an .npz by name; nothing pickled is ever loaded.

    Args:
        path: the file.
        refusal: the error to raise, which says what the arrays were wanted for.

    Raises:
        UserError: as `refusal`; the file is missing or is no .npz of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, BadZipFile, AttributeError) as error:
        raise refusal(
            f"{path} is not an .npz of plain arrays: {error}; write one with numpy.savez"
        ) from error


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """An .npz in one step. `numpy.savez` takes names as keywords, and so not every name."""
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with ZipFile(temp, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
