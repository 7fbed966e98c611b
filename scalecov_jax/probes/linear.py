"""Linear probes of one layer: regression concept vectors."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from scalecov_jax.probes import spectral


class Fit(NamedTuple):
    """A linear probe in the units of the features: predictions are features @ weights + intercept.

    Attributes:
        weights: The regression concept vector (RCV) of each target, one column a target.
        intercept: Of each target.
        alpha: The penalty on standardised features; 0 for least squares.
    """

    weights: Float[Array, "D M"]
    intercept: Float[Array, " M"]
    alpha: Float[Array, " M"]


def fit_ridge(
    features: Float[Array, "N D"],
    targets: Float[Array, "N M"],
    alphas: Float[Array, " A"],
    scaling: spectral.Scaling = "each",
) -> Fit:
    """Ridge regression on standardised features with an unpenalised intercept and penalties by exact leave-one-out.

    Args:
        features: Of the training images; float64 (see `in_float64`) for results equal to scikit-learn's.
        targets: Concept measures.
        alphas: Penalties to choose from, all positive.
        scaling: See `spectral.standardisation`.

    Source: Graziani et al. 2018, Regression Concept Vectors (least squares); the penalty answers its artefact at D ~ N.
    """
    weight = jnp.ones(len(features), features.dtype)
    by = spectral.standardisation(features, weight, scaling)
    z = spectral.standardise(features, by)
    dual = spectral.ridge(spectral.decompose(z @ z.T), targets, weight, alphas)
    return _primal(z, by, dual)


def fit_ols(
    features: Float[Array, "N D"], targets: Float[Array, "N M"], scaling: spectral.Scaling = "each"
) -> Fit:
    """Least squares of minimum norm on standardised features, as published; see `fit_ridge` for the arguments."""
    weight = jnp.ones(len(features), features.dtype)
    by = spectral.standardisation(features, weight, scaling)
    z = spectral.standardise(features, by)
    dual = spectral.least_squares(spectral.decompose(z @ z.T), targets, weight)
    return _primal(z, by, dual)


def predict(fit: Fit, features: Float[Array, "N D"]) -> Float[Array, "N M"]:
    """Concept measures that the probe reads from features."""
    return features @ fit.weights + fit.intercept[None]


def _primal(z: Float[Array, "N D"], by: spectral.Standardisation, dual: spectral.Dual) -> Fit:
    weights = z.T @ dual.coefficients / by.scale[:, None]
    return Fit(weights, dual.intercept - by.mean @ weights, dual.alpha)
