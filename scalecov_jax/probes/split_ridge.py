"""Ridge on every split, and on every split without each group of images, from one decomposition of all images.

The mathematics stands in `ridge`: the operator P of all images serves every split, and leaves out further groups by the same
formula. Pure and traced; `evaluate` calls it for all layers, in float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, Int

from scalecov_jax.probes import ridge

MANY = 32  # targets from which the operator, formed in float64, is applied to them in float32
# Images up to which every penalty is tried, since in small samples leave-one-out has several minima.
EXHAUSTIVE = 100
BLOCK = 32  # rows
READ = 0.75  # share of the variance that leave-one-out of all images leaves at most where few penalties are tried
# Times the least error: beyond, an error has risen for good and not by the ripples of a flat curve.
CLEARLY = 1.05


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
    """Ridge on every split; each penalty minimises the leave-one-out error inside the training part."""

    r2: Float[ridge.AnyArray, "*L S M"]  # on the held-out part, against its own mean
    alpha: Float[ridge.AnyArray, "*L S M"]  # the penalty
    # leave-one-out R2 inside the training part at that penalty; it knows nothing of the held-out part
    inner: Float[ridge.AnyArray, "*L S M"]
    # held-out R2 of least squares of minimum norm; None if not asked for
    ols: Float[ridge.AnyArray, "*L S M"] | None = None


def held_out(
    spectrum: ridge.Spectrum,
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

    Penalties ascend. R2 has one column for each of `targets`, then one for each of `own`, which differ between splits.
    """
    y, own = targets - targets.mean(0)[None], own - own.mean(1)[:, None]
    count, many, fitted = len(y), y.shape[1] >= MANY, None
    refit = ols or own.shape[2] or (count <= EXHAUSTIVE and not many)
    if refit or parts.train.shape[1] <= parts.test.shape[1]:
        press, squares, best, fitted = _by_refitting(spectrum.unpenalised, gram, y, own, parts, alphas)
    elif many or jax.default_backend() not in ("cpu", "tpu"):
        press, squares, best = _by_deletion(spectrum, y, parts, alphas, None)
    else:
        diagonal, dual = ridge.path(spectrum, y, alphas)
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
        spectrum = ridge.decompose(inside, basis)
        found = ridge.fit(spectrum, known, alphas)

        def held_out_squares(dual: Array) -> Array:
            rest = basis.T @ (known - inside @ dual) / jnp.where(there, lengths, 1.0)[:, None]
            predicted = gram[test[:, None], train[None]] @ dual + unpenalised[test] @ (turn.T @ rest)
            return jnp.square((y[test] - predicted) * test_weight[:, None]).sum(0)

        best = (alphas[:, None] == found.alpha[None]).argmax(0)
        ols = held_out_squares(ridge.least_squares(spectrum, known))
        return jnp.square(found.errors).sum(0), held_out_squares(found.dual), best, ols

    return ridge.over_splits(one_split, (own, parts))


def _by_deletion(
    spectrum: ridge.Spectrum,
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
            p = ridge.operator(spectrum, alphas[at])
            dual = p.astype(dtype) @ y.astype(dtype)
            return ridge.over_splits(
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
    """What `without_each_group` finds; G groups."""

    r2: Float[Array, "S G"]  # of every split without each group; 0 where it is not defined
    # whether it is: what remains of the held-out part still has two different measures
    defined: Float[Array, "S G"]
    dual: Float[Array, "S N"]  # of the fit to each training part, 0 in held-out rows


def without_each_group(
    spectrum: ridge.Spectrum,
    target: Float[Array, " N"],
    parts: Parts,
    alpha: Float[Array, " S"],
    groups: Groups,
) -> WithoutGroups:
    """R2 of every split when one group of images is taken out of the whole experiment, from its training or its held-out part.

    Leaving out the group g of a training part as well, its members are missed by x_g = S_gg^-1 (S y)_g, and the held-out errors
    e_T become e_T - P_TT^-1 P_Tg x_g. The penalty of a split stays as it is.

    """
    y = target - target.mean()

    def one_split(arguments: tuple[Parts, Array]) -> WithoutGroups:
        part, penalty = arguments
        test, test_weight, train, train_weight = part
        p = ridge.operator(spectrum, penalty)
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

    return ridge.over_splits(one_split, (parts, alpha))


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
