"""Tables of the covariance of a network: probes fitted to scenes, read on growing objects, compared by class and layer."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from scalecov_jax.compilation import jit
from scalecov_jax.paper import covariance
from scalecov_jax.paper.covariance import MEASURES
from scalecov_jax.paper.covariance_probes import Probes, fit
from scalecov_jax.paper.covariance_rows import METRICS, Angle, Change, Linearity, Reading, Tables, Transfer
from scalecov_jax.probes import ridge
from scalecov_jax.scores import Condition, Estimator


class Seen(NamedTuple):
    """What one layer makes of the scenes of all classes, float64.

    Attributes:
        scenes: Features of independent scenes, to fit probes to.
        growing: Features of objects at several sizes.
    """

    scenes: Float[np.ndarray, "C N D"]
    growing: Float[np.ndarray, "C K R D"]


def measure(
    layers: Mapping[str, Seen],
    classes: Sequence[str],
    targets: Mapping[Condition, Float[np.ndarray, "C N M"]],
    sizes: Float[np.ndarray, "C K R"],
    *,
    architecture: str,
    weights: str,
    estimators: Sequence[Estimator],
    parts: Int[np.ndarray, "S 2 n"],
    alphas: Float[np.ndarray, " A"],
    seed: int,
    progress: bool = False,
) -> Tables:
    """Everything about one network.

    Args:
        layers: Features, from input to output.
        classes: Names, at least two.
        targets: What the probes are fitted to: `MEASURES` of the scenes, or the same shuffled, by condition.
        sizes: True ratios of the growing objects.
        architecture: For the tables.
        weights: For the tables.
        estimators: Which probes to report.
        parts: From `halves`.
        alphas: Penalties of ridge.
        seed: Of bootstrap and random directions.
        progress: Whether to show a progress bar on stderr.

    Raises:
        ValueError: A layer whose features do not change, or on which no probe can be had; names it.
    """
    tables = Tables([], [], [], [], [])
    probes: dict[str, dict[tuple[Condition, Estimator], Probes]] = {}
    scales: dict[str, np.ndarray] = {}
    # Halves of one shuffled sample disagree systematically: what correlates by chance in one does the opposite in the other.
    compared: list[Condition] = [condition for condition in targets if condition != "shuffled_measure"]
    for layer, seen in tqdm(layers.items(), f"{weights} probes", unit="layer", disable=not progress):
        # On systems this small BLAS threads wait for each other, on a busy machine a hundred times as long as they compute.
        with threadpool_limits(1, user_api="blas"):
            try:
                if not np.isfinite(seen.scenes).all():
                    raise ValueError("Features of the scenes hold NaN or infinity.")
                probes[layer] = fit(seen.scenes, targets, parts, alphas)
                scales[layer] = _scale(seen.scenes)
                moves = _moves(seen, scales[layer], seed)
                for condition, estimator in itertools.product(targets, estimators):
                    found = probes[layer][condition, estimator]
                    key = (architecture, weights, condition, estimator)
                    held_out = targets[condition][:, parts[:, 1]]
                    tables.change.extend(_changes(key, layer, classes, moves, found, sizes, seed))
                    tables.linearity.extend(_linearities(key, layer, classes, seen, found, sizes, held_out))
                    if condition in compared:
                        tables.transfer.extend(_transfers(key, layer, classes, found, held_out[..., 0]))
                        tables.angles.extend(_angles(key, layer, classes, found, scales[layer]))
                    tables.readings.extend(_readings(key, layer, classes, seen, found, sizes))
            except ValueError as error:
                raise ValueError(
                    f"{weights}, {layer}: {error} Leave the layer out (config.layers) or use more scenes."
                ) from error
    for condition, estimator in itertools.product(compared, estimators):
        key, held_out = (architecture, weights, condition, estimator), targets[condition][:, parts[:, 1], 0]
        for first, second in itertools.combinations(layers, 2):
            pair = probes[first][condition, estimator], probes[second][condition, estimator]
            by = scales[first], scales[second]
            tables.angles.extend(_between_layers(key, first, second, classes, pair, by, held_out))
    return tables


_Key = tuple[str, str, str, str]
_standardisation = jit(ridge.standardisation)


def _scale(scenes: Float[np.ndarray, "C N D"]) -> Float[np.ndarray, " D"]:
    """Standard deviation of each feature over all scenes; 1 for a constant one."""
    flat = scenes.reshape(-1, scenes.shape[-1])
    with jax.enable_x64(True):
        return np.asarray(_standardisation(jnp.asarray(flat)).scale)


class _Move(NamedTuple):
    """How features of one class move (by its number) in one metric, whatever the probe; `by` divides raw features."""

    number: int
    metric: str
    by: Float[np.ndarray, " D"]
    scenes: Float[np.ndarray, "N D"]
    moved: Float[np.ndarray, "K R D"]
    best: float
    random: float


def _moves(seen: Seen, scale: Float[np.ndarray, " D"], seed: int) -> list[_Move]:
    found: list[_Move] = []
    for index, metric in itertools.product(range(len(seen.scenes)), METRICS):
        by = scale if metric == "standardised" else np.ones_like(scale)
        moved = covariance.changes(seen.growing[index] / by)
        best, random = covariance.best_share(moved), covariance.random_share(moved, seed)
        found.append(_Move(index, metric, by, seen.scenes[index] / by, moved, best, random))
    return found


def _changes(
    key: _Key,
    layer: str,
    classes: Sequence[str],
    moves: Sequence[_Move],
    probes: Probes,
    sizes: Float[np.ndarray, "C K R"],
    seed: int,
) -> Iterator[Change]:
    for index, metric, by, scenes, moved, best, random in moves:
        for column, (name, transform) in enumerate(MEASURES.items()):
            rcv = probes.whole[index, :, column] * by  # reads the same from phi / by
            pattern = covariance.pattern_translation(scenes, rcv)
            measured = covariance.changes(transform(sizes[index]))
            translations = (
                rcv,
                covariance.smallest_translation(rcv),
                pattern,
                covariance.best_translation(moved, measured),
                covariance.own_translations(moved, measured),
            )
            yield Change(
                *key,
                classes[index],
                layer,
                len(by),
                name,
                metric,
                *covariance.share_along(moved, rcv, seed),
                covariance.share_along(moved, pattern, seed, draws=1).value,
                best,
                random,
                1 / len(by),
                *(covariance.foretold(moved, measured, one) for one in translations),
            )


def _linearities(
    key: _Key,
    layer: str,
    classes: Sequence[str],
    seen: Seen,
    probes: Probes,
    sizes: Float[np.ndarray, "C K R"],
    held_out: Float[np.ndarray, "C S n M"],
) -> Iterator[Linearity]:
    for (index, image_class), (column, (name, transform)) in itertools.product(
        enumerate(classes), enumerate(MEASURES.items())
    ):
        rcv = probes.whole[index, :, column]
        scores = covariance.r2(probes.held_out[index, ..., column], held_out[index, ..., column])
        slope, within = covariance.response(seen.growing[index] @ rcv, transform(sizes[index]))
        yield Linearity(
            *key,
            image_class,
            layer,
            name,
            *_spread(scores),
            float(np.median(scores)),
            within,
            slope,
            float(rcv @ rcv),
        )


def _transfers(
    key: _Key, layer: str, classes: Sequence[str], probes: Probes, held_out: Float[np.ndarray, "C S n"]
) -> Iterator[Transfer]:
    for (row, image_class), (column, test_class) in itertools.product(enumerate(classes), repeat=2):
        readings, true = probes.crossed[row, column], held_out[column]
        scores = covariance.r2(readings, true)
        own = covariance.r2(readings, true, own_intercept=True)
        low, middle, high = (float(value) for value in np.percentile(scores, (0, 50, 100)))
        yield Transfer(*key, image_class, test_class, layer, middle, low, high, float(np.median(own)))


def _angles(
    key: _Key, layer: str, classes: Sequence[str], probes: Probes, scale: Float[np.ndarray, " D"]
) -> Iterator[Angle]:
    """Between halves of one class, and between halves of two: both from equally many scenes, none of them shared."""
    for metric, rcvs in (
        ("raw", probes.halves),
        ("standardised", probes.halves * scale),
        ("pattern", probes.patterns / scale),
    ):
        for (row, first), (column, second) in itertools.combinations_with_replacement(enumerate(classes), 2):
            values = covariance.cosines(rcvs[row, :, 0], rcvs[column, :, 1])
            if row != column:
                values = (values + covariance.cosines(rcvs[column, :, 0], rcvs[row, :, 1])) / 2
            kind = "splits" if row == column else "classes"
            yield Angle(*key, first, layer, kind, second, metric, *_spread(values), float(len(scale) ** -0.5))


def _between_layers(
    key: _Key,
    first: str,
    second: str,
    classes: Sequence[str],
    probes: tuple[Probes, Probes],
    scales: tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]],
    held_out: Float[np.ndarray, "C S n"],
) -> Iterator[Angle]:
    """Cosines where the layers are equally wide, and correlations of what their probes read and of their errors."""
    width = len(scales[0])
    for index, image_class in enumerate(classes):
        found: list[tuple[str, np.ndarray, float | None]] = []
        if width == len(scales[1]):
            for metric in METRICS:
                one, other = (
                    probe.halves[index, :, half] * (scale if metric == "standardised" else 1.0)
                    for half, (probe, scale) in enumerate(zip(probes, scales, strict=True))
                )
                found.append((metric, covariance.cosines(one, other), float(width**-0.5)))
        one, other = (probe.crossed[index, index] for probe in probes)
        true = held_out[index]
        found.append(("readings", covariance.correlations(one, other), None))
        found.append(("errors", covariance.correlations(one - true, other - true), None))
        for metric, values, chance in found:
            yield Angle(*key, image_class, first, "layers", second, metric, *_spread(values), chance)


def _readings(
    key: _Key,
    layer: str,
    classes: Sequence[str],
    seen: Seen,
    probes: Probes,
    sizes: Float[np.ndarray, "C K R"],
) -> Iterator[Reading]:
    for index, image_class in enumerate(classes):
        read = seen.growing[index] @ probes.whole[index] + probes.intercepts[index]
        for (number, views), (column, name) in itertools.product(enumerate(read), enumerate(MEASURES)):
            for ratio, value in zip(sizes[index, number], views[:, column], strict=True):
                yield Reading(
                    *key,
                    image_class,
                    layer,
                    name,
                    number,
                    float(ratio),
                    float(value),
                )


def _spread(values: Float[np.ndarray, " S"]) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
