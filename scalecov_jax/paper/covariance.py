"""Covariance to scale as an operation: what moves in the features phi of an object when it grows, and how far along the RCV.

A probe f(phi) = v.phi + b reads a measure m of size from features; v is its regression concept vector (RCV). Covariance as an
operation asks for more than a good probe: features of the grown object should be the old ones moved by a fixed vector t for each
unit of m,

    phi(g_sigma x) = phi(x) + sigma t.

Features of K objects, each seen at R sizes, answer that. `changes` are always taken about the mean of their object, which is the
same as all pairs of its sizes: sum_{r<q} |phi_r - phi_q|^2 = R sum_r |phi_r - mean phi|^2.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from scalecov_jax.probes.statistics import draw_groups, percentile_interval

MEASURES = {"r": np.positive, "sqrt_r": np.sqrt, "log_r": np.log}


class Interval(NamedTuple):
    """A value and its 95 % bootstrap interval over objects."""

    value: float
    low: float
    high: float


class Response(NamedTuple):
    """How the reading of a probe follows the true measure within an object.

    Attributes:
        slope: Of the change of the reading on the true change; 1 is covariant, 0 invariant.
        r2: 1 - sum (change read - true change)^2 / sum (true change)^2.
    """

    slope: float
    r2: float


def published_step(
    features: Float[np.ndarray, "N D"], rcv: Float[np.ndarray, " D"], sigma: float
) -> Float[np.ndarray, "N D"]:
    """The published g'(phi) = phi + sigma v; it changes the reading by sigma |v|^2, not by sigma.

    Source: Graziani et al. 2021, the translation g' that stands for a change of scale.
    """
    return features + sigma * rcv[None]


def step(
    features: Float[np.ndarray, "N D"], rcv: Float[np.ndarray, " D"], sigma: float
) -> Float[np.ndarray, "N D"]:
    """The smallest step that changes the reading by sigma: phi + sigma v / |v|^2.

    Raises:
        ValueError: v is zero.
    """
    return features + sigma * smallest_translation(rcv)[None]


def smallest_translation(rcv: Float[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
    """The shortest t with v.t = 1: v / |v|^2.

    Raises:
        ValueError: v is zero.
    """
    return rcv / _positive(
        rcv @ rcv, "The RCV is zero, so that no step along it changes what the probe reads."
    )


def pattern_translation(
    features: Float[np.ndarray, "N D"], rcv: Float[np.ndarray, " D"]
) -> Float[np.ndarray, " D"]:
    """How features move on average when the reading moves by one: a / v.a with a = cov(phi, v.phi).

    v filters the measure out of features that vary for other reasons too; it is not the direction in which features move. That
    is the pattern a = S v, S the covariance of the features. It is v's own direction only where S is a multiple of the identity.

    Args:
        features: Of the scenes that the probe was fitted to.
        rcv: v.

    Raises:
        ValueError: The reading is the same for all features.

    Source: Haufe et al. 2014, On the interpretation of weight vectors of linear models in multivariate neuroimaging.
    """
    centred = features - features.mean(0)[None]
    reading = centred @ rcv
    return centred.T @ reading / _positive(reading @ reading, "The probe reads the same from all features.")


def changes(values: Float[np.ndarray, "K R ..."]) -> Float[np.ndarray, "K R ..."]:
    """Values of K objects at R sizes, less the mean of each object.

    Raises:
        ValueError: Fewer than two sizes, or values that are not finite.
    """
    if values.shape[1] < 2:
        raise ValueError(f"Each object is seen at {values.shape[1]} sizes; a change needs at least 2.")
    if not np.isfinite(values).all():
        raise ValueError("Features or measures of the growing objects hold NaN or infinity.")
    return values - values.mean(1, keepdims=True)


def share_along(
    moved: Float[np.ndarray, "K R D"], direction: Float[np.ndarray, " D"], seed: int = 0, draws: int = 1000
) -> Interval:
    """Share of the change of features that lies along a direction u: sum (dphi.u)^2 / (|u|^2 sum |dphi|^2), in [0, 1].

    Args:
        moved: `changes` of features.
        direction: u, of any length but 0; its sign does not matter.
        seed: Of the bootstrap.
        draws: Bootstrap samples of K objects.

    Raises:
        ValueError: The direction is zero, or nothing moves in an object.
    """
    norm = _positive(direction @ direction, "The direction is zero.")
    along = np.square(moved @ direction).sum(1) / norm
    total = np.square(moved).sum((1, 2))
    _positive(total.min(), "The features of an object are the same at all its sizes.")
    drawn = draw_groups(len(moved), draws, seed)
    interval = percentile_interval((drawn @ along) / (drawn @ total))
    return Interval(float(along.sum() / total.sum()), *interval)


def best_share(moved: Float[np.ndarray, "K R D"]) -> float:
    """Largest `share_along` of any one direction: that of the first right singular vector of the changes."""
    flat = moved.reshape(-1, moved.shape[-1])
    gram = flat @ flat.T
    return float(np.linalg.eigvalsh(gram)[-1] / _positive(np.trace(gram), "Nothing moves."))


def random_share(moved: Float[np.ndarray, "K R D"], seed: int, draws: int = 64) -> float:
    """Mean `share_along` of random directions, which is 1 / D but for the draw."""
    directions = np.random.default_rng(seed).normal(size=(moved.shape[-1], draws))
    directions /= np.linalg.norm(directions, axis=0, keepdims=True)
    total = _positive(np.square(moved).sum(), "Nothing moves.")
    return float(np.square(moved.reshape(-1, moved.shape[-1]) @ directions).sum() / draws / total)


def foretold(
    moved: Float[np.ndarray, "K R D"],
    measured: Float[np.ndarray, "K R"],
    translation: Float[np.ndarray, " D"] | Float[np.ndarray, "K D"],
) -> float:
    """Share of the change of features that a translation foretells: 1 - sum |dphi - dm t|^2 / sum |dphi|^2.

    1 is covariance as an operation; 0 is as good as not moving at all, and less is worse than that.

    Args:
        moved: `changes` of features.
        measured: `changes` of the measure.
        translation: t, or one an object.
    """
    translations = np.broadcast_to(translation, (len(moved), moved.shape[-1]))
    left = moved - measured[:, :, None] * translations[:, None, :]
    return float(1 - np.square(left).sum() / _positive(np.square(moved).sum(), "Nothing moves."))


def best_translation(
    moved: Float[np.ndarray, "K R D"], measured: Float[np.ndarray, "K R"]
) -> Float[np.ndarray, " D"]:
    """The t that foretells most: sum dm dphi / sum dm^2. No other vector can do better on these objects."""
    squares = _positive(np.square(measured).sum(), "The measure does not change.")
    return np.einsum("kr,krd->d", measured, moved) / squares


def own_translations(
    moved: Float[np.ndarray, "K R D"], measured: Float[np.ndarray, "K R"]
) -> Float[np.ndarray, "K D"]:
    """The best t of each object for itself: what is left after it is not linear in the measure."""
    squares = np.square(measured).sum(1)
    _positive(squares.min(), "The measure of an object does not change.")
    return np.einsum("kr,krd->kd", measured, moved) / squares[:, None]


def response(readings: Float[np.ndarray, "K R"], measures: Float[np.ndarray, "K R"]) -> Response:
    """Slope and R2 of the change of a probe's reading against the true change of the measure, within objects.

    Args:
        readings: v.phi + b; the intercept has no part in it, nor has the mean of any object.
        measures: The true measure.

    Raises:
        ValueError: Fewer than two sizes, values that are not finite, or a measure that does not change.
    """
    read, true = changes(readings), changes(measures)
    squares = _positive(np.square(true).sum(), "The measure does not change.")
    return Response(float((read * true).sum() / squares), float(1 - np.square(read - true).sum() / squares))


def cosines(first: Float[np.ndarray, "S D"], second: Float[np.ndarray, "S D"]) -> Float[np.ndarray, " S"]:
    """Cosine of the angle between RCVs, pair by pair; of random directions about +- 1 / sqrt(D).

    Raises:
        ValueError: An RCV is zero.
    """
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / _positive(norms, "An RCV is zero, so that it has no direction.")


def correlations(
    first: Float[np.ndarray, "S N"], second: Float[np.ndarray, "S N"]
) -> Float[np.ndarray, " S"]:
    """Pearson's correlation of two probes' readings of the same scenes, pair by pair.

    Raises:
        ValueError: A probe reads the same from all scenes.
    """
    return cosines(first - first.mean(1, keepdims=True), second - second.mean(1, keepdims=True))


def r2(
    readings: Float[np.ndarray, "S N"], measures: Float[np.ndarray, "S N"], *, own_intercept: bool = False
) -> Float[np.ndarray, " S"]:
    """R2 of each row against its mean; with `own_intercept` after the intercept has been fitted to the row itself.

    Raises:
        ValueError: A measure is constant.
    """
    centred = measures - measures.mean(1, keepdims=True)
    left = measures - readings
    if own_intercept:
        left = left - left.mean(1, keepdims=True)
    squares = _positive(np.square(centred).sum(1), "The measure is the same for all scenes.")
    return 1 - np.square(left).sum(1) / squares


def _positive(value, problem: str):
    if not np.all(np.asarray(value) > 0):
        raise ValueError(problem)
    return value
