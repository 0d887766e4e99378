"""The `dovetail` command.

Only the registry and the way errors leave: each command is a module of its own, which imports the
room it needs when it runs, so that `dovetail --help` needs neither ONNX nor Ray.
"""

import sys

import typer

from dovetail.errors import (
    BundleCorrupt,
    DovetailError,
    ExternalDataError,
    MissingTool,
    ProofVacuous,
    UnboundShape,
)
from dovetail_cli.commands import edge, infer, inspect, partition, run, up, verify
from dovetail_cli.output import note

_HINTS: dict[type[DovetailError], str] = {
    UnboundShape: "bind a dimension with --dim NAME=SIZE or --dim INPUT:AXIS=SIZE",
    ProofVacuous: "give real rows with --calibration FILE.npz",
    ExternalDataError: "keep the weight files in the folder of the model, under their own names",
    BundleCorrupt: "make the bundle again with `dovetail partition MODEL --bundle DIR`",
}

# What each command needs beside the base, as a person installs it.
_EXTRAS = {
    "inspect": "partitioner",
    "partition": "partitioner",
    "verify": "partitioner",
    "run": "partitioner",
    "up": "edge,serving,partitioner",
    "infer": "edge",
    "edge": "edge",
}

app = typer.Typer(
    name="dovetail",
    help="Split inference: the head of a model on a device, its tail in the cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("inspect")(inspect.command)
app.command("partition")(partition.command)
app.command("verify")(verify.command)
app.command("run")(run.command)
app.command("up")(up.command)
app.command("infer")(infer.command)
app.add_typer(edge.app, name="edge")


def main() -> None:
    """Run the command line; an error of ours becomes one line on stderr and an exit code."""
    try:
        app()
    except DovetailError as error:
        note(f"error: {error}")
        hint = next((text for kind, text in _HINTS.items() if isinstance(error, kind)), None)
        if hint:
            note(f"hint: {hint}")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "dovetail").startswith("dovetail"):
            raise  # a fault of ours, not something the user left out
        command = next((word for word in sys.argv[1:] if word in _EXTRAS), "up")
        note(f"error: `dovetail {command}` needs {error.name}, which is not installed")
        note(f"hint: pip install 'dovetail[{_EXTRAS[command]}]'")
        sys.exit(MissingTool.exit_code)


if __name__ == "__main__":
    main()
