"""Scores of hidden layers as maps of the image: every position spread over what it sees, so that sums are kept."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter

from scalecov_jax.models.receptive_field import ReceptiveField


class Prior(NamedTuple):
    """How a position is spread over its receptive field: a Gaussian of its middle, cut off at its ends."""

    ratio: float = 0.25  # standard deviation / size of the receptive field
    # spread over the part inside the image, so that nothing is lost; else what lies outside is
    inside_image: bool = True


DERIVED = Prior()
PUBLISHED = Prior(0.5, False)  # "RF = 2 sigma", 100 % inside the receptive field
QUOTED_KERNELS = (*(3,) * 14, 2)  # of the grader's convolutions
# By name; quoted goes with the receptive fields of `quoted_fields`.
PRIORS = {"true": DERIVED, "published": PUBLISHED, "quoted": PUBLISHED}


def quoted_fields(fields: Sequence[ReceptiveField]) -> list[ReceptiveField]:
    """Receptive fields as the source quotes them for the convolutions of its grader: 3, 5, 9, 13, ..., 509, 637.

    They leave out the kernels of the poolings; stride and middle are the true ones.

    Raises:
        ValueError: Not 15 layers.

    Source: de la Torre, Valls and Puig 2020, table of the model.
    """
    if len(fields) != len(QUOTED_KERNELS):
        raise ValueError(
            f"The source quotes receptive fields of {len(QUOTED_KERNELS)} convolutions, got {len(fields)}."
        )
    quoted, size = [], 1
    for field, kernel in zip(fields, QUOTED_KERNELS, strict=True):
        size += (kernel - 1) * field.stride
        quoted.append(ReceptiveField(size, field.stride, field.offset + (field.size - size) // 2))
    return quoted


def spread(
    field: ReceptiveField, positions: int, pixels: int, prior: Prior = DERIVED
) -> Float[np.ndarray, "P I"]:
    """Share of each pixel (row) in each position of a layer (column) along one axis; columns add up to 1 if `inside_image`.

    Raises:
        ValueError: A position sees nothing of the image.
    """
    first = field.stride * np.arange(positions) + field.offset
    at = np.arange(pixels)[:, None]
    middle = first + (field.size - 1) / 2
    density = np.exp(-np.square((at - middle) / (prior.ratio * field.size)) / 2)
    density *= (at >= first) & (at < first + field.size)
    if not (density.sum(0) > 0).all():
        raise ValueError(f"A position of {positions} sees nothing of an image of {pixels} pixels: {field}.")
    if prior.inside_image:
        return density / density.sum(0)
    window = np.arange(field.size) - (field.size - 1) / 2
    return density / np.exp(-np.square(window / (prior.ratio * field.size)) / 2).sum()


def map_scores(
    scores: Float[np.ndarray, "*B h w"], rows: Float[np.ndarray, "H h"], columns: Float[np.ndarray, "W w"]
) -> Float[np.ndarray, "*B H W"]:
    """Scores of a layer, one a position, as maps of the image, by two matrix products with `spread` (the prior is separable)."""
    return rows @ np.asarray(scores, np.float64) @ columns.T


def spread_evenly(scores: Float[np.ndarray, "*B"], height: int, width: int) -> Float[np.ndarray, "*B H W"]:
    """Scores that know no place, such as the bias of a dense layer, as maps of the image."""
    values = np.asarray(scores, np.float64)[..., None, None]
    return np.broadcast_to(values / (height * width), (*np.shape(scores), height, width))


def from_local_mean(
    total: Float[np.ndarray, "N T H W"],
    gradients: Float[np.ndarray, "N T H W C"],
    inputs: Float[np.ndarray, "N H W C"],
    sd: float,
) -> Float[np.ndarray, "N T H W"]:
    """Total maps whose input part has its zero at the local mean m of the image, not at 0; sums stay as they are.

    lambda x = lambda (x - m) + lambda m: the first stays at its pixel, the second is spread like the constant of a layer. m and
    that spread are one Gaussian of sd pixels, reflected at the border, so that nothing is lost. What is darker than its
    surroundings and should be so (lambda < 0) then speaks for the target.
    """
    mean = gaussian_filter(np.asarray(inputs, np.float64), (0, sd, sd, 0))
    kept = (gradients * mean[:, None]).sum(-1)
    return total + gaussian_filter(kept, (0, 0, sd, sd)) - kept


def binary_map(total: Float[np.ndarray, "*B H W"], deviations: float = 2.0) -> Bool[np.ndarray, "*B H W"]:
    """Pixels whose score lies more than so many standard deviations of all pixels' scores above their mean.

    Source: de la Torre, Valls and Puig 2020 (2 standard deviations).
    """
    mean, sd = (getattr(total, one)((-2, -1), keepdims=True) for one in ("mean", "std"))
    return total > mean + deviations * sd
