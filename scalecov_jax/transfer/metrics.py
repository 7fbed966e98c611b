"""Errors of predicted nucleus areas: MAE in pixels, kappa over magnifications, and the tidy table of them."""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

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
        magnification: Of the patches; None, `all` in the file, for all.
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
    magnification: float | None
    n: int
    mae: float
    kappa: float | None
    kappa_quadratic: float | None


def cohen_kappa(
    true: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"], classes: int, *, quadratic: bool = False
) -> float | None:
    """Agreement beyond chance, kappa = 1 - sum w O / sum w E.

    O_ij is the share of patches of class i that are predicted as j, E the outer product of its margins, and w_ij = 1 where i != j
    (then kappa = (p_o - p_e) / (1 - p_e)) or (i - j)^2.

    Args:
        true: Indices of classes.
        predicted: Likewise.
        classes: Their number.
        quadratic: Weigh by the squared distance of the classes.

    Returns:
        In [-1, 1]; None where chance alone agrees fully (p_e = 1), or without patches.

    Raises:
        ValueError: Indices outside 0 to classes - 1.
    """
    both = np.concatenate([true, predicted])
    if len(bad := both[(both < 0) | (both >= classes)]):
        raise ValueError(f"Classes {np.unique(bad)[:10].tolist()} were given; expected 0 to {classes - 1}.")
    if not len(true):
        return None
    observed = np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0))
    distance = np.arange(classes)[:, None] - np.arange(classes)[None]
    weights = distance**2 if quadratic else (distance != 0).astype(np.int64)
    chance = (weights * expected).sum()
    return float(1 - len(true) * (weights * observed).sum() / chance) if chance else None


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
        kappa = cohen_kappa(of, nearest, len(classes))
        quadratic = cohen_kappa(of, nearest, len(classes), quadratic=True)
    measured = [Measured(None, len(error), float(error.mean()), kappa, quadratic)]
    for one in present:
        part = error[magnification == one]
        measured.append(Measured(float(one), len(part), float(part.mean()), None, None))
    return measured


def macro_mae(rows: Iterable[Measured | Outcome]) -> float:
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


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write outcomes as CSV with one header line; `all` is the magnification of totals, an undefined kappa an empty field."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Outcome._fields)
        for outcome in outcomes:
            magnification = "all" if outcome.magnification is None else f"{outcome.magnification:g}"
            row = outcome._replace(magnification=magnification)  # pyright: ignore[reportArgumentType]
            writer.writerow("" if value is None else value for value in row)


def read_outcomes(path: Path) -> list[Outcome]:
    """Read a table written by `write_outcomes`.

    Raises:
        ValueError: The header is not that of transfer.csv, or rows hold no valid outcome; names the file and the lines.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows[0]) != Outcome._fields:
        raise ValueError(
            f"{path}: expected the header {','.join(Outcome._fields)}, got {','.join(rows[0]) if rows else 'nothing'}."
        )
    outcomes, problems = [], []
    for number, row in enumerate(rows[1:], start=2):
        try:
            outcomes.append(_outcome(row))
        except ValueError:
            problems.append(number)
    if problems:
        raise ValueError(f"{path}: lines {problems[:10]} ({len(problems)} in all) hold no valid outcome.")
    return outcomes


def _outcome(row: list[str]) -> Outcome:
    architecture, weights, layer, trainable, seed, magnification, n, mae, *kappas = row
    kappa, quadratic = (float(value) if value else None for value in kappas)
    outcome = Outcome(
        architecture,
        weights,
        layer,
        trainable,
        int(seed),
        None if magnification == "all" else float(magnification),
        int(n),
        float(mae),
        kappa,
        quadratic,
    )
    positive = outcome.magnification is None or 0 < outcome.magnification < math.inf
    agrees = all(value is None or -1 <= value <= 1 for value in (kappa, quadratic))
    if not (positive and agrees and outcome.n > 0 and 0 <= outcome.mae < math.inf):
        raise ValueError
    return outcome
