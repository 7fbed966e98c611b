"""Shape: means over the instances of an image's mask, such as the area of its nuclei."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Integer
from skimage.measure import label, regionprops

from scalecov_jax.concepts import nuclei
from scalecov_jax.concepts.nuclei import MIN_AREA
from scalecov_jax.imaging.image_set import Example

PROPERTIES = {
    "area": "area",
    "perimeter": "perimeter",
    "eccentricity": "eccentricity",
    "major_axis": "axis_major_length",
    "euler_number": "euler_number",
    "solidity": "solidity",
}


def required_mask(example: Example) -> Integer[np.ndarray, "H W"] | Bool[np.ndarray, "H W"]:
    """The mask of an example.

    Raises:
        ValueError: It has none, or one of another size than its image.
    """
    if example.mask is None:
        raise ValueError(f"{example.name}: needs a mask, and this example has none.")
    if example.mask.shape != example.image.shape[:2]:
        raise ValueError(
            f"{example.name}: the mask has {example.mask.shape[1]} x {example.mask.shape[0]} pixels, the image "
            f"{example.image.shape[1]} x {example.image.shape[0]}."
        )
    return example.mask


def instances(
    mask: Integer[np.ndarray, "H W"] | Bool[np.ndarray, "H W"], *, border: bool = False
) -> Integer[np.ndarray, "H W"]:
    """The instances that are measured, as `nuclei.instances`; `border` keeps what touches the border and is therefore cut.

    A mask holds instance numbers, where what bears one number is one instance, connected or not; or foreground, whose components
    (8-connected) are the instances.
    """
    labels = np.asarray(label(mask, connectivity=2)) if mask.dtype == np.bool_ else mask
    return nuclei.instances(labels, border=border)


def mean_property(name: str, power: int, *, border: bool = False) -> Callable[[Example], float]:
    """Concept measure: the mean of a property over the `instances`, each counting once.

    Properties are as scikit-image defines them: area in pixels; perimeter in pixels along the centres of border pixels;
    eccentricity and major axis in pixels of the ellipse with the same second moments; Euler number (parts minus holes,
    8-connected); solidity (area / area of the convex hull). Times the microns per pixel to the `power`: 0 for pixels,
    1 for lengths, 2 for areas.

    Raises:
        ValueError: When measuring: an example without mask, without an instance, or of unknown microns per pixel where needed.

    Source: Graziani et al., Regression concept vectors for bidirectional explanations in histopathology, iMIMIC 2018.
    """

    def measure(example: Example) -> float:
        if power and not example.mpp:
            raise ValueError(
                f"{example.name}: its microns per pixel are unknown; give them in a column mpp of index.csv, or measure {name} "
                "in pixels."
            )
        regions = regionprops(instances(required_mask(example), border=border))
        if not regions:
            where = "" if border else " off the border (border=1 counts those that touch it)"
            raise ValueError(f"{example.name}: no instance of {MIN_AREA} pixels or more{where}.")
        return (
            float(np.mean([region[PROPERTIES[name]] for region in regions])) * (example.mpp or 1.0) ** power
        )

    return measure


def count(*, border: bool = False) -> Callable[[Example], float]:
    """Concept measure: the number of instances, 0 where there is none; `border` and errors as in `mean_property`."""
    return lambda example: float(instances(required_mask(example), border=border).max())
