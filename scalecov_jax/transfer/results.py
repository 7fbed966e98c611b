"""From predictions to what is reported: rows of transfer.csv, the sweep of the cut, paired tests of pruned against the others."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from scalecov_jax.concepts.nuclei import class_means
from scalecov_jax.images.patches import Patches
from scalecov_jax.probes.statistics import Interval, clustered_bootstrap
from scalecov_jax.transfer import significance
from scalecov_jax.transfer.comparison import Model, Prediction
from scalecov_jax.transfer.metrics import Measured, Outcome, evaluate, macro_mae

BASES: tuple[Model, ...] = ("whole", "scratch")
METRICS = ("mae", "kappa", "kappa_quadratic")


class Evaluated(NamedTuple):
    """A prediction and its errors; the first row is the total."""

    prediction: Prediction
    rows: tuple[Measured, ...]


class Comparison(NamedTuple):
    """The pruned network against another, paired by seed.

    Attributes:
        weights: Name of the pretrained weights.
        trainable: all, head or ridge.
        metric: mae (px), kappa or kappa_quadratic.
        base: What the pruned network is compared with: whole or scratch.
        base_mean: Mean over seeds.
        base_sd: Sample sd over seeds.
        pruned_mean: Of the pruned network.
        pruned_sd: Of the pruned network.
        difference: Mean of pruned - base.
        low: 95 % bootstrap interval of the difference pooled over seeds and patches, source images redrawn; None for kappa, and
            where fewer than two source images are held out.
        high: Its upper end.
        wins: Seeds in which the pruned network is better.
        seeds: Number of seeds.
        p: Exact two-sided Wilcoxon signed-rank test.
        p_holm: Adjusted for all comparisons of the run with the same base and trainable (networks x MAE and kappa).
        smallest_p: The smallest p that so many seeds can reach.
    """

    weights: str
    trainable: str
    metric: str
    base: str
    base_mean: float
    base_sd: float
    pruned_mean: float
    pruned_sd: float
    difference: float
    low: float | None
    high: float | None
    wins: int
    seeds: int
    p: float
    p_holm: float | None
    smallest_p: float


class SweepScore(NamedTuple):
    """Error of a head on the features of one layer: a row of sweep.csv.

    Attributes:
        weights: Name of the weights.
        condition: trained or random_weights.
        head: ridge or head.
        layer: Where the network would be cut; avg_pool is the whole one.
        seed: Of the split.
        mae: Over all held-out patches, in pixels.
        macro_mae: Mean over magnifications of their MAE, in pixels.
    """

    weights: str
    condition: str
    head: str
    layer: str
    seed: int
    mae: float
    macro_mae: float


def evaluate_predictions(
    predictions: Iterable[Prediction], patches: Patches, train: Mapping[int, Bool[np.ndarray, " N"]]
) -> list[Evaluated]:
    """Errors of every prediction; classes are the nearest mean area of the training part of its seed."""
    evaluated = []
    for one in predictions:
        part = train[one.seed]
        means = class_means(patches.area[part], patches.magnification[part])
        rows = evaluate(patches.area[one.test], one.area, patches.magnification[one.test], means)
        evaluated.append(Evaluated(one, tuple(rows)))
    return evaluated


def outcomes(evaluated: Iterable[Evaluated]) -> list[Outcome]:
    """Rows of transfer.csv."""
    return [
        Outcome(
            *(one.architecture, one.weights, one.layer, one.trainable, one.seed),
            *("all" if row.magnification is None else f"{row.magnification:g}", *row[1:]),
        )
        for one, rows in evaluated
        for row in rows
    ]


def compare_models(evaluated: Sequence[Evaluated], patches: Patches, weights: str) -> list[Comparison]:
    """Pruned against whole and from scratch, for each way of training, without Holm's adjustment.

    Args:
        evaluated: Of one network, all models and seeds.
        patches: All patches; their sources are the clusters of the bootstrap.
        weights: Name of the pretrained weights.
    """
    compared = []
    for trainable in dict.fromkeys(one.prediction.trainable for one in evaluated):
        by_model = {
            model: sorted(
                (
                    one
                    for one in evaluated
                    if (one.prediction.trainable, one.prediction.model) == (trainable, model)
                ),
                key=lambda one: one.prediction.seed,
            )
            for model in ("pruned", *BASES)
        }
        for base in BASES:
            _check_paired(by_model["pruned"], by_model[base])
            if _repeated(by_model["pruned"]) and _repeated(by_model[base]):
                continue  # One result many times, as of ridge on one split: a test would count it as evidence.
            low, high = _interval(by_model["pruned"], by_model[base], patches) or (None, None)
            for metric in METRICS:
                first, second = (_totals(by_model[model], metric) for model in ("pruned", base))
                if first is None or second is None or len(first) < 2:
                    continue
                sign = 1.0 if metric == "mae" else -1.0
                paired = significance.compare(sign * first, sign * second)
                compared.append(
                    Comparison(
                        weights,
                        trainable,
                        metric,
                        base,
                        float(second.mean()),
                        float(second.std(ddof=1)),
                        float(first.mean()),
                        float(first.std(ddof=1)),
                        float((first - second).mean()),
                        low if metric == "mae" else None,
                        high if metric == "mae" else None,
                        paired.wins,
                        len(first),
                        paired.p,
                        None,
                        paired.smallest_p,
                    )
                )
    return compared


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Holm's adjustment within each family: same base and way of training, all networks, MAE and plain kappa.

    Source: Holm 1979; the family of METHODS: networks x metrics.
    """
    adjusted = list(comparisons)
    families: dict[tuple[str, str], list[int]] = {}
    for index, one in enumerate(comparisons):
        if one.metric in ("mae", "kappa"):
            families.setdefault((one.trainable, one.base), []).append(index)
    for members in families.values():
        for index, p in zip(members, significance.holm([comparisons[i].p for i in members]), strict=True):
            adjusted[index] = comparisons[index]._replace(p_holm=p)
    return adjusted


