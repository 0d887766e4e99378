"""Fits the quantisation tables of every tensor that may cross.

A table is affine per channel: activations of neighbouring channels differ by orders of magnitude,
and one scale for all would leave the quiet ones with two or three codes. Channels are axis 1 of a
rank-4 tensor, else the last axis; a tensor with too few values per channel gets one scale.

Ranges are the smallest and largest value seen. With 4 bits that wastes codes on rare peaks, so a
few shrunken ranges are tried and each channel keeps the one with the least squared error over the
rows (the shrunk range must pay for what it clips).

Ranges, clipping, coded sizes and each proof all want the same activations, and computing them is
most of what a partition takes. So the first rows' are kept, up to a bound of memory; what is beyond
it is computed anew on every pass, one row at a time.

References: Jacob et al., CVPR 2018 (affine quantisation); Banner et al., NeurIPS 2019 (clipping
that minimises the squared error for 4 bits).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dovetail.bundle import BundleConfig
from dovetail.encoding import Affine
from dovetail.runtime import SegmentRuntime
from dovetail.tensor import FLOATS, Array, TensorSpec
from dovetail_partitioner.progress import Report
from dovetail_partitioner.rows import Rows
from dovetail_partitioner.whole import Row

BITS: Mapping[str, int] = {"int8": 8, "uint8": 8, "int4": 4}
# Shrunken ranges that are tried. 8 bits gained nothing from them in the networks tried; 4 bits
# lost up to half of their error (EfficientNet-Lite0, 112x14x14: logits off by 0.10, not 0.21).
_SHRINK: Mapping[int, tuple[float, ...]] = {8: (1.0,), 4: (1.0, 0.85, 0.7, 0.55, 0.4)}
_LEAST_VALUES = 8  # a channel with fewer values over all rows shares one scale with the others
_LEAST_SCALE = 1e-25
_TOP = 1e18  # its square is still a float32
_FIT_ROWS = 32  # rows the squared error is taken over; ranges come from all rows

_KEPT_BYTES = 256 << 20  # of activations, over all rows that are kept

Floats = NDArray[np.float64]
Tables = dict[str, dict[str, Affine]]


def walk(
    config: BundleConfig, runtime: SegmentRuntime, row: Row
) -> Iterator[tuple[int, dict[str, Array]]]:
    """Run a row, or a batch, through the segments, one by one.

    Yields:
        (cut, the tensors that are alive there) from cut 0 to the edge rung's: what crosses at the
        cut, and outputs already made. The runtime must have every cut loaded.
    """
    env = dict(row)
    for cut in range(len(config.segments) + 1):
        if cut:
            env, _ = runtime.run(env, cut - 1, cut)
        yield cut, env


class Walks:
    """What `walk` yields for every row, in the rows' order, each time it is iterated.

    Args:
        config: the bundle's description; its tables are not read.
        runtime: its segments, with every cut loaded.
        rows: calibration rows.
    """

    def __init__(self, config: BundleConfig, runtime: SegmentRuntime, rows: Rows) -> None:
        self._config, self._runtime, self.rows = config, runtime, rows
        self._kept: list[list[tuple[int, dict[str, Array]]]] = []
        self._room = _KEPT_BYTES

    def __iter__(self) -> Iterator[Sequence[tuple[int, dict[str, Array]]]]:
        for index, row in enumerate(self.rows):
            if index < len(self._kept):
                yield self._kept[index]
                continue
            steps = list(walk(self._config, self._runtime, row))
            if index == len(self._kept):
                self._keep(steps)
            yield steps

    def _keep(self, steps: list[tuple[int, dict[str, Array]]]) -> None:
        """Keep a row's tensors where there is room; from the first that has none on, keep none."""
        sizes = {id(array): array.nbytes for _, env in steps for array in env.values()}
        self._room -= sum(sizes.values())
        if self._room >= 0:
            self._kept.append(steps)


