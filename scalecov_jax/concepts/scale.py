"""The concepts of scale: which part of the image its object covers, and how far one pixel reaches."""

import math

from scalecov_jax.imaging.image_set import Box, Example


def scale_ratio(box: Box, height: int, width: int) -> float:
    """Area of the box over the area of the image, r = (h_b w_b) / (h w).

    The sides follow VOC's inclusive corners: w_b = x_max - x_min + 1.

    r is in (0, 1] for a box inside its image, of `height` and `width` pixels.

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


def sqrt_scale(example: Example) -> float:
    """Concept measure sqrt(r): a length rather than an area; r and errors as in `measure`."""
    return math.sqrt(measure(example))


def log2_mpp(example: Example) -> float:
    """Concept measure log2 of the microns per pixel: 1 more is half the magnification.

    Raises:
        ValueError: They are not known of the example.
    """
    if not example.mpp:
        raise ValueError(
            f"{example.name}: its microns per pixel are unknown; give them in a column mpp of index.csv."
        )
    return math.log2(example.mpp)


def log_scale(example: Example) -> float:
    """Concept measure ln(r): equal steps are equal ratios of size; r and errors as in `measure`."""
    return math.log(measure(example))
