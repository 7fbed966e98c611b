"""Section 4.3 and its appendix: the published R2 of every layer beside ours."""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scalecov_jax.features import pooled_features
from scalecov_jax.models.architecture import get_architecture
from scalecov_jax.models.pruning import abstract_variables
from scalecov_jax.paper import published
from scalecov_jax.scores import CONDITIONS, Condition, Estimator, Score
from scalecov_jax.selection import interpolates


class LayerComparison(NamedTuple):
    """One layer under one condition.

    Attributes:
        layer: The layer.
        condition: trained, random_weights or shuffled_measure.
        published: Published R2; None where the curve cannot be told from exp(R2 - 1) = 0.
        published_sd: Over the published runs; None where it is not printed.
        ours: Our R2 by least squares, summarised as the published one; None where the network lacks the layer.
        ours_sd: Over our runs; None where the published one is.
        ridge: Our R2 by ridge, summarised in the same way.
        interpolates: Whether D is near n_train, in the published run or in ours: least squares tells nothing of the layer there.
        explanation: Why they differ or agree.
    """

    layer: str
    condition: Condition
    published: float | None
    published_sd: float | None
    ours: float | None
    ours_sd: float | None
    ridge: float | None
    interpolates: bool
    explanation: str


@lru_cache(maxsize=2)
def published_widths(architecture: str) -> dict[str, int]:
    """Features D of each layer of the published network, from the shapes of its module.

    Args:
        architecture: inception_v3 or resnet50.
    """
    family = get_architecture(architecture)
    module = family.module()
    images = jax.ShapeDtypeStruct((1, family.input_size, family.input_size, 3), jnp.uint8)
    layers = tuple(published.CURVES[architecture])
    pooled = partial(pooled_features, module, layers=layers, preprocessing="raw")
    shapes = jax.eval_shape(
        lambda variables, x: pooled(variables, x), abstract_variables(module, family), images
    )
    return {layer: shapes[layer].shape[-1] for layer in layers}


def mean_over_runs(
    scores: Sequence[Score], condition: Condition, estimator: Estimator, image_class: str
) -> dict[str, tuple[float, float]]:
    """Mean and sd (ddof 1) of R2 over all runs of one class at each layer, as in Table A1.

    Args:
        scores: Of one network.
        condition: trained, random_weights or shuffled_measure.
        estimator: ols or ridge.
        image_class: The class.
    """
    values = _by_layer(
        [
            s
            for s in scores
            if (s.condition, s.estimator, s.image_class) == (condition, estimator, image_class)
        ]
    )
    return {
        layer: (float(np.mean(r2)), float(np.std(r2, ddof=1)) if len(r2) > 1 else 0.0)
        for layer, r2 in values.items()
    }


def mean_over_classes(
    scores: Sequence[Score],
    condition: Condition,
    estimator: Estimator,
    repetitions: int = published.REPETITIONS,
) -> dict[str, tuple[float, float]]:
    """ln(mean of exp(R2 - 1)) + 1 over classes and the first `repetitions` splits, and the sd of exp(R2 - 1): Figure A2.

    This is not the mean R2: it lies above it, the more the further single runs fall below zero (the published figures say R2).

    Args:
        scores: Of one network.
        condition: trained, random_weights or shuffled_measure.
        estimator: ols or ridge.
        repetitions: Splits of each class that count.

    Source: the authors' notebook Averaging_results (medgift/scale_covariant_pruning).
    """
    values = _by_layer(
        [s for s in scores if (s.condition, s.estimator) == (condition, estimator) and s.split < repetitions]
    )
    # Far negative R2 underflow to exp = 0: the smallest double keeps the logarithm finite.
    tiny = np.finfo(float).tiny
    return {
        layer: (
            float(np.log(max(np.exp(np.array(r2) - 1).mean(), tiny)) + 1),
            float(np.std(np.exp(np.array(r2) - 1), ddof=1)) if len(r2) > 1 else 0.0,
        )
        for layer, r2 in values.items()
    }


