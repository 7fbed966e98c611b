"""Errors of predicted nucleus areas: MAE in pixels, kappa over magnifications, and the tidy table of them."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from sklearn.metrics import cohen_kappa_score

from scalecov_jax.concepts.nuclei import nearest_class


class Measured(NamedTuple):
    """Errors over the patches of one magnification, or of all.

    Attributes:
        magnification: Of the patches; None for all.
        n: Number of patches.
        mae: Mean absolute error in pixels of the patch.
        kappa: Cohen's kappa over magnifications; None where it is undefined, as within one magnification.
        kappa_quadratic: The same, weighted quadratically.
    """

    magnification: float | None
    n: int
    mae: float
    kappa: float | None
    kappa_quadratic: float | None


class Outcome(NamedTuple):
    """`Measured` of one fine-tuned network (one row of transfer.csv).

    Attributes:
        architecture: Name of the network, such as inception_v3.
        weights: Name of the weights that it started from.
        layer: The layer that it was cut at.
        trainable: Which part was fine-tuned.
        seed: Of the fine-tuning; rows are paired by it.
        magnification: Of the patches, such as 7.5, or all.
        n: Number of test patches.
        mae: Mean absolute error in pixels of the patch.
        kappa: Cohen's kappa over magnifications; None where it is undefined.
        kappa_quadratic: The same, weighted quadratically.
    """

    architecture: str
    weights: str
    layer: str
    trainable: str
    seed: int
    magnification: str
    n: int
    mae: float
    kappa: float | None
    kappa_quadratic: float | None


def evaluate(
    true: Float[np.ndarray, " N"],
    predicted: Float[np.ndarray, " N"],
    magnification: Float[np.ndarray, " N"],
    means: Mapping[float, float],
) -> list[Measured]:
    """MAE = mean |true - predicted|, and kappa between the magnification and `nearest_class` of the predicted area.

    Args:
        true: Mean nucleus areas in pixels of the patch.
        predicted: Likewise.
        magnification: Of the patches.
        means: Mean area of each magnification in the training part, see `nuclei.class_means`.

    Returns:
        First over all patches, then within each magnification that is present, rising.

    Raises:
        ValueError: No patches, values that are not finite, or magnifications without a class mean.

    Source: Graziani et al. 2021, Table 2 (MAE and unweighted kappa over 7 magnifications).
    """
    if not len(true):
        raise ValueError("There are no patches to evaluate.")
    given = {"true areas": true, "predicted areas": predicted, "magnifications": magnification}
    problems = []
    for name, values in given.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            problems.append(f"{len(bad)} of {len(values)} {name} at {bad[:10].tolist()}")
    if problems:
        raise ValueError(f"Not finite: {'; '.join(problems)}.")
    present, classes = np.unique(magnification), np.array(sorted(means), np.float64)
    unknown = [f"{one:g}" for one in present if one not in classes]
    if unknown:
        raise ValueError(
            f"No class mean for magnifications {', '.join(unknown)}; "
            f"there are {', '.join(f'{one:g}' for one in classes) or 'none'}. Training and test need the same magnifications."
        )
    error = np.abs(true.astype(np.float64) - predicted)
    kappa = quadratic = None
    if len(present) > 1:
        of, nearest = (np.searchsorted(classes, m) for m in (magnification, nearest_class(predicted, means)))
        kappa, quadratic = (
            float(cohen_kappa_score(of, nearest, labels=range(len(classes)), weights=weights))
            for weights in (None, "quadratic")
        )
    measured = [Measured(None, len(error), float(error.mean()), kappa, quadratic)]
    for one in present:
        part = error[magnification == one]
        measured.append(Measured(float(one), len(part), float(part.mean()), None, None))
    return measured


def macro_mae(rows: Iterable[Measured]) -> float:
    """Mean over magnifications of their MAE; in the MAE over all patches, high magnifications with large nuclei dominate.

    Args:
        rows: Of one network and seed; the total is passed over.

    Raises:
        ValueError: No row of a magnification, or two of the same.
    """
    mae = [(row.magnification, row.mae) for row in rows if row.magnification is not None]
    if len(dict(mae)) != len(mae) or not mae:
        given = ", ".join(f"{magnification:g}" for magnification, _ in mae)
        raise ValueError(f"Expected one row for each magnification, got {given or 'none'}.")
    return float(np.mean([value for _, value in mae]))
