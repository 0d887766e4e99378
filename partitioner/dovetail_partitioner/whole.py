"""The uncut model as ONNX Runtime runs it: what every rung is compared with.

Two uncut models matter: the user's own file, which `partition` compares with, and all segments of a
bundle joined into one session, which is all that `verify` has once the file is gone. Both are a
function from a row to answers, so the proof does not care which it is given.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnxruntime as ort

from dovetail.bundle import Bundle
from dovetail.errors import ModelError
from dovetail.runtime import SegmentRuntime, session_options
from dovetail.tensor import Array, TensorSpec

Row = Mapping[str, Array]
Answers = dict[str, Array]
Model = Callable[[Row], Answers]


def load_whole(
    path: Path, outputs: Sequence[TensorSpec], *, threads: int, optimize: bool = True
) -> Model:
    """Load an ONNX file as one session.

    Args:
        path: the model; its external data lies beside it.
        outputs: the outputs to answer with.
        threads: intra-op threads.
        optimize: graph optimisation; off where bits are compared.

    Raises:
        ModelError: ONNX Runtime refuses the model, or, when it is called, the row.
    """
    session = open_session(path, session_options(threads=threads, optimize=optimize))
    names = [spec.name for spec in outputs]

    def run(row: Row) -> Answers:
        try:
            return dict(zip(names, session.run(names, dict(row)), strict=True))
        except Exception as error:  # ONNX Runtime's errors share no public base class
            raise ModelError(f"the model does not run on this row: {error}") from error

    return run


def open_session(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """A CPU session of an ONNX file; raises `ModelError` where ONNX Runtime refuses it."""
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no public base class
        raise ModelError(f"ONNX Runtime {ort.__version__} refuses {path.name}: {error}") from error


def joined(bundle: Bundle, *, optimize: bool) -> Model:
    """All segments of a bundle as one session."""
    runtime = SegmentRuntime(bundle, (), optimize=optimize)
    last = len(bundle.config.segments)
    outputs = [spec.name for spec in bundle.config.outputs]

    def run(row: Row) -> Answers:
        env, _ = runtime.run(row, 0, last)
        return {name: env[name] for name in outputs}

    return run
