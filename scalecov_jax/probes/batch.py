"""All layers, splits, penalties and targets in one compiled call."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from scalecov_jax.probes import spectral
from scalecov_jax.probes.contract import check_positive, check_problem
from scalecov_jax.probes.splits import padded

ALPHAS = np.logspace(-1, 6, 15)


class ProbeScores(NamedTuple):
    """Held-out R2 of each layer, split and target, and the penalty that ridge chose on the training part."""

    ols: Float[np.ndarray, "L S M"]
    ridge: Float[np.ndarray, "L S M"]
    alpha: Float[np.ndarray, "L S M"]


def score_layers(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    targets: Float[np.ndarray, "S N M"],
    splits: Bool[np.ndarray, "S N"],
    alphas: Float[np.ndarray, " A"] = ALPHAS,
    scaling: spectral.Scaling = "each",
) -> ProbeScores:
    """Probe every layer on every split with least squares and ridge.

    Features are standardised by the training part of each split, the intercept is free, R2 is against the held-out mean. Equal to
    scikit-learn's LinearRegression and RidgeCV in float64.

    Args:
        features: Of each layer.
        targets: Concept measures; each split has its own, so that one may hold shuffled ones.
        splits: True marks the training part. The parts may differ in size.
        alphas: Penalties to choose from by exact leave-one-out.
        scaling: See `spectral.standardisation`.

    Returns:
        Scores in the order of `features`.

    Raises:
        ValueError: See `contract.check_problem`; penalties that are not positive.
    """
    check_problem(features, targets, splits)
    check_positive("Penalties", alphas)
    train, train_weight = padded(splits)
    test, test_weight = padded(~splits)
    # float64 is a property of this small system, not of the process: the forward pass stays float32.
    device = jax.devices("cpu")[0] if jax.default_backend() == "tpu" else None
    with jax.enable_x64(True), jax.default_device(device):
        scores = _score(
            tuple(np.asarray(values, np.float64) for values in features.values()),
            np.asarray(targets, np.float64),
            (train, train_weight, test, test_weight),
            np.asarray(alphas, np.float64),
            scaling,
        )
        return ProbeScores(*(np.moveaxis(np.asarray(score), 0, 1) for score in scores))


@partial(jax.jit, static_argnames="scaling")
def _score(
    features: tuple[Float[Array, "N _"], ...],
    targets: Float[Array, "S N M"],
    splits: tuple[Array, Array, Array, Array],
    alphas: Float[Array, " A"],
    scaling: spectral.Scaling,
) -> tuple[Array, Array, Array]:
    def one_split(arguments: tuple[Array, tuple[Array, Array, Array, Array]]) -> tuple[Array, Array, Array]:
        y, (train, train_weight, test, test_weight) = arguments

        def gram(x: Float[Array, "N D"]) -> tuple[Array, Array]:
            by = spectral.standardisation(x[train], train_weight, scaling)
            z = spectral.standardise(x[train], by) * train_weight[:, None]
            return z @ z.T, spectral.standardise(x[test], by) @ z.T

        def solve(gram: Array, cross: Array) -> tuple[Array, Array, Array]:
            spectrum = spectral.decompose(gram)
            ols = spectral.least_squares(spectrum, y[train], train_weight)
            ridge = spectral.ridge(spectrum, y[train], train_weight, alphas)
            scores = (
                spectral.r2(cross @ dual.coefficients + dual.intercept[None], y[test], test_weight)
                for dual in (ols, ridge)
            )
            return (*scores, ridge.alpha)  # pyright: ignore[reportReturnType]

        grams, crosses = zip(*(gram(x) for x in features), strict=True)
        return jax.vmap(solve)(jnp.stack(grams), jnp.stack(crosses))

    return jax.lax.map(one_split, (targets, splits))
