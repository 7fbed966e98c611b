"""Section 3.4 of the scale paper in numbers: what moves in the features phi of an object when it grows.

A probe f(phi) = v.phi + b reads a measure m of size from features; v is its regression concept vector (RCV). Covariance as an
operation asks for more than a good probe: features of the grown object should be the old ones moved by a fixed vector t for each
unit of m,

    phi(g_sigma x) = phi(x) + sigma t.

Features of K objects, each seen at R sizes, answer that. `changes` are always taken about the mean of their object, which is the
same as all pairs of its sizes: sum_{r<q} |phi_r - phi_q|^2 = R sum_r |phi_r - mean phi|^2.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, combinations_with_replacement, product
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from scalecov_jax.probes import evaluate, ridge
from scalecov_jax.probes.statistics import draw_groups, percentile_interval
from scalecov_jax.scores import ESTIMATORS, Condition, Estimator

MEASURES = {"r": np.positive, "sqrt_r": np.sqrt, "log_r": np.log}
METRICS = ("raw", "standardised")
_Row = dict[str, Any]


def smallest_translation(rcv: Float[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
    """The shortest t with v.t = 1: v / |v|^2; ValueError if v is zero.

    A step sigma t changes the reading by sigma; the published one, g'(phi) = phi + sigma v, by sigma |v|^2.

    Source: Graziani et al. 2021, section 3.4.
    """
    return rcv / _positive(rcv @ rcv, "The RCV is zero, so that no step along it changes the reading.")


def pattern_translation(
    features: Float[np.ndarray, "N D"], rcv: Float[np.ndarray, " D"]
) -> Float[np.ndarray, " D"]:
    """How features move on average when the reading moves by 1: a / v.a with a = cov(phi, v.phi).

    v filters the measure out of features that vary for other reasons too; it is not the direction in which features move. That
    is the pattern a = S v, S the covariance of the features of the scenes that the probe was fitted to. It is v's own direction
    only where S is a multiple of the identity. ValueError if the reading is the same for all features.

    Source: Haufe et al. 2014, On the interpretation of weight vectors of linear models in multivariate neuroimaging.
    """
    centred = features - features.mean(0)[None]
    reading = centred @ rcv
    return centred.T @ reading / _positive(reading @ reading, "The probe reads the same from all features.")


def changes(values: Float[np.ndarray, "K R ..."]) -> Float[np.ndarray, "K R ..."]:
    """Values of K objects at R sizes, less the mean of each; ValueError for fewer than two sizes, or values not finite."""
    if values.shape[1] < 2:
        raise ValueError(f"Each object is seen at {values.shape[1]} sizes; a change needs at least 2.")
    if not np.isfinite(values).all():
        raise ValueError("Features or measures of the growing objects hold NaN or infinity.")
    return values - values.mean(1, keepdims=True)


def share_along(
    moved: Float[np.ndarray, "K R D"], direction: Float[np.ndarray, " D"], seed: int = 0, draws: int = 1000
) -> tuple[float, float, float]:
    """Share of the change of features that lies along a direction u: sum (dphi.u)^2 / (|u|^2 sum |dphi|^2), in [0, 1].

    The direction u has any length but 0; its sign does not matter. With the ends of the 95 % bootstrap interval over objects.

    Raises:
        ValueError: The direction is zero, or nothing moves in an object.
    """
    norm = _positive(direction @ direction, "The direction is zero.")
    along = np.square(moved @ direction).sum(1) / norm
    total = np.square(moved).sum((1, 2))
    _positive(total.min(), "The features of an object are the same at all its sizes.")
    drawn = draw_groups(len(moved), draws, seed)
    low, high = percentile_interval((drawn @ along) / (drawn @ total))
    return float(along.sum() / total.sum()), low, high


def best_share(moved: Float[np.ndarray, "K R D"]) -> float:
    """Largest `share_along` of any direction: that of the first right singular vector of the changes."""
    flat = moved.reshape(-1, moved.shape[-1])
    gram = flat @ flat.T
    return float(np.linalg.eigvalsh(gram)[-1] / _positive(np.trace(gram), "Nothing moves."))


def random_share(moved: Float[np.ndarray, "K R D"], seed: int, draws: int = 64) -> float:
    """Mean `share_along` of random directions, which is 1 / D but for the draw."""
    directions = np.random.default_rng(seed).normal(size=(moved.shape[-1], draws))
    directions /= np.linalg.norm(directions, axis=0, keepdims=True)
    total = _positive(np.square(moved).sum(), "Nothing moves.")
    return float(np.square(moved.reshape(-1, moved.shape[-1]) @ directions).sum() / draws / total)


def explained(
    moved: Float[np.ndarray, "K R D"],
    measured: Float[np.ndarray, "K R"],
    translation: Float[np.ndarray, " D"] | Float[np.ndarray, "K D"],
) -> float:
    """Share of the change of features that a translation explains: 1 - sum |dphi - dm t|^2 / sum |dphi|^2.

    1 is covariance as an operation; 0 is as good as not moving at all, and less is worse than that.

    `measured` are `changes` of the measure, and the translation is t, or a t for each object.
    """
    translations = np.broadcast_to(translation, (len(moved), moved.shape[-1]))
    left = moved - measured[:, :, None] * translations[:, None, :]
    return float(1 - np.square(left).sum() / _positive(np.square(moved).sum(), "Nothing moves."))


def best_translation(
    moved: Float[np.ndarray, "K R D"], measured: Float[np.ndarray, "K R"], *, own: bool = False
) -> Float[np.ndarray, " D"] | Float[np.ndarray, "K D"]:
    """The t that explains most, sum dm dphi / sum dm^2; with `own` that of each object for itself.

    No other vector can do better on these objects; what is left after its own t is not linear in the measure. ValueError if the
    measure does not change.
    """
    along, squares = np.einsum("kr,krd->kd", measured, moved), np.square(measured).sum(1, keepdims=True)
    if not own:
        along, squares = along.sum(0), squares.sum()
    return along / _positive(squares, "The measure does not change.")


def response(readings: Float[np.ndarray, "K R"], measures: Float[np.ndarray, "K R"]) -> tuple[float, float]:
    """Slope and R2 of the change of a probe's reading against the true change of the measure, within objects.

    A slope of 1 is covariant, 0 invariant; R2 = 1 - sum (change read - true change)^2 / sum (true change)^2. The intercept of the
    probe has no part in them. ValueError: see `changes`, or a measure that does not change.
    """
    read, true = changes(readings), changes(measures)
    squares = _positive(np.square(true).sum(), "The measure does not change.")
    return float((read * true).sum() / squares), float(1 - np.square(read - true).sum() / squares)


def cosines(first: Float[np.ndarray, "S D"], second: Float[np.ndarray, "S D"]) -> Float[np.ndarray, " S"]:
    """Cosine of the angle between RCVs, pair by pair; of random ones about +- 1 / sqrt(D). ValueError if an RCV is zero."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / _positive(norms, "An RCV is zero, so that it has no direction.")


