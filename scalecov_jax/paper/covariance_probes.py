"""Probes of one layer for all classes, splits, measures and conditions at once."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scalecov_jax.paper.covariance import MEASURES
from scalecov_jax.probes import evaluate
from scalecov_jax.scores import ESTIMATORS, Condition, Estimator


class Probes(NamedTuple):
    """Probes of one layer and one estimator.

    Attributes:
        whole: RCVs of each class and measure, fitted to all its scenes.
        intercepts: Of these.
        halves: RCVs of the ratio, fitted to each half of each split.
        patterns: Patterns of these on the scenes they were fitted to, of any length.
        held_out: Measures that the first half's probes read from the second half of their own class.
        crossed: Ratios that the first half's probes of a class (first axis) read from the second half of another.
    """

    whole: Float[np.ndarray, "C D M"]
    intercepts: Float[np.ndarray, "C M"]
    halves: Float[np.ndarray, "C S 2 D"]
    patterns: Float[np.ndarray, "C S 2 D"]
    held_out: Float[np.ndarray, "C S n M"]
    crossed: Float[np.ndarray, "C C S n"]


def halves(count: int, splits: int, seed: int) -> Int[np.ndarray, "S 2 n"]:
    """Random halves of the scenes of a class; the last scene is left out of an odd number. Split s depends on (seed, s) alone."""
    size = count // 2
    order = [np.random.default_rng((seed, split)).permutation(count) for split in range(splits)]
    return np.stack(order)[:, : 2 * size].reshape(splits, 2, size)


def fit(
    scenes: Float[np.ndarray, "C N D"],
    targets: Mapping[Condition, Float[np.ndarray, "C N M"]],
    parts: Int[np.ndarray, "S 2 n"],
    alphas: Float[np.ndarray, " A"],
) -> dict[tuple[Condition, Estimator], Probes]:
    """Fit probes of one layer to all scenes of each class and to halves of them, by `evaluate.fit`.

    Args:
        scenes: Features.
        targets: Measures of each condition, the ratio first.
        parts: From `halves`.
        alphas: Penalties of ridge.
    """
    classes, count, width = scenes.shape
    splits = len(parts)
    stacked = np.concatenate([*targets.values()], axis=-1)
    masks = np.zeros((2 * splits, count), bool)
    np.put_along_axis(masks, parts.reshape(2 * splits, -1), True, axis=1)
    held_out = scenes[:, parts[:, 1]]  # C S n D
    found: dict[tuple[Condition, Estimator], Probes] = {}
    for estimator in ESTIMATORS:
        alpha = alphas if estimator == "ridge" else None
        whole = [evaluate.fit(x, y, None, alpha) for x, y in zip(scenes, stacked, strict=True)]
        half = [evaluate.fit(x, y, masks, alpha) for x, y in zip(scenes, stacked, strict=True)]
        shape = (classes, splits, 2, width, stacked.shape[2])
        rcv = np.stack([one.weights for one in half]).reshape(shape)
        intercept = np.stack([one.intercept for one in half]).reshape(*shape[:3], -1)
        first = [index * len(MEASURES) for index in range(len(targets))]  # the ratio of each condition
        pattern = _patterns(scenes, parts, rcv[..., first])
        for index, (condition, column) in enumerate(zip(targets, first, strict=True)):
            own = slice(column, column + len(MEASURES))
            crossed = np.einsum("esnd,csd->cesn", held_out, rcv[:, :, 0, :, column], optimize=True)
            found[condition, estimator] = Probes(
                np.stack([one.weights[0][:, own] for one in whole]),
                np.stack([one.intercept[0][own] for one in whole]),
                rcv[..., column],
                pattern[..., index],
                held_out @ rcv[:, :, 0, :, own] + intercept[:, :, 0, None, own],
                crossed + intercept[:, None, :, 0, None, column],
            )
    return found


def _patterns(
    scenes: Float[np.ndarray, "C N D"], parts: Int[np.ndarray, "S 2 n"], rcvs: Float[np.ndarray, "C S 2 D M"]
) -> Float[np.ndarray, "C S 2 D M"]:
    """Covariance of the features with what the probes read from them, on the scenes of each half, times n."""
    centred = scenes[:, parts] - scenes[:, parts].mean(3, keepdims=True)  # C S 2 n D
    return np.swapaxes(centred, -1, -2) @ (centred @ rcvs)
