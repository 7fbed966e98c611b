"""Shape: means over the instances of an image's mask, such as the area of its nuclei."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Integer
from skimage.measure import label, regionprops

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
    """The instances that are measured, numbered from 1.

    As in `nuclei`, those of at least 3 pixels; and without `border` those that do not touch the border of the image.

    Args:
        mask: Instance numbers, where what bears one number is one instance, connected or not; or foreground, whose components
            (8-connected) are the instances.
        border: Keep what touches the border and is therefore cut.
    """
    labels = np.asarray(label(mask, connectivity=2)) if mask.dtype == np.bool_ else mask
    numbers, inverse, areas = np.unique(labels, return_inverse=True, return_counts=True)
    kept = (numbers != 0) & (areas >= MIN_AREA)
    if not border:
        edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        kept &= ~np.isin(numbers, edge)
    return np.where(kept, np.cumsum(kept), 0)[inverse.reshape(mask.shape)]


def mean_property(name: str, power: int, *, border: bool = False) -> Callable[[Example], float]:
    """Concept measure: the mean of a property over the instances, each counting once.

    Args:
        name: One of `PROPERTIES`, as scikit-image defines them: area in pixels; perimeter in pixels along the centres of border
            pixels; eccentricity and major axis in pixels of the ellipse with the same second moments; Euler number (parts minus
            holes, 8-connected); solidity (area / area of the convex hull).
        power: The property is multiplied by this power of the microns per pixel: 0 for pixels, 1 for lengths, 2 for areas.
        border: See `instances`.

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
