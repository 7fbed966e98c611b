"""Evaluation of grades against scikit-learn, its intervals against a loop, and the second eye where it is known to help."""

import numpy as np
import pytest
from sklearn import metrics

from scalecov_jax.transfer.grades import Evaluation, evaluate
from scalecov_jax.transfer.two_eyes import EyeFeatures, two_eyes

PATIENTS = [f"p{number // 2}" for number in range(60)]


def graded(seed, present=(0, 1, 2, 3, 4), count=60):
    rng = np.random.default_rng(seed)
    grades = rng.choice(present, count)
    near = np.clip(grades + rng.integers(-1, 2, count), 0, 4)
    return grades, 0.6 * rng.dirichlet(np.ones(5), count) + 0.4 * np.eye(5)[near]


@pytest.mark.parametrize(("seed", "present"), [(0, (0, 1, 2, 3, 4)), (1, (0, 4)), (2, (1, 2))])
def test_scores_are_those_of_scikit_learn(seed, present):
    grades, probabilities = graded(seed, present)
    found = evaluate(grades, probabilities, PATIENTS)
    predicted = probabilities.argmax(1)
    true, said = grades >= 2, predicted >= 2
    np.testing.assert_array_equal(
        found.confusion, metrics.confusion_matrix(grades, predicted, labels=range(5))
    )
    two = metrics.confusion_matrix(true, said)
    assert [[found.tn, found.fp], [found.fn, found.tp]] == two.tolist()
    for ours, theirs in (
        (found.qwk, metrics.cohen_kappa_score(grades, predicted, weights="quadratic", labels=range(5))),
        (found.accuracy, metrics.accuracy_score(grades, predicted)),
        (found.sensitivity, metrics.recall_score(true, said)),
        (found.specificity, metrics.recall_score(~true, ~said)),
        (found.ppv, metrics.precision_score(true, said)),
        (found.npv, metrics.precision_score(~true, ~said)),
        (found.f1, metrics.f1_score(true, said)),
        (found.mcc, metrics.matthews_corrcoef(true, said)),
        (found.auc, metrics.roc_auc_score(true, probabilities[:, 2:].sum(1))),
    ):
        assert ours == pytest.approx(theirs, abs=1e-12)
    assert (found.eyes, found.patients) == (60, 30)


def test_published_counts_give_the_published_scores():
    """EyePACS, test part: 1727, 6859, 1235, 179."""
    grades = np.repeat([2, 0, 0, 2], (1727, 6859, 1235, 179))
    probabilities = np.eye(5)[np.repeat([2, 0, 2, 0], (1727, 6859, 1235, 179))]
    found = evaluate(grades, probabilities, ["one"] * 10_000)
    scores = [found.sensitivity, found.specificity, found.ppv, found.npv, found.accuracy, found.f1, found.mcc]
    assert [round(one, 3) for one in scores if one is not None] == [
        0.906,
        0.847,
        0.583,
        0.975,
        0.859,
        0.71,
        0.648,
    ]
    assert found.qwk_interval is None


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
    assert found.qwk_interval == pytest.approx(np.percentile(kappas, (2.5, 97.5)))
    assert found.sensitivity_interval == pytest.approx(np.percentile(sensitivities, (2.5, 97.5)))
    doubled = evaluate(
        grades.repeat(2), probabilities.repeat(2, 0), np.repeat(PATIENTS, 2).tolist(), seed=5, replicates=150
    )
    assert doubled.qwk_interval == pytest.approx(found.qwk_interval)


def test_what_is_undefined_is_none():
    alone = evaluate(np.zeros(4, int), np.eye(5)[[0, 0, 0, 0]], ["a", "b", "c", "d"])
    for name in ("qwk", "qwk_interval", "sensitivity", "sensitivity_interval", "ppv", "f1", "mcc", "auc"):
        assert getattr(alone, name) is None
    assert (alone.specificity, alone.npv, alone.accuracy) == (1.0, 1.0, 1.0)
    missed = evaluate(np.full(2, 3), np.eye(5)[[0, 1]], ["a", "b"])
    assert (missed.sensitivity, missed.f1, missed.specificity, missed.specificity_interval) == (
        0,
        0,
        None,
        None,
    )
    numbers = [value for one in (alone, missed) for value in one if isinstance(value, float)]
    assert np.isfinite(numbers).all()


def test_grades_and_probabilities_that_are_none():
    with pytest.raises(
        ValueError, match="2 grades, 2 rows of probabilities, 1 patients; grades 5, expected 0 to 4; 1 rows"
    ):
        evaluate(np.array([0, 5]), np.array([[1.0, 0, 0, 0, 0], [np.nan, 0, 0, 0, 1]]), ["a"])
    with pytest.raises(ValueError, match="no eyes"):
        evaluate(np.zeros(0, int), np.zeros((0, 5)), [])


def eyes(seed, patients=80):
    """Both eyes of a patient have one grade; each eye shows it before noise of its own."""
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 3, patients).repeat(2)
    features = grades[:, None] + rng.normal(0, 1.2, (2 * patients, 1))
    names = [f"{seed}_{number // 2}" for number in range(2 * patients)]
    return EyeFeatures(features, grades, names, ["left", "right"] * patients)


def test_the_second_eye_helps_where_it_should():
    found = two_eyes(eyes(0), eyes(1))
    assert found.left_out == (0, 0)
    assert (found.both.eyes, found.alone.patients) == (160, 80)
    assert isinstance(found.both, Evaluation)
    assert found.both.qwk is not None
    assert found.alone.qwk is not None
    assert found.both.qwk > found.alone.qwk + 0.05
    assert found.gain is not None
    assert found.gain.low > 0
    assert found.gain.low < found.both.qwk - found.alone.qwk < found.gain.high


def test_only_pairs_count():
    """Grades of a lone eye, of three, or of two of one side change nothing; nor does the order of the eyes."""
    fitted, held = eyes(0, 30), eyes(1, 30)
    expected = two_eyes(fitted, held)
    order = np.random.default_rng(0).permutation(60)
    more = EyeFeatures(
        np.concatenate([held.features[order], np.full((6, 1), 99.0)]),
        np.concatenate([held.grades[order], np.full(6, 4)]),
        [*(held.patients[one] for one in order), "lone", "three", "three", "three", "same", "same"],
        [*(held.sides[one] for one in order), "left", "left", "right", "", "left", "left"],
    )
    found = two_eyes(fitted, more)
    assert found.left_out == (0, 3)
    np.testing.assert_array_equal(found.both.confusion, expected.both.confusion)
    np.testing.assert_array_equal(found.alone.confusion, expected.alone.confusion)


def test_eyes_that_cannot_be_judged():
    few = EyeFeatures(np.full((2, 3), np.inf), np.array([1, 1]), ["a", "a"], ["left", "right"])
    with pytest.raises(ValueError, match="cannot be judged") as error:
        two_eyes(few, eyes(1, 3))
    for problem in (
        "validation: 2 of 2 eyes have features that are not finite",
        "validation: 1 patients with two eyes, at least 2 are needed",
        "validation: all eyes of such patients have grade 1",
        "3 and 1 features an eye",
    ):
        assert problem in str(error.value)
