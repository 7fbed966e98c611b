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

Everything here is pure and traced; `evaluate` calls it for all layers, in float64.

Sources: Hastie, Tibshirani & Friedman 2009, The Elements of Statistical Learning, 3.4.1 (ridge) and 12.3.7 (the dual); Allen
1974, The Relationship between Variable Selection and Data Augmentation (leave-one-out); Golub & Van Loan 2013, Matrix
Computations, 2.1.4 and 3.2.11 (inverses and Schur complements of blocks).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, Int

AnyArray: TypeAlias = Array | np.ndarray
Scaling = Literal["each", "common"]

MANY = 32  # targets from which the operator, formed in float64, is applied to them in float32
EXHAUSTIVE = (
    100  # images up to which every penalty is tried, since in small samples leave-one-out has several minima
)
BLOCK = 32  # rows
READ = 0.75  # share of the variance that leave-one-out of all images leaves at most where few penalties are tried
CLEARLY = (
    1.05  # times the least error: beyond, an error has risen for good and not by the ripples of a flat curve
)
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

    Attributes:
        values: The eigenvalues w, ascending, none negative.
        vectors: The eigenvectors U.
        unpenalised: The orthonormal columns C, the constant first.
        shift: Eigenvalue of the columns C.
    """

    values: Float[Array, " r"]
    vectors: Float[Array, "N r"]
    unpenalised: Float[Array, "N K"]
    shift: Float[Array, ""]


class Fit(NamedTuple):
    """Ridge on all rows of a Gram matrix.

    Attributes:
        dual: a = P y; the weights are Z^T a. One column a target.
        errors: Each row's target minus its prediction by the fit to all other rows.
        alpha: The penalty of each target, which minimises the sum of the squared errors.
        leverage: Weight of each row in its own fitted value, 1 - alpha P_ii.
    """

    dual: Float[Array, "N M"]
    errors: Float[Array, "N M"]
    alpha: Float[Array, " M"]
    leverage: Float[Array, "N M"]


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


class HeldOut(NamedTuple):
    """Ridge on every split; each penalty minimises the leave-one-out error inside the training part.

    Attributes:
        r2: On the held-out part, against its own mean.
        alpha: The penalty.
        inner: Leave-one-out R2 inside the training part at that penalty; it knows nothing of the held-out part.
        ols: Held-out R2 of least squares of minimum norm; None if not asked for.
    """

    r2: Float[AnyArray, "*L S M"]
    alpha: Float[AnyArray, "*L S M"]
    inner: Float[AnyArray, "*L S M"]
    ols: Float[AnyArray, "*L S M"] | None = None


def standardisation(
    features: Float[Array, "N D"], weight: Float[Array, " N"] | None = None, scaling: Scaling = "each"
) -> Standardisation:
    """Mean and sd of every feature.

    Args:
        features: One row an image.
        weight: 1 for the rows that count, 0 for the others; all count when absent.
        scaling: each divides a feature by its own sd; common divides all by the root of their mean variance, so that a feature
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

    Args:
        spectrum: From `decompose`. Rows of padding are 0 in the Gram matrix and in the unpenalised columns.
        targets: One column a target, 0 in rows of padding.
        alphas: Penalties to choose from, all positive.
    """
    diagonal, dual = _path(spectrum, targets, alphas)
    errors = dual / diagonal[:, :, None]
    best = jnp.square(errors).sum(1).argmin(0)
    alpha = alphas[best]

    def chosen(values: Float[Array, "A N M"]) -> Float[Array, "N M"]:
        return jnp.take_along_axis(values, best[None, None], axis=0)[0]

    return Fit(chosen(dual), chosen(errors), alpha, 1 - alpha[None] * diagonal[best].T)


def _path(
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
    """A linear probe: predictions are features @ weights + intercept.

    Attributes:
        weights: The regression concept vector (RCV) of each target, one column a target.
        intercept: Of each target.
        alpha: The penalty on standardised features; 0 for least squares.
    """

    weights: Float[AnyArray, "D M"]
    intercept: Float[AnyArray, " M"]
    alpha: Float[AnyArray, " M"]


def linear(
    features: Float[Array, "N D"],
    targets: Float[Array, "N M"],
    alphas: Float[Array, " A"] | None = None,
    weight: Float[Array, " N"] | None = None,
) -> Linear:
    """Ridge, or least squares of minimum norm without `alphas`, on features that were divided by their scale.

    Args:
        features: Need not be centred.
        targets: Concept measures.
        alphas: Penalties to choose from by exact leave-one-out, all positive.
        weight: 1 for the rows that count, 0 for padding; all count when absent.

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


