"""What ridge predicts for images it was not fitted to, from one factorisation a layer.

With K the Gram matrix of all N standardised images, projected on the complement of the unpenalised columns (the constant, and
nuisance measures if any), and C an orthonormal basis of those columns, the operator of a penalty is

    P = (K + alpha)^-1 on that complement = U diag(1 / (w + alpha)) U^T - C C^T / alpha.

Ridge fitted without the images T, its unpenalised coefficients included, misses their measures by e_T = P_TT^-1 (P y)_T. What is
left for the others, S = P_RR - P_RT P_TT^-1 P_TR, is the operator of the fit to R alone, so that the same formula applies again:
without a further group g of images it misses them by x_g = S_gg^-1 (S y)_g, and e_T becomes e_T - P_TT^-1 P_Tg x_g. Nothing is
refitted. With K = 0 it is least squares on the unpenalised columns alone.

Source: the inverse of a matrix in blocks; for one image and least squares, Allen 1974, The Relationship between Variable
Selection and Data Augmentation and a Method for Prediction.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, Int

from scalecov_jax.probes.spectral import Spectrum, decompose

MANY = 32  # targets from which operators formed in float64 are applied in float32


class Parts(NamedTuple):
    """Held-out and training rows of each split, padded with row 0 to equal lengths; weight 0 marks the padding."""

    test: Int[Array, "S T"]
    test_weight: Float[Array, "S T"]
    train: Int[Array, "S R"]
    train_weight: Float[Array, "S R"]


class Groups(NamedTuple):
    """Rows of each group of images, padded with row 0; `of` is the group of each row."""

    rows: Int[Array, "G g"]
    weight: Float[Array, "G g"]
    of: Int[Array, " N"]


class Layer(NamedTuple):
    """The factorisation of one layer: of K, and the orthonormal unpenalised columns C."""

    spectrum: Spectrum
    unpenalised: Float[Array, "N K"]


class HeldOut(NamedTuple):
    """Ridge on every split; each penalty minimises the exact leave-one-out error inside the training part.

    Attributes:
        r2: On the held-out part.
        alpha: The penalty.
        inner: Leave-one-out R2 inside the training part with that penalty; it knows nothing of the held-out part.
    """

    r2: Float[Array, "S M"]
    alpha: Float[Array, "S M"]
    inner: Float[Array, "S M"]


class LeftOut(NamedTuple):
    """Ridge on all images but one, for each image in turn, with one penalty a target.

    Attributes:
        errors: Measure minus prediction of the image that was left out.
        leverage: Weight of each image in its own fitted value, 1 - alpha P_ii.
        alpha: The penalty, which minimises the sum of squared errors.
        dof: Effective degrees of freedom, the number of unpenalised columns + sum w / (w + alpha).
    """

    errors: Float[Array, "N M"]
    leverage: Float[Array, "N M"]
    alpha: Float[Array, " M"]
    dof: Float[Array, " M"]


def factorise(gram: Float[Array, "N N"], unpenalised: Float[Array, "N K"]) -> Layer:
    """Project a Gram matrix on the complement of orthonormal columns and decompose it."""
    inside = unpenalised @ (unpenalised.T @ gram)
    both = gram - inside - inside.T + inside @ unpenalised @ unpenalised.T
    return Layer(decompose((both + both.T) / 2), unpenalised)


def operator(layer: Layer, alpha: Float[Array, ""]) -> Float[Array, "N N"]:
    """P of a penalty."""
    (values, vectors), c = layer
    return (vectors / (values + alpha)[None]) @ vectors.T - c @ c.T / alpha


def leave_one_out(layer: Layer, targets: Float[Array, "N M"], alphas: Float[Array, " A"]) -> LeftOut:
    """e_i = (P y)_i / P_ii for every image; see `LeftOut`."""
    (values, vectors), c = layer
    shrinkage = 1 / (values[:, None] + alphas[None])
    diagonal = jnp.square(vectors) @ shrinkage - jnp.square(c).sum(1)[:, None] / alphas[None]
    dual = jnp.einsum("ij,ja,jm->aim", vectors, shrinkage, vectors.T @ targets)
    errors = (dual - (c @ (c.T @ targets))[None] / alphas[:, None, None]) / diagonal.T[:, :, None]
    best = jnp.argmin(jnp.square(errors).sum(1), axis=0)
    alpha = alphas[best]
    return LeftOut(
        jnp.take_along_axis(errors, best[None, None], axis=0)[0],
        1 - alpha[None] * diagonal[:, best],
        alpha,
        c.shape[1] + (values[:, None] / (values[:, None] + alpha[None])).sum(0),
    )


def held_out(layer: Layer, targets: Float[Array, "N M"], parts: Parts, alphas: Float[Array, " A"]) -> HeldOut:
    """Ridge on every split, equal to refitting it on each training part.

    Args:
        layer: From `factorise`.
        targets: One column a target. With `MANY` or more, operators are applied in float32, which costs R2 about 1e-6.
        parts: The splits.
        alphas: Penalties to choose from, all positive.
    """
    y = targets - targets.mean(0)[None]
    solve = _apply if targets.shape[1] >= MANY else _substitute
    dtype = jnp.float32 if solve is _apply else y.dtype

    def one_penalty(best: Any, alpha: Array) -> tuple[Any, None]:
        p = operator(layer, alpha)
        dual = p.astype(dtype) @ y.astype(dtype)

        def one_split(part: Parts) -> tuple[Array, Array]:
            errors, inside = solve(p, dual, part)
            return jnp.einsum("r,rm->m", part.train_weight.astype(dtype), jnp.square(inside)), errors

        press, errors = jax.lax.map(one_split, parts)
        better = press < best[0]
        kept = (press, errors, jnp.full(press.shape, alpha))
        shapes = (better, better[:, None], better)
        return tuple(map(jnp.where, shapes, kept, best)), None

    splits, count = len(parts.test), y.shape[1]
    start = (
        jnp.full((splits, count), jnp.inf, dtype),
        jnp.zeros((splits, parts.test.shape[1], count), dtype),
        jnp.zeros((splits, count), alphas.dtype),
    )
    (press, errors, alpha), _ = jax.lax.scan(one_penalty, start, alphas)
    return HeldOut(
        1 - jnp.square(errors).sum(1) / _spread(y, parts.test, parts.test_weight),
        alpha,
        1 - press / _spread(y, parts.train, parts.train_weight),
    )


def without_each_group(
    layer: Layer, target: Float[Array, " N"], parts: Parts, alpha: Float[Array, " S"], groups: Groups
) -> tuple[Float[Array, "S G"], Float[Array, "S G"]]:
    """R2 of every split when one group of images is taken out of the whole experiment, from its training or its held-out part.

    The penalty of a split stays as it is.

    Args:
        layer: From `factorise`.
        target: One concept measure.
        parts: The splits.
        alpha: Penalty of each split, from `held_out`.
        groups: The groups.

    Returns:
        R2, and 1 where it is defined, 0 where what remains of the held-out part is constant or a single image.
    """
    y = target - target.mean()

    def one_split(arguments: tuple[Parts, Array]) -> tuple[Array, Array]:
        part, penalty = arguments
        test, test_weight, train, train_weight = part
        p = operator(layer, penalty)
        dual = p @ y
        factor = _factor(p, part)
        across = p[test] * test_weight[:, None]
        solved = cho_solve(
            (factor, True), jnp.concatenate([across, (dual[test] * test_weight)[:, None]], axis=1)
        )
        weights, errors = solved[:, :-1], solved[:, -1]
        trains = jnp.zeros(len(y), p.dtype).at[train].add(train_weight)
        rest = (dual - across.T @ errors) * trains
        inside = groups.weight * trains[groups.rows]
        blocks = p[groups.rows[:, :, None], groups.rows[:, None, :]] - jnp.einsum(
            "tgi,tgj->gij", across[:, groups.rows], weights[:, groups.rows]
        )
        blocks = (
            blocks * inside[:, :, None] * inside[:, None, :]
            + jnp.eye(inside.shape[1])[None] * (1 - inside)[:, :, None]
        )
        missed = jnp.linalg.solve(blocks, (rest[groups.rows] * inside)[:, :, None])[:, :, 0] * inside
        moved = errors[:, None] - jnp.einsum("tgi,gi->tg", weights[:, groups.rows], missed)
        kept = test_weight[:, None] * (groups.of[test][:, None] != jnp.arange(len(groups.rows))[None])
        count = kept.sum(0)
        y_test = y[test][:, None]
        mean = (kept * y_test).sum(0) / jnp.maximum(count, 1)
        spread = (kept * jnp.square(y_test - mean[None])).sum(0)
        defined = (count > 1) & (spread > 0)
        r2 = 1 - (kept * jnp.square(moved)).sum(0) / jnp.where(defined, spread, 1)
        return jnp.where(defined, r2, 0.0), defined.astype(p.dtype)

    return jax.lax.map(one_split, (parts, alpha))


def _factor(p: Float[Array, "N N"], part: Parts) -> Float[Array, "T T"]:
    """Cholesky factor of P_TT, with ones on the diagonal where padded."""
    weight = part.test_weight
    block = p[part.test[:, None], part.test[None]] * weight[:, None] * weight[None] + jnp.diag(1 - weight)
    return jnp.linalg.cholesky(block, symmetrize_input=False)


def _substitute(p: Array, dual: Array, part: Parts) -> tuple[Array, Array]:
    """Held-out errors, and leave-one-out errors inside the training part, by triangular solves."""
    factor, size = _factor(p, part), part.train.shape[0]
    rows = p[part.test] * part.test_weight[:, None]
    right = jnp.concatenate([rows[:, part.train], dual[part.test] * part.test_weight[:, None]], axis=1)
    half = solve_triangular(factor, right, lower=True)
    left = _where_real(part, p[part.train, part.train] - jnp.square(half[:, :size]).sum(0))
    inside = (dual[part.train] - half[:, :size].T @ half[:, size:]) / left[:, None]
    return solve_triangular(factor, half[:, size:], lower=True, trans=1), inside


def _apply(p: Array, dual: Array, part: Parts) -> tuple[Array, Array]:
    """As `_substitute`, with one matrix for all targets: the faster, the more targets there are."""
    factor, size = _factor(p, part), part.test.shape[0]
    across = p[part.test][:, part.train] * part.test_weight[:, None]
    inverse = solve_triangular(factor, jnp.eye(size, dtype=p.dtype), lower=True)
    inverse = inverse.T @ inverse
    removal = across.T @ inverse
    left = 1 / _where_real(part, p[part.train, part.train] - (removal * across.T).sum(1))
    matrix = jnp.concatenate([inverse, removal * left[:, None]]).astype(dual.dtype)
    product = matrix @ (dual[part.test] * part.test_weight[:, None].astype(dual.dtype))
    return product[:size], dual[part.train] * left[:, None].astype(dual.dtype) - product[size:]


def _where_real(part: Parts, values: Float[Array, " R"]) -> Float[Array, " R"]:
    # A padded row may lie in the held-out part, of which nothing is left here.
    return jnp.where(part.train_weight > 0, values, 1.0)


def _spread(y: Array, rows: Array, weight: Array) -> Float[Array, "S M"]:
    """Sum of squares of each split's rows about their mean."""
    values = y[rows] * weight[:, :, None]
    mean = values.sum(1) / weight.sum(1)[:, None]
    return jnp.square(values - mean[:, None] * weight[:, :, None]).sum(1)
