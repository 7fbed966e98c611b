"""Nuisances: size of the image, brightness, tint, position and compression, which a probe of a concept should not merely read."""

from collections.abc import Callable

import numpy as np
from skimage.color import rgb2gray

from scalecov_jax.imaging.image_set import Box, Example


def image_width(example: Example) -> float:
    """Concept measure: width of the stored image in pixels, which tells how much it is scaled for a network."""
    return float(example.image.shape[1])


def image_height(example: Example) -> float:
    """Concept measure: height of the image in pixels."""
    return float(example.image.shape[0])


def image_area(example: Example) -> float:
    """Concept measure: width times height of the image in pixels."""
    return image_width(example) * image_height(example)


def mean_channel(channel: int) -> Callable[[Example], float]:
    """Concept measure: mean of a channel (0 red, 1 green, 2 blue) in 0-255."""
    return lambda example: float(example.image[..., channel].mean(dtype=np.float64))


def mean_luminance(example: Example) -> float:
    """Concept measure: mean of 0.2125 R + 0.7154 G + 0.0721 B in 0-255."""
    return 255 * float(rgb2gray(example.image).mean())


def luminance_sd(example: Example) -> float:
    """Concept measure: standard deviation of that luminance over the pixels (RMS contrast) in 0-255."""
    return 255 * float(rgb2gray(example.image).std())


def box_centre_x(example: Example) -> float:
    """Concept measure: centre of the box from left (0) to right (1), (x_min - 1 + x_max) / 2 / width.

    Raises:
        ValueError: The example has no box.
    """
    box = _box(example)
    return (box.x_min - 1 + box.x_max) / 2 / example.image.shape[1]


def box_centre_y(example: Example) -> float:
    """Concept measure: centre of the box from top (0) to bottom (1); errors as in `box_centre_x`."""
    box = _box(example)
    return (box.y_min - 1 + box.y_max) / 2 / example.image.shape[0]


def file_size(example: Example) -> float:
    """Concept measure: bytes of the image file per pixel, which rises with detail and with the quality of the compression.

    Raises:
        ValueError: The image comes from no file, or its pixels were changed since.
    """
    if example.file_bytes is None:
        raise ValueError(f"{example.name}: the size of its file is not known.")
    return example.file_bytes / (example.image.shape[0] * example.image.shape[1])


def _box(example: Example) -> Box:
    if example.box is None:
        raise ValueError(f"{example.name}: needs a box, and this example has none.")
    return example.box