def correlations(
    first: Float[np.ndarray, "S N"], second: Float[np.ndarray, "S N"]
) -> Float[np.ndarray, " S"]:
    """Pearson's correlation of two probes' readings of the same scenes, pair by pair; ValueError if a reading is constant."""
    return cosines(first - first.mean(1, keepdims=True), second - second.mean(1, keepdims=True))


def r2(
    readings: Float[np.ndarray, "S N"], measures: Float[np.ndarray, "S N"], *, own_intercept: bool = False
) -> Float[np.ndarray, " S"]:
    """R2 of each row against its mean; with `own_intercept` after the intercept has been fitted to the row itself.

    ValueError if a measure is constant.
    """
    left = measures - readings
    if own_intercept:
        left = left - left.mean(1, keepdims=True)
    squares = _positive(
        np.square(measures - measures.mean(1, keepdims=True)).sum(1),
        "The measure is the same for all scenes.",
    )
    return 1 - np.square(left).sum(1) / squares


def _positive(value, problem: str):
    if not np.all(np.asarray(value) > 0):
        raise ValueError(problem)
    return value


# Probes


class Probes(NamedTuple):
    """Probes of one layer and estimator."""

    whole: Float[np.ndarray, "C D M"]  # RCVs of each class and measure, fitted to all its scenes
    intercepts: Float[np.ndarray, "C M"]  # of these
    halves: Float[np.ndarray, "C S 2 D"]  # RCVs of the ratio, fitted to each half of each split
    # patterns of these on the scenes they were fitted to, of any length
    patterns: Float[np.ndarray, "C S 2 D"]
    # measures that the first half's probes read from the second half of their own class
    held_out: Float[np.ndarray, "C S n M"]
    # ratios that the first half's probes of a class (first axis) read from the second half of another
    crossed: Float[np.ndarray, "C C S n"]


