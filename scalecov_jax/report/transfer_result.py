"""What was measured on one network, and the numbers and texts that all parts of the report take from it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scalecov_jax.models.architecture import plain_name
from scalecov_jax.report import page
from scalecov_jax.report.transfer_figures import MODEL_NAMES
from scalecov_jax.transfer.results import Comparison, Evaluated, SweepScore, macro

TRAINED = {
    "all": "Fine-tuned",
    "head": "With a linear head trained by gradient descent on frozen features",
    "ridge": "With ridge regression on frozen features",
}


class NetworkResult(NamedTuple):
    """Everything measured on one network.

    Attributes:
        architecture: Name of the family.
        weights: Name of the pretrained weights.
        evaluated: Of all models, ways of training and seeds.
        comparisons: Pruned against whole and from scratch, after Holm's adjustment; none where there was nothing to test.
        sweep: Errors of heads at every layer; empty after fine-tuning.
        layers: Where the pruned network is cut, by seed.
        chosen_by: given, target or scale.
        costs: Parameters and FLOPs of one forward pass of whole, pruned (at its most frequent layer) and scratch.
    """

    architecture: str
    weights: str
    evaluated: Sequence[Evaluated]
    comparisons: Sequence[Comparison]
    sweep: Sequence[SweepScore]
    layers: Mapping[int, str]
    chosen_by: str
    costs: Mapping[str, tuple[int, float]]


class Spread(NamedTuple):
    """Mean and sample sd; None where a value is missing, and for the sd of one value."""

    mean: float | None
    sd: float | None


def named(results: Sequence[NetworkResult]) -> dict[str, NetworkResult]:
    """Results by a name for people, which tells weights of the same architecture apart."""
    count = Counter(one.architecture for one in results)
    return {
        plain_name(one.architecture) + (f" ({one.weights})" if count[one.architecture] > 1 else ""): one
        for one in results
    }


def trainables(result: NetworkResult) -> list[str]:
    """The ways of training that were measured, the main one first."""
    present = {one.prediction.trainable for one in result.evaluated}
    return [one for one in TRAINED if one in present]


def by_model(result: NetworkResult, trainable: str) -> dict[str, list[Evaluated]]:
    """The seeds of each model in order, for one way of training."""
    groups: dict[str, list[Evaluated]] = {model: [] for model in MODEL_NAMES}
    for one in sorted(result.evaluated, key=lambda one: one.prediction.seed):
        if one.prediction.trainable == trainable:
            groups[one.prediction.model].append(one)
    return {model: seeds for model, seeds in groups.items() if seeds}


def values(seeds: Iterable[Evaluated], metric: str) -> list[float | None]:
    """A metric of all held-out patches of each seed: mae, macro_mae, kappa or kappa_quadratic."""
    return [macro(one) if metric == "macro_mae" else getattr(one.rows[0], metric) for one in seeds]


def by_magnification(seeds: Iterable[Evaluated]) -> dict[float, list[float]]:
    """MAE in px of each magnification, by seed; a seed that held out none of its patches is not there."""
    errors: dict[float, list[float]] = {}
    for one in seeds:
        for row in one.rows[1:]:
            if row.magnification is not None:
                errors.setdefault(row.magnification, []).append(row.mae)
    return dict(sorted(errors.items()))


def cuts(result: NetworkResult) -> str:
    """Where the pruned network is cut, in words."""
    counts = Counter(result.layers.values()).most_common()
    if len(counts) == 1:
        return counts[0][0]
    first, *others = (f"{layer} in {count}" for layer, count in counts)
    return ", ".join([f"{first} of {len(result.layers)} seeds", *others])


def spread(numbers: Iterable[float | None]) -> Spread:
    """Over seeds or patches."""
    known = list(numbers)
    if not known or any(value is None for value in known):
        return Spread(None, None)
    array = np.array(known, float)
    return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None)


def mean_and_sd(numbers: Iterable[float | None], digits: int, *, signed: bool = False) -> str:
    """`spread` as text; a plus sign before positive means if signed."""
    mean, sd = spread(numbers)
    text = page.number(mean, digits)
    if signed and mean is not None and mean > 0 and text != page.number(0.0, digits):
        text = f"+{text}"
    return text if sd is None else f"{text} ± {page.number(sd, digits)}"


def p_value(p: float | None) -> str:
    """A p value as text."""
    return "–" if p is None else f"{p:.2g}".replace("-", "−")
