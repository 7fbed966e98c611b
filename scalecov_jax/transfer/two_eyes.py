"""What the second eye of a patient adds to the grading of the first."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from scalecov_jax.probes.statistics import Interval
from scalecov_jax.transfer.grades import GRADES, REPLICATES, Evaluation, evaluate, kappa_gain

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of the logistic regression


class EyeFeatures(NamedTuple):
    """Features of eyes, such as the 64 of avg_pool, and whose they are; sides are left, right or empty."""

    features: Float[np.ndarray, "N D"]
    grades: Int[np.ndarray, " N"]
    patients: Sequence[str]
    sides: Sequence[str]


class TwoEyes(NamedTuple):
    """A linear classifier of the features of both eyes, and the same of those of one.

    Attributes:
        both: On the test eyes of patients with two.
        alone: On the same eyes.
        gain: 95 % interval over patients of the difference in quadratic weighted kappa.
        left_out: Patients who do not have two eyes, of the validation and of the test part.
    """

    both: Evaluation
    alone: Evaluation
    gain: Interval | None
    left_out: tuple[int, int]


def two_eyes(
    validation: EyeFeatures, test: EyeFeatures, *, seed: int = 0, replicates: int = REPLICATES
) -> TwoEyes:
    """Grade each eye from its own features and those of the other eye of the same patient, by multinomial logistic regression.

    It is fitted to the validation part, on features standardised there; its penalty is the one of `PENALTIES` with the greatest
    likelihood over five folds of patients. The same is done with the features of one eye alone, so that the difference comes from
    the second eye and not from fitting anew. A patient has two eyes if there are just two photographs, not of the same side.

    Args:
        validation: Eyes that the network was not trained on.
        test: Others.
        seed: Of the resampling.
        replicates: See `evaluate`.

    Raises:
        ValueError: Features of other shapes or not finite, fewer than two patients with two eyes in a part, or all of one
            grade in the validation part; says all.

    Source: de la Torre, Valls, Puig 2020 (arXiv 1712.08107): a linear classifier of the 2 x 64 features of both eyes.
    """
    pairs = [_pairs(part) for part in (validation, test)]
    _check_eyes((validation, test), pairs)
    found = []
    for both in (True, False):
        seen = [
            np.concatenate([part.features[own], part.features[other]], 1) if both else part.features[own]
            for part, (own, other, _) in zip((validation, test), pairs, strict=True)
        ]
        own = pairs[0][0]
        owners = np.asarray(validation.patients)[own]
        found.append(_probabilities(_fit(seen[0], np.asarray(validation.grades)[own], owners), seen[1]))
    own = pairs[1][0]
    grades, owners = np.asarray(test.grades)[own], np.asarray(test.patients)[own].tolist()
    both, alone = (evaluate(grades, p, owners, seed=seed, replicates=replicates) for p in found)
    gain = kappa_gain(grades, found[0], found[1], owners, seed=seed, replicates=replicates)
    return TwoEyes(both, alone, gain, (pairs[0][2], pairs[1][2]))


def _pairs(part: EyeFeatures) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], int]:
    """Indices of eyes and of the other eye of the same patient, and the number of patients without two."""
    eyes: dict[str, list[int]] = defaultdict(list)
    for index, patient in enumerate(part.patients):
        eyes[patient].append(index)
    pairs = [
        tuple(own)
        for own in eyes.values()
        if len(own) == 2 and (not part.sides[own[0]] or part.sides[own[0]] != part.sides[own[1]])
    ]
    found = np.array(pairs, int).reshape(-1, 2)
    return found.ravel(), found[:, ::-1].ravel(), len(eyes) - len(pairs)


def _check_eyes(parts: Sequence[EyeFeatures], pairs: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> None:
    problems = []
    for name, part, (own, _, _) in zip(("validation", "test"), parts, pairs, strict=True):
        lengths = [len(values) for values in part]
        if len(set(lengths)) > 1:
            problems.append(f"{name}: {lengths} features, grades, patients and sides")
        if bad := int((~np.isfinite(part.features)).any(1).sum()):
            problems.append(f"{name}: {bad} of {len(part.features)} eyes have features that are not finite")
        if len(own) < 4:
            problems.append(f"{name}: {len(own) // 2} patients with two eyes, at least 2 are needed")
    present = Counter(np.asarray(parts[0].grades)[pairs[0][0]].tolist())
    if len(present) == 1:
        problems.append(f"validation: all eyes of such patients have grade {next(iter(present))}")
    if parts[0].features.shape[1] != parts[1].features.shape[1]:
        problems.append(f"{parts[0].features.shape[1]} and {parts[1].features.shape[1]} features an eye")
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
