"""MAE and kappa over magnifications against scikit-learn, and what has none."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from scalecov_jax.concepts.nuclei import PUBLISHED_MEANS, nearest_class
from scalecov_jax.transfer.metrics import Measured, evaluate, macro_mae

MEANS = dict(PUBLISHED_MEANS)


def simulated(seed, n, noise, present=tuple(MEANS)):
    rng = np.random.default_rng(seed)
    magnification = rng.choice(present, n)
    true = np.array([MEANS[one] for one in magnification]) * rng.uniform(0.8, 1.2, n)
    return true, true * np.exp(noise * rng.standard_normal(n)), magnification


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("present", [tuple(MEANS), (5.0, 40.0), (8.0, 10.0, 30.0)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_against_scikit_learn(noise, present, dtype):
    true, predicted, magnification = (
        one.astype(dtype) for one in simulated(int(noise * 10), 300, noise, present)
    )
    total, *parts = evaluate(true, predicted, magnification, MEANS)
    assert total[:2] == (None, 300)
    assert total.mae == pytest.approx(mean_absolute_error(true, predicted), rel=1e-6, abs=1e-12)
    nearest = nearest_class(predicted, MEANS)
    for kappa, weights in ((total.kappa, None), (total.kappa_quadratic, "quadratic")):
        expected = cohen_kappa_score(
            magnification.astype(str), nearest.astype(str), labels=[str(m) for m in MEANS], weights=weights
        )
        assert kappa == pytest.approx(expected, abs=1e-12)
    assert [part.magnification for part in parts] == sorted(present)
    for part in parts:
        mine = magnification == part.magnification
        assert part.n == mine.sum()
        assert part.mae == pytest.approx(
            mean_absolute_error(true[mine], predicted[mine]), rel=1e-6, abs=1e-12
        )
        assert part.kappa is part.kappa_quadratic is None


def test_one_magnification_has_no_kappa():
    true, predicted, magnification = simulated(0, 40, 1.0, (10.0,))
    total, part = evaluate(true, predicted, magnification, MEANS)
    assert total == (None, 40, part.mae, None, None)
    assert part.magnification == 10


def test_constant_predictions_have_kappa_zero():
    true, predicted, magnification = simulated(1, 100, 0.1)
    total = evaluate(true, np.full_like(predicted, 100.0), magnification, MEANS)[0]
    assert total.kappa == pytest.approx(0, abs=1e-12)
    assert total.kappa_quadratic == pytest.approx(0, abs=1e-12)


def test_values_that_are_not_finite_are_named_together():
    true, predicted, magnification = simulated(2, 30, 0.1)
    true[4], predicted[:12] = np.nan, np.inf
    with pytest.raises(ValueError, match="Not finite") as error:
        evaluate(true, predicted, magnification, MEANS)
    assert "1 of 30 true areas at [4]; 12 of 30 predicted areas at [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]." in str(
        error.value
    )


def test_magnifications_without_a_mean_are_named():
    true, predicted, magnification = simulated(3, 30, 0.1)
    magnification[:2] = 7.5, 60
    with pytest.raises(ValueError, match=r"magnifications 7\.5, 60; there are 5, 8, 10, 15, 20, 30, 40\."):
        evaluate(true, predicted, magnification, MEANS)
    with pytest.raises(ValueError, match="there are none"):
        evaluate(true, predicted, magnification, {})
    with pytest.raises(ValueError, match="no patches"):
        evaluate(true[:0], predicted[:0], magnification[:0], MEANS)


def test_macro_mae_weighs_magnifications_equally():
    rows = [
        Measured(None, 3, 99.0, 0.5, 0.5),
        Measured(5, 2, 1.0, None, None),
        Measured(40, 1, 4.0, None, None),
    ]
    assert macro_mae(rows) == 2.5
    with pytest.raises(ValueError, match="got none"):
        macro_mae(rows[:1])
    with pytest.raises(ValueError, match="got 5, 40, 40"):
        macro_mae([*rows, rows[-1]])
