"""What a reviewer asks of a probe beside R2: what it saves in a code, what a layer adds, and whether its vectors steer.

Pure functions on features and measures; docs/review.md says what the numbers are for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.optimize import nnls

from scalecov_jax.compilation import jit
from scalecov_jax.probes import evaluate, ridge
from scalecov_jax.probes.splits import padded

FIRST = 16  # images of the first block of a code, at least


def ratio(
    top: Float[np.ndarray, "*L N"], bottom: Float[np.ndarray, "*L N"], groups: Sequence[str] | None = None
) -> tuple[Float[np.ndarray, "*L"], Float[np.ndarray, "*L G"]]:
    """Sum of `top` over sum of `bottom`, of all images and without each group, as `statistics.deviations` takes it.

    A mean over images, 1 - R2 and a relative mean square are of this form.
    """
    of = evaluate.grouping(groups, top.shape[-1]).of
    member = np.eye(int(np.max(of)) + 1)[of]
    up, down = (values.sum(-1)[..., None] - values @ member for values in (top, bottom))
    return np.asarray(top.sum(-1) / bottom.sum(-1)), up / down


def v_information(r2: Float[np.ndarray, "*L"]) -> Float[np.ndarray, "*L"]:
    """Usable information of linear-Gaussian readers in nats, 1/2 log(1 / (1 - R2)); 0 where R2 is negative.

    Source: Xu et al. 2020, A Theory of Usable Information under Computational Constraints.
    """
    with np.errstate(divide="ignore"):  # infinite at R2 = 1
        return -0.5 * np.log1p(-np.maximum(r2, 0.0))


def code_gains(
    features: Float[np.ndarray, "N D"],
    measure: Float[np.ndarray, " N"],
    *,
    orders: int = 8,
    seed: int = 0,
    groups: Sequence[str] | None = None,
    alphas: Float[np.ndarray, " A"] = evaluate.ALPHAS,
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Nats that an online code saves on each image, summed over random orders, and in how many orders it was coded.

    Blocks double, the last being half of the images; each is coded by N(y; prediction, s^2) of ridge on all images before it,
    s^2 its mean squared leave-one-out error. The gain is over the mean of these images and its leave-one-out error. The first
    block costs both codes the same. Images of a group stand side by side in every order and in one block.

    Raises:
        ValueError: No order has two blocks, since there are too few images or groups.

    Source: Voita & Titov 2020, Information-Theoretic Probing with Minimum Description Length, section 2.2.2.
    """
    count, of = len(measure), np.asarray(evaluate.grouping(groups, len(measure)).of)
    before, coded = [], []
    for order in range(orders):
        rank = np.random.default_rng((seed, order, 6)).permutation(of.max() + 1)[of]
        place = np.argsort(rank, kind="stable")
        starts = [count >> k for k in range(1, 20) if k == 1 or count >> k >= FIRST]
        known = [rank < rank[place[start]] for start in sorted(starts)]
        for mask, until in zip(known, [*known[1:], np.ones(count, bool)], strict=True):
            if mask.sum() > 2 and (until & ~mask).any():
                before.append(mask)
                coded.append(until & ~mask)
    if not before:
        raise ValueError(f"{count} images in {of.max() + 1} groups cannot be cut into two blocks.")
    masks = np.array(coded, float)
    with evaluate.float64():
        x = np.asarray(features, np.float64)
        z = ridge.standardise(jnp.asarray(x), ridge.standardisation(jnp.asarray(x)))
        rows, weight = padded(np.array(before))
        gains = np.asarray(
            _code_gains(z @ z.T, np.asarray(measure, np.float64), rows, weight, np.sort(alphas))
        )
    return (gains * masks).sum(0), masks.sum(0)


@jit
def _code_gains(
    gram: Float[Array, "N N"],
    y: Float[Array, " N"],
    rows: Int[Array, "B n"],
    weight: Float[Array, "B n"],
    alphas: Float[Array, " A"],
) -> Float[Array, "B N"]:
    """Gain of every image by the code of each training part."""

    def one(part: tuple[Array, Array]) -> Array:
        at, there = part
        n = there.sum()
        inside = gram[at[:, None], at[None]] * there[:, None] * there[None]
        mean = there @ y[at] / n
        known = (there * (y[at] - mean))[:, None]
        fit = ridge.fit(ridge.decompose(inside, ridge.constant(there)), known, alphas)
        predicted = mean + gram[:, at] @ fit.dual[:, 0] - there @ (inside @ fit.dual[:, 0]) / n
        alone = (
            jnp.square(known).sum() * n / jnp.square(n - 1)
        )  # leave-one-out errors of a mean are n / (n - 1) larger
        variance = jnp.maximum(jnp.square(fit.errors).sum() / n, 1e-12 * alone)
        return 0.5 * (
            jnp.log(alone / variance) + jnp.square(y - mean) / alone - jnp.square(y - predicted) / variance
        )

    return ridge.over_splits(one, (rows, weight))


