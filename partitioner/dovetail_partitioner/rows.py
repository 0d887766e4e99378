"""Calibration rows: what codecs are fitted on and every rung is proved on.

A row is one request of batch 1. Rows are given (an .npz, a folder of them, or arrays), or, where
none are, generated from the model's digest: the same model always gets the same rows. Generated
rows show that a cut is right, but they are not the data the model was trained for, so what they
say of a codec's effect is a hint; whoever prints a proof says which kind it was made on.

Integer inputs are the hard part of making rows up: a token id beyond the vocabulary makes the model
fail. So the largest value each one takes is found by trying.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dovetail.encoding import Image
from dovetail.errors import CalibrationError, DovetailError, InvalidTensor
from dovetail.npz import read_npz
from dovetail.tensor import FLOATS, Array, TensorSpec
from dovetail_partitioner.whole import Answers, Model, Row

Calibration = Path | Mapping[str, Array]

GENERATED = 8  # enough to show variation; more would only take longer
_BOUNDS = (2, 16, 128, 256, 1_000, 5_000, 10_000, 20_000, 30_000, 50_000)


@dataclass(frozen=True)
class Rows:
    """Rows in a fixed order, read file by file.

    Attributes:
        parts: each gives the rows of one file; called again for every pass.
        count: how many rows there are.
        generated: whether they were made up.
        digest: `sha256:…` of names, dtypes, shapes and bytes of all rows.
    """

    parts: tuple[Callable[[], list[Row]], ...]
    count: int
    generated: bool
    digest: str

    def __iter__(self) -> Iterator[Row]:
        for part in self.parts:
            yield from part()

    def batches(self, size: int) -> Iterator[list[Row]]:
        """Rows in lists of `size`, the last one shorter."""
        group: list[Row] = []
        for row in self:
            group.append(row)
            if len(group) == size:
                yield group
                group = []
        if group:
            yield group


def given_rows(source: Calibration, specs: Sequence[TensorSpec]) -> Rows:
    """Read calibration rows.

    Args:
        source: an .npz, a folder of .npz (taken in the order of their names), or arrays. Each
            holds one array an input, whose axis 0 counts rows. An input whose own axis 0 is the
            batch may have that axis as its rows; any other gets the row axis in front.
        specs: the model's inputs.

    Raises:
        CalibrationError: a file is missing or is no .npz, an input is missing or unknown, or an
            array does not have the dtype or shape the model declares.
    """
    if isinstance(source, Mapping):
        rows = _rows_of(source, specs, "the calibration arrays")
        return _counted((lambda: rows,), generated=False)
    return _counted(tuple(_reader(file, specs) for file in _files(source)), generated=False)


def first_row(source: Calibration) -> dict[str, Array]:
    """The first row, every input with a row axis of size 1 in front or as its batch.

    The importer needs it before anything is known of the model: it binds sizes that the model
    leaves open, and is what an untrusted model is first run on.

    Raises:
        CalibrationError: the source holds no arrays that can be read.
    """
    if isinstance(source, Mapping):
        arrays = source
    else:
        arrays = read_npz(_files(source)[0], CalibrationError)
    return {name: np.asarray(array)[:1] for name, array in arrays.items() if np.ndim(array)}


def generated_rows(
    specs: Sequence[TensorSpec], image: Image | None, seed: str, model: Model
) -> Rows:
    """Make rows up.

    Args:
        specs: the model's inputs.
        image: which of them was made from pixels, and how.
        seed: the model's digest; the same one gives the same rows.
        model: the whole model, asked which integers it takes.

    Raises:
        CalibrationError: the model runs on none of the rows that were tried.
    """
    number = int(hashlib.sha256(seed.encode()).hexdigest()[:16], 16)
    bounds = _integer_bounds(specs, model)
    rows = []
    for index in range(GENERATED):
        rng = np.random.default_rng((number, index))
        rows.append({spec.name: _made_up(spec, image, bounds, rng) for spec in specs})
    return _counted((lambda: list(rows),), generated=True)


def stack(rows: Sequence[Mapping[str, Array]], specs: Sequence[TensorSpec]) -> Row | None:
    """Join rows into one batch along axis 0.

    Returns:
        The batch; None where a tensor without a batch axis differs from row to row.
    """
    batch: dict[str, Array] = {}
    for spec in specs:
        arrays = [row[spec.name] for row in rows]
        if spec.shape and isinstance(spec.shape[0], str):
            batch[spec.name] = np.concatenate(arrays)
        elif all(np.array_equal(arrays[0], array) for array in arrays[1:]):
            batch[spec.name] = arrays[0]
        else:
            return None
    return batch


def _counted(parts: tuple[Callable[[], list[Row]], ...], *, generated: bool) -> Rows:
    sha, count = hashlib.sha256(), 0
    for part in parts:
        for row in part():
            count += 1
            for name, array in sorted(row.items()):
                sha.update(f"{name} {array.dtype.name} {array.shape} ".encode())
                sha.update(np.ascontiguousarray(array).tobytes())
    if count == 0:
        raise CalibrationError("the calibration holds no rows; expected at least one")
    return Rows(parts, count, generated, "sha256:" + sha.hexdigest())


def _files(source: Path) -> list[Path]:
    files = sorted(source.glob("*.npz")) if source.is_dir() else [source]
    if not files:
        raise CalibrationError(f"{source} holds no .npz file; expected one array an input in each")
    return files


def _reader(file: Path, specs: Sequence[TensorSpec]) -> Callable[[], list[Row]]:
    return lambda: _rows_of(read_npz(file, CalibrationError), specs, str(file))


def _rows_of(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], where: str) -> list[Row]:
    names = sorted(spec.name for spec in specs)
    if sorted(arrays) != names:
        raise CalibrationError(
            f"{where} has arrays {sorted(arrays)}; the model's inputs are {names}"
        )
    split = {spec.name: _split(arrays[spec.name], spec, where) for spec in specs}
    counts = {name: len(rows) for name, rows in split.items()}
    if len(set(counts.values())) > 1:
        raise CalibrationError(f"{where}: the inputs have different numbers of rows: {counts}")
    return [dict(zip(split, row, strict=True)) for row in zip(*split.values(), strict=True)]


def _split(array: Array, spec: TensorSpec, where: str) -> list[Array]:
    has_row_axis = array.ndim == len(spec.shape) + 1
    batched = bool(spec.shape) and (isinstance(spec.shape[0], str) or spec.shape[0] == 1)
    if not has_row_axis and not (batched and array.ndim == len(spec.shape)):
        raise CalibrationError(
            f"{where}: input {spec.name!r} has shape {list(array.shape)}; a row of the model is "
            f"{list(spec.shape)}, so expected {['rows', *spec.shape]}"
        )
    rows = [
        np.ascontiguousarray(array[i] if has_row_axis else array[i : i + 1])
        if array.ndim > 1
        else np.asarray(array[i] if has_row_axis else array[i : i + 1])
        for i in range(len(array))
    ]
    for row in rows:
        try:
            spec.check(row)
        except InvalidTensor as error:
            raise CalibrationError(f"{where}: {error}") from error
        if batched and row.shape[0] != 1:
            raise CalibrationError(
                f"{where}: input {spec.name!r}: a row has batch {row.shape[0]}, expected 1"
            )
    return rows


def _integer_bounds(specs: Sequence[TensorSpec], model: Model) -> dict[str, int]:
    """The largest value, plus one, that each integer input was seen to take."""
    rng = np.random.default_rng(0)
    base = {spec.name: _made_up(spec, None, {}, rng) for spec in specs}
    shapes = _shapes(_tried(model, base))
    bounds = {}
    for spec in specs:
        if not _is_free_integer(spec):
            continue
        bounds[spec.name] = 1
        for bound in (b for b in _BOUNDS if b - 1 <= np.iinfo(spec.dtype).max):
            full = np.full_like(base[spec.name], bound - 1)
            try:
                made = model({**base, spec.name: full})
            except DovetailError:
                break
            if _shapes(made) != shapes:
                break  # it is a size, not a choice: larger ones only cost memory
            bounds[spec.name] = bound
    return bounds


def _tried(model: Model, row: Row) -> Answers:
    try:
        return model(row)
    except DovetailError as error:
        raise CalibrationError(
            f"the model does not run on made-up rows: {error}; give real ones with --calibration"
        ) from error


def _shapes(answers: Answers) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in answers.items()}


def _is_free_integer(spec: TensorSpec) -> bool:
    return spec.dtype not in FLOATS and spec.dtype != "bool" and not _is_mask(spec.name)


def _is_mask(name: str) -> bool:
    return "mask" in name.lower()


def _made_up(
    spec: TensorSpec, image: Image | None, bounds: Mapping[str, int], rng: np.random.Generator
) -> Array:
    shape = tuple(1 if isinstance(dim, str) else dim for dim in spec.shape)
    if image is not None and image.input == spec.name:
        return from_pixels(image, _pixels(shape, image.layout, rng)).astype(spec.dtype)
    if spec.dtype in FLOATS:
        layout = _layout(shape)
        if layout is None:
            # Rows differ in strength too, so that an output that follows only it varies.
            return np.asarray(rng.normal(size=shape) * rng.uniform(0.3, 2.0)).astype(spec.dtype)
        pixels = _pixels(shape, layout, rng).astype(np.float32)
        return ((pixels / 255.0 - 0.45) / 0.22).astype(spec.dtype)
    if spec.dtype == "bool" or _is_mask(spec.name):
        return np.ones(shape, spec.dtype)
    return np.asarray(rng.integers(0, bounds.get(spec.name, 1), shape)).astype(spec.dtype)


def from_pixels(image: Image, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The declared input of 8-bit pixels in the input's own layout."""
    axis = [1, -1, 1, 1] if image.layout == "NCHW" else [1, 1, 1, -1]
    mean = np.asarray(image.mean, np.float32).reshape(axis)
    std = np.asarray(image.std, np.float32).reshape(axis)
    real: NDArray[np.float32] = (pixels.astype(np.float32) * np.float32(image.scale) - mean) / std
    return real


