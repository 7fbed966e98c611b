"""How well grades are predicted: agreement, referable retinopathy, and intervals over patients."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from sklearn.metrics import roc_auc_score

from scalecov_jax.probes.statistics import Interval, draw_groups, percentile_interval

GRADES = 5
REFERABLE = 2  # and above: what the paper calls severe
REPLICATES = 2000


class Evaluation(NamedTuple):
    """How predicted grades agree with true ones; the predicted grade is the likeliest. What is undefined is None.

    Attributes:
        eyes: Number of eyes.
        patients: Of patients.
        qwk: Quadratic weighted kappa.
        qwk_interval: Of 95 % over patients, as those below.
        accuracy: Share of eyes of the right grade.
        confusion: Number of eyes by true grade (row) and predicted grade.
        tp: Eyes of grade 2 to 4 that are predicted so.
        tn: Eyes of grade 0 or 1 that are predicted so.
        fp: The other eyes of grade 0 or 1.
        fn: The other eyes of grade 2 to 4.
        sensitivity: tp / (tp + fn).
        sensitivity_interval: See above.
        specificity: tn / (tn + fp).
        specificity_interval: See above.
        ppv: tp / (tp + fp).
        npv: tn / (tn + fn).
        f1: 2 tp / (2 tp + fp + fn).
        mcc: Matthews' correlation coefficient.
        auc: P(p2 + p3 + p4 of a referable eye > that of another), ties counting half.
    """

    eyes: int
    patients: int
    qwk: float | None
    qwk_interval: Interval | None
    accuracy: float
    confusion: Int[np.ndarray, "5 5"]
    tp: int
    tn: int
    fp: int
    fn: int
    sensitivity: float | None
    sensitivity_interval: Interval | None
    specificity: float | None
    specificity_interval: Interval | None
    ppv: float | None
    npv: float | None
    f1: float | None
    mcc: float | None
    auc: float | None


def evaluate(
    grades: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, "N 5"],
    patients: Sequence[str],
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Evaluation:
    """Compare probabilities of the five grades with the true grades.

    Intervals are percentiles over resamples of whole patients; resamples in which a value is undefined are left out, and there is
    none for fewer than two patients.

    Args:
        grades: 0 to 4.
        probabilities: Rows summing to 1.
        patients: Of each eye.
        seed: Of the resampling.
        replicates: Number of resamples.

    Raises:
        ValueError: Nothing is given, numbers of rows differ, grades outside 0 to 4, or rows that are no probabilities; says all.

    Source: de la Torre, Valls, Puig 2020 (arXiv 1712.08107), section on results: grades 2 to 4 against 0 and 1.
    """
    grades, probabilities = np.asarray(grades), np.asarray(probabilities, np.float64)
    _check(grades, probabilities, patients)
    cells = _cells(grades, probabilities, patients)
    confusion = cells.sum(0)
    referable = grades >= REFERABLE
    # Rounding is taken off so that equal sums tie.
    score = np.round(probabilities[:, REFERABLE:].sum(1), 9)
    tn, fp, fn, tp = (int(part[0]) for part in _two_by_two(confusion[None]))
    drawn = np.concatenate(
        [confusion[None], _resample(cells, seed, replicates)]
    )  # first the eyes as they are
    scores = {"qwk": _kappa(drawn), "sensitivity": _sensitivity(drawn), "specificity": _specificity(drawn)}
    values = {name: None if np.isnan(score[0]) else float(score[0]) for name, score in scores.items()}
    intervals = {
        name: None if values[name] is None else _interval(score[1:], len(cells))
        for name, score in scores.items()
    }
    margins = float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return Evaluation(
        eyes=len(grades),
        patients=len(cells),
        qwk=values["qwk"],
        qwk_interval=intervals["qwk"],
        accuracy=float(np.trace(confusion) / len(grades)),
        confusion=confusion,
        tp=tp,
        tn=tn,
        fp=fp,
        fn=fn,
        sensitivity=values["sensitivity"],
        sensitivity_interval=intervals["sensitivity"],
        specificity=values["specificity"],
        specificity_interval=intervals["specificity"],
        ppv=_ratio(tp, tp + fp),
        npv=_ratio(tn, tn + fn),
        f1=_ratio(2 * tp, 2 * tp + fp + fn),
        mcc=_ratio(float(tp) * tn - float(fp) * fn, margins**0.5),
        auc=float(roc_auc_score(referable, score)) if 0 < referable.sum() < len(grades) else None,
    )


def kappa_gain(
    grades: Int[np.ndarray, " N"],
    first: Float[np.ndarray, "N 5"],
    second: Float[np.ndarray, "N 5"],
    patients: Sequence[str],
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Interval | None:
    """95 % interval of the quadratic weighted kappa of the first probabilities less that of the second, on the same eyes.

    Arguments and resampling as in `evaluate`; both are computed on the same draws of patients.
    """
    drawn = (_kappa(_resample(_cells(grades, one, patients), seed, replicates)) for one in (first, second))
    return _interval(next(drawn) - next(drawn), len(set(patients)))


def _check(grades: np.ndarray, probabilities: np.ndarray, patients: Sequence[str]) -> None:
    outside = np.unique(grades[(grades < 0) | (grades >= GRADES)])
    bad = np.flatnonzero(~((probabilities >= 0).all(1) & (np.abs(probabilities.sum(1) - 1) < 1e-3)))
    problems = [
        problem
        for problem, wrong in (
            ("no eyes", not len(grades)),
            (
                f"{len(grades)} grades, {len(probabilities)} rows of probabilities, {len(patients)} patients",
                not len(grades) == len(probabilities) == len(patients),
            ),
            (f"grades {', '.join(map(str, outside))}, expected 0 to {GRADES - 1}", len(outside)),
            (f"{len(bad)} rows that are no probabilities, at {bad[:10].tolist()}", len(bad)),
        )
        if wrong
    ]
    if problems:
        raise ValueError(f"Grades cannot be evaluated: {'; '.join(problems)}.")


def _cells(
    grades: np.ndarray, probabilities: np.ndarray, patients: Sequence[str]
) -> Int[np.ndarray, "P 5 5"]:
    """The confusion matrix of each patient."""
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    cells = np.zeros((len(names), GRADES, GRADES), np.int64)
    np.add.at(cells, (member, grades, probabilities.argmax(1)), 1)
    return cells


def _resample(cells: Int[np.ndarray, "P 5 5"], seed: int, replicates: int) -> Float[np.ndarray, "B 5 5"]:
    """Sums over patients drawn with replacement, a hundred resamples at a time."""
    count, flat = len(cells), cells.reshape(len(cells), -1).astype(np.float64)
    rng = np.random.default_rng(seed)
    blocks = [
        draw_groups(count, min(100, replicates - start), rng) @ flat for start in range(0, replicates, 100)
    ]
    return np.concatenate(blocks).reshape(-1, GRADES, GRADES)


def _two_by_two(confusion: Shaped[np.ndarray, "B 5 5"]) -> tuple[np.ndarray, ...]:
    """Numbers tn, fp, fn, tp of referable eyes."""
    low, high = slice(None, REFERABLE), slice(REFERABLE, None)
    return tuple(confusion[:, true, said].sum((-2, -1)) for true in (low, high) for said in (low, high))


def _kappa(confusion: Shaped[np.ndarray, "B 5 5"]) -> Float[np.ndarray, " B"]:
    """Quadratic weighted kappa of many confusion matrices, which scikit-learn takes one by one; NaN where it is undefined."""
    index = np.arange(GRADES)
    weights = (index[:, None] - index[None]) ** 2
    rows, columns = confusion.sum(-1), confusion.sum(-2)
    observed = np.einsum("ij,bij->b", weights, confusion) * confusion.sum((-2, -1))
    return 1 - _divide(observed, np.einsum("bi,ij,bj->b", rows, weights, columns))


def _sensitivity(confusion: Shaped[np.ndarray, "B 5 5"]) -> Float[np.ndarray, " B"]:
    _, _, fn, tp = _two_by_two(confusion)
    return _divide(tp, tp + fn)


def _specificity(confusion: Shaped[np.ndarray, "B 5 5"]) -> Float[np.ndarray, " B"]:
    tn, fp, _, _ = _two_by_two(confusion)
    return _divide(tn, tn + fp)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _ratio(above: int | float, below: int | float) -> float | None:
    return above / below if below else None


def _interval(values: Float[np.ndarray, " B"], patients: int) -> Interval | None:
    return None if patients < 2 or np.isnan(values).all() else percentile_interval(values)
