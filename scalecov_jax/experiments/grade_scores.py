"""How well grades are predicted: agreement, referable retinopathy, intervals over patients, and what the second eye adds."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from scalecov_jax.imaging.eyes import GRADES
from scalecov_jax.probes.statistics import draw_groups, percentile_interval

REFERABLE = 2  # and above: what the paper calls severe
REPLICATES = 2000
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of the logistic regression
COUNTS = ("tp", "tn", "fp", "fn")


def evaluate(
    grades: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, "N 5"],
    patients: Shaped[np.ndarray, " N"],
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Compare probabilities of the five grades with the true grades; the predicted grade is the likeliest.

    Intervals are percentiles over resamples of whole patients; resamples in which a value is undefined are left out, and there is
    none for fewer than two patients.

    Returns:
        Columns value, low and high (of 95 %), NaN where they are undefined, by score: eyes, patients; qwk (quadratic weighted
        kappa), accuracy; of grades 2 to 4 against 0 and 1: sensitivity, specificity, ppv, npv, f1, mcc (Matthews'
        correlation), auc (P(p2 + p3 + p4 of a referable eye > that of another), ties counting half), tp, tn, fp and fn.

    Raises:
        ValueError: Nothing is given, grades outside 0 to 4, or rows that are no probabilities; says all.

    Source: de la Torre, Valls, Puig 2020 (arXiv 1712.08107), section on results: grades 2 to 4 against 0 and 1.
    """
    _check(grades, probabilities)
    cells = _cells(grades, probabilities, patients)
    # The eyes as they are come first.
    drawn = _scores(np.concatenate([cells.sum(0)[None], _resample(cells, seed, replicates)]))
    referable = grades >= REFERABLE
    # Rounding is taken off so that equal sums tie.
    score = np.round(probabilities[:, REFERABLE:].sum(1), 9)
    plain = {"eyes": len(grades), "patients": len(cells), **{name: drawn[name][0] for name in COUNTS}}
    plain["auc"] = roc_auc_score(referable, score) if 0 < referable.sum() < len(grades) else np.nan
    rows = {name: _estimate(values, len(cells)) for name, values in drawn.items()}
    rows |= {name: (value, np.nan, np.nan) for name, value in plain.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"], dtype=float)


def two_eyes(
    eyes: Mapping[str, pd.DataFrame],
    features: Mapping[str, Float[np.ndarray, "_ _"]],
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """Grade each eye from its own features and those of the other eye of the same patient, by multinomial logistic regression.

    It is fitted to the validation part, on features standardised there; its penalty is the one of `PENALTIES` with the greatest
    likelihood over five folds of patients. The same is done with the features of one eye alone, so that the difference comes from
    the second eye and not from fitting again. A patient has two eyes if there are just two photographs, not of the same side.

    `eyes` are grade, patient and side (left, right or empty) in the parts validation, not used to train the network, and test.

    Returns:
        Columns classifier (both_eyes or one_eye, on the same eyes of the test part), score, and those of `evaluate`. Of both_eyes
        the scores have gain, the difference in quadratic weighted kappa, and left_out, the patients of the test part without two
        eyes.

    Raises:
        ValueError: Features of other shapes or not finite, fewer than two patients with two eyes in a part, or all of one
            grade in the validation part; says all.

    Source: de la Torre, Valls, Puig 2020 (arXiv 1712.08107): a linear classifier of the 2 x 64 features of both eyes.
    """
    pairs = {part: _pairs(rows) for part, rows in eyes.items()}
    paired = {part: eyes[part].iloc[own] for part, (own, _) in pairs.items()}
    _check_eyes(features, paired)
    fitted, test = paired["validation"], paired["test"]
    grades, patients = test["grade"].to_numpy(), test["patient"].to_numpy()
    tables, draws = {}, {}
    for classifier in ("both_eyes", "one_eye"):
        seen = {
            part: np.concatenate([features[part][index] for index in (own, other)], 1)
            if classifier == "both_eyes"
            else features[part][own]
            for part, (own, other) in pairs.items()
        }
        model = _fit(seen["validation"], fitted["grade"].to_numpy(), fitted["patient"].to_numpy())
        predicted = _probabilities(model, seen["test"])
        tables[classifier] = evaluate(grades, predicted, patients, seed=seed, replicates=replicates)
        # The same seed draws the same patients for both classifiers.
        draws[classifier] = _resample(_cells(grades, predicted, patients), seed, replicates)
    both, alone = (
        np.append(table.loc["qwk", "value"], _scores(draws[classifier])["qwk"])
        for classifier, table in tables.items()
    )
    more = tables["both_eyes"]
    more.loc["gain"] = _estimate(both - alone, test["patient"].nunique())
    more.loc["left_out"] = [eyes["test"]["patient"].nunique() - test["patient"].nunique(), np.nan, np.nan]
    return pd.concat(tables, names=["classifier", "score"]).reset_index()


def _check(grades: np.ndarray, probabilities: np.ndarray) -> None:
    outside = np.unique(grades[(grades < 0) | (grades >= GRADES)])
    bad = np.flatnonzero(~((probabilities >= 0).all(1) & (np.abs(probabilities.sum(1) - 1) < 1e-3)))
    problems = {
        "no eyes": not len(grades),
        f"grades {', '.join(map(str, outside))}, expected 0 to {GRADES - 1}": len(outside),
        f"{len(bad)} rows that are no probabilities, at {bad[:10].tolist()}": len(bad),
    }
    if any(problems.values()):
        wrong = "; ".join(problem for problem, is_wrong in problems.items() if is_wrong)
        raise ValueError(f"Grades cannot be evaluated: {wrong}.")


def _cells(grades: np.ndarray, probabilities: np.ndarray, patients: np.ndarray) -> Int[np.ndarray, "P 5 5"]:
    """The confusion matrix of each patient."""
    names, member = np.unique(patients.astype(str), return_inverse=True)
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


def _scores(confusion: Float[np.ndarray, "B 5 5"]) -> dict[str, Float[np.ndarray, " B"]]:
    """Scores of many confusion matrices, true grades in rows, which scikit-learn takes one at a time; NaN where undefined."""
    index = np.arange(GRADES)
    weights = (index[:, None] - index[None]) ** 2
    rows, columns, total = confusion.sum(-1), confusion.sum(-2), confusion.sum((-2, -1))
    observed = np.einsum("ij,bij->b", weights, confusion) * total
    low, high = slice(None, REFERABLE), slice(REFERABLE, None)
    tn, fp, fn, tp = (confusion[:, true, said].sum((-2, -1)) for true in (low, high) for said in (low, high))
    return {
        "qwk": 1 - _divide(observed, np.einsum("bi,ij,bj->b", rows, weights, columns)),
        "accuracy": _divide(np.trace(confusion, axis1=1, axis2=2), total),
        "sensitivity": _divide(tp, tp + fn),
        "specificity": _divide(tn, tn + fp),
        "ppv": _divide(tp, tp + fp),
        "npv": _divide(tn, tn + fn),
        "f1": _divide(2 * tp, 2 * tp + fp + fn),
        "mcc": _divide(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
        **dict(zip(COUNTS, (tp, tn, fp, fn), strict=True)),
    }


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _estimate(values: Float[np.ndarray, " B"], patients: int) -> tuple[float, float, float]:
    """The first value and the interval of the others."""
    if np.isnan(values[0]) or patients < 2 or np.isnan(values[1:]).all():
        return float(values[0]), np.nan, np.nan
    low, high = percentile_interval(values[1:])
    return float(values[0]), low, high


def _pairs(eyes: pd.DataFrame) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Rows of the eyes of patients with two, and those of the other eye of the same patient."""
    sides = eyes.groupby("patient")["side"]
    paired = (sides.transform("size") == 2) & ((eyes["side"] == "") | (sides.transform("nunique") == 2))
    rows = np.flatnonzero(paired)
    order = np.argsort(pd.factorize(eyes["patient"].to_numpy()[rows])[0], kind="stable")
    pairs = rows[order].reshape(-1, 2)
    return pairs.ravel(), pairs[:, ::-1].ravel()


def _check_eyes(features: Mapping[str, np.ndarray], paired: Mapping[str, pd.DataFrame]) -> None:
    problems = []
    for part, own in paired.items():
        if bad := int((~np.isfinite(features[part])).any(1).sum()):
            problems.append(f"{part}: {bad} of {len(features[part])} eyes have features that are not finite")
        if len(own) < 4:
            problems.append(f"{part}: {len(own) // 2} patients with two eyes, at least 2 are needed")
    present = paired["validation"]["grade"].unique().tolist()
    if len(present) == 1:
        problems.append(f"validation: all eyes of such patients have grade {present[0]}")
    widths = [features[part].shape[1] for part in ("validation", "test")]
    if len({*widths}) > 1:
        problems.append(f"{widths[0]} and {widths[1]} features an eye")
    if problems:
        raise ValueError(f"The second eye cannot be judged: {'; '.join(problems)}.")


def _fit(features: np.ndarray, grades: np.ndarray, patients: np.ndarray) -> Pipeline:
    """The classifier with the likeliest penalty over folds of patients."""
    folds = [
        (fitted, held)
        for fitted, held in GroupKFold(min(5, len(np.unique(patients)))).split(features, grades, patients)
        if len(np.unique(grades[fitted])) > 1
    ]

    def classifier(penalty: float, rows: np.ndarray) -> Pipeline:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=10_000))
        return model.fit(features[rows], grades[rows])

    def likelihood(penalty: float) -> float:
        logs = []
        for fitted, held in folds:
            p = _probabilities(classifier(penalty, fitted), features[held])[
                np.arange(len(held)), grades[held]
            ]
            logs.append(np.log(np.maximum(p, 1e-7)).sum())  # a grade that the other folds lack has p = 0
        return float(np.sum(logs))

    return classifier(max(PENALTIES, key=likelihood), np.arange(len(features)))


def _probabilities(model: Pipeline, features: np.ndarray) -> Float[np.ndarray, "N 5"]:
    """Of all grades; 0 for those that the model has not seen."""
    probabilities = np.zeros((len(features), GRADES))
    probabilities[:, model.classes_] = model.predict_proba(features)
    return probabilities
