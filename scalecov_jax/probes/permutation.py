"""Permutation tests: would a layer read a measure as well if the measures belonged to other images?

The measures are permuted and the whole procedure is run again on the same splits, the choice of the penalty included. If nothing
but chance ties measures to features, every permutation was equally likely, so that p is exact whatever the width of the layer.

What is permuted. Images are exchangeable where each is a group of its own. Images of one patient (slide, source) are not: they
share what makes the patient, but whole patients are exchangeable, and the images of one among themselves.

- Groups of one size exchange all their measures, assigned in random order to the images of the group that takes them.
- Groups of several sizes cannot. Write a measure as the mean of its group plus a residual: groups exchange their means, and the
  images of a group their residuals. The mean of few images spreads more than that of many, sd_g^2 = between + within / n_g
  (variances estimated as in analysis of variance), so that means are exchanged in units of sd_g.

So a measure that is constant in every group (age, grade) is permuted over groups, one that has the same mean in every group
inside groups, and any other both ways. p is exact but in one case, a measure that varies between and within groups of several
sizes; how far it is off there is simulated in docs/statistics.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from scalecov_jax.probes.evaluate import ALPHAS, held_out
from scalecov_jax.probes.splits import shuffled as in_random_order

Exchanged = Literal["images", "groups", "images within groups", "groups, and images within groups"]


class Permutation(NamedTuple):
    """Tests of every layer and measure; B permutations."""

    observed: Float[np.ndarray, "L M"]  # mean held-out R2 of the measures as they are
    # its mean over the permutations: what the procedure reads where nothing is to be read
    control: Float[np.ndarray, "L M"]
    p: Float[np.ndarray, "L M"]  # share of all B + 1 orders with at least the observed R2
    # the same for the largest R2 over all layers and measures, each in units of what it reaches by chance (from the median of
    # the orders to their 95 % quantile): the chance that anything at all would look so good
    p_family: Float[np.ndarray, "L M"]
    null: Float[np.ndarray, "L M B"]  # R2 of each permutation
    permuted: "Exchanged" = "images"  # what was: see `exchanged`


def permutation_test(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    measures: Float[np.ndarray, "N M"],
    splits: Bool[np.ndarray, "S N"],
    permutations: int = 1000,
    seed: int = 0,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    alphas: Float[np.ndarray, " A"] = ALPHAS,
    progress: str | None = None,
) -> Permutation:
    """Test every layer and measure against permuted measures.

    All measures are permuted alike, so that their correlation stays as it is. p cannot fall below 1 / (`permutations` + 1).

    Raises:
        ValueError: Fewer than 19 permutations (p could not fall to 5 %), groups that are not one an image, so few groups that
            hardly anything can be exchanged, and see `evaluate.held_out`.

    Source: Westfall & Young 1993, Resampling-Based Multiple Testing (largest statistic); Phipson & Smyth 2010, Permutation
        P-values Should Never Be Zero.
    """
    if permutations < 19:
        raise ValueError(
            f"{permutations} permutations cannot show p of 5 %; expected at least 19, such as 1000."
        )
    drawn = Permuted.draw(measures, permutations, seed, groups)
    count, kinds = measures.shape
    every = np.concatenate([measures[:, None], drawn.rows(np.arange(count))], axis=1)  # N B+1 M
    targets = every.transpose(0, 2, 1).reshape(count, -1)
    r2 = held_out(features, targets, splits, alphas=alphas, allow_constant=True, progress=progress).r2
    # The mean over the splits on both parts of which a measure varies; 0, no better than the mean, where there are none.
    there = np.isfinite(r2)
    scores = np.where(there, r2, 0).sum(1) / np.maximum(there.sum(1), 1)
    tests = compare_orders(scores.reshape(len(features), kinds, -1))
    return tests._replace(permuted=exchanged(measures, groups))


class Permuted(NamedTuple):
    """B permutations of the measures of N images in G groups; M measures.

    The measure of image i of group g is then mean + spread_g * effects of the group that g takes + residual that i takes.
    """

    mean: Float[np.ndarray, " M"]  # of all groups
    spread: Float[np.ndarray, "G M"]  # standard deviation of the mean of each group, or 1
    effects: Float[np.ndarray, "G M"]  # mean of each group less `mean`, over `spread`
    residuals: Float[np.ndarray, "N M"]  # what is left of each image
    of: Int[np.ndarray, " N"]  # group of each image
    # group that each group takes; empty [B, 0] where all effects are 0, as in groups of one size
    groups: Int[np.ndarray, "B G"] | Int[np.ndarray, "B 0"]
    # image whose residual each image takes; empty [B, 0] where all residuals are 0
    images: Int[np.ndarray, "B N"] | Int[np.ndarray, "B 0"]

    @classmethod
    def draw(
        cls,
        measures: Float[np.ndarray, "N M"],
        permutations: int,
        seed: int,
        groups: Sequence[Any] | np.ndarray | None = None,
        purpose: int = 3,
    ) -> "Permuted":
        """Random permutations by (seed, purpose); see `permutation_test` for the arguments and what it raises."""
        of = _grouping(measures, groups)
        sizes = np.bincount(of)
        _check_exchangeable(measures, of)
        mean, spread, effects = _effects(measures, of)
        whole = bool((sizes == sizes[0]).all() and effects.any())
        if whole:  # the images carry all
            mean, spread, effects = np.zeros_like(mean), np.ones_like(spread), np.zeros_like(effects)
        residuals = measures - (mean + spread * effects)[of]
        residuals[:, _constant(measures, of) & (not whole)] = 0  # but for rounding
        rng = np.random.default_rng((seed, purpose))
        taken = np.empty((permutations, len(sizes) if effects.any() else 0), np.int32)
        images = np.empty((permutations, len(of) if residuals.any() else 0), np.int32)
        by_group = np.argsort(of, kind="stable")
        # One at a time: with millions of images the keys of all do not fit in memory.
        for number in range(permutations):
            order = np.argsort(rng.random(len(sizes)), kind="stable")
            if taken.size:
                taken[number] = order
            if images.size:
                # Images of group 0 in random order, then those of group 1, ...
                within = np.lexsort((rng.random(len(of)), of)) if sizes.max() > 1 else by_group
                images[number, by_group] = within.reshape(len(sizes), -1)[order].ravel() if whole else within
        return cls(mean, spread, effects, residuals, of, taken, images)

    def rows(self, taken: Int[np.ndarray, " R"]) -> Float[np.ndarray, "R B M"]:
        """The permuted measures of some images."""
        of = self.of[taken]
        found = np.broadcast_to(self.mean, (len(taken), len(self.images), len(self.mean))).copy()
        if self.groups.shape[1]:
            found += self.spread[of][:, None] * self.effects[self.groups[:, of].T]
        if self.images.shape[1]:
            found += self.residuals[self.images[:, taken].T]
        return found


def shuffled(
    measures: Float[np.ndarray, "N M"],
    splits: int,
    seed: int,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> Float[np.ndarray, "S N M"]:
    """The control `shuffled_measure`: one random permutation of the measures per split."""
    if groups is None or len({*np.asarray(groups).tolist()}) == len(measures):
        return np.stack([in_random_order(column, splits, seed) for column in measures.T], axis=-1)
    return (
        Permuted.draw(measures, splits, seed, groups, purpose=1)
        .rows(np.arange(len(measures)))
        .transpose(1, 0, 2)
    )


def exchanged(measures: Float[np.ndarray, "N M"], groups: Sequence[Any] | np.ndarray | None) -> Exchanged:
    """What a permutation exchanges, for a sentence on it."""
    of = _grouping(measures, groups)
    if len(of) == of.max() + 1:
        return "images"
    if _constant(measures, of).all():
        return "groups"
    return "groups, and images within groups" if _effects(measures, of)[2].any() else "images within groups"


def _grouping(
    measures: Float[np.ndarray, "N M"], groups: Sequence[Any] | np.ndarray | None
) -> Int[np.ndarray, " N"]:
    of = np.arange(len(measures)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(of) != len(measures):
        raise ValueError(f"{len(of)} groups for {len(measures)} images; expected one each.")
    return of


def _effects(
    measures: Float[np.ndarray, "N M"], of: Int[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, "G M"], Float[np.ndarray, "G M"]]:
    """Mean, and spread and effects of groups, as in `Permuted`.

    Source: Searle, Casella & McCulloch 1992, Variance Components, section 3.6 (analysis of variance of unequal groups).
    """
    sizes = np.bincount(of)[:, None]
    count, number = len(of), len(sizes)
    means = np.stack([np.bincount(of, column) for column in measures.T], axis=1) / sizes
    same = _constant(measures, of)
    means[:, same] = measures[np.unique(of, return_index=True)[1]][:, same]  # but for rounding
    within = ((measures - means[of]) ** 2).sum(0) / max(count - number, 1)
    around = (sizes * (means - measures.mean(0)) ** 2).sum(0)
    between = (around - (number - 1) * within) / max(count - (sizes**2).sum() / count, 1)
    # A measure that is constant in groups, or has one mean in all of them, is exchanged as it is.
    unequal = ~same & (np.ptp(means, axis=0) > 1e-12 * np.abs(measures).max(0))
    spread = np.where(unequal, np.sqrt(np.maximum(between, 0) + within / sizes), 1)
    mean = np.where(same, 0, np.average(means, axis=0, weights=spread**-2.0))
    return mean, spread, np.where(same | unequal, means - mean, 0) / spread


def _constant(measures: Float[np.ndarray, "N M"], of: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " M"]:
    """Whether a measure is the same for all images of every group."""
    return (measures == measures[np.unique(of, return_index=True)[1]][of]).all(0)


def _check_exchangeable(measures: Float[np.ndarray, "N M"], of: Int[np.ndarray, " N"]) -> None:
    sizes, what = np.bincount(of), exchanged(measures, of)
    constant = what != "images" and bool(_constant(measures, of).any())
    arrangements = 0.0 if what == "images within groups" else math.lgamma(len(sizes) + 1)
    if not constant:
        arrangements += sum(math.lgamma(size + 1) for size in sizes)
    if arrangements < math.log(20) - 1e-9:
        raise ValueError(
            f"Measures of {len(of)} images in {len(sizes)} groups can be permuted in {math.exp(arrangements):.0f} ways only"
            + ", as a measure is the same for all images of a group" * constant
            + "; p could not fall to 5 %. Use at least 4 groups, or no permutations."
        )


def compare_orders(scores: Float[np.ndarray, "L M B1"]) -> Permutation:
    """Test the first of B + 1 orders, which are all alike if nothing ties measures to features."""
    # R2 has a long tail below that differs between layers; what they could reach by chance is above.
    middle, high = (np.quantile(scores, at, axis=-1, keepdims=True) for at in (0.5, 0.95))
    standard = (scores - middle) / np.where(high > middle, high - middle, 1)
    largest = standard.max((0, 1))
    return Permutation(
        scores[..., 0],
        scores[..., 1:].mean(-1),
        (scores >= scores[..., :1]).mean(-1),
        (largest[None, None] >= standard[..., :1]).mean(-1),
        scores[..., 1:],
    )
