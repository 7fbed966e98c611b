"""Least squares and ridge from the sums of folds alone: no image is needed.

Fold k is held out; the others train. With Z the training features minus their mean, over their sd over all images, A = Z^T Z =
V diag(w) V^T and b = Z^T (y - mean y) follow from the sums of the folds, and the coefficients of every penalty from the one
decomposition, V diag(1 / (w + alpha)) V^T b. With H the same sums of the held-out images, about the training mean,

    SSE = H_yy - 2 beta^T H_xy + beta^T H_xx beta,    R2 = 1 - SSE / sum (y - mean y)^2.

The penalty of fold k minimises the squared error over the training images, each predicted by a fit to the other training folds
without its own: fold k has no say. The part without folds j and k serves both, so that K folds take K (K + 1) / 2 decompositions.

Source: Hastie, Tibshirani & Friedman 2009, The Elements of Statistical Learning, sections 3.4.1 (ridge) and 7.10
    (cross-validation).
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm.auto import tqdm

from scalecov_jax.compilation import jit
from scalecov_jax.probes.contract import check_positive
from scalecov_jax.probes.evaluate import ALPHAS, float64
from scalecov_jax.probes.sums import Products, Sums, merge

# A feature whose variance is below this share of its mean square about the shift is constant but for rounding; a direction whose
# eigenvalue is below it, relative to the largest, is absent for least squares.
_NOISE: dict[Products, float] = {"float64": 1e-13, "float32": 1e-6}
_ABSENT: dict[Products, float] = {"float64": 0.0, "float32": 1e-7}


class FoldScores(NamedTuple):
    """Held-out R2 of each layer, fold and target."""

    ols: Float[np.ndarray, "L K M"]  # of least squares of minimum norm
    ridge: Float[np.ndarray, "L K M"]  # of ridge
    alpha: Float[np.ndarray, "L K M"]  # the penalty of ridge, chosen on the training folds
    # R2 of ridge inside the training folds at that penalty, each predicted by the others
    inner: Float[np.ndarray, "L K M"]
    # directions of the standardised training features that are not absent (see `ridge.least_squares`)
    rank: Int[np.ndarray, "L K"]


class FoldRcvs(NamedTuple):
    """Ridge of the first m targets of one layer, fitted to all images and then to the images outside each fold."""

    weights: Float[np.ndarray, "K1 D m"]  # in units of the target per unit of the feature
    intercept: Float[np.ndarray, "K1 m"]  # of each
    # penalty of the fit to all images, by the errors of each fold under a fit to the others
    alpha: Float[np.ndarray, " m"]
    pattern: Float[np.ndarray, "D m"]  # cov(x, y) / Var(y) over all images
    scale: Float[np.ndarray, " D"]  # standard deviation of each feature; 1 of a constant one
    mean: Float[np.ndarray, " D"]  # of each feature
    sigma: Float[np.ndarray, " m"]  # standard deviation of each target


class _Part(NamedTuple):
    """Training part: mean of features and targets, 1 / sd over all images (0 of a constant feature), decomposition, V^T b."""

    mean: Float[Array, " D"]
    inverse: Float[Array, " D"]
    intercept: Float[Array, " M"]
    values: Float[Array, " D"]
    vectors: Float[Array, "D D"]
    rotated: Float[Array, "D M"]


def score_folds(
    layers: Mapping[str, Sequence[Sums]],
    alphas: Float[np.ndarray, " A"] = ALPHAS,
    *,
    products: Products = "float64",
    rcvs: int = 0,
    progress: str | None = None,
) -> tuple[FoldScores, list[FoldRcvs]]:
    """Hold out each fold in turn, and give the vectors of the first `rcvs` targets, layer by layer.

    `products` is that in which the sums were formed, see `sums.add`: it says what can be rounding.

    Raises:
        ValueError: Fewer than three folds, penalties that are not positive, sums that are not finite, a fold with fewer than two
            images or on which a target is constant; lists all of them.
    """
    alphas = check_positive("Penalties", alphas)
    _check(layers)
    folds = len(next(iter(layers.values())))
    total, threads = len(layers) * folds * (folds + 1) // 2, min(32, os.cpu_count() or 1)
    shown = tqdm(total=total, desc=progress, unit="part", disable=progress is None)
    with float64(threads=threads), shown as bar:
        every = [_one_layer(sums, alphas, products, rcvs, bar) for sums in layers.values()]
    scores, vectors = zip(*every, strict=True)
    return FoldScores(*map(np.stack, zip(*scores, strict=True))), list(vectors)


def _one_layer(
    sums: Sequence[Sums], alphas: np.ndarray, products: Products, rcvs: int, bar: tqdm
) -> tuple[tuple[np.ndarray, ...], FoldRcvs]:
    count, every = len(sums), merge(*sums)
    inverse = _inverse_sd(every, np.float64(_NOISE[products]))
    inner = np.zeros((count, len(alphas), len(sums[0].y)))
    for pair in itertools.combinations(range(count), 2):
        part = _decompose(_without(sums, pair), inverse)
        for out, held in (pair, pair[::-1]):
            inner[out] += _path_errors(part, sums[held], alphas)
        bar.update()
    best = inner.argmin(1)
    rows, fits, outside = [], [], np.zeros((len(alphas), len(sums[0].y)))
    for out in range(count):
        train = _without(sums, (out,))
        part = _decompose(train, inverse)
        alpha = alphas[best[out]]
        fits.append(_linear(part, alpha, rcvs))
        outside += _path_errors(part, sums[out], alphas)
        spread = _spread(sums[out])
        floor = np.float64(max(10 * train.count * np.finfo(float).eps, _ABSENT[products]))
        ols, ridge, rank = _errors(part, sums[out], alpha, floor)
        r2 = (1 - np.asarray(errors) / spread for errors in (ols, ridge))
        rows.append((*r2, alpha, 1 - inner[out].min(0) / _spread(train), np.asarray(rank)))
        bar.update()
    alpha = alphas[outside.argmin(0)]
    fits.insert(0, _linear(_decompose(every, inverse), alpha, rcvs))
    weights, intercept = (np.stack(values) for values in zip(*fits, strict=True))
    mean, middle = every.x / every.count, every.y / every.count
    variance = (every.yy / every.count - np.square(middle))[:rcvs]
    together = every.xy / every.count - mean[:, None] * middle[None]
    known = np.asarray(inverse)
    vectors = FoldRcvs(
        weights,
        intercept,
        alpha[:rcvs],
        together[:, :rcvs] / variance[None],
        np.where(known > 0, 1 / np.where(known > 0, known, 1), 1.0),
        mean + every.shift_x,
        np.sqrt(variance),
    )
    return tuple(map(np.stack, zip(*rows, strict=True))), vectors


def _linear(part: _Part, alpha: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercepts of the first targets in the units of the features."""
    coefficients = np.asarray(part.rotated) / (np.asarray(part.values)[:, None] + alpha[None])
    weights = (np.asarray(part.vectors) @ coefficients[:, :count]) * np.asarray(part.inverse)[:, None]
    return weights, np.asarray(part.intercept)[:count] - np.asarray(part.mean) @ weights