def held_out(
    spectrum: Spectrum,
    gram: Float[Array, "N N"],
    targets: Float[Array, "N M"],
    own: Float[Array, "S N O"],
    parts: Parts,
    alphas: Float[Array, " A"],
    ols: bool = False,
) -> HeldOut:
    """Ridge on every split, equal to refitting it on each training part.

    Three ways lead there. Each training part gets a decomposition where it is no larger than the rest, where splits have targets
    of their own, or where least squares is asked for as well. Thousands of targets, such as permuted ones, go through P: with
    `MANY` or more it is formed in float64 and applied in float32, which costs R2 about 1e-6, and rarely the choice between two
    penalties that leave-one-out finds equally good. And where all images read a target well, few penalties need trying, which is
    faster than a decomposition.

    Args:
        spectrum: From `decompose`.
        gram: The Gram matrix.
        targets: Targets of all splits.
        own: Further targets that differ between splits, such as shuffled ones; there may be none.
        parts: The splits.
        alphas: Penalties to choose from, all positive and in ascending order.
        ols: Whether to add least squares.

    Returns:
        One column for each of `targets`, then one for each of `own`.
    """
    y, own = targets - targets.mean(0)[None], own - own.mean(1)[:, None]
    count, many, fitted = len(y), y.shape[1] >= MANY, None
    refit = ols or own.shape[2] or (count <= EXHAUSTIVE and not many)
    if refit or parts.train.shape[1] <= parts.test.shape[1]:
        press, squares, best, fitted = _by_refitting(spectrum.unpenalised, gram, y, own, parts, alphas)
    elif many or jax.default_backend() not in ("cpu", "tpu"):
        press, squares, best = _by_deletion(spectrum, y, parts, alphas, None)
    else:
        diagonal, dual = _path(spectrum, y, alphas)
        curve = jnp.square(dual / diagonal[:, :, None]).sum(1)  # of all images
        press, squares, best = jax.lax.cond(
            (curve.min(0) < READ * jnp.square(y).sum(0)).all(),
            lambda: _by_deletion(spectrum, y, parts, alphas, curve),
            lambda: _by_refitting(spectrum.unpenalised, gram, y, own, parts, alphas)[:3],
        )
    spread = _spread(y, own, parts.test, parts.test_weight)
    return HeldOut(
        1 - squares / spread,
        alphas[best],
        1 - press / _spread(y, own, parts.train, parts.train_weight),
        1 - fitted / spread if ols and fitted is not None else None,
    )


def _by_refitting(
    unpenalised: Float[Array, "N K"], gram: Array, shared: Array, own: Array, parts: Parts, alphas: Array
) -> tuple[Array, Array, Array, Array]:
    """Least leave-one-out squares, held-out squares, place of the penalty, and held-out squares of least squares."""

    def one_split(arguments: tuple[Array, Parts]) -> tuple[Array, Array, Array, Array]:
        own, (test, test_weight, train, train_weight) = arguments
        y = jnp.concatenate([shared, own], axis=1)
        inside = gram[train[:, None], train[None]] * train_weight[:, None] * train_weight[None]
        # A nuisance measure may be constant in a training part, where the intercept then takes its place.
        basis, lengths, turn = jnp.linalg.svd(unpenalised[train] * train_weight[:, None], full_matrices=False)
        there = lengths > 1e-10
        basis = basis * there[None]
        known = y[train] * train_weight[:, None]
        spectrum = decompose(inside, basis)
        found = fit(spectrum, known, alphas)

        def held_out_squares(dual: Array) -> Array:
            rest = basis.T @ (known - inside @ dual) / jnp.where(there, lengths, 1.0)[:, None]
            predicted = gram[test[:, None], train[None]] @ dual + unpenalised[test] @ (turn.T @ rest)
            return jnp.square((y[test] - predicted) * test_weight[:, None]).sum(0)

        best = (alphas[:, None] == found.alpha[None]).argmax(0)
        ols = held_out_squares(least_squares(spectrum, known))
        return jnp.square(found.errors).sum(0), held_out_squares(found.dual), best, ols

    return over_splits(one_split, (own, parts))