def halves(count: int, splits: int, seed: int) -> Int[np.ndarray, "S 2 n"]:
    """Random halves of the scenes of a class; the last scene is left out of an odd number. Split s depends on (seed, s) alone."""
    size = count // 2
    order = [np.random.default_rng((seed, split)).permutation(count) for split in range(splits)]
    return np.stack(order)[:, : 2 * size].reshape(splits, 2, size)


def fit(
    scenes: Float[np.ndarray, "C N D"],
    targets: Mapping[Condition, Float[np.ndarray, "C N M"]],
    parts: Int[np.ndarray, "S 2 n"],
    alphas: Float[np.ndarray, " A"] = evaluate.ALPHAS,
) -> dict[tuple[Condition, Estimator], Probes]:
    """Fit probes of one layer to all scenes of each class and to halves of them, by `evaluate.fit`; the ratio comes first."""
    classes, count, width = scenes.shape
    splits = len(parts)
    stacked = np.concatenate([*targets.values()], axis=-1)
    masks = np.zeros((2 * splits, count), bool)
    np.put_along_axis(masks, parts.reshape(2 * splits, -1), True, axis=1)
    held_out = scenes[:, parts[:, 1]]  # C S n D
    centred = scenes[:, parts] - scenes[:, parts].mean(3, keepdims=True)  # C S 2 n D
    probes: dict[tuple[Condition, Estimator], Probes] = {}
    for estimator in ESTIMATORS:
        alpha = alphas if estimator == "ridge" else None
        whole = [evaluate.fit(x, y, None, alpha) for x, y in zip(scenes, stacked, strict=True)]
        half = [evaluate.fit(x, y, masks, alpha) for x, y in zip(scenes, stacked, strict=True)]
        rcv = np.stack([linear.weights for linear in half]).reshape(classes, splits, 2, width, -1)
        intercept = np.stack([linear.intercept for linear in half]).reshape(classes, splits, 2, -1)
        for index, condition in enumerate(targets):
            first = index * len(MEASURES)  # the ratio
            own, ratio = slice(first, first + len(MEASURES)), rcv[..., first]
            crossed = np.einsum("esnd,csd->cesn", held_out, ratio[:, :, 0], optimize=True)
            probes[condition, estimator] = Probes(
                np.stack([linear.weights[0][:, own] for linear in whole]),
                np.stack([linear.intercept[0][own] for linear in whole]),
                ratio,
                (np.swapaxes(centred, -1, -2) @ (centred @ ratio[..., None]))[..., 0],
                held_out @ rcv[:, :, 0, :, own] + intercept[:, :, 0, None, own],
                crossed + intercept[:, None, :, 0, None, first],
            )
    return probes


# Tables


class Seen(NamedTuple):
    """Features of the scenes of all classes at a layer, float64: independent scenes to fit probes to, and growing objects."""

    scenes: Float[np.ndarray, "C N D"]
    growing: Float[np.ndarray, "C K R D"]


