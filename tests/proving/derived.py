"""Trained networks in the number formats that devices run: QDQ, dynamically quantised, float16.

No wheel of the proving ground carries a trained network whose *operators* are quantised, so trained
ones are converted with the tools users convert with, those that ship in ONNX Runtime. Each format
breaks a cut in its own way: a QDQ pair that is parted changes what is fused; a dynamic scale is
taken over a whole batch, so a row's answer follows its neighbours; a float16 tensor that crosses is
rounded where the uncut model may keep more bits.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from examples.registry import cache_root
from onnxruntime import quantization
from onnxruntime.transformers.float16 import convert_float_to_float16

from dovetail.tensor import Array

_RECIPE = 1  # raised when a conversion changes, so that cached files are made anew

Make = Callable[[Path, Path], None]


def qdq(source: Path, rows: Sequence[Mapping[str, Array]]) -> Path:
    """Static quantisation to uint8 activations and int8 weights, as Q/DQ pairs.

    Args:
        source: a float32 network.
        rows: inputs that the ranges of activations are taken from.
    """

    def make(model: Path, target: Path) -> None:
        folded = target.with_suffix(".folded")  # batch norms, which have no integer kernel
        quantization.quant_pre_process(model, folded, skip_symbolic_shape=True)
        quantization.quantize_static(
            folded,
            target,
            _Reader(rows),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # 7 bits: without VNNI the integer kernels saturate at 8
        )
        folded.unlink()

    return _made(source, "qdq", make)


def dynamic(source: Path) -> Path:
    """Dynamic quantisation: DynamicQuantizeLinear, MatMulInteger."""

    def make(model: Path, target: Path) -> None:
        quantization.quantize_dynamic(
            model, target, weight_type=quantization.QuantType.QInt8, reduce_range=True
        )

    return _made(source, "dynamic", make)


def half(source: Path) -> Path:
    """Every float32 tensor becomes float16, inputs and outputs included."""

    def make(model: Path, target: Path) -> None:
        onnx.save(convert_float_to_float16(onnx.load(model)), target)

    return _made(source, "half", make)


def _made(source: Path, how: str, make: Make) -> Path:
    path = cache_root() / "derived" / f"{source.stem}-{how}-{_RECIPE}.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".part-{os.getpid()}")
        make(source, part)
        part.replace(path)
    return path


class _Reader(quantization.CalibrationDataReader):
    """Rows one after the other, then None."""

    def __init__(self, rows: Sequence[Mapping[str, Array]]) -> None:
        self._rows = iter(rows)

    def get_next(self) -> Mapping[str, Array] | None:
        """The next row."""
        return next(self._rows, None)


def halved(rows: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
    """Rows with their float32 inputs as float16."""
    return [
        {
            name: array.astype(np.float16) if array.dtype == np.float32 else array
            for name, array in row.items()
        }
        for row in rows
    ]
