"""The bootstrap: groups of images (patients, slides, objects, or images by themselves) are drawn with replacement."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from scalecov_jax.probes.statistics import Interval


def draw_groups(groups: int, resamples: int, seed: int | np.random.Generator) -> Int[np.ndarray, "B G"]:
    """How often each of G groups comes in each of B resamples of G draws: the weight of each of its images there.

    Args:
        groups: Number of groups, G.
        resamples: Their number, B.
        seed: Of the draws; resamples with the same seed are paired.
    """
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), resamples)


def percentile_interval(values: Float[np.ndarray, " B"]) -> Interval:
    """From 2.5 to 97.5 % of the values of resamples; those that are undefined (NaN) are left out."""
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return Interval(float(low), float(high))


def clustered_bootstrap(
    errors_a: Sequence[Float[np.ndarray, " _"]],
    errors_b: Sequence[Float[np.ndarray, " _"]],
    clusters: Sequence[Shaped[np.ndarray, " _"]],
    *,
    replicates: int = 10_000,
    seed: int = 0,
) -> Interval:
    """95 % percentile interval of the mean paired difference a - b, resampling source images with their patches.

    Patches of one source image err alike, so images are drawn: each replicate draws C of the C images with replacement and takes
    sum_c w_c sum(a - b)_c / sum_c w_c n_c, with w_c how often image c was drawn and n_c its patches over all seeds. It is the
    interval for new images, with the seeds as they are; with fewer than about 20 images it is too narrow.

    Args:
        errors_a: Absolute errors of one network: for each seed, a value a test patch.
        errors_b: Of the other, for the same patches.
        clusters: Source images (numbers or names) of these patches.
        replicates: Number of bootstrap replicates.
        seed: Of the random numbers.

    Raises:
        ValueError: Numbers of seeds or patches differ, values are not finite, or fewer than 2 source images.

    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8.
    """
    if not len(errors_a) == len(errors_b) == len(clusters):
        raise ValueError(
            f"Got {len(errors_a)} and {len(errors_b)} seeds of errors, {len(clusters)} of source images; expected equal numbers."
        )
    problems = []
    for index, (a, b, names) in enumerate(zip(errors_a, errors_b, clusters, strict=True)):
        if not len(a) == len(b) == len(names):
            problems.append(f"{len(a)} and {len(b)} errors for {len(names)} patches at seed {index}")
        elif bad := int((~(np.isfinite(a) & np.isfinite(b))).sum()):
            problems.append(f"{bad} of {len(a)} errors not finite at seed {index}")
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{'; '.join(problems[:10])}{more}.")
    images, owner = np.unique(np.concatenate(clusters), return_inverse=True) if len(clusters) else ((), ())
    if len(images) < 2:
        raise ValueError(f"An interval needs at least two source images, got {len(images)}.")
    difference = np.concatenate([a.astype(np.float64) - b for a, b in zip(errors_a, errors_b, strict=True)])
    sums, counts = np.bincount(owner, weights=difference), np.bincount(owner)
    drawn = draw_groups(len(images), replicates, seed)
    return percentile_interval((drawn @ sums) / (drawn @ counts))
