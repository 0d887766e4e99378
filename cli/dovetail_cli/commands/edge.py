"""`dovetail edge`: this machine as a device of a deployment that runs elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

UrlArgument = Annotated[
    str,
    typer.Argument(
        help="Address of the pool: the `endpoint` in the Secret of the device group.",
        show_default=False,
        metavar="URL",
    ),
]
TokenOption = Annotated[
    Path,
    typer.Option("--token-file", help="File with the group's token; read again when it changes."),
]
CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        help="PEM file of whom to trust, read again when it changes; the system's authorities "
        "where not given.",
    ),
]
StateOption = Annotated[
    Path,
    typer.Option(
        "--state", help="Folder for bundle, plan and this device's name; one for each token."
    ),
]
HostOption = Annotated[str, typer.Option("--host", help="Address on which apps are answered.")]
PortOption = Annotated[int, typer.Option("--port", min=1, max=65535, help="The same, its port.")]


@app.callback()
def group() -> None:
    """Run a device outside the cluster."""


@app.command("join")
def join(
    url: UrlArgument,
    *,
    token_file: TokenOption,
    ca_file: CaOption = None,
    state: StateOption = Path(".dovetail/edge"),
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
) -> None:
    """Join the device group whose token this is, and answer apps until Ctrl-C.

    Plan and bundle come from that address, of the bundle what is needed.
    Started again, the device goes on from what it has, also while offline.
    """
    from dovetail_edge import Credentials, store
    from dovetail_edge.process import run
    from dovetail_edge.start import Options

    credentials = Credentials(token_file, ca_file, store.device(state))
    options = Options(url, None, credentials, state=state)
    raise typer.Exit(run(options, host, port, joining=True))