@dataclass
class _Fit:
    """What is gathered of one tensor. Arrays have one value a channel, or a single one."""

    spec: TensorSpec
    axis: int | None
    low: Floats = field(default_factory=lambda: np.array([np.inf]))
    high: Floats = field(default_factory=lambda: np.array([-np.inf]))
    values: int = 0
    errors: dict[tuple[int, float], Floats] = field(default_factory=dict)

    def seen(self, array: Array) -> None:
        channels = _by_channel(array, self.axis)
        self.low = np.minimum(self.low, channels.min(axis=1))
        self.high = np.maximum(self.high, channels.max(axis=1))
        self.values += channels.shape[1]

    def measure(self, array: Array, bits: int) -> None:
        channels = _by_channel(array, self.axis)
        for shrink in _SHRINK[bits]:
            scale, zero = (part.astype(np.float32)[:, None] for part in self.codes(bits, shrink))
            codes = np.clip(np.rint(channels / scale + zero), 0, (1 << bits) - 1)
            codes -= zero
            codes *= scale
            codes -= channels
            error = np.einsum("ij,ij->i", codes, codes, dtype=np.float64)
            self.errors[bits, shrink] = self.errors.get((bits, shrink), 0.0) + error

    def codes(self, bits: int, shrink: float) -> tuple[Floats, Floats]:
        """Scale and zero of each channel for the range shrunk towards its nearest point to 0."""
        anchor = np.clip(0.0, self.low, self.high)
        low = anchor + (self.low - anchor) * shrink
        high = anchor + (self.high - anchor) * shrink
        # A channel that hardly varies around a large value: float32 cannot hold finer steps.
        least = np.maximum(np.abs(low), np.abs(high)) * 2.0**-20
        scale = np.maximum((high - low) / ((1 << bits) - 1), least)
        scale[scale < _LEAST_SCALE] = 1.0  # the channel is all zeros
        scale = scale.astype(np.float32).astype(np.float64)
        return scale, np.rint(-low / scale)

    def table(self, bits: int) -> Affine:
        candidates = [(bits, shrink) for shrink in _SHRINK[bits] if (bits, shrink) in self.errors]
        if not candidates:
            return _affine(self.axis, *self.codes(bits, 1.0))
        best = np.argmin(np.stack([self.errors[key] for key in candidates]), axis=0)
        made = [self.codes(*key) for key in candidates]
        scales = np.stack([scale for scale, _ in made])
        zeros = np.stack([zero for _, zero in made])
        pick = np.arange(scales.shape[1])
        return _affine(self.axis, scales[best, pick], zeros[best, pick])


def fit_tables(config: BundleConfig, walks: Walks, *, report: Report) -> Tables:
    """Fit the tables of every float tensor that crosses at some cut.

    Args:
        config: the bundle's description; its tables are not read.
        walks: the calibration rows' tensors at every cut.
        report: told of progress.

    Returns:
        Codec family (`int8`, `int4`, and for inputs `uint8`) -> tensor -> table.
    """
    count = walks.rows.count
    fits = {spec.name: _Fit(spec, _axis(spec, count)) for spec in _floats(config)}
    # Where an input is an image its 8-bit codes are its pixels, which need no table.
    plain = config.inputs if config.image is None else ()
    inputs = {spec.name: _Fit(spec, None) for spec in plain if spec.dtype in FLOATS}
    for done, steps in enumerate(walks):
        report("fitting codecs: ranges", done, count)
        for name, array in _once(config, steps):
            fits[name].seen(array)
            if name in inputs:
                inputs[name].seen(array)
    for done, steps in zip(range(_FIT_ROWS), walks, strict=False):
        report("fitting codecs: clipping", done, min(count, _FIT_ROWS))
        for name, array in _once(config, steps):
            for bits, shrunk in _SHRINK.items():
                if len(shrunk) > 1:
                    fits[name].measure(array, bits)
    tables: Tables = {
        family: {name: fit.table(BITS[family]) for name, fit in fits.items()}
        for family in ("int8", "int4")
    }
    tables["uint8"] = {name: fit.table(8) for name, fit in inputs.items()}
    return {family: named for family, named in tables.items() if named}


def _once(
    config: BundleConfig, steps: Iterable[tuple[int, Mapping[str, Array]]]
) -> Iterator[tuple[str, Array]]:
    """Every float tensor of a row that crosses somewhere, once."""
    done: set[str] = set()
    for cut, env in steps:
        for name in config.crossing(cut):
            if name not in done and config.spec(name).dtype in FLOATS:
                done.add(name)
                yield name, env[name]


def _floats(config: BundleConfig) -> Sequence[TensorSpec]:
    names = sorted({name for cut in range(len(config.segments)) for name in config.crossing(cut)})
    specs = [config.spec(name) for name in names]
    return [spec for spec in specs if spec.dtype in FLOATS]


def _axis(spec: TensorSpec, rows: int) -> int | None:
    """Channel axis; None where a channel would be fitted on too few values."""
    if len(spec.shape) < 2:
        return None
    axis = 1 if len(spec.shape) == 4 else len(spec.shape) - 1
    channels = spec.shape[axis]
    if isinstance(channels, str) or channels == 0:
        return None
    values = spec.nbytes // np.dtype(spec.dtype).itemsize // channels * rows
    return axis if values >= _LEAST_VALUES else None


def _by_channel(array: Array, axis: int | None) -> NDArray[np.float32]:
    """[channels, values], infinities (attention masks) at a value whose square is finite."""
    first = array[None] if axis is None else np.moveaxis(array, axis, 0)
    flat = first.reshape(first.shape[0], -1).astype(np.float32)
    return np.nan_to_num(flat, copy=False, nan=0.0, posinf=_TOP, neginf=-_TOP).clip(-_TOP, _TOP)


def _affine(axis: int | None, scale: Floats, zero: Floats) -> Affine:
    return Affine(
        axis=axis,
        scale=tuple(float(np.float32(value)) for value in scale),
        zero=tuple(int(value) for value in zero),
    )
