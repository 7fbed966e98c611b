"""Linear heads in closed form on the pooled features of a cut network: ridge regression in float64, one seed after the other.

Axis letters as elsewhere, and R seeds.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scalecov_jax.probes import batch, spectral
from scalecov_jax.transfer.heads import AnyArray, Mask, checked_arrays


class RidgeHeads(NamedTuple):
    """Ridge heads in float64; predictions in px are features @ kernel.T + bias; alpha is the penalty that each chose."""

    kernel: Float[np.ndarray, "R D"]
    bias: Float[np.ndarray, " R"]
    alpha: Float[np.ndarray, " R"]


def ridge_heads(
    features: Float[AnyArray, "N D"],
    targets: Float[AnyArray, " N"],
    train: Mask,
    alphas: Float[np.ndarray, " A"] = batch.ALPHAS,
) -> RidgeHeads:
    """Ridge regression in float64 on each seed's part, with the penalty of least exact leave-one-out error.

    Features are standardised by the training part and the intercept is free, as in `probes.linear.fit_ridge`. Up to D
    training rows that is the dual of `spectral.ridge`; with more, Z^T Z = V diag(w) V^T (D x D), Q = Z V, and the leave-one-out
    residual is (y_i - y^_i) / (1 - h_i) with h_i = 1 / n + sum_j Q_ij^2 / (w_j + alpha). Seconds a seed at D = 2048.

    Args:
        features: Pooled features.
        targets: In px.
        train: One row a seed; 1 or True marks its training part. The parts may differ in size.
        alphas: Penalties to choose from, all positive.

    Raises:
        ValueError: As `train_heads`, or penalties that are not positive.

    Source: Golub, Heath and Wahba 1979, Generalized cross-validation (section 1, the ordinary form).
    """
    x, y, mask = checked_arrays({"features": features}, targets, train)
    if not (len(alphas) and np.all(alphas > 0)):
        raise ValueError(f"Penalties must be positive, got {list(alphas)}.")
    # The rows of each part first, up to the largest part: padding has weight 0.
    rows = np.argsort(~mask, axis=1, kind="stable")[:, : mask.sum(1).max()]
    parts = (rows, np.take_along_axis(mask, rows, axis=1).astype(np.float64))
    device = jax.devices("cpu")[0] if jax.default_backend() == "tpu" else None
    with jax.enable_x64(True), jax.default_device(device):
        values = (x["features"].astype(np.float64), y.astype(np.float64))
        return RidgeHeads(*map(np.asarray, _ridge(*values, parts, np.asarray(alphas, np.float64))))


@jax.jit
def _ridge(
    features: Float[Array, "N D"],
    targets: Float[Array, " N"],
    parts: tuple[Array, Array],
    alphas: Float[Array, " A"],
) -> tuple[Float[Array, "R D"], Float[Array, " R"], Float[Array, " R"]]:
    def one_seed(part: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        rows, weight = part
        by = spectral.standardisation(features[rows], weight)
        z = spectral.standardise(features[rows], by) * weight[:, None]
        y = targets[rows]
        if z.shape[0] > z.shape[1]:
            slope, intercept, alpha = _primal_ridge(z, y, weight, alphas)
        else:
            dual = spectral.ridge(spectral.decompose(z @ z.T), y[:, None], weight, alphas)
            slope, intercept, alpha = z.T @ dual.coefficients[:, 0], dual.intercept[0], dual.alpha[0]
        kernel = slope / by.scale
        return kernel, intercept - by.mean @ kernel, alpha

    return jax.lax.map(one_seed, parts)


def _primal_ridge(
    z: Float[Array, "N D"],
    targets: Float[Array, " N"],
    weight: Float[Array, " N"],
    alphas: Float[Array, " A"],
) -> tuple[Float[Array, " D"], Float[Array, ""], Float[Array, ""]]:
    intercept = weight @ targets / weight.sum()
    y = (targets - intercept) * weight
    values, vectors = spectral.decompose(z.T @ z)
    q = z @ vectors
    shrinkage = 1.0 / (values[:, None] + alphas[None])
    coordinates = (y @ q)[:, None] * shrinkage
    leverage = jnp.square(q) @ shrinkage + (weight / weight.sum())[:, None]
    residuals = (y[:, None] - q @ coordinates) / (1.0 - leverage)
    best = jnp.argmin(weight @ jnp.square(residuals))
    return vectors @ coordinates[:, best], intercept, alphas[best]
