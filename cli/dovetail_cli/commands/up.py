"""`dovetail up`: run a deployment on this machine."""

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from dovetail.api import load_manifest, seconds
from dovetail.errors import UserError
from dovetail_cli.link import Trace, load_trace, parse_link
from dovetail_cli.output import Format, OutputOption, show

ManifestArgument = Annotated[
    Path, typer.Argument(help="HybridDeployment, YAML.", show_default=False)
]
LinkOption = Annotated[
    str | None,
    typer.Option(
        "--link",
        help="Simulate a link between edge and tail: RATE,RTT such as 20mbit,15ms. The rate holds "
        "each way; the time is the round trip.",
    ),
]
TraceOption = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        help="Simulate a link that changes: a file of lines SECONDS, RATE, RTT or SECONDS, down.",
    ),
]
SlowdownOption = Annotated[
    float,
    typer.Option("--slowdown", min=1.0, help="Make the devices this many times slower, openly."),
]
ForOption = Annotated[
    str | None, typer.Option("--for", help="End by itself after this long, such as 60s.")
]
ReportOption = Annotated[
    Path | None, typer.Option("--report", help="Write a self-contained HTML page with plots.")
]
PortOption = Annotated[
    int | None,
    typer.Option("--port", min=1, max=65535, help="Port of the first edge; free where not given."),
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="ONNX file to use in place of spec.model.uri.")
]
DriveOption = Annotated[
    Path | None,
    typer.Option(
        "--drive",
        help="Send the rows of this .npz as requests, over and over; an array 'label' gives "
        "accuracy.",
    ),
]
RateOption = Annotated[
    float, typer.Option("--rate", min=0.01, max=10000, help="Requests per second of --drive.")
]
CompareOption = Annotated[
    bool,
    typer.Option("--compare", help="Run all-edge and all-cloud beside it, in interleaved rounds."),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state", help="Folder for bundles, plans, tokens, logs; .dovetail/NAMESPACE--NAME here."
    ),
]


def command(
    file: ManifestArgument,
    *,
    link: LinkOption = None,
    trace: TraceOption = None,
    slowdown: SlowdownOption = 1.0,
    duration: ForOption = None,
    report: ReportOption = None,
    port: PortOption = None,
    model: ModelOption = None,
    drive: DriveOption = None,
    rate: RateOption = 10.0,
    compare: CompareOption = False,
    state: StateOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Run a HybridDeployment on this machine, without a cluster, until Ctrl-C."""
    deployment = load_manifest(file)
    if link is not None and trace is not None:
        raise UserError("--link and --trace both say what the link is; give one of them")
    if compare and drive is None:
        raise UserError("--compare needs requests to compare with: give --drive FILE.npz")
    if report is not None:
        _check_report(report)
    shaped, limit = _trace(link, trace), seconds(duration) if duration else None
    from dovetail_cli.local.run import Job, run  # all of Dovetail: not before the job is right

    job = Job(
        manifest=file,
        deployment=deployment,
        state=state or Path(".dovetail") / deployment.key.replace("/", "--"),
        trace=shaped,
        slowdown=slowdown,
        duration=limit,
        report=report,
        port=port,
        model=model,
        drive=drive,
        rate=rate,
        compare=compare,
    )
    signal.signal(signal.SIGTERM, _interrupt)
    summary, text = run(job)
    show(summary, output, lambda: text)


def _check_report(path: Path) -> None:
    if path.suffix != ".html":
        raise UserError(f"--report {path}: the report is a page; give a name that ends in .html")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--report {path}: there is no folder {path.parent}")


def _trace(link: str | None, trace: Path | None) -> Trace | None:
    if trace is not None:
        return load_trace(trace)
    return Trace((0.0,), (parse_link(link),)) if link is not None else None


def _interrupt(_: int, __: FrameType | None) -> None:
    """Being told to end is the same as Ctrl-C."""
    raise KeyboardInterrupt
