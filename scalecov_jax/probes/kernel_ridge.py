"""Kernel ridge: a smooth, non-linear reading of a concept, to compare the linear ones with."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scalecov_jax.probes import ridge
from scalecov_jax.probes.contract import Probe, check_positive

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
ALPHAS = np.logspace(-5, 2, 15)


class KernelFit(NamedTuple):
    """Predictions are the sum over bandwidths of k(z, rows) @ coefficients + intercept."""

    rows: Float[Array, "N D"]  # the training features
    gamma: Float[Array, " B"]  # 1 / (2 D s^2) of each bandwidth
    coefficients: Float[Array, "B N M"]  # dual coefficients; zero except at the bandwidth that a target chose
    intercept: Float[Array, " M"]  # of each target
    bandwidth: Float[Array, " M"]  # the multiple of the median distance that each target chose
    alpha: Float[Array, " M"]  # the penalty that each target chose


def kernel_ridge(
    bandwidths: Sequence[float] | np.ndarray = BANDWIDTHS, alphas: Sequence[float] | np.ndarray = ALPHAS
) -> Probe:
    """Kernel ridge regression with the kernel exp(-|z - z'|^2 / (2 D s^2)) and an unpenalised intercept.

    s = c sqrt(median |z_i - z_j|^2 / D) over pairs of training images. Each target's multiple c and penalty minimise its exact
    leave-one-out squared error together, at the s of the whole training part.

    The kernel K of the training images is a Gram matrix as in `ridge`, with dual coefficients a. As these sum to 0, centring the
    kernel of new rows comes down to an intercept, mean y - mean K a.
    The kernel is at most 1, so that penalties do not scale with D.

    Raises:
        ValueError: A bandwidth or penalty that is not positive.

    Source: Saunders, Gammerman, Vovk 1998, Ridge Regression Learning Algorithm in Dual Variables; Schoelkopf, Smola, Mueller
    1998, Nonlinear Component Analysis (appendix A: centring). The default penalties are this project's choice.
    """
    bandwidths = check_positive("Bandwidths", np.asarray(bandwidths))
    alphas = check_positive("Penalties", np.asarray(alphas))

    def fit(z: Float[Array, "N D"], targets: Float[Array, "N M"]) -> KernelFit:
        return _fit(z, targets, jnp.asarray(bandwidths), jnp.asarray(alphas))

    return Probe("kernel_ridge", fit, predict)


def predict(fit: KernelFit, features: Float[Array, "K D"]) -> Float[Array, "K M"]:
    """Concept measures that the probe reads from standardised features."""
    squared = _squared_distances(features, fit.rows)
    terms = jax.lax.map(lambda one: jnp.exp(-one[0] * squared) @ one[1], (fit.gamma, fit.coefficients))
    return terms.sum(0) + fit.intercept[None]


def _fit(
    z: Float[Array, "N D"],
    targets: Float[Array, "N M"],
    bandwidths: Float[Array, " B"],
    alphas: Float[Array, " A"],
) -> KernelFit:
    intercept = ridge.constant(jnp.ones(len(z), z.dtype))
    squared = _squared_distances(z, z)
    median = jnp.nanmedian(jnp.where(jnp.eye(len(squared), dtype=bool), jnp.nan, squared))
    # Their mean where most pairs coincide, and 1 where all do.
    typical = jnp.where(median > 0, median, jnp.where(squared.mean() > 0, squared.mean(), 1.0))
    gamma = 0.5 / (typical * jnp.square(bandwidths))

    def one(gamma: Float[Array, ""]) -> tuple[Array, Array, Array, Array]:
        kernel = jnp.exp(-gamma * squared)
        fit = ridge.fit(ridge.decompose(kernel, intercept), targets, alphas)
        level = targets.mean(0) - kernel.mean(0) @ fit.dual
        return fit.dual, level, fit.alpha, jnp.square(fit.errors).sum(0)

    coefficients, level, alpha, error = jax.lax.map(one, gamma)
    best = jnp.argmin(error, axis=0)
    chosen = jnp.arange(len(gamma))[:, None] == best[None]
    return KernelFit(
        z,
        gamma,
        coefficients * chosen[:, None],
        (level * chosen).sum(0),
        bandwidths[best],
        (alpha * chosen).sum(0),
    )


def _squared_distances(a: Float[Array, "K D"], b: Float[Array, "N D"]) -> Float[Array, "K N"]:
    squares = jnp.square(a).sum(1)[:, None] + jnp.square(b).sum(1)[None]
    return jnp.maximum(squares - 2.0 * a @ b.T, 0.0)
