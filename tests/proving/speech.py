"""A real voice, and the Silero voice activity detectors' inputs with the state they carry.

A recurrent model's calibration rows must hold states that really occur: each row's state is what
the model itself answered for the frames before it.
"""

import wave
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
from examples.registry import Package, fetch
from numpy.typing import NDArray

from dovetail.tensor import Array

VOICE = Package(
    "useful-moonshine-onnx",
    "20251121",
    {
        "moonshine_onnx/assets/beckett.wav": (
            "e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61"
        )
    },
)
RATE = 16_000  # Hz
CHUNK = 8  # frames in one request to the sequence model

_FRAME, _CONTEXT = 512, 64  # samples: what is new in a frame, what it repeats of the one before


@cache
def frames() -> NDArray[np.float32]:
    """The voice as overlapping frames, one second of silence first: float32 [n, 576] in -1…1."""
    with wave.open(str(fetch(VOICE, "moonshine_onnx/assets/beckett.wav"))) as stream:
        samples = np.frombuffer(stream.readframes(stream.getnframes()), "<i2")
    padded = np.concatenate([np.zeros(RATE + _CONTEXT, np.float32), samples / np.float32(32768)])
    view = np.lib.stride_tricks.sliding_window_view(padded, _CONTEXT + _FRAME)
    return np.ascontiguousarray(view[::_FRAME], dtype=np.float32)


def frame_rows(model: Path) -> list[dict[str, Array]]:
    """Rows for `silero_vad.onnx`: every sixth frame, with the state of the frames before."""
    session = ort.InferenceSession(model)
    state = np.zeros((2, 1, 128), np.float32)
    rows: list[dict[str, Array]] = []
    for frame in frames():
        rows.append({"input": frame[None], "state": state, "sr": np.array(RATE, np.int64)})
        state = session.run(["stateN"], rows[-1])[0]
    return rows[::6]


def chunk_rows(model: Path) -> list[dict[str, Array]]:
    """Rows for `silero_vad_16k_sequence.onnx`: consecutive chunks of `CHUNK` frames."""
    session = ort.InferenceSession(model)
    h = c = np.zeros((1, 1, 128), np.float32)
    rows: list[dict[str, Array]] = []
    for start in range(0, len(frames()) - CHUNK + 1, CHUNK):
        rows.append({"input": frames()[start : start + CHUNK], "h": h, "c": c})
        h, c = session.run(["hn", "cn"], rows[-1])
    return rows