def measure(
    layers: Mapping[str, Seen],
    classes: Sequence[str],
    targets: Mapping[Condition, Float[np.ndarray, "C N M"]],
    sizes: Float[np.ndarray, "C K R"],
    parts: Int[np.ndarray, "S 2 n"],
    estimators: Sequence[Estimator],
    *,
    seed: int,
    name: str,
    alphas: Float[np.ndarray, " A"] = evaluate.ALPHAS,
) -> dict[str, pd.DataFrame]:
    """All tables of a network.

    Layers come from input to output, and classes are at least two. Probes are fitted to `targets`, the `MEASURES` of the scenes,
    or the same shuffled, by condition; `sizes` are the true ratios of the growing objects.

    Returns:
        Columns of all: condition (of the probe; the objects grow in any case), estimator, image_class, layer.
        change: width D; measure; metric (raw, or standardised by the sd over all scenes); shares of the change along the RCV
        (rcv, rcv_low, rcv_high), its pattern, the best direction, random ones (chance is 1 / D); shares that steps explain:
        published_step (sigma v), smallest_step (sigma v / |v|^2), pattern_step, best_step, own_step (the best of each object).
        linearity: measure; r2 on the half that was not fitted (mean over splits), r2_sd, r2_median; r2_within and slope of
        `response`; factor |v|^2, by which the published step overshoots.
        angles: kind (splits: halves of a class; classes; layers); other, the second class or layer; metric (raw, standardised:
        cosines of RCVs; pattern: of standardised patterns; readings, errors: correlations on held-out scenes); value and sd
        over splits; chance, 1 / sqrt(D) of cosines. Of probes of the ratio, as transfer.
        transfer: test_class; r2 (median over splits), r2_low, r2_high; r2_own_intercept, fitted to the scenes read.
        readings, of trained networks: measure, object, ratio, read.

    Raises:
        ValueError: A layer whose features do not change, or on which no probe can be had; names it.
    """
    tables: dict[str, list[_Row]] = {}

    def add(table: str, rows: Iterator[_Row], condition: str, estimator: str) -> None:
        key = {"condition": condition, "estimator": estimator}
        tables.setdefault(table, []).extend(key | row for row in rows)

    probes: dict[str, dict[tuple[Condition, Estimator], Probes]] = {}
    scales: dict[str, np.ndarray] = {}
    # Halves of a shuffled sample disagree systematically: what correlates by chance in the first does the opposite in the second.
    compared: list[Condition] = [condition for condition in targets if condition != "shuffled_measure"]
    for layer, seen in tqdm(layers.items(), f"{name} probes", unit="layer"):
        # On systems this small BLAS threads wait for each other, on a busy machine a hundred times as long as they compute.
        with threadpool_limits(1, user_api="blas"):
            try:
                if not np.isfinite(seen.scenes).all():
                    raise ValueError("Features of the scenes hold NaN or infinity.")
                probes[layer], scales[layer] = fit(seen.scenes, targets, parts, alphas), _scale(seen.scenes)
                moves = [*_moves(seen, scales[layer], seed)]
                for condition, estimator in product(targets, estimators):
                    of, key = probes[layer][condition, estimator], (condition, estimator)
                    held_out = targets[condition][:, parts[:, 1]]
                    add("change", _changes(layer, classes, moves, of, sizes, seed), *key)
                    add("linearity", _linearities(layer, classes, seen, of, sizes, held_out), *key)
                    if condition in compared:
                        add("angles", _angles(layer, classes, of, scales[layer]), *key)
                        add("transfer", _transfers(layer, classes, of, held_out[..., 0]), *key)
                    if condition == "trained":
                        add("readings", _readings(layer, classes, seen, of, sizes), *key)
            except ValueError as error:
                hint = "Leave the layer out (config.layers) or use more scenes."
                raise ValueError(f"{name}, {layer}: {error} {hint}") from error
    for condition, estimator in product(compared, estimators):
        held_out = targets[condition][:, parts[:, 1], 0]
        of = [(layer, probes[layer][condition, estimator], scales[layer]) for layer in layers]
        for first, second in combinations(of, 2):
            add("angles", _between_layers(first, second, classes, held_out), condition, estimator)
    return {table: pd.DataFrame(rows) for table, rows in tables.items()}


def _scale(scenes: Float[np.ndarray, "C N D"]) -> Float[np.ndarray, " D"]:
    """Standard deviation of each feature over all scenes; 1 for a constant feature."""
    with evaluate.float64():
        return np.asarray(ridge.standardisation(jnp.asarray(scenes.reshape(-1, scenes.shape[-1]))).scale)


def _moves(seen: Seen, scale: Float[np.ndarray, " D"], seed: int) -> Iterator[tuple[Any, ...]]:
    """What no probe has a part in, by class and metric: how features move, and the best and a random share."""
    for index, metric in product(range(len(seen.scenes)), METRICS):
        by = scale if metric == "standardised" else np.ones_like(scale)
        moved = changes(seen.growing[index] / by)
        yield index, metric, by, seen.scenes[index] / by, moved, best_share(moved), random_share(moved, seed)


def _changes(layer, classes, moves: Sequence[tuple[Any, ...]], probes: Probes, sizes, seed) -> Iterator[_Row]:
    for move, (column, name) in product(moves, enumerate(MEASURES)):
        index, metric, by, scenes, moved, best, random = move
        rcv = probes.whole[index, :, column] * by  # reads the same from phi / by
        pattern = pattern_translation(scenes, rcv)
        measured = changes(MEASURES[name](sizes[index]))
        row = {"image_class": classes[index], "layer": layer, "width": len(by), "measure": name}
        row |= {"metric": metric}
        row |= zip(("rcv", "rcv_low", "rcv_high"), share_along(moved, rcv, seed), strict=True)
        row |= {"pattern": share_along(moved, pattern, seed, draws=1)[0]}
        row |= {"best": best, "random": random, "chance": 1 / len(by)}
        translations = {
            "published": rcv,
            "smallest": smallest_translation(rcv),
            "pattern": pattern,
            "best": best_translation(moved, measured),
            "own": best_translation(moved, measured, own=True),
        }
        yield row | {f"{step}_step": explained(moved, measured, t) for step, t in translations.items()}