def stacking_shares(errors: Float[np.ndarray, "L N"]) -> Float[np.ndarray, " L"]:
    """Shares s of the layers, not negative and of sum 1, that minimise the squares of the stacked errors, s @ errors.

    Non-negative least squares with one more row, c sum(s) = c: at its minimum over the length of s that is left
    c^2 q / (q + c^2) for the squares q of shares of sum 1, which rises with q, so the row changes the length alone.

    Source: Breiman 1996, Stacked Regressions; Lin et al. 2024, Stacked Regressions and Structured Variance Partitioning.
    """
    reduced = np.asarray(np.linalg.qr(errors.T, mode="r"))
    size = max(float(np.linalg.norm(reduced)), 1e-300)
    shares, _ = nnls(
        np.vstack([reduced / size, np.ones((1, len(errors)))]), np.append(np.zeros(len(reduced)), 1.0)
    )
    return shares / shares.sum()


def stacked_errors(
    errors: Float[np.ndarray, "L N"], folds: Bool[np.ndarray, "F N"]
) -> Float[np.ndarray, " N"]:
    """Errors of the stack of all layers on every image, with shares fitted without its fold; `folds` are True in training parts.

    `errors` are of leave-one-out predictions, measure minus prediction.
    """
    stacked = np.empty(errors.shape[1])
    for train in folds:
        stacked[~train] = stacking_shares(errors[:, train]) @ errors[:, ~train]
    return stacked


class Stacks(NamedTuple):
    """Errors of stacks of layers on every image; see `stacks`."""

    together: Float[np.ndarray, " N"]  # all layers
    without: Float[np.ndarray, "L N"]  # all but one
    until: Float[np.ndarray, "L N"]  # those up to and with one


def stacks(errors: Float[np.ndarray, "L N"], folds: Bool[np.ndarray, "F N"]) -> Stacks:
    """The stacks from which unique and added variance follow; one layer without the others leaves the mean, as if R2 were 0.

    Raises:
        ValueError: A single layer, which has no others to be compared with.
    """
    count = len(errors)
    if count < 2:
        raise ValueError("Unique and shared variance need at least two layers.")
    return Stacks(
        stacked_errors(errors, folds),
        np.stack([stacked_errors(np.delete(errors, layer, 0), folds) for layer in range(count)]),
        np.stack([stacked_errors(errors[: layer + 1], folds) for layer in range(count)]),
    )


class Halves(NamedTuple):
    """Probes of P parts of the images and then of the rest of each; D features."""

    parts: Bool[np.ndarray, "P2 N"]
    weights: Float[np.ndarray, "P2 D"]  # filters
    intercept: Float[np.ndarray, " P2"]
    pattern: Float[np.ndarray, "P2 D"]  # Cov(x, y) / Var(y) over the part

    @property
    def gains(self) -> tuple[Float[np.ndarray, " P2"], Float[np.ndarray, " P2"]]:
        """What the probe of the rest reads, in sd of the measure, of a step of one sd along the filter and along the pattern.

        w' w / |w|^2 and w' a, with w' of the rest: 1 is right, 0 is a step that the rest does not see.
        """
        other = np.roll(self.weights, len(self.weights) // 2, 0)
        length = np.maximum(np.square(self.weights).sum(1), 1e-300)
        return (self.weights * other).sum(1) / length, (self.pattern * other).sum(1)


def fit_halves(
    features: Float[np.ndarray, "N D"],
    measure: Float[np.ndarray, " N"],
    halves: Bool[np.ndarray, "P N"],
    alphas: Float[np.ndarray, " A"] = evaluate.ALPHAS,
) -> Halves:
    """Ridge, and the pattern, of each part of the images and of the rest."""
    parts = np.concatenate([halves, ~halves])
    found = evaluate.fit(features, measure[:, None].astype(np.float64), parts, alphas)
    pattern = []
    for part in parts:
        x, y = features[part].astype(np.float64), measure[part] - measure[part].mean()
        pattern.append(y @ (x - x.mean(0)) / (y @ y))
    weights, intercept = (np.asarray(values)[..., 0] for values in (found.weights, found.intercept))
    return Halves(parts, weights, intercept, np.stack(pattern))


def cosine(a: Float[np.ndarray, " D"], b: Float[np.ndarray, " D"]) -> float:
    """Cosine of the angle between two vectors; 0 where one has no length."""
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0
