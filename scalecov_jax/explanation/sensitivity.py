"""In which direction a concept pushes a target: derivatives along RCVs, and what random directions give.

With g [D] the gradient of the target by the pooled features and v a direction of unit length, S = g . v is what the target gains
when the features move by one along v, which is done by adding v at every pixel of the maps. It keeps its sign and scale: no
absolute value, no scaling to 0-1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import betainc
from scipy.stats import t

from scalecov_jax.probes.statistics import draw_groups
from scalecov_jax.vectors import Rcv, Vector

RANDOM_DIRECTIONS = 1000
SAME = 1e-5  # sensitivities whose sd is below this part of their size do not differ


class TcavTest(NamedTuple):
    """TCAV scores of C directions beside those of random ones, which are 0.5 on average."""

    score: Float[np.ndarray, " C"]  # mean over images of what `tcav_test` describes
    low: float  # 2.5th percentile of the scores of random directions
    high: float  # 97.5th percentile
    # share of random directions whose score is as far from 0.5, itself counted; two-sided
    p: Float[np.ndarray, " C"]
    # Standard errors of score - mean score of n random directions: sqrt(over_images^2 + over_directions^2 / n)
    over_images: Float[np.ndarray, " C"]  # drawing other groups of images; NaN with a single group
    over_directions: float  # sd of the scores of random directions
    interval: Float[
        np.ndarray, "2 C"
    ]  # 95 %, of the score, from this error with the random directions that were drawn


def pooled_gradients(
    gradients: Float[Array, "N H W D"] | Float[Array, "N D"],
) -> Float[Array, "N D"]:
    """The gradient by a shift of the pooled features that is the same at every pixel: the sum over the pixels."""
    return gradients.sum((1, 2)) if gradients.ndim == 4 else gradients


def directions(rcvs: Sequence[Rcv], vector: Vector = "filter") -> Float[np.ndarray, "C D"]:
    """The unit vectors of RCVs of one layer, one a row: their filters or their patterns."""
    return np.stack([one.vector(vector) for one in rcvs]).astype(np.float32)


def sensitivities(
    gradients: Float[Array, "N H W D"] | Float[Array, "N D"], directions: Float[Array, "C D"]
) -> Float[Array, "N C"]:
    """Signed directional derivatives of all images along all directions, from one backward pass.

    Source: Graziani et al. 2018, section 3; Kim et al. 2018, TCAV, equation 1.
    """
    return pooled_gradients(gradients) @ _unit(directions).T


def dimension_free(
    gradients: Float[Array, "N H W D"] | Float[Array, "N D"], directions: Float[Array, "C D"]
) -> Float[Array, "N C"]:
    """Z = sqrt(D) cos(g, v), to compare layers of different widths; 0 where the gradient vanishes.

    Along a random direction u, g . u has mean 0 and variance |g|^2 / D: z counts standard deviations of chance.

    Source: in the place of Yeche et al. 2019 (UBS), whose formula we have not seen; derived here.
    """
    pooled = pooled_gradients(gradients)
    return np.sqrt(pooled.shape[1]) * _unit(pooled) @ _unit(directions).T


def random_directions(count: int, width: int, seed: int) -> Float[np.ndarray, "count width"]:
    """Directions from the uniform distribution on the unit sphere."""
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def tcav_test(
    gradients: Float[Array, "N H W D"] | Float[Array, "N D"],
    directions: Float[Array, "C D"] | Float[np.ndarray, "C D"],
    seed: int = 0,
    *,
    smooth: bool = False,
    groups: Sequence[str] | None = None,
    count: int = RANDOM_DIRECTIONS,
) -> TcavTest:
    """TCAV scores against those of random directions, `count` from the unit sphere, on the same images.

    TCAV is the share of images with S > 0; one that does not react counts half. Gradients of images resemble each other, so
    scores of random directions spread far around 0.5: behind the last non-linearity each of them is 0 or 1, however many images
    there are. A test against 0.5 that takes images for independent would call most of them significant.

    `smooth` takes for each image in place of the sign of S the share of all directions u along which its target gains less,
    P(g . u < g . v) = I((1 + cos(g, v)) / 2; (D - 1) / 2, (D - 1) / 2), I the regularised incomplete beta function; close to the
    normal distribution function of `dimension_free`. Of random directions it is uniform for each image, a direction almost
    orthogonal to the gradient has 0.5 instead of 0 or 1, and p has a meaning behind the last non-linearity too.

    Errors do not count how uncertain the direction itself is. Images of one group are drawn together.

    Source: Kim et al. 2018, TCAV, equation 2 and section 3.3 (random concepts as the reference), with a permutation p value.
    Schnoor et al. 2026 (arXiv 2605.15688, its abstract) put a smooth function in the place of the sign; this one is ours.
    """
    pooled = pooled_gradients(gradients)
    random = random_directions(count, pooled.shape[1], seed)
    own, chance = (_by_image(pooled, jnp.asarray(one), smooth) for one in (directions, random))
    score, reference = own.mean(0), chance.mean(0)
    as_far = np.abs(reference[None] - 0.5) >= np.abs(score[:, None] - 0.5) - 1e-9
    p = (1 + as_far.sum(1)) / (1 + count)
    low, high = np.percentile(reference, (2.5, 97.5))
    beyond = own - chance.mean(1, keepdims=True)
    names, of = np.unique(np.arange(len(own)) if groups is None else np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), own.shape[1]))
    np.add.at(sums, of, beyond - beyond.mean(0)[None])
    images, sd, free = np.full(len(score), np.nan), float(reference.std(ddof=1)), len(names) - 1
    if free:
        images = np.sqrt(np.square(sums).sum(0) * (free + 1) / free) / len(own)
    reach = (t.ppf(0.975, free) if free else np.nan) * np.sqrt(images**2 + sd**2 / count)
    interval = np.clip([score - reach, score + reach], 0, 1)
    return TcavTest(score, float(low), float(high), p, images, sd, interval)


def _by_image(
    pooled: Float[Array, "N D"], directions: Float[Array, "C D"], smooth: bool
) -> Float[np.ndarray, "N C"]:
    """What the images count for TCAV: 1, 0.5 or 0 by the sign, or `smooth` in between."""
    if not smooth:
        return (np.sign(np.asarray(sensitivities(pooled, directions), np.float64)) + 1) / 2
    cosine = np.asarray(_unit(pooled) @ _unit(directions).T, np.float64)
    half = (max(pooled.shape[1], 2) - 1) / 2
    return betainc(half, half, np.clip((1 + cosine) / 2, 0, 1))


def bidirectional_relevance(
    sensitivities: Float[np.ndarray, "N C"], r2: Float[np.ndarray, " C"]
) -> Float[np.ndarray, " C"]:
    """Br = max(R2, 0) mean(S) / sd(S) over images.

    A negative R2 would turn the sign of a concept that the layer does not hold; such a concept has Br = 0.

    Raises:
        ValueError: S is the same for all images, as it is where the target is a linear function of the features; names the
            columns.

    Source: Graziani et al. 2018, Regression Concept Vectors, section 3 (sd with ddof 0).
    """
    s = np.asarray(sensitivities, np.float64)
    same = np.flatnonzero(constant(s))
    if len(same):
        raise ValueError(
            f"The sensitivities of column {', '.join(map(str, same))} are the same for all {len(s)} images, so Br divides by "
            "zero: the target is a linear function of these features. Take an earlier layer, or a probability."
        )
    return np.maximum(r2, 0) * s.mean(0) / s.std(0)


def relevance_intervals(
    sensitivities: Float[np.ndarray, "N C"],
    r2: Float[np.ndarray, " C"],
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Float[np.ndarray, "2 C"]:
    """95 % intervals of Br over images, by the bootstrap that draws groups as a whole; see `bidirectional_relevance`."""
    s = np.asarray(sensitivities, np.float64)
    bidirectional_relevance(s, r2)  # refuses what is undefined
    names = np.arange(len(s)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    weight = draw_groups(int(names.max()) + 1, draws, seed)[:, names]
    total = weight.sum(1, keepdims=True)
    mean = weight @ s / total
    variance = weight @ np.square(s - s.mean(0)[None]) / total - np.square(mean - s.mean(0)[None])
    valid = variance > np.square(SAME * np.abs(s).max(0))[None]
    ratio = np.where(valid, mean / np.sqrt(np.where(valid, variance, 1)), np.nan)
    return np.nanpercentile(np.maximum(r2, 0)[None] * ratio, (2.5, 97.5), axis=0)


def constant(sensitivities: Float[np.ndarray, "N C"]) -> np.ndarray:
    """Which columns do not differ between images, up to rounding."""
    return sensitivities.std(0) <= SAME * np.abs(sensitivities).max(0)


def _unit(vectors: Float[Array, "C D"]) -> Float[Array, "C D"]:
    length = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    return jnp.where(length > 0, vectors / jnp.where(length > 0, length, 1), 0)
