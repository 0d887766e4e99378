"""A PyTorch module in, an ONNX file out, for the `torch` extra.

The module is captured by `torch.export` and written by PyTorch's own ONNX exporter, so what is cut
afterwards is a graph of plain operators and the partitioner needs to know nothing of PyTorch. The
batch is left free wherever every example input has one: a tail answers better when it can put
waiting requests together. PyTorch takes a size of 1 for a constant, so examples of one row are
doubled for the capture.

Reference: PyTorch, `torch.onnx.export(dynamo=True)`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.errors import MissingTool, ModelError

if TYPE_CHECKING:
    import torch


def export_torch(
    module: "torch.nn.Module", example_inputs: Sequence["torch.Tensor"], path: Path
) -> Path:
    """Write a module as an ONNX file.

    Args:
        module: the module; it is exported as for inference, and left in the mode it was in.
        example_inputs: one tensor per positional argument of `forward`. Where all have the same
            size on axis 0, that is the batch, and it stays free.
        path: the file to write; large weights go into a file of their own beside it.

    Returns:
        `path`, for `partition`.

    Raises:
        MissingTool: the `torch` extra is not installed.
        ModelError: PyTorch cannot export the module; the message says why.
    """
    torch = _torch()
    inputs = tuple(example_inputs)
    batched = bool(inputs) and all(tensor.ndim for tensor in inputs)
    batched = batched and len({len(tensor) for tensor in inputs}) == 1
    if batched and len(inputs[0]) == 1:
        inputs = tuple(torch.cat([tensor, tensor]) for tensor in inputs)
    # AUTO: a module that computes with a size of 2 of its own keeps a fixed batch.
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in inputs) if batched else None
    training = module.training
    module.eval()
    try:
        program = torch.onnx.export(
            module, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False
        )
        program.save(path, external_data=True)
    except Exception as error:  # the exporter's errors share no public base class
        raise ModelError(
            f"PyTorch {torch.__version__} cannot export {type(module).__name__}: {error}"
        ) from error
    finally:
        module.train(training)
    return path


def _torch() -> Any:
    try:
        import onnxscript  # noqa: F401, PLC0415  the exporter needs it and names it late
        import torch  # noqa: PLC0415  gigabytes that only this function needs
    except ImportError as error:
        raise MissingTool(
            f"exporting a PyTorch module needs {error.name}: pip install 'dovetail[torch]'"
        ) from error
    return torch
