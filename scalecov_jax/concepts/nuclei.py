"""The concept of nucleus size: the mean area of the whole nuclei in a patch, and the magnification that it tells."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer, UInt8
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.morphology import closing, footprint_rectangle

MIN_AREA = 3

# Mean area in pixels over the training patches of each magnification (Graziani et al. 2021, the authors' transfer notebook).
PUBLISHED_MEANS: Mapping[float, float] = MappingProxyType(
    {
        5.0: 21.36937,
        8.0: 43.15355,
        10.0: 67.30201,
        15.0: 142.39030,
        20.0: 225.69604,
        30.0: 489.98015,
        40.0: 913.81876,
    }
)


class Nuclei(NamedTuple):
    """How many whole nuclei a patch holds, and their mean area in pixels of the patch."""

    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    mean_area: float


def mean_area(mask: UInt8[np.ndarray, "H W"]) -> Nuclei | None:
    """Nuclei of a mask, as published.

    Binary closing of mask > t with a 2 x 2 square, t Otsu's threshold of this patch; its components (8-connected, the default of
    scikit-image) that do not touch the border and cover at least 3 pixels. Nuclei that touch each other count as one, and so does
    what a gap of one pixel parts; such a gap to the left or upper border is filled too, which removes the nucleus.

    Their number and mean area; None without a nucleus, as in a constant mask.

    Source: Graziani et al. 2021, and the authors' notebook transfer_histopathology.
    """
    closed = closing(mask > threshold_otsu(mask), footprint_rectangle((2, 2)))
    return mean_area_of_instances(np.asarray(label(closed, connectivity=2)))


def mean_area_of_instances(labels: Integer[np.ndarray, "H W"]) -> Nuclei | None:
    """Nuclei of instance numbers: those that do not touch the border and cover at least 3 pixels.

    Their number and mean area; None without a nucleus.
    """
    areas = np.bincount(instances(labels).ravel())[1:]
    return Nuclei(len(areas), float(areas.mean())) if len(areas) else None


def instances(labels: Integer[np.ndarray, "H W"], *, border: bool = False) -> Integer[np.ndarray, "H W"]:
    """Those of at least 3 pixels and, without `border`, off the border of the image, numbered from 1; the others are 0."""
    numbers, inverse, areas = np.unique(labels, return_inverse=True, return_counts=True)
    kept = (numbers != 0) & (areas >= MIN_AREA)
    if not border:
        edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        kept &= ~np.isin(numbers, edge)
    return np.where(kept, np.cumsum(kept), 0)[inverse.reshape(labels.shape)]


def class_means(
    areas: Float[np.ndarray, " N"], magnifications: Float[np.ndarray, " N"]
) -> dict[float, float]:
    """Mean area of the patches of each magnification, by rising magnification.

    Areas are in pixels; of the training patches only, or the classes leak.

    Raises:
        ValueError: No patch, or values that are not finite.
    """
    bad = np.flatnonzero(~(np.isfinite(areas) & np.isfinite(magnifications)))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(areas)} patches have an area or a magnification that is not finite, at {bad[:10].tolist()}."
        )
    if not len(areas):
        raise ValueError("The areas of training patches are needed for class means, and there are none.")
    means = pd.Series(areas.astype(np.float64)).groupby(magnifications.astype(np.float64)).mean()
    return means.to_dict()  # pyright: ignore[reportReturnType]


def nearest_class(areas: Float[np.ndarray, " N"], means: Mapping[float, float]) -> Float[np.ndarray, " N"]:
    """The magnification m whose mean area is nearest, argmin_m |area - mean_m|; of equally near ones the lower.

    Raises:
        ValueError: No class, or areas that are not finite.

    Source: Graziani et al. 2021, and the authors' notebook transfer_histopathology.
    """
    if not means:
        raise ValueError("No class means: expected the mean area of one magnification or more.")
    bad = np.flatnonzero(~np.isfinite(areas))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(areas)} areas are not finite, at {bad[:10].tolist()}.")
    classes = sorted(means)
    centres = np.array([means[one] for one in classes])
    return np.array(classes, np.float64)[np.abs(areas[:, None] - centres[None]).argmin(axis=1)]
