"""`dovetail partition`: model in, proved bundle out."""

from pathlib import Path
from typing import Annotated

import typer

from dovetail_cli import model_options as given
from dovetail_cli.output import Format, OutputOption, Steps, note, show


def command(
    model: given.ModelArgument,
    *,
    bundle: Annotated[
        Path, typer.Option("--bundle", help="Folder of the bundle; an old one is replaced.")
    ],
    calibration: given.CalibrationOption = None,
    costs: given.CostsOption = None,
    dim: given.DimOption = None,
    image: given.ImageOption = None,
    max_segments: given.SegmentsOption = 6,
    min_top1: given.Top1Option = 0.98,
    max_error: given.ErrorOption = 0.05,
    threads: given.ThreadsOption = 1,
    output: OutputOption = Format.TABLE,
) -> None:
    """Cut a model at every cut worth having, prove it, and write the bundle."""
    from dovetail_cli import ladder_view
    from dovetail_partitioner.partition import partition

    options = given.options(
        dim=dim,
        image=image,
        max_segments=max_segments,
        min_top1=min_top1,
        max_error=max_error,
        threads=threads,
    )
    with Steps() as steps:
        made = partition(
            model, bundle, calibration=calibration, costs=costs, options=options, report=steps
        )
    shown = ladder_view.document(made.config, made.digest, made.ladder, made.costs, made.proof)
    show(shown, output, lambda: ladder_view.table(shown))
    ladder_view.remarks(shown)
    note(f"wrote {bundle}, version {made.digest}")
