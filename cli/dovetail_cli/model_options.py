"""Options that `inspect`, `partition` and `verify` share, and how their text is read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from dovetail.api import Quality
from dovetail.encoding import Image

if TYPE_CHECKING:
    from dovetail_partitioner.partition import Options

ModelArgument = Annotated[Path, typer.Argument(help="ONNX file.", show_default=False)]
DimOption = Annotated[
    list[str] | None,
    typer.Option("--dim", help="Size of a dynamic dimension: NAME=SIZE or INPUT:AXIS=SIZE."),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="Real inputs: an .npz with one array an input, rows along axis 0, or a folder of "
        "them. Made up where not given.",
    ),
]
CostsOption = Annotated[
    Path | None,
    typer.Option("--costs", help="Cost profile to use (costs.json); measured where not given."),
]
ImageOption = Annotated[
    str | None,
    typer.Option(
        "--image",
        help="The input that was made from 8-bit pixels, x = (pixel * scale - mean) / std: "
        "'NAME scale=1/255 mean=0.485,0.456,0.406 std=0.229,0.224,0.225 layout=NCHW'.",
    ),
]
SegmentsOption = Annotated[
    int, typer.Option("--max-segments", min=1, max=20, help="Most pieces the model is cut into.")
]
Top1Option = Annotated[
    float,
    typer.Option(
        "--min-top1", min=0.0, max=1.0, help="Least share of rows whose top answer must stay."
    ),
]
ErrorOption = Annotated[
    float,
    typer.Option(
        "--max-error",
        min=0.0,
        help="Most max|a-b| / max|a| of outputs that are not scores.",
    ),
]
ThreadsOption = Annotated[
    int, typer.Option("--threads", min=1, help="Threads that times are measured with.")
]


def dims(given: list[str] | None) -> dict[str, int]:
    """Read `--dim` options; raises `typer.BadParameter`."""
    bound = {}
    for text in given or ():
        name, _, value = text.rpartition("=")
        if not name or not value.isdigit() or int(value) < 1:
            raise typer.BadParameter(
                f"{text!r}: expected NAME=SIZE with a size of 1 or more", param_hint="--dim"
            )
        bound[name] = int(value)
    return bound


def parse_image(text: str | None) -> Image | None:
    """Read an `--image` option; raises `typer.BadParameter`."""
    if text is None:
        return None
    name, *settings = text.split()
    fields: dict[str, object] = {"input": name}
    try:
        for setting in settings:
            key, _, value = setting.partition("=")
            fields[key] = value if key == "layout" else _figures(key, value)
        return Image.model_validate(fields)
    except (ValueError, ZeroDivisionError, ValidationError) as error:
        raise typer.BadParameter(
            f"{text!r}: expected 'NAME scale=1/255 mean=M,M,M std=S,S,S layout=NCHW' ({error})",
            param_hint="--image",
        ) from error


def _figures(key: str, text: str) -> float | tuple[float, ...]:
    figures = tuple(_figure(part) for part in text.split(","))
    return figures[0] if key == "scale" else figures


def _figure(text: str) -> float:
    top, slash, bottom = text.partition("/")
    return float(top) / float(bottom) if slash else float(top)


def options(
    *,
    dim: list[str] | None,
    image: str | None,
    max_segments: int,
    min_top1: float,
    max_error: float,
    threads: int,
) -> "Options":
    """The partitioner's options; raises `typer.BadParameter`."""
    from dovetail_partitioner.partition import Options

    return Options(
        bind=dims(dim),
        image=parse_image(image),
        quality=Quality(min_top1_agreement=min_top1, max_error=max_error),
        max_segments=max_segments,
        threads=threads,
    )