def _layout(shape: tuple[int, ...]) -> str | None:
    """Order of the axes of something that looks like an image; None for anything else."""
    if len(shape) != 4:
        return None
    if shape[1] in (1, 3) and min(shape[2:]) >= 8:
        return "NCHW"
    return "NHWC" if shape[3] in (1, 3) and min(shape[1:3]) >= 8 else None


def _pixels(shape: tuple[int, ...], layout: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Noise with the 1/f spectrum of photographs, over a few flat rectangles with sharp edges."""
    n, a, b, c = shape
    (channels, height, width) = (a, b, c) if layout == "NCHW" else (c, a, b)
    up = np.fft.fftfreq(height)[:, None]
    along = np.fft.rfftfreq(width)[None, :]
    falloff = 1.0 / np.maximum(np.hypot(up, along), 1.0 / max(height, width))
    planes = []
    for _ in range(n):
        light = _shaped(falloff, (height, width), rng)
        colours = [light + 0.4 * _shaped(falloff, (height, width), rng) for _ in range(channels)]
        one = np.stack(colours) * rng.uniform(25, 60) + rng.uniform(80, 170)
        for _ in range(3):
            top, left = rng.integers(0, height), rng.integers(0, width)
            one[:, top : top + height // 3, left : left + width // 3] += rng.uniform(-80, 80)
        planes.append(one)
    pixels = np.clip(np.rint(np.stack(planes)), 0, 255).astype(np.uint8)
    return pixels if layout == "NCHW" else np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def _shaped(
    falloff: NDArray[np.float64], shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    spectrum = np.fft.rfft2(rng.normal(size=shape)) * falloff
    plane: NDArray[np.float64] = np.fft.irfft2(spectrum, s=shape)
    plane -= plane.mean()
    return plane / (plane.std() or 1.0)
