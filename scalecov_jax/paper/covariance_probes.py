"""Probes of one layer for all classes, splits, measures and conditions at once."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scalecov_jax.paper.covariance import MEASURES
from scalecov_jax.probes import spectral
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
    """Fit probes of one layer to all scenes of each class and to halves of them, as `linear.fit_ridge` and `fit_ols` do.

    One decomposition of each part serves both estimators and all measures.

    Args:
        scenes: Features.
        targets: Measures of each condition, the ratio first.
        parts: From `halves`.
        alphas: Penalties of ridge.
    """
    classes, count, _ = scenes.shape
    splits, _, size = parts.shape
    stacked = np.concatenate([*targets.values()], axis=-1)
    device = jax.devices("cpu")[0] if jax.default_backend() == "tpu" else None
    with jax.enable_x64(True), jax.default_device(device):
        whole = _fit(scenes, stacked, np.arange(count)[None], alphas)
        halved = _fit(scenes, stacked, parts.reshape(2 * splits, size), alphas)
    found: dict[tuple[Condition, Estimator], Probes] = {}
    held_out = scenes[:, parts[:, 1]]  # C S n D
    for (index, condition), estimator in itertools.product(enumerate(targets), ESTIMATORS):
        columns = slice(index * len(MEASURES), (index + 1) * len(MEASURES))
        one, half = (_Fits(*(values[..., columns] for values in fits[estimator])) for fits in (whole, halved))
        rcv, intercept, pattern = (values.reshape(classes, splits, 2, *values.shape[2:]) for values in half)
        crossed = np.einsum("esnd,csd->cesn", held_out, rcv[:, :, 0, :, 0], optimize=True)
        found[condition, estimator] = Probes(
            one.weights[:, 0],
            one.intercept[:, 0],
            rcv[..., 0],
            pattern[..., 0],
            held_out @ rcv[:, :, 0] + intercept[:, :, 0, None],
            crossed + intercept[:, None, :, 0, None, 0],
        )
    return found


class _Fits(NamedTuple):
    """Weights, intercepts and patterns of the probes of each class and part."""

    weights: Float[np.ndarray, "C P D M"]
    intercept: Float[np.ndarray, "C P M"]
    pattern: Float[np.ndarray, "C P D M"]


def _fit(
    scenes: Float[np.ndarray, "C N D"],
    targets: Float[np.ndarray, "C N M"],
    rows: Int[np.ndarray, "P n"],
    alphas: Float[np.ndarray, " A"],
) -> dict[Estimator, _Fits]:
    z, mean, scale, gram = (np.asarray(value) for value in _standardise(jnp.asarray(scenes[:, rows])))
    solved = _solve(jnp.asarray(gram), jnp.asarray(targets[:, rows]), jnp.asarray(alphas))
    found: dict[Estimator, _Fits] = {}
    for estimator, dual in zip(ESTIMATORS, solved, strict=True):
        coefficients, transposed = np.asarray(dual.coefficients), np.swapaxes(z, -1, -2)
        weights = transposed @ coefficients / scale[..., None]
        intercept = np.asarray(dual.intercept) - np.einsum("cpd,cpdm->cpm", mean, weights)
        pattern = transposed @ (gram @ coefficients) * scale[..., None]
        found[estimator] = _Fits(weights, intercept, pattern)
    return found


@jax.jit
def _standardise(features: Float[Array, "C P n D"]) -> tuple[Array, Array, Array, Array]:
    """Standardised features, their means and scales, and their Gram matrices; apart from `_solve`, which compiles slowly."""

    def one(x: Float[Array, "n D"]) -> tuple[Array, Array, Array, Array]:
        by = spectral.standardisation(x, jnp.ones(len(x), x.dtype))
        z = spectral.standardise(x, by)
        return z, by.mean, by.scale, z @ z.T

    return jax.vmap(jax.vmap(one))(features)


@jax.jit
def _solve(
    gram: Float[Array, "C P n n"], targets: Float[Array, "C P n M"], alphas: Float[Array, " A"]
) -> tuple[spectral.Dual, spectral.Dual]:
    """Least squares and ridge, in the order of `ESTIMATORS`."""

    def one(gram: Array, y: Array) -> tuple[spectral.Dual, spectral.Dual]:
        spectrum, weight = spectral.decompose(gram), jnp.ones(len(y), y.dtype)
        return spectral.least_squares(spectrum, y, weight), spectral.ridge(spectrum, y, weight, alphas)

    return jax.vmap(jax.vmap(one))(gram, targets)
