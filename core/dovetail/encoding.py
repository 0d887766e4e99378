"""What a bundle tells its codecs: how an input was made from pixels, how tensors are quantised."""

from collections.abc import Sequence
from typing import Literal

from dovetail.tensor import FLOATS, Document, TensorSpec

_LEAST_SCALE = 1e-30  # its inverse is still a float32
_MOST_ZERO = 1 << 22  # beyond it float32 has no half steps left to round


class Image(Document):
    """How an input tensor was made from 8-bit pixels: `x = (pixel * scale - mean) / std`.

    Attributes:
        input: name of the input tensor.
        layout: order of its axes; C is 1 or 3 (RGB).
        scale: factor on the pixel value, often 1/255.
        mean: per channel, in scaled units.
        std: per channel, in scaled units.
    """

    input: str
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def fits(self, channels: int | str) -> bool:
        """Whether the figures can be undone, for that many channels."""
        counts = {len(self.mean), len(self.std)}
        return channels in (1, 3) and counts <= {1, channels} and 0 not in (*self.std, self.scale)


class Affine(Document):
    """Calibrated affine quantisation of one tensor: `real = scale[c] * (code - zero[c])`.

    Attributes:
        axis: channel axis; None for one scale over the whole tensor.
        scale: one value a channel, float32.
        zero: one value a channel: the code that stands for 0.0.
    """

    axis: int | None
    scale: tuple[float, ...]
    zero: tuple[int, ...]

    def fits(self, shape: Sequence[int | str]) -> bool:
        """Whether the table has one usable scale and zero a channel of a tensor of that shape."""
        if self.axis is None:
            count: int | str = 1
        else:
            count = shape[self.axis] if 0 <= self.axis < len(shape) else 0
        usable = all(_LEAST_SCALE <= scale <= 1 / _LEAST_SCALE for scale in self.scale)
        bounded = all(abs(zero) <= _MOST_ZERO for zero in self.zero)
        return len(self.scale) == count == len(self.zero) and usable and bounded


def image_problem(image: Image, inputs: Sequence[TensorSpec]) -> str | None:
    """Why an image declaration does not fit a model's inputs; None where it does."""
    spec = next((one for one in inputs if one.name == image.input), None)
    if spec is None or spec.dtype not in FLOATS or len(spec.shape) != 4:
        return f"the image {image.input!r} is not a float input of rank 4"
    if not image.fits(spec.shape[1] if image.layout == "NCHW" else spec.shape[3]):
        return f"the image's scale, mean and std do not fit input {image.input!r}"
    return None
