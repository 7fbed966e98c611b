"""Ridge regression and least squares from one eigendecomposition of the Gram matrix.

With Z the standardised training features (n x D), K = Z Z^T = U diag(w) U^T is the centred Gram matrix, whatever D is. On the
complement of the constant vector, P = (K + alpha)^-1 = U diag(1 / (w + alpha)) U^T - 1 1^T / (n alpha), so that with an
unpenalised intercept the dual coefficients are P y and the exact leave-one-out residuals (P y)_i / P_ii. One decomposition
serves every penalty and every target, and least squares too. All of it is float64: small penalties need it.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Scaling = Literal["each", "common"]


class Standardisation(NamedTuple):
    """Mean and scale of each feature on the training part; the scale of a constant feature is 1."""

    mean: Float[Array, " D"]
    scale: Float[Array, " D"]


class Dual(NamedTuple):
    """Dual coefficients: predictions are Z_new Z^T coefficients + intercept.

    Attributes:
        coefficients: One column a target.
        intercept: Mean of each target on the training part.
        alpha: The penalty chosen for each target; 0 for least squares.
    """

    coefficients: Float[Array, "N M"]
    intercept: Float[Array, " M"]
    alpha: Float[Array, " M"]


class Spectrum(NamedTuple):
    """Eigenvalues (ascending, none negative) and eigenvectors of a Gram matrix."""

    values: Float[Array, " N"]
    vectors: Float[Array, "N N"]


def standardisation(
    features: Float[Array, "N D"], weight: Float[Array, " N"], scaling: Scaling = "each"
) -> Standardisation:
    """Mean and sd of the rows that `weight` (0 or 1) selects.

    Args:
        features: One row an image.
        weight: 1 for the rows that count.
        scaling: each divides a feature by its own sd; common divides all by the root of their mean variance, so that a feature
            which hardly varies in these rows stays as small as it is. Minimum-norm least squares without any scaling, as
            statistical packages compute it, is that of common.
    """
    n = weight.sum()
    mean = weight @ features / n
    variance = weight @ jnp.square(features - mean[None]) / n
    if scaling == "common":
        variance = jnp.full_like(variance, variance.mean())
    # What rounding alone could leave of a constant feature (as in scikit-learn's StandardScaler).
    eps = jnp.finfo(features.dtype).eps
    constant = variance <= n * eps * variance + jnp.square(n * mean * eps)
    return Standardisation(mean, jnp.where(constant, 1.0, jnp.sqrt(variance)))


def standardise(features: Float[Array, "N D"], by: Standardisation) -> Float[Array, "N D"]:
    """Subtract the mean and divide by the scale."""
    return (features - by.mean[None]) / by.scale[None]


def decompose(gram: Float[Array, "N N"]) -> Spectrum:
    """Eigendecomposition of a Gram matrix; negative rounding errors become 0."""
    values, vectors = jnp.linalg.eigh(gram, symmetrize_input=False)
    return Spectrum(jnp.maximum(values, 0.0), vectors)


def ridge(
    spectrum: Spectrum, targets: Float[Array, "N M"], weight: Float[Array, " N"], alphas: Float[Array, " A"]
) -> Dual:
    """Ridge regression; each target's penalty minimises its exact leave-one-out squared error.

    Args:
        spectrum: Of the Gram matrix of the standardised training rows; rows of weight 0 are zero there.
        targets: One column a target.
        weight: 1 for training rows, 0 for padding.
        alphas: Penalties to choose from, all positive.
    """
    n = weight.sum()
    centred, intercept = _centre(targets, weight)
    rotated = spectrum.vectors.T @ centred
    shrinkage = 1.0 / (spectrum.values[:, None] + alphas[None])
    coefficients = jnp.einsum("ij,ja,jm->aim", spectrum.vectors, shrinkage, rotated)
    diagonal = jnp.square(spectrum.vectors) @ shrinkage - weight[:, None] / (n * alphas[None])
    residuals = coefficients / diagonal.T[:, :, None]
    errors = jnp.einsum("i,aim->am", weight, jnp.square(residuals))
    best = jnp.argmin(errors, axis=0)
    chosen = jnp.take_along_axis(coefficients, best[None, None], axis=0)[0]
    return Dual(chosen * weight[:, None], intercept, alphas[best])


def least_squares(spectrum: Spectrum, targets: Float[Array, "N M"], weight: Float[Array, " N"]) -> Dual:
    """Least squares of minimum norm.

    Directions whose singular value is below about 1e-6 of the largest count as absent: features are float32, and what is
    smaller is their rounding.
    """
    centred, intercept = _centre(targets, weight)
    values, vectors = spectrum
    floor = 10 * values.shape[0] * jnp.finfo(values.dtype).eps * values[-1]
    inverse = jnp.where(values > floor, 1.0 / jnp.where(values > floor, values, 1.0), 0.0)
    coefficients = vectors @ (inverse[:, None] * (vectors.T @ centred))
    return Dual(coefficients * weight[:, None], intercept, jnp.zeros_like(intercept))


def r2(
    predictions: Float[Array, "N M"], targets: Float[Array, "N M"], weight: Float[Array, " N"]
) -> Float[Array, " M"]:
    """Coefficient of determination, 1 - sum (y - y^)^2 / sum (y - mean y)^2, over the rows of weight 1."""
    centred, _ = _centre(targets, weight)
    residual = (targets - predictions) * weight[:, None]
    return 1.0 - jnp.square(residual).sum(0) / jnp.square(centred).sum(0)


def _centre(
    targets: Float[Array, "N M"], weight: Float[Array, " N"]
) -> tuple[Float[Array, "N M"], Float[Array, " M"]]:
    mean = weight @ targets / weight.sum()
    return (targets - mean[None]) * weight[:, None], mean