def _by_deletion(
    spectrum: Spectrum,
    y: Float[Array, "N M"],
    parts: Parts,
    alphas: Float[Array, " A"],
    curve: Float[Array, "A M"] | None,
) -> tuple[Array, Array, Array]:
    """As `_by_refitting`, by leaving the held-out part out of P, which is faster for one penalty and serves many targets.

    With the leave-one-out squares of all images, `curve`, penalties are tried outwards from the best one there. On either side a
    split is done when its error has clearly risen at the last step there, and that of all images rises further on as well: after
    three to five penalties. Without it all penalties are tried.
    """
    count, splits = len(alphas), len(parts.test)
    dtype = jnp.float32 if y.shape[1] >= MANY else y.dtype
    start = jnp.array(0) if curve is None else (curve / curve.min(0)[None]).mean(1).argmin()

    def wanted(press: Float[Array, "A S M"], at: Array) -> Array:
        """Which splits need the penalty `at`."""
        if curve is None:
            return jnp.ones(splits, bool)
        back = jnp.sign(start - at)
        inner, before = at + back, jnp.clip(at + 2 * back, 0, count - 1)
        beyond = (jnp.arange(count) - inner) * back < 0
        rises = (curve[inner] <= jnp.where(beyond[:, None], curve, jnp.inf).min(0))[None]
        risen = (press[inner] > press[before]) & (press[inner] > CLEARLY * press.min(0))
        # A penalty that was not tried has an infinite error.
        return (jnp.abs(at - start) <= 1) | ~((risen & rises) | jnp.isinf(press[inner])).all(1)

    def one_penalty(tried: tuple[Array, Array], at: Array) -> tuple[tuple[Array, Array], None]:
        press, squares = tried
        these = wanted(press, at)
        nothing = jnp.full((2, y.shape[1]), jnp.inf, dtype)

        def solve() -> Array:
            p = operator(spectrum, alphas[at])
            dual = p.astype(dtype) @ y.astype(dtype)
            return over_splits(
                lambda one: jax.lax.cond(one[0], lambda: _leave_out(p, dual, one[1]), lambda: nothing),
                (these, parts),
            )

        found = jax.lax.cond(
            these.any(), solve, lambda: jnp.broadcast_to(nothing[None], (splits, *nothing.shape))
        )
        return (press.at[at].set(found[:, 0]), squares.at[at].set(found[:, 1])), None

    outwards = jnp.argsort(jnp.abs(jnp.arange(count) - start))
    untried = jnp.full((count, splits, y.shape[1]), jnp.inf, dtype)
    (press, squares), _ = jax.lax.scan(one_penalty, (untried, untried), outwards)
    best = press.argmin(0)
    return press.min(0), jnp.take_along_axis(squares, best[None], axis=0)[0], best


def _leave_out(p: Float[Array, "N N"], dual: Float[Array, "N M"], part: Parts) -> Float[Array, "2 M"]:
    """Leave-one-out squares inside the training part and held-out squares of one split and penalty, for dual = P y."""
    test, test_weight, train, train_weight = part
    factor = _factor(p, part)
    across = _substitute(factor, p[test][:, train] * test_weight[:, None])  # L^-1 P_TR
    inverse = _substitute(factor, jnp.eye(len(test), dtype=p.dtype))
    own = jnp.where(train_weight > 0, p[train, train] - jnp.square(across).sum(0), 1.0)  # the diagonal of S
    across, inverse, scale, weight = (
        values.astype(dual.dtype) for values in (across, inverse, train_weight / own, test_weight)
    )
    held, within = dual[test] * weight[:, None], dual[train]
    if dual.shape[1] >= MANY:
        errors, removed = jnp.split(jnp.concatenate([inverse.T, across.T]) @ inverse @ held, [len(test)])
    else:
        held = inverse @ held
        errors, removed = inverse.T @ held, across.T @ held
    return jnp.stack([jnp.square((within - removed) * scale[:, None]).sum(0), jnp.square(errors).sum(0)])


def _substitute(factor: Float[Array, "T T"], right: Float[Array, "T R"]) -> Float[Array, "T R"]:
    """L^-1 X by blocks of rows. XLA's own substitution on a CPU takes half as long again as these small products."""
    done: list[Array] = []
    for start in range(0, len(factor), BLOCK):
        rows = slice(start, start + BLOCK)
        rest = right[rows]
        if done:
            rest = rest - factor[rows, :start] @ jnp.concatenate(done)
        block = factor[rows, rows]
        done.append(solve_triangular(block, jnp.eye(len(block), dtype=block.dtype), lower=True) @ rest)
    return jnp.concatenate(done)


