"""Evaluation of grades against scikit-learn, its intervals against a loop, and the second eye where it is known to help."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from scalecov_jax.experiments.grade_scores import evaluate, two_eyes

PATIENTS = np.array([f"p{number // 2}" for number in range(60)])


def graded(seed, present=(0, 1, 2, 3, 4), count=60):
    rng = np.random.default_rng(seed)
    grades = rng.choice(present, count)
    near = np.clip(grades + rng.integers(-1, 2, count), 0, 4)
    return grades, 0.6 * rng.dirichlet(np.ones(5), count) + 0.4 * np.eye(5)[near]


@pytest.mark.parametrize(("seed", "present"), [(0, (0, 1, 2, 3, 4)), (1, (0, 4)), (2, (1, 2))])
def test_scores_are_those_of_scikit_learn(seed, present):
    grades, probabilities = graded(seed, present)
    values = evaluate(grades, probabilities, PATIENTS)["value"]
    predicted = probabilities.argmax(1)
    true, said = grades >= 2, predicted >= 2
    assert values[["tn", "fp", "fn", "tp"]].tolist() == metrics.confusion_matrix(true, said).ravel().tolist()
    for name, expected in (
        ("qwk", metrics.cohen_kappa_score(grades, predicted, weights="quadratic", labels=range(5))),
        ("accuracy", metrics.accuracy_score(grades, predicted)),
        ("sensitivity", metrics.recall_score(true, said)),
        ("specificity", metrics.recall_score(~true, ~said)),
        ("ppv", metrics.precision_score(true, said)),
        ("npv", metrics.precision_score(~true, ~said)),
        ("f1", metrics.f1_score(true, said)),
        ("mcc", metrics.matthews_corrcoef(true, said)),
        ("auc", metrics.roc_auc_score(true, probabilities[:, 2:].sum(1))),
    ):
        assert values[name] == pytest.approx(expected, abs=1e-12)
    assert (values["eyes"], values["patients"]) == (60, 30)


def test_published_counts_give_the_published_scores():
    """EyePACS, test part: 1727, 6859, 1235, 179."""
    grades = np.repeat([2, 0, 0, 2], (1727, 6859, 1235, 179))
    probabilities = np.eye(5)[np.repeat([2, 0, 2, 0], (1727, 6859, 1235, 179))]
    table = evaluate(grades, probabilities, np.array(["same"] * 10_000))
    values = table["value"][["sensitivity", "specificity", "ppv", "npv", "accuracy", "f1", "mcc"]]
    assert values.round(3).tolist() == [0.906, 0.847, 0.583, 0.975, 0.859, 0.71, 0.648]
    assert table[["low", "high"]].isna().all(axis=None)  # of a single patient


def test_intervals_resample_patients_with_all_their_eyes():
    grades, probabilities = graded(3)
    found = evaluate(grades, probabilities, PATIENTS, seed=5, replicates=150)
    rng = np.random.default_rng(5)
    drawn = np.concatenate([rng.multinomial(30, np.full(30, 1 / 30), one) for one in (100, 50)])
    kappas, sensitivities = [], []
    names = sorted(set(PATIENTS))
    eyes = [[i for i, one in enumerate(PATIENTS) if one == name] for name in names]
    for weights in drawn:
        rows = [i for own, times in zip(eyes, weights, strict=True) for i in own * int(times)]
        true, said = grades[rows], probabilities[rows].argmax(1)
        kappas.append(metrics.cohen_kappa_score(true, said, weights="quadratic"))
        sensitivities.append(metrics.recall_score(true >= 2, said >= 2))
    for name, values in (("qwk", kappas), ("sensitivity", sensitivities)):
        assert found.loc[name, ["low", "high"]].tolist() == pytest.approx(np.percentile(values, (2.5, 97.5)))
    doubled = evaluate(
        grades.repeat(2), probabilities.repeat(2, 0), np.repeat(PATIENTS, 2), seed=5, replicates=150
    )
    assert doubled.loc["qwk"].tolist() == pytest.approx(found.loc["qwk"].tolist())


def test_what_is_undefined_is_nan():
    alone = evaluate(np.zeros(4, int), np.eye(5)[[0, 0, 0, 0]], np.array(["a", "b", "c", "d"]))
    undefined = {"qwk", "sensitivity", "ppv", "f1", "mcc", "auc"}
    assert {*alone.index[alone["value"].isna()]} == undefined
    assert alone.loc[[*undefined], ["low", "high"]].isna().all(axis=None)
    assert alone["value"][["specificity", "npv", "accuracy"]].tolist() == [1.0, 1.0, 1.0]
    missed = evaluate(np.full(2, 3), np.eye(5)[[0, 1]], np.array(["a", "b"]))
    assert missed["value"][["sensitivity", "f1"]].tolist() == [0, 0]
    assert missed.loc["specificity"].isna().all()


def test_grades_and_probabilities_that_are_none():
    wrong = np.array([[1.0, 0, 0, 0, 0], [np.nan, 0, 0, 0, 1]])
    with pytest.raises(ValueError, match="grades 5, expected 0 to 4; 1 rows that are no"):
        evaluate(np.array([0, 5]), wrong, np.array(["a", "b"]))
    with pytest.raises(ValueError, match="no eyes"):
        evaluate(np.zeros(0, int), np.zeros((0, 5)), np.zeros(0, str))


def eyes(seed, patients=80):
    """Both eyes of a patient have the same grade; each eye shows it before noise of its own."""
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 3, patients).repeat(2)
    features = grades[:, None] + rng.normal(0, 1.2, (2 * patients, 1))
    names = [f"{seed}_{number // 2}" for number in range(2 * patients)]
    return pd.DataFrame({"grade": grades, "patient": names, "side": ["left", "right"] * patients}), features


def judge(validation, test):
    parts = {"validation": validation, "test": test}
    table = two_eyes(
        {part: rows for part, (rows, _) in parts.items()}, {part: seen for part, (_, seen) in parts.items()}
    )
    return table.set_index(["classifier", "score"])


def test_the_second_eye_helps_where_it_should():
    table = judge(eyes(0), eyes(1))
    values = table["value"]
    assert values["both_eyes", "left_out"] == 0
    assert (values["both_eyes", "eyes"], values["one_eye", "patients"]) == (160, 80)
    gain = values["both_eyes", "qwk"] - values["one_eye", "qwk"]
    assert gain > 0.05
    assert values["both_eyes", "gain"] == gain
    low, high = table.loc[("both_eyes", "gain"), ["low", "high"]]
    assert 0 < low < gain < high


def test_only_pairs_count():
    """Grades of a lone eye, of three, or of two of one side change nothing; nor does the order of the eyes."""
    fitted, (rows, features) = eyes(0, 30), eyes(1, 30)
    expected = judge(fitted, (rows, features))["value"].drop("left_out", level="score")
    order = np.random.default_rng(0).permutation(60)
    patients = ["lone", "three", "three", "three", "same", "same"]
    sides = ["left", "left", "right", "", "left", "left"]
    others = pd.DataFrame({"grade": 4, "patient": patients, "side": sides})
    more = pd.concat([rows.iloc[order], others], ignore_index=True)
    values = judge(fitted, (more, np.concatenate([features[order], np.full((6, 1), 99.0)])))["value"]
    assert values["both_eyes", "left_out"] == 3
    pd.testing.assert_series_equal(values.drop("left_out", level="score"), expected)


def test_eyes_that_cannot_be_judged():
    few = pd.DataFrame({"grade": [1, 1], "patient": ["a", "a"], "side": ["left", "right"]})
    with pytest.raises(ValueError, match="cannot be judged") as error:
        judge((few, np.full((2, 3), np.inf)), eyes(1, 3))
    for problem in (
        "validation: 2 of 2 eyes have features that are not finite",
        "validation: 1 patients with two eyes, at least 2 are needed",
        "validation: all eyes of such patients have grade 1",
        "3 and 1 features an eye",
    ):
        assert problem in str(error.value)
