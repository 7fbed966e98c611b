"""Uncertainty of R2 over the images that might have been drawn: intervals, differences, and the set of layers that may be best.

The splits of one set of images overlap, so that their spread says little of other images. The jackknife asks how much the whole
experiment, the mean R2 over the same splits, changes without each image (or patient, slide, source image); `evaluate.infer`
computes that exactly. Everything here follows from those changes, scaled so that their squares add up to the variance: the
deviations.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

LEVEL = 0.95


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A value with its standard error and 95 % interval."""

    value: float
    error: float
    interval: Interval


class PeakSet(NamedTuple):
    """Which layers may be the best one."""

    p: Float[np.ndarray, " L"]  # for each layer, p of the hypothesis that no layer is better
    # layers with p above 5 %: with 95 % confidence the best one is among them
    members: Bool[np.ndarray, " L"]


def mean_without(
    without: Float[np.ndarray, "... S G"], defined: Bool[np.ndarray, "*#M S G"]
) -> Float[np.ndarray, "... G"]:
    """Mean over the splits of R2 without each group, over those splits where it is defined.

    Raises:
        ValueError: Without some group it is defined in no split.
    """
    counts = defined.sum(-2)
    if (counts == 0).any():
        raise ValueError(
            f"Without group {int(np.argwhere(counts == 0)[0, -1])} R2 is defined in no split: every held-out part would be "
            "constant. Take more splits or larger held-out parts."
        )
    return (without * defined).sum(-2) / counts


def deviations(without: Float[np.ndarray, "... G"]) -> Float[np.ndarray, "... G"]:
    """sqrt((G - 1) / G) (theta_(-g) - mean), whose squares add up to the jackknife variance of theta.

    Of a mean over independent sets of images (classes), those of each set, divided by the number of sets, stand side by side.

    Source: Efron & Stein 1981, The Jackknife Estimate of Variance: on average it is too large rather than too small.
    """
    groups = without.shape[-1]
    return np.sqrt((groups - 1) / groups) * (without - without.mean(-1, keepdims=True))


def jackknife(value: float, deviation: Float[np.ndarray, " G"], most: float = math.inf) -> Estimate:
    """Value +- t(G - 1) sqrt(sum of squared deviations), cut off at the largest value there is, such as 1 for R2.

    As the true value lies below `most`, cutting off there leaves out none that the whole interval would have covered.
    """
    error = float(np.sqrt(np.square(deviation).sum()))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(deviation) - 1)) * error
    return Estimate(value, error, Interval(value - reach, min(value + reach, most)))


def bootstrap(
    value: float,
    deviation: Float[np.ndarray, " G"],
    *,
    replicates: int = 9999,
    seed: int = 0,
) -> Interval:
    """Percentile interval when groups are drawn with replacement and count linearly, by their deviations.

    A group that is drawn w times moves the value by -(w - 1) times its deviation: the bootstrap of the linearised statistic,
    which needs no refit and never has an image in both parts of a split. It keeps the skewness that `jackknife` ignores.

    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 2.7.
    """
    moved = value - _drawn(len(deviation), replicates, seed) @ deviation
    tail = 50 * (1 - LEVEL)
    return Interval(*(float(one) for one in np.percentile(moved, [tail, 100 - tail])))


def corrected_resampled_t(scores: Float[np.ndarray, " S"], n_train: float, n_test: float) -> Estimate:
    """Mean +- t(S - 1) sqrt((1 / S + n_test / n_train) s^2), s^2 the variance over splits.

    The correction for the overlap of the splits is a rule of thumb; see docs/statistics.md for what it covers.

    Raises:
        ValueError: Fewer than two splits.

    Source: Nadeau & Bengio 2003, Inference for the Generalization Error, section 3.
    """
    if len(scores) < 2:
        raise ValueError(
            f"An interval from the spread over splits needs at least two of them, got {len(scores)}."
        )
    error = float(np.sqrt((1 / len(scores) + n_test / n_train) * np.var(scores, ddof=1)))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(scores) - 1)) * error
    value = float(np.mean(scores))
    return Estimate(value, error, Interval(value - reach, value + reach))


