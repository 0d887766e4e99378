"""`dovetail run`: head, codec and tail of one rung in one process."""

from pathlib import Path
from typing import Annotated

import typer

from dovetail.errors import InvalidMessage
from dovetail.npz import read_npz, write_npz
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

    answer = run_rung(Bundle(bundle), rung, read_npz(inputs, InvalidMessage))
    write_npz(outputs, answer.outputs)
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
