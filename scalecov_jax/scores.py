"""The tidy table of probe scores: one row a layer, split, condition and estimator."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

Condition = Literal["trained", "random_weights", "shuffled_measure"]
Estimator = Literal["ols", "ridge"]
CONDITIONS: tuple[Condition, ...] = ("trained", "random_weights", "shuffled_measure")
ESTIMATORS: tuple[Estimator, ...] = ("ols", "ridge")


class Score(NamedTuple):
    """Held-out R2 of one probe on one split (one row of scores.csv).

    Attributes:
        architecture: Name of the network, such as inception_v3.
        weights: Name of the weights (the folder of the checkpoint).
        condition: trained, random_weights or shuffled_measure.
        concept: What was regressed, such as scale.
        image_class: The class whose images were used.
        layer: The layer whose pooled features were probed.
        split: Index of the random split.
        estimator: ols (minimum norm), ridge, or the name of another probe.
        alpha: Penalty chosen on the training part; None for other estimators than ridge.
        r2: Coefficient of determination on the held-out part.
    """

    architecture: str
    weights: str
    condition: Condition
    concept: str
    image_class: str
    layer: str
    split: int
    estimator: str
    alpha: float | None
    r2: float


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write scores as CSV with one header line; an absent alpha is an empty field."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Score._fields)
        for score in scores:
            writer.writerow("" if value is None else value for value in score)


def read_scores(path: Path) -> list[Score]:
    """Read a table written by `write_scores`.

    Raises:
        ValueError: The header is not that of scores.csv, or rows hold what is no score; names the file and the lines.
    """
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows[0]) != Score._fields:
        raise ValueError(
            f"{path}: expected the header {','.join(Score._fields)}, got {','.join(rows[0]) if rows else 'nothing'}."
        )
    scores, problems = [], []
    for number, row in enumerate(rows[1:], start=2):
        try:
            score = Score(*row)._replace(  # pyright: ignore[reportArgumentType]
                split=int(row[6]), alpha=float(row[8]) if row[8] else None, r2=float(row[9])
            )
            if score.condition not in CONDITIONS or not score.estimator or not math.isfinite(score.r2):
                raise ValueError
        except (ValueError, TypeError, IndexError):
            problems.append(number)
        else:
            scores.append(score)
    if problems:
        raise ValueError(f"{path}: lines {problems[:10]} ({len(problems)} in all) hold no valid score.")
    return scores