def _linearities(layer, classes, seen: Seen, probes: Probes, sizes, held_out) -> Iterator[_Row]:
    for (index, image_class), (column, name) in product(enumerate(classes), enumerate(MEASURES)):
        rcv = probes.whole[index, :, column]
        scores = r2(probes.held_out[index, ..., column], held_out[index, ..., column])
        slope, within = response(seen.growing[index] @ rcv, MEASURES[name](sizes[index]))
        row = {"image_class": image_class, "layer": layer, "measure": name, **_spread(scores, "r2", "r2_sd")}
        row |= {"r2_median": np.median(scores), "r2_within": within, "slope": slope}
        yield row | {"factor": rcv @ rcv}


def _transfers(layer, classes, probes: Probes, held_out: Float[np.ndarray, "C S n"]) -> Iterator[_Row]:
    for (row, image_class), (column, test_class) in product(enumerate(classes), repeat=2):
        readings, true = probes.crossed[row, column], held_out[column]
        low, middle, high = np.percentile(r2(readings, true), (0, 50, 100))
        own = np.median(r2(readings, true, own_intercept=True))
        key = {"image_class": image_class, "test_class": test_class, "layer": layer}
        yield key | {"r2": middle, "r2_low": low, "r2_high": high, "r2_own_intercept": own}


def _angles(layer, classes, probes: Probes, scale: Float[np.ndarray, " D"]) -> Iterator[_Row]:
    """Between halves of a class, and between halves of two: both from equally many scenes, none of them shared."""
    rcvs, patterns = probes.halves, probes.patterns
    for metric, of in {"raw": rcvs, "standardised": rcvs * scale, "pattern": patterns / scale}.items():
        for (row, first), (column, second) in combinations_with_replacement(enumerate(classes), 2):
            values = cosines(of[row, :, 0], of[column, :, 1])
            if row != column:
                values = (values + cosines(of[column, :, 0], of[row, :, 1])) / 2
            kind = "splits" if row == column else "classes"
            yield _angle(first, layer, kind, second, metric, values, len(scale) ** -0.5)


def _between_layers(first, second, classes, held_out: Float[np.ndarray, "C S n"]) -> Iterator[_Row]:
    """Cosines where the layers are equally wide, and correlations of what their probes read and of their errors.

    `first` and `second` are the name of a layer, its probes and the sd of its features.
    """
    (layer, probes, scale), (other, others, other_scale) = first, second
    for index, image_class in enumerate(classes):
        key = (image_class, layer, "layers", other)
        if len(scale) == len(other_scale):
            rcvs, other_rcvs = probes.halves[index, :, 0], others.halves[index, :, 1]
            yield _angle(*key, "raw", cosines(rcvs, other_rcvs), len(scale) ** -0.5)
            values = cosines(rcvs * scale, other_rcvs * other_scale)
            yield _angle(*key, "standardised", values, len(scale) ** -0.5)
        read, other_read, true = probes.crossed[index, index], others.crossed[index, index], held_out[index]
        yield _angle(*key, "readings", correlations(read, other_read), None)
        yield _angle(*key, "errors", correlations(read - true, other_read - true), None)


def _angle(image_class, layer, kind, other, metric, values: Float[np.ndarray, " S"], chance) -> _Row:
    key = {"image_class": image_class, "layer": layer, "kind": kind, "other": other, "metric": metric}
    return key | _spread(values, "value", "sd") | {"chance": chance}


def _readings(layer, classes, seen: Seen, probes: Probes, sizes) -> Iterator[_Row]:
    for index, image_class in enumerate(classes):
        read = seen.growing[index] @ probes.whole[index] + probes.intercepts[index]  # K R M
        for (number, column, size), value in np.ndenumerate(read.swapaxes(1, 2)):
            row = {"image_class": image_class, "layer": layer, "measure": [*MEASURES][column]}
            yield row | {"object": number, "ratio": sizes[index, number, size], "read": value}


def _spread(values: Float[np.ndarray, " S"], mean: str, sd: str) -> _Row:
    return {mean: values.mean(), sd: values.std(ddof=1) if len(values) > 1 else 0.0}
