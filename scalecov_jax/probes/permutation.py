"""Permutation tests: would a layer read a measure as well if the measures belonged to other images?

The measures are permuted and the whole procedure is run again on the same splits, the choice of the penalty included. If nothing
but chance ties measures to features, every permutation was equally likely, so that p is exact whatever the width of the layer.

What is permuted. Images are exchangeable where each is a group of its own. Images of one patient (slide, source) are not: they
share what makes the patient. Write a measure as the mean of its group plus a residual. Whole groups exchange their means, and the
images of a group exchange their residuals. So a measure that is constant in every group (age, grade) is permuted over groups, one
that has the same mean in every group inside groups, and any other both ways. Group sizes may differ; the p of a measure that
varies between and within groups of unequal size is then approximate (see docs/statistics.md).
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
    """Tests of every layer and measure; B permutations.

    Attributes:
        observed: Mean held-out R2 of the measures as they are.
        control: Its mean over the permutations: what the procedure reads where nothing is to be read.
        p: Share of all B + 1 orders with at least the observed R2.
        p_family: The same for the largest R2 over all layers and measures, each in units of what it reaches by chance (from the
            median of the orders to their 95 % quantile): the chance that anything at all would look so good.
        null: R2 of each permutation.
        permuted: What was: see `exchanged`.
    """

    observed: Float[np.ndarray, "L M"]
    control: Float[np.ndarray, "L M"]
    p: Float[np.ndarray, "L M"]
    p_family: Float[np.ndarray, "L M"]
    null: Float[np.ndarray, "L M B"]
    permuted: "Exchanged" = "images"


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

    All measures are permuted alike, so that their correlation stays as it is.

    Args:
        features: Of each layer.
        measures: One column a concept.
        splits: True marks the training part.
        permutations: B; p cannot fall below 1 / (B + 1).
        seed: Of the permutations.
        groups: Group of each image, such as its patient; every image is its own when absent.
        alphas: Penalties of ridge to choose from.
        progress: Label of a progress bar on stderr; none when absent.

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

    Attributes:
        means: Of each group.
        residuals: Of each image from the mean of its group.
        of: Group of each image.
        groups: Group whose mean each group takes.
        images: Image whose residual each image takes, of its own group; empty [B, 0] where all residuals are 0.
    """

    means: Float[np.ndarray, "G M"]
    residuals: Float[np.ndarray, "N M"]
    of: Int[np.ndarray, " N"]
    groups: Int[np.ndarray, "B G"]
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
        count = len(measures)
        of = np.arange(count) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        if len(of) != count:
            raise ValueError(f"{len(of)} groups for {count} images; expected one each.")
        sizes = np.bincount(of)
        means = np.stack([np.bincount(of, column) / sizes for column in measures.T], axis=1)
        residuals = measures - means[of]
        # The mean of equal numbers may differ from them in the last digit.
        same = _constant(measures, of)
        means[:, same], residuals[:, same] = _first(measures, of)[:, same], 0.0
        _check_exchangeable(sizes, same)
        rng = np.random.default_rng((seed, purpose))
        exchange = np.empty((permutations, len(sizes)), np.int32)
        varies = residuals.any()
        within = np.empty((permutations, count if varies else 0), np.int32)
        by_group = np.argsort(of, kind="stable")
        for number in range(
            permutations
        ):  # one at a time: with millions of images the keys of all do not fit in memory
            exchange[number] = np.argsort(rng.random(len(sizes)), kind="stable")
            if varies:
                within[number, by_group] = np.lexsort((rng.random(count), of))
        return cls(means, residuals, of, exchange, within)

    def rows(self, taken: Int[np.ndarray, " R"]) -> Float[np.ndarray, "R B M"]:
        """The permuted measures of some images."""
        found = self.means[self.groups[:, self.of[taken]].T]
        return found + self.residuals[self.images[:, taken].T] if self.images.shape[1] else found


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
    of = (
        np.unique(np.asarray(groups), return_inverse=True)[1]
        if groups is not None
        else np.arange(len(measures))
    )
    if len(of) == of.max() + 1:
        return "images"
    if _constant(measures, of).all():
        return "groups"
    means = np.stack([np.bincount(of, column) / np.bincount(of) for column in measures.T], axis=1)
    between = np.ptp(means, axis=0) > 1e-12 * np.abs(measures).max(0)
    return "groups, and images within groups" if between.any() else "images within groups"


def _first(measures: Float[np.ndarray, "N M"], of: Int[np.ndarray, " N"]) -> Float[np.ndarray, "G M"]:
    return measures[np.unique(of, return_index=True)[1]]


def _constant(measures: Float[np.ndarray, "N M"], of: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " M"]:
    """Whether a measure is the same for all images of every group."""
    return (measures == _first(measures, of)[of]).all(0)


def _check_exchangeable(sizes: Int[np.ndarray, " G"], constant: Bool[np.ndarray, " M"]) -> None:
    arrangements = math.lgamma(len(sizes) + 1)
    if not constant.any():
        arrangements += sum(math.lgamma(size + 1) for size in sizes)
    if arrangements < math.log(20) - 1e-9:
        raise ValueError(
            f"Measures of {sizes.sum()} images in {len(sizes)} groups can be permuted in {math.exp(arrangements):.0f} ways only"
            + ", as a measure is the same for all images of a group" * bool(constant.any())
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
