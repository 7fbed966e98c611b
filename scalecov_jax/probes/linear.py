"""Linear probes of one layer: regression concept vectors."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scalecov_jax.probes import spectral
from scalecov_jax.probes.batch import ALPHAS
from scalecov_jax.probes.contract import Probe, check_positive


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


def ridge(alphas: Sequence[float] | np.ndarray = ALPHAS) -> Probe:
    """The probe of `fit_ridge`; penalties to choose from by exact leave-one-out."""
    alphas = check_positive("Penalties", np.asarray(alphas))
    return Probe("ridge", lambda z, targets: _fit(z, targets, jnp.asarray(alphas)), predict)


def ols() -> Probe:
    """The probe of `fit_ols`."""
    return Probe("ols", _fit, predict)


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
    by = spectral.standardisation(features, jnp.ones(len(features), features.dtype), scaling)
    return in_feature_units(_fit(spectral.standardise(features, by), targets, alphas), by)


def fit_ols(
    features: Float[Array, "N D"], targets: Float[Array, "N M"], scaling: spectral.Scaling = "each"
) -> Fit:
    """Least squares of minimum norm on standardised features, as published; see `fit_ridge` for the arguments."""
    by = spectral.standardisation(features, jnp.ones(len(features), features.dtype), scaling)
    return in_feature_units(_fit(spectral.standardise(features, by), targets), by)


def predict(fit: Fit, features: Float[Array, "N D"]) -> Float[Array, "N M"]:
    """Concept measures that the probe reads from features."""
    return features @ fit.weights + fit.intercept[None]


def in_feature_units(fit: Fit, by: spectral.Standardisation) -> Fit:
    """The same probe for features that are not standardised."""
    weights = fit.weights / by.scale[:, None]
    return Fit(weights, fit.intercept - by.mean @ weights, fit.alpha)


def _fit(
    z: Float[Array, "N D"], targets: Float[Array, "N M"], alphas: Float[Array, " A"] | None = None
) -> Fit:
    weight = jnp.ones(len(z), z.dtype)
    spectrum = spectral.decompose(z @ z.T)
    if alphas is None:
        dual = spectral.least_squares(spectrum, targets, weight)
    else:
        dual = spectral.ridge(spectrum, targets, weight, alphas)
    return Fit(z.T @ dual.coefficients, dual.intercept, dual.alpha)
