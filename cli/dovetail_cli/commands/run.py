"""`dovetail run`: head, codec and tail of one rung in one process."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from zipfile import BadZipFile, ZipFile

import numpy as np
import typer

from dovetail.errors import InvalidMessage
from dovetail.tensor import Array
from dovetail_cli.output import Format, OutputOption, columns, note, show, size


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", show_default=False)],
    rung: Annotated[str, typer.Option("--rung", help="Rung to run, such as edge or cut2-int8.")],
    inputs: Annotated[Path, typer.Option("--inputs", help=".npz with one array an input.")],
    outputs: Annotated[Path, typer.Option("--outputs", help=".npz to write the answers to.")],
    output: OutputOption = Format.TABLE,
) -> None:
    """Answer one request the way device and cloud would, without a network between them."""
    from dovetail.bundle import Bundle
    from dovetail_cli.in_process import run_rung

    answer = run_rung(Bundle(bundle), rung, _read(inputs))
    _write(outputs, answer.outputs)
    shown = {
        "rung": rung,
        "bytesUp": answer.bytes_up,
        "headSeconds": answer.head,
        "encodeSeconds": answer.encode,
        "decodeSeconds": answer.decode,
        "tailSeconds": answer.tail,
        "outputs": {name: list(array.shape) for name, array in answer.outputs.items()},
    }
    seconds = (answer.head, answer.encode, answer.decode, answer.tail)
    show(
        shown,
        output,
        lambda: columns(
            ("RUNG", "UP", "HEAD MS", "ENCODE MS", "DECODE MS", "TAIL MS"),
            [[rung, size(answer.bytes_up), *(f"{each * 1e3:.2f}" for each in seconds)]],
        ),
    )
    note(f"wrote {outputs}")


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, BadZipFile, AttributeError) as error:
        raise InvalidMessage(
            f"{path} is not an .npz of plain arrays: {error}; write one with numpy.savez"
        ) from error


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
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
