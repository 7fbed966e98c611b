"""Texture: properties of the grey-level co-occurrence matrix (GLCM) of an image, or of its foreground."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, UInt8
from skimage.color import rgb2gray
from skimage.feature import graycomatrix

from scalecov_jax.concepts.shape import required_mask
from scalecov_jax.imaging.image_set import Example

PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "asm", "energy", "correlation")
ANGLES = (0, 45, 90, 135)
_LEVELS = 256


def grey_levels(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
    """Luminance 0.2125 R + 0.7154 G + 0.0721 B of scikit-image, rounded to 8 bits."""
    return np.rint(255 * rgb2gray(image)).astype(np.uint8)


def cooccurrence(
    grey: UInt8[np.ndarray, "H W"],
    distance: int,
    angle: int,
    mask: Bool[np.ndarray, "H W"] | None = None,
    *,
    published: bool = False,
) -> Float[np.ndarray, "256 256"]:
    """Share p(i, j) of the pairs of pixels at one offset whose levels are i and j, in either order.

    The offset is (d sin a, d cos a) rows down and columns to the right, rounded, as scikit-image takes it: 45 degrees point to
    the lower right. With a mask only pairs with both pixels inside count.

    Published divides by the number of all pairs of the image, not of those inside the mask, so that p sums to less than 1: what
    the published code had when scikit-image (before 0.15) did not divide again.

    Raises:
        ValueError: No such pair.

    Source: Haralick et al., Textural features for image classification, IEEE Trans. SMC 1973; the masked one Graziani et al.,
        Regression concept vectors for bidirectional explanations in histopathology, iMIMIC 2018.
    """
    inside = grey.astype(np.uint16) if mask is None else np.where(mask, grey, np.uint16(_LEVELS))
    counts = graycomatrix(inside, [distance], [math.radians(angle)], _LEVELS + 1, symmetric=True)[:, :, 0, 0]
    kept = counts[:_LEVELS, :_LEVELS].astype(np.float64)
    if not kept.any():
        height, width = grey.shape
        where = f"the {width} x {height} pixels" if mask is None else "the mask"
        raise ValueError(f"no two pixels lie {distance} px apart at {angle} degrees inside {where}")
    return kept / (counts if published else kept).sum(dtype=np.float64)


def glcm_property(p: Float[np.ndarray, "G G"], name: str) -> float:
    """One number of a symmetric co-occurrence matrix.

    contrast sum p (i - j)^2; dissimilarity sum p |i - j|; homogeneity sum p / (1 + (i - j)^2); asm (angular second moment)
    sum p^2; energy sqrt(asm); correlation sum p (i - m)(j - m) / sum p (i - m)^2 with m = sum p i, and 1 where all levels are
    equal, as in scikit-image.

    Source: Haralick et al. 1973.
    """
    i, j = np.ogrid[: len(p), : len(p)]
    match name:
        case "contrast":
            return float((p * (i - j) ** 2).sum())
        case "dissimilarity":
            return float((p * np.abs(i - j)).sum())
        case "homogeneity":
            return float((p / (1 + (i - j) ** 2)).sum())
        case "asm":
            return float((p**2).sum())
        case "energy":
            return math.sqrt((p**2).sum())
        case "correlation":
            mean = (p * i).sum()
            variance = (p * (i - mean) ** 2).sum()
            return 1.0 if variance < 1e-30 else float((p * (i - mean) * (j - mean)).sum() / variance)
    raise ValueError(f"There is no GLCM property {name!r}; expected one of {', '.join(PROPERTIES)}.")


def glcm(
    name: str, *, distance: tuple[int, ...] = (1,), angle: tuple[int, ...] = (0,)
) -> Callable[[Example], float]:
    """Concept measure: a property of the whole image's GLCM, averaged over all distances and angles.

    Raises:
        ValueError: Other distances or angles; when measuring, an image too small for a pair.

    Source: see `cooccurrence`; defaults of Graziani et al. 2019 (IMVIP) and rcvtool.
    """
    _check(distance, angle)
    return lambda example: _mean_property(example, name, distance, angle, None, False)


def masked_glcm(
    name: str,
    *,
    distance: tuple[int, ...] = (5,),
    angle: tuple[int, ...] = (0,),
    published: bool = False,
) -> Callable[[Example], float]:
    """Concept measure: as `glcm`, of the pairs inside the example's mask (wherever it is not 0).

    Raises:
        ValueError: Other distances or angles; when measuring, an example without mask, or without a pair in it.

    Source: see `cooccurrence`; defaults of iMIMIC 2018 and rcvtool.
    """
    _check(distance, angle)
    return lambda example: _mean_property(
        example, name, distance, angle, required_mask(example) != 0, published
    )


def _mean_property(example, name, distances, angles, mask, published) -> float:
    grey = grey_levels(example.image)
    try:
        values = [
            glcm_property(cooccurrence(grey, distance, angle, mask, published=published), name)
            for distance, angle in product(distances, angles)
        ]
    except ValueError as error:
        raise ValueError(f"{example.name}: {error}.") from None
    return float(np.mean(values))


def _check(distances: tuple[int, ...], angles: tuple[int, ...]) -> None:
    problems = [f"distance {one}" for one in distances if one < 1]
    problems += [f"angle {one}" for one in angles if one not in ANGLES]
    if problems or not (distances and angles):
        raise ValueError(
            f"{', '.join(problems) or 'no distance or no angle'}; expected distances of 1 px or more and angles of "
            f"{', '.join(map(str, ANGLES))} degrees, several joined as in 0-45-90-135."
        )
