"""`dovetail verify`: every digest, and every rung against the whole model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dovetail.errors import ProofError
from dovetail_cli import model_options as given
from dovetail_cli.output import Format, OutputOption, Steps, columns, note, show

if TYPE_CHECKING:
    from dovetail_partitioner.verify import Verification


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", show_default=False)],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="The ONNX file the bundle was made from, to compare with; all segments joined "
            "where not given.",
        ),
    ] = None,
    calibration: given.CalibrationOption = None,
    dim: given.DimOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Check a bundle: exit 0 only if every digest is right and every rung that is judged holds."""
    from dovetail_partitioner.verify import verify

    with Steps() as steps:
        found = verify(
            bundle, model=model, calibration=calibration, bind=given.dims(dim), report=steps
        )
    shown = _document(found)
    show(shown, output, lambda: _table(shown["rungs"]))
    note(f"{found.blobs} blobs have the digests they are named by")
    broken = [check.id for check in found.rungs if check.holds is False]
    if broken:
        raise ProofError(f"{bundle}: {len(broken)} rungs do not hold: {', '.join(broken)}")
    unjudged = [check.id for check in found.rungs if check.holds is None]
    if unjudged:
        note(
            f"not judged: {', '.join(unjudged)}: they were proved on given rows; "
            "give these with --calibration"
        )


def _document(found: "Verification") -> dict[str, Any]:
    return {
        "bundle": found.digest,
        "blobs": found.blobs,
        "rows": found.rows,
        "generated": found.generated,
        "rungs": [
            {
                "id": check.id,
                "holds": check.holds,
                "maxError": check.max_error,
                "top1": check.top1,
                "why": check.why,
            }
            for check in found.rungs
        ],
    }


def _table(rungs: list[dict[str, Any]]) -> str:
    words = {True: "yes", False: "NO", None: "not judged"}
    lines = [
        [
            rung["id"],
            words[rung["holds"]],
            f"{rung['maxError']:.1e}",
            "-" if rung["top1"] is None else f"{rung['top1']:.1%}",
            rung["why"] or "-",
        ]
        for rung in rungs
    ]
    return columns(("RUNG", "HOLDS", "MAX ERROR", "TOP-1", "WHY"), lines)