def _without(sums: Sequence[Sums], out: tuple[int, ...]) -> Sums:
    # Not all minus one: a feature that is constant in the others must come out so.
    return merge(*(one for fold, one in enumerate(sums) if fold not in out))


def _spread(sums: Sums) -> np.ndarray:
    return sums.yy - np.square(sums.y) / sums.count


@jit
def _inverse_sd(every: Sums, noise: Float[Any, ""]) -> Float[Array, " D"]:
    square = jnp.diag(every.xx) / every.count
    variance = square - jnp.square(every.x / every.count)
    constant = variance <= noise * square
    return jnp.where(constant, 0.0, 1 / jnp.sqrt(jnp.where(constant, 1.0, variance)))


@jit
def _decompose(train: Sums, inverse: Float[Array, " D"]) -> _Part:
    n, mean, intercept = train.count, train.x / train.count, train.y / train.count
    covered = train.xx - n * mean[:, None] * mean[None]
    a = covered * inverse[:, None] * inverse[None]
    b = (train.xy - n * mean[:, None] * intercept[None]) * inverse[:, None]
    values, vectors = jnp.linalg.eigh((a + a.T) / 2, symmetrize_input=False)
    middle = mean + train.shift_x, inverse, intercept + train.shift_y
    return _Part(*middle, jnp.maximum(values, 0), vectors, vectors.T @ b)


