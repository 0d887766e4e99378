"""`dovetail inspect`: what cutting a model would give, or what a bundle holds."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail_cli import model_options as given
from dovetail_cli.output import Format, OutputOption, Steps, note, show

if TYPE_CHECKING:
    from dovetail.bundle import Bundle
    from dovetail.ladder import CostProfile
    from dovetail_partitioner.proof import Proof


def command(
    model: Annotated[Path, typer.Argument(help="ONNX file, or a bundle.", show_default=False)],
    *,
    calibration: given.CalibrationOption = None,
    costs: given.CostsOption = None,
    dim: given.DimOption = None,
    image: given.ImageOption = None,
    max_segments: given.SegmentsOption = 6,
    min_top1: given.Top1Option = 0.98,
    max_error: given.ErrorOption = 0.05,
    threads: given.ThreadsOption = 1,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Also draw where each rung is best: FILE.png or FILE.html."),
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Print the ladder of a model or a bundle: each rung, its cost, and where it is best."""
    from dovetail.ladder import Ladder
    from dovetail_cli import ladder_view
    from dovetail_partitioner.partition import partition
    from dovetail_partitioner.plot import check_plot, draw

    if plot is not None:
        check_plot(plot)
    options = given.options(
        dim=dim,
        image=image,
        max_segments=max_segments,
        min_top1=min_top1,
        max_error=max_error,
        threads=threads,
    )
    with tempfile.TemporaryDirectory(prefix="dovetail-") as folder, Steps() as steps:
        path, profile = model, costs
        if not model.is_dir():
            path, profile = Path(folder) / "bundle", None
            partition(
                model, path, calibration=calibration, costs=costs, options=options, report=steps
            )
        bundle, times, proof = _read(path, profile)
    ladder = Ladder.of(bundle.config, times)
    shown = ladder_view.document(bundle.config, bundle.digest, ladder, times, proof)
    show(shown, output, lambda: ladder_view.table(shown))
    ladder_view.remarks(shown)
    if plot is not None:
        draw(bundle.config.model.name, ladder, plot)
        note(f"wrote {plot}")


def _read(path: Path, costs: Path | None) -> "tuple[Bundle, CostProfile, Proof]":
    """A bundle, the cost profile beside it unless another is given, and its proof."""
    from dovetail.bundle import Bundle
    from dovetail_partitioner.costs_file import COSTS_FILE, read_costs
    from dovetail_partitioner.proof import read_proof

    bundle = Bundle(path)
    return bundle, read_costs(costs or path / COSTS_FILE), read_proof(bundle)
