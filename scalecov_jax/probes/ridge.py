"""Ridge regression with an unpenalised intercept: every split, penalty, left-out image and permutation from one decomposition.

The problem. Z [N, D] are the features of one layer, each divided by its sd over all N images; y a concept measure. Ridge finds
the weights w and the coefficients b of unpenalised columns C (the constant, and nuisance measures if any) that minimise

    |y - Z w - C b|^2 + alpha |w|^2    over the images of a training part.

The dual. Only the Gram matrix K = Z Z^T [N, N] matters, however many features there are: w = Z^T a with the dual coefficients
a = P y. With C orthonormal and K taken on the complement of C, K = U diag(w) U^T, the operator of a penalty is

    P = (K + alpha)^-1 on the complement of C = U diag(1 / (w + alpha)) U^T - C C^T / alpha.

Leaving out one image. The error of the prediction of image i by a fit to all others is (P y)_i / P_ii, exactly. So the penalty of
a fit, which minimises the sum of these squares, needs no second fit.

Leaving out many. Let T be the held-out and R the training images of a split, and write P in blocks. The inverse of a matrix in
blocks says that

    e_T = P_TT^-1 (P y)_T                      are the held-out errors of the fit to R alone, and
    S   = P_RR - P_RT P_TT^-1 P_TR             is the operator P of that fit (the Schur complement of P_TT),
    S y = (P y)_R - P_RT e_T                   its dual coefficients.

P of all images therefore serves every split: one Cholesky factor P_TT = L L^T of the small held-out block replaces a fit to the
large training part. Leave-one-out inside R needs the diagonal of S alone, P_ii - |(L^-1 P_TR)_i|^2. A further group g of images
is left out by the same formula, applied to S.

Here is one fit, and in `split_ridge` what leaves out; all is pure and traced, and `evaluate` calls it in float64.

Sources: Hastie, Tibshirani & Friedman 2009, The Elements of Statistical Learning, 3.4.1 (ridge) and 12.3.7 (the dual); Allen
1974, The Relationship between Variable Selection and Data Augmentation (leave-one-out); Golub & Van Loan 2013, Matrix
Computations, 2.1.4 and 3.2.11 (inverses and Schur complements of blocks).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

AnyArray: TypeAlias = Array | np.ndarray
Scaling = Literal["each", "common"]

# Singular values up to this share of the largest count as absent: features are float32, and what is smaller is their rounding.
ABSENT = 1e-6
# Share of alpha that is the penalty of nuisance measures. Where a training part says nothing of one (it is constant there), its
# coefficient then stays 0 and is not NaN; elsewhere the fit changes by about 1e-12 w / alpha. The intercept needs none.
LITTLE = 1e-12


class Standardisation(NamedTuple):
    """Mean and scale of each feature; the scale of a constant feature is 1."""

    mean: Float[Array, " D"]
    scale: Float[Array, " D"]


class Spectrum(NamedTuple):
    """A Gram matrix on the complement of the unpenalised columns: K + shift C C^T = U diag(w) U^T.

    The shift keeps the columns C away from other directions of eigenvalue 0, with which rounding would mix them. There are r = N
    pairs, or r = D where D < N and nothing is shifted; the directions that are missing then have eigenvalue 0.
    """

    values: Float[Array, " r"]  # the eigenvalues w, ascending, none negative
    vectors: Float[Array, "N r"]  # the eigenvectors U
    unpenalised: Float[Array, "N K"]  # the orthonormal columns C, the constant first
    shift: Float[Array, ""]  # eigenvalue of the columns C


class Fit(NamedTuple):
    """Ridge on all rows of a Gram matrix."""

    dual: Float[Array, "N M"]  # a = P y; the weights are Z^T a. One column a target
    errors: Float[Array, "N M"]  # each row's target minus its prediction by the fit to all other rows
    alpha: Float[Array, " M"]  # the penalty of each target, which minimises the sum of the squared errors
    leverage: Float[Array, "N M"]  # weight of each row in its own fitted value, 1 - alpha P_ii


def standardisation(
    features: Float[Array, "N D"], weight: Float[Array, " N"] | None = None, scaling: Scaling = "each"
) -> Standardisation:
    """Mean and sd of every feature over the rows of weight 1, by default all.

    Scaling `each` divides a feature by its own sd; `common` divides all by the root of their mean variance, so that a feature
    which hardly varies stays as small as it is.
    """
    weight = jnp.ones(len(features), features.dtype) if weight is None else weight
    n = weight.sum()
    mean = weight @ features / n
    variance = weight @ jnp.square(features - mean[None]) / n
    if scaling == "common":
        variance = jnp.full_like(variance, variance.mean())
    # What rounding alone could leave of a constant feature (the rule of scikit-learn's StandardScaler).
    eps = jnp.finfo(features.dtype).eps
    constant = variance <= n * eps * variance + jnp.square(n * mean * eps)
    return Standardisation(mean, jnp.where(constant, 1.0, jnp.sqrt(variance)))


def standardise(features: Float[Array, "N D"], by: Standardisation) -> Float[Array, "N D"]:
    """Subtract the mean and divide by the scale."""
    return (features - by.mean[None]) / by.scale[None]


def constant(weight: Float[Array, " N"]) -> Float[Array, "N 1"]:
    """The unpenalised column of an intercept, of length 1, for rows of weight 1."""
    return (weight / jnp.sqrt(weight.sum()))[:, None]


def decompose(gram: Float[Array, "N N"], unpenalised: Float[Array, "N K"]) -> Spectrum:
    """Eigendecomposition of a Gram matrix on the complement of orthonormal columns; rounding errors below 0 become 0."""
    inside = unpenalised @ (unpenalised.T @ gram)
    both = gram - inside - inside.T + inside @ unpenalised @ unpenalised.T
    mean = jnp.trace(both) / len(gram)
    shift = jnp.where(mean > 0, mean, 1.0)
    both = (both + both.T) / 2 + shift * unpenalised @ unpenalised.T
    values, vectors = jnp.linalg.eigh(both, symmetrize_input=False)
    return Spectrum(jnp.maximum(values, 0.0), vectors, unpenalised, shift)


def decompose_features(z: Float[Array, "N D"], unpenalised: Float[Array, "N K"]) -> Spectrum:
    """`decompose` of Z Z^T, through Z^T Z [D, D] where that is the smaller matrix."""
    if z.shape[1] >= z.shape[0]:
        return decompose(z @ z.T, unpenalised)
    z = z - unpenalised @ (unpenalised.T @ z)
    values, turn = jnp.linalg.eigh(z.T @ z, symmetrize_input=False)
    values = jnp.where(values > ABSENT**2 * values[-1], values, 0.0)
    vectors = z @ turn / jnp.where(values > 0, jnp.sqrt(values), jnp.inf)[None]
    return Spectrum(values, vectors, unpenalised, jnp.zeros((), z.dtype))


def operator(spectrum: Spectrum, alpha: Float[Array, ""]) -> Float[Array, "N N"]:
    """P of a penalty."""
    w, u, c, shift = spectrum
    little = jnp.where(jnp.arange(c.shape[1]) > 0, LITTLE / alpha, 0.0)
    if u.shape[0] == u.shape[1]:
        return (u / (w + alpha)[None]) @ u.T - (c * (1 / (shift + alpha) - little)[None]) @ c.T
    inside = jnp.eye(len(u), dtype=u.dtype) - (u * (w / (w + alpha))[None]) @ u.T
    return inside / alpha - (c * (1 / alpha - little)[None]) @ c.T


def fit(spectrum: Spectrum, targets: Float[Array, "N M"], alphas: Float[Array, " A"]) -> Fit:
    """Ridge on all rows, the penalty of each target by exact leave-one-out; of equal penalties the first.

    Rows of padding are 0 in the Gram matrix, in the unpenalised columns and in the targets.
    """
    diagonal, dual = path(spectrum, targets, alphas)
    errors = dual / diagonal[:, :, None]
    best = jnp.square(errors).sum(1).argmin(0)
    alpha = alphas[best]

    def chosen(values: Float[Array, "A N M"]) -> Float[Array, "N M"]:
        return jnp.take_along_axis(values, best[None, None], axis=0)[0]

    return Fit(chosen(dual), chosen(errors), alpha, 1 - alpha[None] * diagonal[best].T)


def path(
    spectrum: Spectrum, targets: Float[Array, "N M"], alphas: Float[Array, " A"]
) -> tuple[Float[Array, "A N"], Float[Array, "A N M"]]:
    """The diagonal of P and P y for every penalty, without forming P."""
    w, u, c, shift = spectrum
    squares, columns = jnp.square(c).sum(1), c @ (c.T @ targets)
    if u.shape[0] == u.shape[1]:
        shrinkage, shifted = 1 / (w[None] + alphas[:, None]), 1 / (shift + alphas)
        diagonal = shrinkage @ jnp.square(u).T - squares[None] * shifted[:, None]
        dual = (
            jnp.einsum("nr,ar,rm->anm", u, shrinkage, u.T @ targets) - columns[None] * shifted[:, None, None]
        )
        return diagonal, dual
    kept = w[None] / (w[None] + alphas[:, None])
    diagonal = (1 - squares[None] - kept @ jnp.square(u).T) / alphas[:, None]
    read = jnp.einsum("nr,ar,rm->anm", u, kept, u.T @ targets)
    return diagonal, ((targets - columns)[None] - read) / alphas[:, None, None]


def degrees_of_freedom(spectrum: Spectrum, alpha: Float[Array, " M"]) -> Float[Array, " M"]:
    """Effective degrees of freedom of a fit to all rows: the number of unpenalised columns + sum w / (w + alpha)."""
    w, shift, count = spectrum.values[:, None], spectrum.shift, spectrum.unpenalised.shape[1]
    return count * (1 - shift / (shift + alpha)) + (w / (w + alpha[None])).sum(0)


def least_squares(spectrum: Spectrum, targets: Float[Array, "N M"]) -> Float[Array, "N M"]:
    """Dual coefficients of least squares of minimum norm on all rows, without directions that are `ABSENT`."""
    w, u, c, _ = spectrum
    there = w > ABSENT**2 * w[-1]
    targets = targets - c @ (c.T @ targets)
    return u @ (jnp.where(there, 1 / jnp.where(there, w, 1.0), 0.0)[:, None] * (u.T @ targets))


class Linear(NamedTuple):
    """A linear probe: predictions are features @ weights + intercept."""

    weights: Float[AnyArray, "D M"]  # the regression concept vector (RCV) of each target, one column a target
    intercept: Float[AnyArray, " M"]  # of each target
    alpha: Float[AnyArray, " M"]  # the penalty on standardised features; 0 for least squares


def linear(
    features: Float[Array, "N D"],
    targets: Float[Array, "N M"],
    alphas: Float[Array, " A"] | None = None,
    weight: Float[Array, " N"] | None = None,
) -> Linear:
    """Ridge, or least squares of minimum norm without `alphas`, on features that were divided by their scale.

    Features need not be centred; rows of weight 0 are padding. Penalties are chosen by exact leave-one-out.

    Source: Graziani et al. 2018, Regression Concept Vectors (least squares); the penalty answers its artefact at D ~ N.
    """
    weight = jnp.ones(len(features), features.dtype) if weight is None else weight
    mean, intercept = (weight @ values / weight.sum() for values in (features, targets))
    z, y = (
        weight[:, None] * (values - middle[None])
        for values, middle in ((features, mean), (targets, intercept))
    )
    spectrum = decompose_features(z, constant(weight))
    if alphas is None:
        dual, alpha = least_squares(spectrum, y), jnp.zeros_like(intercept)
    else:
        dual, _, alpha, _ = fit(spectrum, y, alphas)
    weights = z.T @ dual
    return Linear(weights, intercept - mean @ weights, alpha)


def predict(probe: Linear, features: Float[Array, "N D"]) -> Float[Array, "N M"]:
    """Concept measures that the probe reads from features."""
    return features @ probe.weights + probe.intercept[None]


def in_feature_units(probe: Linear, by: Standardisation) -> Linear:
    """The same probe for features that are not standardised."""
    weights = probe.weights / by.scale[:, None]
    return Linear(weights, probe.intercept - by.mean @ weights, probe.alpha)


def r2(
    predictions: Float[Array, "N M"], targets: Float[Array, "N M"], weight: Float[Array, " N"]
) -> Float[Array, " M"]:
    """Coefficient of determination, 1 - sum (y - y^)^2 / sum (y - mean y)^2, over the rows of weight 1."""
    mean = weight @ targets / weight.sum()
    residual, spread = (targets - one for one in (predictions, mean[None]))
    return 1 - weight @ jnp.square(residual) / (weight @ jnp.square(spread))


def over_splits(function: Callable[[Any], Any], splits: Any) -> Any:
    """Apply a function to every split: one after the other on a CPU, whose caches hold one split, all at once elsewhere."""
    if jax.default_backend() in ("cpu", "tpu"):
        return jax.lax.map(function, splits)
    return jax.vmap(function)(splits)