def _squared_errors(part: _Part, held: Sums, coefficients: Float[Array, "C D M"]) -> Float[Array, "C M"]:
    """Of the held-out images, for coefficients in the eigenbasis."""
    mu, nu, n = part.mean - held.shift_x, part.intercept - held.shift_y, held.count
    beta = jnp.einsum("ij,cjm->icm", part.vectors, coefficients) * part.inverse[:, None, None]
    xx = held.xx - mu[:, None] * held.x[None] - (held.x - n * mu)[:, None] * mu[None]
    xy = held.xy - mu[:, None] * held.y[None] - (held.x - n * mu)[:, None] * nu[None]
    yy = held.yy - nu * (2 * held.y - n * nu)
    inside = jnp.einsum("icm,icm->cm", beta, jnp.einsum("ij,jcm->icm", xx, beta) - 2 * xy[:, None])
    return jnp.maximum(yy[None] + inside, 0)


@jit
def _path_errors(part: _Part, held: Sums, alphas: Float[Array, " A"]) -> Float[Array, "A M"]:
    shrinkage = 1 / (part.values[None] + alphas[:, None])
    return _squared_errors(part, held, shrinkage[:, :, None] * part.rotated[None])


@jit
def _errors(
    part: _Part, held: Sums, alpha: Float[Array, " M"], floor: Float[Any, ""]
) -> tuple[Float[Array, " M"], Float[Array, " M"], Int[Array, ""]]:
    present = part.values > floor * part.values[-1]
    inverse = jnp.where(present, 1 / jnp.where(present, part.values, 1.0), 0.0)
    ols = inverse[:, None] * part.rotated
    ridge = part.rotated / (part.values[:, None] + alpha[None])
    errors = _squared_errors(part, held, jnp.stack([ols, ridge]))
    return errors[0], errors[1], present.sum()


def _check(layers: Mapping[str, Sequence[Sums]]) -> None:
    if not layers:
        raise ValueError("There is no layer to probe.")
    counts = {name: len(sums) for name, sums in layers.items()}
    if min(counts.values()) < 3 or len({*counts.values()}) > 1:
        raise ValueError(
            f"Every layer needs the sums of the same folds, at least 3, so that two are left to choose a penalty; got {counts}."
        )
    problems = []
    bad = [
        name for name, sums in layers.items() if not all(np.isfinite(x).all() for one in sums for x in one)
    ]
    if bad:
        problems.append(
            f"Features of the layers {', '.join(bad)} hold NaN or infinity; check the weights and the images."
        )
    first = next(iter(layers.values()))
    few = [f"split {k} has {int(one.count)} images" for k, one in enumerate(first) if one.count < 2]
    if few:
        problems.append(f"The held-out part of {', '.join(few)}; at least 2 are needed.")
    constant = [
        str(k) for k, one in enumerate(first) if one.count > 1 and (_spread(one) <= 1e-12 * one.yy).any()
    ]
    if constant:
        problems.append(
            f"A target is constant on the held-out part of split {', '.join(constant)}: R2 is undefined there. Take larger "
            "parts (fewer folds), or splits that are stratified by the measure."
        )
    if problems:
        raise ValueError("\n".join(problems))
