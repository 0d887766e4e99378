"""Crops of real photographs, as the classifiers of the proving ground take them."""

from functools import cache

import numpy as np
from examples.data import SCIKIT_IMAGE, SCIKIT_LEARN
from examples.registry import fetch
from numpy.typing import NDArray
from PIL import Image

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB, in units of 255
STD = (0.229, 0.224, 0.225)

_PHOTOS = (
    (SCIKIT_IMAGE, "skimage/data/astronaut.png"),
    (SCIKIT_IMAGE, "skimage/data/chelsea.png"),
    (SCIKIT_IMAGE, "skimage/data/coffee.png"),
    (SCIKIT_IMAGE, "skimage/data/hubble_deep_field.jpg"),
    (SCIKIT_IMAGE, "skimage/data/ihc.png"),
    (SCIKIT_IMAGE, "skimage/data/motorcycle_left.png"),
    (SCIKIT_IMAGE, "skimage/data/retina.jpg"),
    (SCIKIT_IMAGE, "skimage/data/rocket.jpg"),
    (SCIKIT_LEARN, "sklearn/datasets/images/china.jpg"),
    (SCIKIT_LEARN, "sklearn/datasets/images/flower.jpg"),
)


@cache
def crops(size: int) -> tuple[NDArray[np.uint8], ...]:
    """20 square crops: of each photo the centre, then its upper left three quarters.

    Args:
        size: side in pixels.

    Returns:
        uint8 [size, size, 3] each, RGB.
    """
    photos = [Image.open(fetch(package, file)).convert("RGB") for package, file in _PHOTOS]
    return tuple(
        np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC, box=box(*photo.size)))
        for box in (_centre, _upper_left)
        for photo in photos
    )


def nchw(
    pixels: NDArray[np.uint8],
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> NDArray[np.float32]:
    """`(pixel / 255 - mean) / std`: uint8 [h, w, 3] to float32 [1, 3, h, w]."""
    centred = pixels.astype(np.float32) / np.float32(255) - np.array(mean, np.float32)
    normal = (centred / np.array(std, np.float32)).transpose(2, 0, 1)
    return np.ascontiguousarray(normal[None], dtype=np.float32)


def _centre(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _upper_left(width: int, height: int) -> tuple[float, float, float, float]:
    side = 0.75 * min(width, height)
    return 0, 0, side, side
