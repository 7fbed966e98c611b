"""Permutation tests: would a layer read a measure as well if the measures belonged to other images?

The measures are permuted over the images and the whole procedure is run again on the same splits, the choice of the penalty
included. If nothing but chance ties measures to features, every order was equally likely, so that p is exact whatever the width
of the layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from scalecov_jax.probes.batch import ALPHAS
from scalecov_jax.probes.inference import mean_r2


class Permutation(NamedTuple):
    """Tests of every layer and measure; B permutations.

    Attributes:
        observed: Mean held-out R2 of the measures as they are.
        control: Its mean over the permutations: what the procedure reads where nothing is to be read.
        p: Share of all B + 1 orders with at least the observed R2.
        p_family: The same for the largest R2 over all layers and measures, each in units of what it reaches by chance (from the
            median of the orders to their 95 % quantile): the chance that anything at all would look so good.
        null: R2 of each permutation.
    """

    observed: Float[np.ndarray, "L M"]
    control: Float[np.ndarray, "L M"]
    p: Float[np.ndarray, "L M"]
    p_family: Float[np.ndarray, "L M"]
    null: Float[np.ndarray, "L M B"]


def permutation_test(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    measures: Float[np.ndarray, "N M"],
    splits: Bool[np.ndarray, "S N"],
    permutations: int = 1000,
    seed: int = 0,
    *,
    blocks: Sequence[Any] | np.ndarray | None = None,
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
        blocks: Block of each image, such as its patient, where images of one block are alike: measures are then permuted inside
            blocks only, and the test asks whether features tell images of the same block apart.
        alphas: Penalties of ridge to choose from.
        progress: Label of a progress bar on stderr; none when absent.

    Raises:
        ValueError: Fewer than 19 permutations (p could not fall to 5 %), blocks that are not one an image or leave nothing to
            permute, and see `inference.mean_r2`.

    Source: Westfall & Young 1993, Resampling-Based Multiple Testing (largest statistic); Phipson & Smyth 2010, Permutation
        P-values Should Never Be Zero.
    """
    if permutations < 19:
        raise ValueError(
            f"{permutations} permutations cannot show p of 5 %; expected at least 19, such as 1000."
        )
    drawn = orders(len(measures), permutations, seed, blocks)
    count, kinds = measures.shape
    targets = measures[drawn].transpose(1, 2, 0).reshape(count, kinds * len(drawn))
    scores = mean_r2(features, targets, splits, alphas=alphas, progress=progress)
    return compare_orders(scores.reshape(len(features), kinds, len(drawn)))


def orders(
    count: int, permutations: int, seed: int, blocks: Sequence[Any] | np.ndarray | None
) -> Int[np.ndarray, "B1 N"]:
    """The order as it is, and B random ones; see `permutation_test` for the arguments and what it raises."""
    block = np.zeros(count, int) if blocks is None else np.unique(np.asarray(blocks), return_inverse=True)[1]
    if len(block) != count:
        raise ValueError(f"{len(block)} blocks for {count} images; expected one each.")
    if np.bincount(block).max() < 2:
        raise ValueError(
            "Every block holds a single image, so that nothing can be permuted inside blocks; permute over all images, or take "
            "larger blocks."
        )
    rng = np.random.default_rng((seed, 3))
    by_block = np.argsort(block, kind="stable")
    found = np.tile(np.arange(count, dtype=np.int32), (permutations + 1, 1))
    for order in found[1:]:  # one at a time: with millions of images the keys of all do not fit in memory
        order[by_block] = np.lexsort((rng.random(count), block))
    return found


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
