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
    """K, its factorisation, and the orthonormal unpenalised columns C."""

    gram: Float[Array, "N N"]
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
    both = (both + both.T) / 2
    return Layer(both, decompose(both), unpenalised)


def operator(layer: Layer, alpha: Float[Array, ""]) -> Float[Array, "N N"]:
    """P of a penalty."""
    _, (values, vectors), c = layer
    return (vectors / (values + alpha)[None]) @ vectors.T - c @ c.T / alpha


def leave_one_out(layer: Layer, targets: Float[Array, "N M"], alphas: Float[Array, " A"]) -> LeftOut:
    """e_i = (P y)_i / P_ii for every image; see `LeftOut`."""
    _, (values, vectors), c = layer
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

    A few targets go through the tridiagonal form of the training part's Gram matrix, which serves all penalties. With `MANY`
    targets or more, one matrix a penalty is formed by deletion in float64 and applied to all of them in float32, which costs R2
    about 1e-6, and rarely the choice between two penalties that leave-one-out finds equally good.

    Args:
        layer: From `factorise`.
        targets: One column a target.
        parts: The splits.
        alphas: Penalties to choose from, all positive.
    """
    y = targets - targets.mean(0)[None]
    solve = _by_deletion if y.shape[1] >= MANY else _by_training_part
    press, errors, best = solve(layer, y, parts, alphas)
    return HeldOut(
        1 - jnp.square(errors).sum(1) / _spread(y, parts.test, parts.test_weight),
        alphas[best],
        1 - press / _spread(y, parts.train, parts.train_weight),
    )


def _by_training_part(
    layer: Layer, y: Float[Array, "N M"], parts: Parts, alphas: Float[Array, " A"]
) -> tuple[Array, Array, Array]:
    """Smallest leave-one-out squares, held-out errors and place of the penalty, from each training part's own operator.

    K_RR = Q T Q^T with T tridiagonal, and T + alpha = L D L^T with L of two diagonals, so that the rows of W = L^-1 Q^T follow
    from each other and the operator of a penalty is W^T D^-1 W.
    """
    gram, _, c = layer

    def one_split(part: Parts) -> tuple[Array, Array, Array]:
        test, test_weight, train, train_weight = part
        inside = gram[train[:, None], train[None]] * train_weight[:, None] * train_weight[None]
        # A nuisance measure may be constant in a training part.
        basis, lengths, turn = jnp.linalg.svd(c[train] * train_weight[:, None], full_matrices=False)
        there = lengths > 1e-10
        basis = basis * there[None]
        both = inside - basis @ (basis.T @ inside)
        both = both - (both @ basis) @ basis.T
        reflected, diagonal, beside, scale = jax.lax.linalg.tridiagonal((both + both.T) / 2, lower=True)
        q = jnp.eye(len(train), dtype=gram.dtype)
        q = q.at[1:, 1:].set(jax.lax.linalg.householder_product(reflected[1:, :-1], scale))
        known = y[train] * train_weight[:, None]

        def down(before: Any, along: Any) -> tuple[Any, Any]:
            w, pivot, z, leverage = before
            q_row, q_y, on, off = along
            factor = off / pivot
            pivot = on + alphas - factor * off
            w = q_row[None] - factor[:, None] * w
            z = q_y[None] - factor[:, None] * z
            return (w, pivot, z, leverage + jnp.square(w) / pivot[:, None]), (factor, z / pivot[:, None])

        def up(below: Any, along: Any) -> tuple[Any, Array]:
            solution, factor_below = below
            factor, scaled = along
            solution = scaled - factor_below[:, None] * solution
            return (solution, factor), solution

        nothing = jnp.zeros((len(alphas), len(train)), gram.dtype)
        start = (nothing, jnp.ones_like(alphas), jnp.zeros((len(alphas), y.shape[1]), gram.dtype), nothing)
        off = jnp.concatenate([jnp.zeros(1, gram.dtype), beside])
        (*_, leverage), steps = jax.lax.scan(down, start, (q.T, q.T @ known, diagonal, off))
        _, solution = jax.lax.scan(
            up, (jnp.zeros_like(start[2]), jnp.zeros_like(alphas)), steps, reverse=True
        )
        dual = jnp.einsum("rk,kam->arm", q, solution)
        leverage = leverage - jnp.square(basis).sum(1)[None] / alphas[:, None]
        dual = dual - (basis @ (basis.T @ known))[None] / alphas[:, None, None]
        missed = dual / jnp.where(train_weight > 0, leverage, 1.0)[:, :, None]
        press = jnp.einsum("r,arm->am", train_weight, jnp.square(missed))
        best = press.argmin(0)
        dual = jnp.take_along_axis(dual, best[None, None], 0)[0] * train_weight[:, None]
        # What the unpenalised columns add, from what the rest leaves in the training part.
        left = known - inside @ dual
        unpenalised = turn.T @ ((basis.T @ left) / jnp.where(there, lengths, 1.0)[:, None])
        predicted = gram[test[:, None], train[None]] @ dual + c[test] @ unpenalised
        return press.min(0), (y[test] - predicted) * test_weight[:, None], best

    return jax.lax.map(one_split, parts)


def _by_deletion(
    layer: Layer, y: Float[Array, "N M"], parts: Parts, alphas: Float[Array, " A"]
) -> tuple[Array, Array, Array]:
    """As `_by_training_part`, one penalty after the other, by removing the held-out part from the operator of all images."""
    y = y.astype(jnp.float32)

    def one_penalty(best: Any, numbered: tuple[Array, Array]) -> tuple[Any, None]:
        place, alpha = numbered
        p = operator(layer, alpha)
        dual = p.astype(y.dtype) @ y

        def one_split(part: Parts) -> tuple[Array, Array]:
            errors, inside = _apply(p, dual, part)
            return jnp.einsum("r,rm->m", part.train_weight.astype(y.dtype), jnp.square(inside)), errors

        press, errors = jax.lax.map(one_split, parts)
        better = press < best[0]
        kept = (press, errors, jnp.full(press.shape, place))
        return tuple(map(jnp.where, (better, better[:, None], better), kept, best)), None

    splits, count = len(parts.test), y.shape[1]
    start = (
        jnp.full((splits, count), jnp.inf, y.dtype),
        jnp.zeros((splits, parts.test.shape[1], count), y.dtype),
        jnp.zeros((splits, count), int),
    )
    return jax.lax.scan(one_penalty, start, (jnp.arange(len(alphas)), alphas))[0]


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


def _apply(p: Array, dual: Array, part: Parts) -> tuple[Array, Array]:
    """Held-out errors, and leave-one-out errors inside the training part."""
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
