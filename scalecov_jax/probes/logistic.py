"""Logistic regression for concepts that are there or not: concept activation vectors."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scalecov_jax.compilation import jit
from scalecov_jax.probes import ridge
from scalecov_jax.probes.contract import Probe, check_positive
from scalecov_jax.probes.evaluate import float64

ALPHAS = np.logspace(-2, 5, 15)
ITERATIONS = 100  # of Newton's method at most; from the next larger penalty it takes about 4


def logistic(alphas: Sequence[float] | np.ndarray = ALPHAS) -> Probe:
    """L2-penalised logistic regression of targets 0 and 1; see `fit_logistic`.

    Predictions are probabilities, so that R2 is the Brier skill score; `accuracy` and `auc` are scores of `cross_validate` too.

    Raises:
        ValueError: A penalty that is not positive; from `cross_validate`, targets other than 0 and 1.
    """
    alphas = check_positive("Penalties", np.asarray(alphas))
    return Probe("logistic", lambda z, y: fit_logistic(z, y, jnp.asarray(alphas)), predict, check_binary)


def concept_activation_vector(
    features: Float[np.ndarray, "N D"],
    targets: Float[np.ndarray, "N M"],
    alphas: Sequence[float] | np.ndarray = ALPHAS,
) -> ridge.Linear:
    """The concept activation vector (CAV): `weights` of a logistic regression, in the units of the features.

    features @ weights + intercept is the logit of the probability. Computed in float64 on standardised features.

    Raises:
        ValueError: Targets other than 0 and 1, or only one of them; a penalty that is not positive.

    Source: Kim et al. 2018, Interpretability Beyond Feature Attribution: Quantitative Testing with Concept Activation Vectors.
    """
    check_binary(targets[None])
    if (np.ptp(targets, axis=0) == 0).any():
        raise ValueError(
            "A concept activation vector needs images with and without the concept; all are alike."
        )
    penalties = check_positive("Penalties", np.asarray(alphas))
    with float64():
        x = jnp.asarray(features, np.float64)
        by = ridge.standardisation(x)
        fit = jit(fit_logistic)(ridge.standardise(x, by), np.asarray(targets, np.float64), penalties)
        return jax.tree.map(np.asarray, ridge.in_feature_units(fit, by))


def fit_logistic(
    z: Float[Array, "N D"], targets: Float[Array, "N M"], alphas: Float[Array, " A"]
) -> ridge.Linear:
    """Minimise sum log(1 + exp(eta)) - y eta + alpha |w|^2 / 2 with eta = z w + b, by Newton's method.

    With z = R Q^T, Q an orthonormal basis of the span of the rows, w = Q v and |w| = |v|: the systems have min(N, D) + 1
    unknowns. Penalties are gone through from the largest, each from the solution before it.

    Each target's penalty minimises the log loss at the approximate leave-one-out

        eta_i + q_i (p_i - y_i) / (1 - p_i (1 - p_i) q_i),    q_i = x_i^T H^-1 x_i

    where p is the probability, x_i the row with a 1 for the intercept, and H the Hessian: one Newton step from the fit of all
    images to that without image i.

    z is standardised, and targets are 0 or 1; scikit-learn's C is 1 / alpha. `ridge.predict` of the fit is the logit eta.

    Source: Rad and Maleki 2020, A scalable estimate of the out-of-sample prediction error via approximate leave-one-out.
    """
    basis, coordinates = jnp.linalg.qr(z.T)
    rows = jnp.concatenate([coordinates.T, jnp.ones((len(z), 1), z.dtype)], axis=1)
    alphas = -jnp.sort(-alphas)

    def one_target(y: Float[Array, " N"]) -> tuple[Array, Array]:
        def one_penalty(start: Array, alpha: Array) -> tuple[Array, tuple[Array, Array]]:
            found = _newton(rows, y, alpha, start)
            return found, (found, _leave_one_out_loss(rows, y, alpha, found))

        start = jnp.zeros(rows.shape[1], z.dtype)
        _, (path, loss) = jax.lax.scan(one_penalty, start, alphas)
        best = jnp.argmin(loss)
        return path[best], alphas[best]

    solution, alpha = jax.lax.map(one_target, targets.T)
    return ridge.Linear(basis @ solution[:, :-1].T, solution[:, -1], alpha)


def predict(fit: ridge.Linear, features: Float[Array, "K D"]) -> Float[Array, "K M"]:
    """Probability of the concept."""
    return jax.nn.sigmoid(ridge.predict(fit, features))


def accuracy(probabilities: Float[Array, "K M"], targets: Float[Array, "K M"]) -> Float[Array, " M"]:
    """Share of images on the right side of probability 1/2."""
    return ((probabilities > 0.5) == (targets > 0.5)).mean(0, dtype=probabilities.dtype)


def auc(probabilities: Float[Array, "K M"], targets: Float[Array, "K M"]) -> Float[Array, " M"]:
    """Area under the ROC curve: how often an image with the concept is ranked above one without, ties counted half."""
    difference = probabilities[:, None] - probabilities[None]
    pairs = targets[:, None] * (1.0 - targets[None])
    return ((jnp.sign(difference) + 1.0) / 2.0 * pairs).sum((0, 1)) / pairs.sum((0, 1))


def check_binary(targets: np.ndarray) -> None:
    """Check that targets are 0 or 1.

    Raises:
        ValueError: They are not; names some of the other values.
    """
    other = np.setdiff1d(targets, (0, 1))
    if other.size:
        raise ValueError(
            f"A logistic probe reads targets of 0 and 1, got {', '.join(f'{value:g}' for value in other[:5])}"
            f"{' and others' if other.size > 5 else ''}; threshold the measure, as in (measure > median).astype(float), or "
            "probe it with ridge."
        )


def _newton(rows: Float[Array, "N P"], y: Float[Array, " N"], alpha: Array, start: Array) -> Array:
    penalty = _penalty(rows, alpha)
    lengths = 0.5 ** jnp.arange(12.0, dtype=rows.dtype)

    def loss(beta: Float[Array, " P"]) -> Array:
        return _log_loss(rows @ beta, y).sum() + 0.5 * penalty @ jnp.square(beta)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        beta, _, iteration = state
        gradient = rows.T @ (jax.nn.sigmoid(rows @ beta) - y) + penalty * beta
        direction = jax.scipy.linalg.cho_solve((_hessian_factor(rows, beta, penalty), True), gradient)
        # The best of these lengths always lowers the loss, so that no start diverges.
        length = lengths[jnp.argmin(jax.vmap(lambda one: loss(beta - one * direction))(lengths))]
        return beta - length * direction, gradient @ direction, iteration + 1

    # gradient @ direction is about twice what the step gained; the error left behind it is quadratically smaller.
    enough = jnp.finfo(rows.dtype).eps ** 0.6
    return jax.lax.while_loop(
        lambda state: (state[1] > enough) & (state[2] < ITERATIONS),
        step,
        (start, jnp.full((), jnp.inf, rows.dtype), jnp.zeros((), int)),
    )[0]


def _leave_one_out_loss(rows: Float[Array, "N P"], y: Float[Array, " N"], alpha: Array, beta: Array) -> Array:
    eta = rows @ beta
    p = jax.nn.sigmoid(eta)
    factor = _hessian_factor(rows, beta, _penalty(rows, alpha))
    q = jnp.square(jax.scipy.linalg.solve_triangular(factor, rows.T, lower=True)).sum(0)
    return _log_loss(eta + q * (p - y) / (1.0 - p * (1.0 - p) * q), y).sum()


def _hessian_factor(rows: Float[Array, "N P"], beta: Array, penalty: Array) -> Array:
    p = jax.nn.sigmoid(rows @ beta)
    return jnp.linalg.cholesky((rows.T * (p * (1.0 - p))[None]) @ rows + jnp.diag(penalty))


def _penalty(rows: Float[Array, "N P"], alpha: Array) -> Float[Array, " P"]:
    return jnp.full(rows.shape[1], alpha).at[-1].set(0.0)


def _log_loss(eta: Float[Array, " N"], y: Float[Array, " N"]) -> Float[Array, " N"]:
    return jax.nn.softplus(eta) - y * eta
