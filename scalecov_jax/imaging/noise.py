"""Images of white noise: no object, no scale, nothing but their own width."""

import numpy as np
from jaxtyping import UInt8

from scalecov_jax.imaging.image_set import Example


def white_noise(seed: int, index: int, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """RGB noise, each pixel and channel uniform on 0-255 and independent of all others.

    Args:
        seed: Of the whole set.
        index: Of the image among those of its size; the image depends on (seed, size, index) alone.
        size: Height and width in pixels.

    Source: Graziani et al. 2021, section 4.2.
    """
    return np.random.default_rng((seed, size, index)).integers(0, 256, (size, size, 3), np.uint8)


def examples(count: int, size: int, seed: int) -> list[Example]:
    """The first `count` noise images of one size, as a source; resizing them to that size changes no pixel.

    Raises:
        ValueError: `count` or `size` below 1.
    """
    if min(count, size) < 1:
        raise ValueError(f"count and size must be at least 1, got {count} and {size}.")
    return [
        Example(white_noise(seed, index, size), None, None, None, "", f"noise_{size}_{index}")
        for index in range(count)
    ]