def compare_runs(
    scores: Sequence[Score], image_class: str, widths: Mapping[str, int], n_train: int
) -> list[LayerComparison]:
    """Table A1 beside ours: InceptionV3, one class, mean and sd over all runs.

    Args:
        scores: Of one InceptionV3.
        image_class: The class that stands for the published albatross.
        widths: Features of each layer of our network.
        n_train: Our training images.
    """
    rows = []
    for condition in CONDITIONS:
        ols = mean_over_runs(scores, condition, "ols", image_class)
        ridge = mean_over_runs(scores, condition, "ridge", image_class)
        for layer, printed in published.TABLE_A1.items():
            rows.append(
                _row(
                    "inception_v3", layer, condition, printed[condition], ols, ridge, widths,
                    n_train, published.N_TRAIN["albatross"],
                )
            )  # fmt: skip
    return rows


def compare_classes(
    architecture: str, scores: Sequence[Score], widths: Mapping[str, int], n_train: Mapping[str, int]
) -> list[LayerComparison]:
    """Figure A2 beside ours: ln(mean of exp(R2 - 1)) + 1 over classes and ten repetitions.

    Args:
        architecture: inception_v3 or resnet50.
        scores: Of one such network.
        widths: Features of each layer of our network.
        n_train: Our training images of each class.
    """
    rows = []
    ours_n, published_n = (round(float(np.mean([*n.values()]))) for n in (n_train, published.N_TRAIN))
    for condition in CONDITIONS:
        ols = mean_over_classes(scores, condition, "ols")
        ridge = mean_over_classes(scores, condition, "ridge")
        for layer, read in published.CURVES[architecture].items():
            value = (float(np.log(read[condition]) + 1), None) if read[condition] else (None, None)
            rows.append(_row(architecture, layer, condition, value, ols, ridge, widths, ours_n, published_n))
    return rows


def _row(
    architecture: str,
    layer: str,
    condition: Condition,
    printed: tuple[float | None, float | None],
    ols: Mapping[str, tuple[float, float]],
    ridge: Mapping[str, tuple[float, float]],
    widths: Mapping[str, int],
    n_train: int,
    published_n: int,
) -> LayerComparison:
    value, sd = printed
    if layer not in ols:
        nothing = f"not measured here: the last layer probed is {list(widths)[-1]}"
        return LayerComparison(layer, condition, value, sd, None, None, None, False, nothing)
    ours, ours_sd = ols[layer]
    width, there = widths[layer], published_widths(architecture)[layer]
    near = [
        f"{where} D / n_train = {one} / {n}"
        for where, one, n in (("published", there, published_n), ("here", width, n_train))
        if interpolates(one / n)
    ]
    if value is None:
        agrees = "below what the figure can show" if ours < -3 else "above what was published"
    else:
        # Figure A2 averages exp(R2 - 1), so that its spread is told on that scale.
        apart = ours - value if sd is not None else float(np.exp(ours - 1) - np.exp(value - 1))
        close = abs(apart) <= max(2 * float(np.hypot(sd or 0.0, ours_sd)), 0.02)
        agrees = "within the spread of the runs" if close else "higher" if apart > 0 else "lower"
    if near:
        why = f"least squares near D = n_train ({', '.join(near)}): sample size, not layer; read ridge"
    elif layer == "softmax" and condition != "random_weights":
        why = "probabilities near 0 with few large ones: least squares extrapolates; read ridge"
    elif agrees in ("higher", "lower") and width != there:
        why = f"another width (D = {width}, published {there}), other weights and images"
    elif agrees in ("higher", "lower", "above what was published"):
        why = f"other images and n_train ({n_train}, published {published_n})"
    else:
        why = ""
    return LayerComparison(
        layer,
        condition,
        value,
        sd,
        ours,
        None if sd is None else ours_sd,
        ridge[layer][0],
        bool(near),
        f"{agrees}; {why}" if why else agrees,
    )


def _by_layer(scores: Sequence[Score]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for score in scores:
        values.setdefault(score.layer, []).append(score.r2)
    return values