def peak_set(
    values: Float[np.ndarray, " L"],
    deviation: Float[np.ndarray, "L G"],
    *,
    replicates: int = 9999,
    seed: int = 0,
) -> PeakSet:
    """The layers that may be the best, each tested against all others at once.

    For layer l the statistic is the largest of (theta_k - theta_l) / se_kl over the others k, and p the share of bootstrap
    replicates of the centred differences (`bootstrap`) whose largest is at least that. If l is the best layer, it is left out
    with a probability of 5 % at most, whatever the others are. All deviations are over the same groups.

    Source: Hsu 1984, Constrained Simultaneous Confidence Intervals for Multiple Comparisons with the Best.
    """
    layers, groups = deviation.shape
    moved = -_drawn(groups, replicates, seed) @ deviation.T
    p = np.ones(layers)
    for layer in range(layers):
        others = np.delete(np.arange(layers), layer)
        error = np.sqrt(np.square(deviation[others] - deviation[layer]).sum(1))
        # A layer with the same predictions is neither better nor worse.
        others, error = others[error > 0], error[error > 0]
        if len(others):
            observed = ((values[others] - values[layer]) / error).max()
            largest = ((moved[:, others] - moved[:, [layer]]) / error[None]).max(1)
            p[layer] = (1 + (largest >= observed).sum()) / (1 + replicates)
    return PeakSet(p, p > 1 - LEVEL)


@lru_cache(maxsize=2)
def _drawn(groups: int, replicates: int, seed: int) -> Float[np.ndarray, "B G"]:
    """How often each group is drawn, less 1."""
    return draw_groups(groups, replicates, seed) - 1.0


def draw_groups(groups: int, resamples: int, seed: int | np.random.Generator) -> Int[np.ndarray, "B G"]:
    """How often each of G groups comes in each of B resamples of G draws: the weight of each of its images there.

    Resamples with the same seed are paired.
    """
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), resamples)


def percentile_interval(values: Float[np.ndarray, " B"]) -> Interval:
    """From 2.5 to 97.5 % of the values of resamples; those that are undefined (NaN) are left out."""
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return Interval(float(low), float(high))


def clustered_bootstrap(
    errors_a: Float[np.ndarray, " N"],
    errors_b: Float[np.ndarray, " N"],
    clusters: Shaped[np.ndarray, " _"],
    *,
    replicates: int = 10_000,
    seed: int = 0,
) -> Interval:
    """95 % percentile interval of the mean paired difference a - b, resampling source images with their patches.

    Patches of one source image err alike, so images are drawn: each replicate draws C of the C images with replacement and takes
    sum_c w_c sum(a - b)_c / sum_c w_c n_c, with w_c how often image c was drawn and n_c its patches over all seeds. It is the
    interval for new images, with the seeds as they are; with fewer than about 20 images it is too narrow. Errors are absolute,
    of the patches of all seeds, the same for both networks.

    Raises:
        ValueError: Not an image for each error, values that are not finite, or fewer than 2 source images.

    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8.
    """
    difference = errors_a.astype(np.float64) - errors_b
    if len(clusters) != len(difference):
        raise ValueError(f"{len(difference)} errors for {len(clusters)} patches; expected one each.")
    if bad := int((~np.isfinite(difference)).sum()):
        raise ValueError(f"{bad} of {len(difference)} errors are not finite.")
    images, owner = np.unique(clusters, return_inverse=True)
    if len(images) < 2:
        raise ValueError(f"An interval needs at least two source images, got {len(images)}.")
    sums, counts = np.bincount(owner, weights=difference), np.bincount(owner)
    drawn = draw_groups(len(images), replicates, seed)
    return percentile_interval((drawn @ sums) / (drawn @ counts))