def sweep_scores(
    weights: str,
    condition: str,
    head: str,
    predicted: Mapping[str, Float[np.ndarray, "R N"]],
    patches: Patches,
    train: Mapping[int, Bool[np.ndarray, " N"]],
) -> list[SweepScore]:
    """Held-out error of every layer and seed."""
    scores = []
    for layer, values in predicted.items():
        for row, (seed, mask) in zip(values, train.items(), strict=True):
            error = np.abs(row - patches.area)[~mask]
            magnification = patches.magnification[~mask]
            macro = np.mean([error[magnification == m].mean() for m in np.unique(magnification)])
            scores.append(
                SweepScore(weights, condition, head, layer, seed, float(error.mean()), float(macro))
            )
    return scores


def macro(one: Evaluated) -> float:
    """Mean over magnifications of the MAE, in pixels."""
    return macro_mae(one.rows)


def _totals(evaluated: Sequence[Evaluated], metric: str) -> Float[np.ndarray, " S"] | None:
    values = [getattr(one.rows[0], metric) for one in evaluated]
    return None if any(value is None for value in values) else np.array(values, float)


def _check_paired(pruned: Sequence[Evaluated], base: Sequence[Evaluated]) -> None:
    for one, other in itertools.zip_longest(pruned, base):
        if (
            one is None
            or other is None
            or one.prediction.seed != other.prediction.seed
            or not np.array_equal(one.prediction.test, other.prediction.test)
        ):
            raise ValueError("Models can be compared only on the same seeds and held-out patches.")


def _repeated(evaluated: Sequence[Evaluated]) -> bool:
    first, *others = (one.prediction for one in evaluated)
    return bool(others) and all(
        np.array_equal(first.test, one.test) and np.array_equal(first.area, one.area) for one in others
    )


def _interval(pruned: Sequence[Evaluated], base: Sequence[Evaluated], patches: Patches) -> Interval | None:
    errors = [
        [np.abs(one.prediction.area - patches.area[one.prediction.test]) for one in side]
        for side in (pruned, base)
    ]
    clusters = [patches.group[one.prediction.test] for one in pruned]
    if len(np.unique(np.concatenate(clusters))) < 2:
        return None
    return clustered_bootstrap(errors[0], errors[1], clusters)
