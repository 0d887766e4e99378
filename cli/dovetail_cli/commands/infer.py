"""`dovetail infer`: one request to an edge server."""

from pathlib import Path
from typing import Annotated

import typer

from dovetail.errors import InvalidTensor
from dovetail.npz import read_npz, write_npz
from dovetail_cli.local.client import EdgeClient
from dovetail_cli.output import Format, OutputOption, columns, show

UrlArgument = Annotated[str, typer.Argument(help="The edge, http://host:port.", show_default=False)]
InputsOption = Annotated[
    Path, typer.Option("--inputs", help=".npz with one array an input.", show_default=False)
]
OutputsOption = Annotated[
    Path | None, typer.Option("--outputs", help="Where the answers go, as .npz.")
]
NameOption = Annotated[
    str | None, typer.Option("--model", help="Name of the model; the edge's own by default.")
]


def command(
    url: UrlArgument,
    *,
    inputs: InputsOption,
    outputs: OutputsOption = None,
    model: NameOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Ask an edge once, by the Open Inference Protocol, and say how it answered."""
    feed = read_npz(inputs, InvalidTensor)
    client = EdgeClient(url)
    reply = client.infer(model or client.status()["deployment"].rpartition("/")[2], feed)
    if outputs is not None:
        write_npz(outputs, reply.outputs)
    parts = {name: round(value * 1e3, 3) for name, value in reply.timing.items()}
    document = {
        "rung": reply.rung,
        "degraded": reply.degraded,
        "generation": reply.generation,
        "ms": round(reply.seconds * 1e3, 3),
        "partsMs": parts,
        "outputs": {name: list(array.shape) for name, array in reply.outputs.items()},
    }
    cells = [
        (
            reply.rung,
            str(reply.degraded).lower(),
            f"{document['ms']:.1f}",
            ", ".join(f"{name} {value:.1f}" for name, value in parts.items()),
        )
    ]
    show(document, output, lambda: columns(("RUNG", "DEGRADED", "MS", "PARTS MS"), cells))
