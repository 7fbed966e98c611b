"""The concept of scale: which part of the image its object covers."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from scalecov_jax.images.boxes import BoxImages
from scalecov_jax.images.example import MIN_IMAGES, Box, Example, Source


def scale_ratio(box: Box, height: int, width: int) -> float:
    """Area of the box over the area of the image, r = (h_b w_b) / (h w).

    The sides follow VOC's inclusive corners: w_b = x_max - x_min + 1.

    Args:
        box: In pixels of the image.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Returns:
        r, in (0, 1] for a box inside its image.

    Source: Graziani et al., On the Scale Invariance in State of the Art CNNs Trained on ImageNet, MAKE 2021,
        regression concept vectors of scale.
    """
    return (box.x_max - box.x_min + 1) * (box.y_max - box.y_min + 1) / (height * width)


def measure(example: Example) -> float:
    """Concept measure: `scale_ratio` of the example's box.

    Raises:
        ValueError: The example has no box.
    """
    if example.box is None:
        raise ValueError(f"{example.name}: scale is measured on a box, and this example has none.")
    height, width = example.image.shape[:2]
    return scale_ratio(example.box, height, width)


def measure_all(source: Source) -> Float[np.ndarray, " N"]:
    """`scale_ratio` of every example; images in folders are not decoded for it."""
    if isinstance(source, BoxImages):
        return np.array([scale_ratio(a.box, a.height, a.width) for a in source.annotations])
    return np.array([measure(source[index]) for index in range(len(source))])


def check_measures(values: Float[np.ndarray, "N"], names: Sequence[str]) -> None:
    """Refuse values of a concept measure that nothing can be regressed on.

    Args:
        values: One an image.
        names: Of the images, in the same order.

    Raises:
        ValueError: Lengths differ, values that are not finite (images are named), fewer than 10, all equal.
    """
    if len(values) != len(names):
        raise ValueError(f"{len(values)} values of the measure for {len(names)} images; expected one each.")
    bad = [name for name, finite in zip(names, np.isfinite(values), strict=True) if not finite]
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise ValueError(
            f"The concept measure is not finite for {len(bad)} images: {', '.join(bad[:10])}{more}."
        )
    if len(values) < MIN_IMAGES:
        raise ValueError(
            f"The concept was measured on {len(values)} images; at least {MIN_IMAGES} are needed."
        )
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        raise ValueError(
            f"The concept measure is {values[0]:g} for all {len(values)} images, so nothing can be regressed "
            "on it. Choose images in which it varies, or another measure."
        )