class WithoutGroups(NamedTuple):
    """What `without_each_group` finds; G groups.

    Attributes:
        r2: Of every split without each group; 0 where it is not defined.
        defined: Whether it is: what remains of the held-out part still has two different measures.
        dual: Of the fit to each training part, 0 in held-out rows.
    """

    r2: Float[Array, "S G"]
    defined: Float[Array, "S G"]
    dual: Float[Array, "S N"]


def without_each_group(
    spectrum: Spectrum, target: Float[Array, " N"], parts: Parts, alpha: Float[Array, " S"], groups: Groups
) -> WithoutGroups:
    """R2 of every split when one group of images is taken out of the whole experiment, from its training or its held-out part.

    Leaving out the group g of a training part as well, its members are missed by x_g = S_gg^-1 (S y)_g, and the held-out errors
    e_T become e_T - P_TT^-1 P_Tg x_g. The penalty of a split stays as it is.

    Args:
        spectrum: From `decompose`.
        target: One concept measure.
        parts: The splits.
        alpha: Penalty of each split, from `held_out`.
        groups: The groups.
    """
    y = target - target.mean()

    def one_split(arguments: tuple[Parts, Array]) -> WithoutGroups:
        part, penalty = arguments
        test, test_weight, train, train_weight = part
        p = operator(spectrum, penalty)
        dual = p @ y
        across = p[test] * test_weight[:, None]
        both = jnp.concatenate([across, (dual[test] * test_weight)[:, None]], axis=1)
        solved = cho_solve((_factor(p, part), True), both)
        weights, errors = solved[:, :-1], solved[:, -1]  # P_TT^-1 P_T: and e_T
        trains = jnp.zeros(len(y), p.dtype).at[train].add(train_weight)
        rest = (dual - across.T @ errors) * trains  # S y
        inside = groups.weight * trains[groups.rows]
        blocks = p[groups.rows[:, :, None], groups.rows[:, None, :]] - jnp.einsum(
            "tgi,tgj->gij", across[:, groups.rows], weights[:, groups.rows]
        )
        blocks = blocks * inside[:, :, None] * inside[:, None, :]
        blocks = blocks + jnp.eye(inside.shape[1])[None] * (1 - inside)[:, :, None]  # ones where padded
        goal = rest[groups.rows] * inside
        missed = (
            jnp.linalg.solve(blocks, goal[:, :, None])[:, :, 0]
            if goal.shape[1] > 1
            else goal / blocks[:, :, 0]
        )
        moved = errors[:, None] - jnp.einsum("tgi,gi->tg", weights[:, groups.rows], missed * inside)
        kept = test_weight[:, None] * (groups.of[test][:, None] != jnp.arange(len(groups.rows))[None])
        count = kept.sum(0)
        mean = (kept * y[test][:, None]).sum(0) / jnp.maximum(count, 1)
        spread = (kept * jnp.square(y[test][:, None] - mean[None])).sum(0)
        defined = (count > 1) & (spread > 0)
        r2 = 1 - (kept * jnp.square(moved)).sum(0) / jnp.where(defined, spread, 1)
        return WithoutGroups(jnp.where(defined, r2, 0.0), defined.astype(p.dtype), rest)

    return over_splits(one_split, (parts, alpha))


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


def _factor(p: Float[Array, "N N"], part: Parts) -> Float[Array, "T T"]:
    """Cholesky factor of P_TT, with ones on the diagonal where padded."""
    weight = part.test_weight
    block = p[part.test[:, None], part.test[None]] * weight[:, None] * weight[None] + jnp.diag(1 - weight)
    return jnp.linalg.cholesky(block, symmetrize_input=False)


def _spread(
    shared: Array, own: Array, rows: Int[Array, "S n"], weight: Float[Array, "S n"]
) -> Float[Array, "S MO"]:
    """Sum of squares of each split's rows about their mean, of targets that are about 0 on average."""
    splits = jnp.arange(len(rows))[:, None]
    mask = jnp.zeros(own.shape[:2], weight.dtype).at[splits, rows].add(weight)

    def sums(shared: Array, own: Array) -> Array:
        return jnp.concatenate([mask @ shared, jnp.einsum("sn,sno->so", mask, own)], axis=1)

    spread = sums(jnp.square(shared), jnp.square(own)) - jnp.square(sums(shared, own)) / mask.sum(1)[:, None]
    return jnp.where(spread > 0, spread, 1.0)  # of a constant target R2 is not defined
