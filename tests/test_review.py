"""What a reviewer asks of a probe: closed forms on Gaussian data, permutations, and scikit-learn."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from scalecov_jax.explanation.localisation import relevance_mass
from scalecov_jax.probes import evaluate, review
from scalecov_jax.probes.splits import k_folds, random_splits


def gaussian(count, width, r2, seed=0):
    """Features with independent channels and a measure whose best linear reading has this R2."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width))
    w = rng.normal(size=width)
    signal = x @ w / np.linalg.norm(w)
    return x, np.sqrt(r2) * signal + np.sqrt(1 - r2) * rng.normal(size=count)


def test_ratio_is_refitted_without_each_group():
    rng = np.random.default_rng(1)
    top, bottom, groups = rng.normal(size=(2, 9)), rng.uniform(1, 2, (2, 9)), [*"aabbbccdd"]
    value, without = review.ratio(top, bottom, groups)
    np.testing.assert_allclose(value, top.sum(1) / bottom.sum(1))
    for column, group in enumerate("abcd"):
        keep = np.array(groups) != group
        np.testing.assert_allclose(without[:, column], top[:, keep].sum(1) / bottom[:, keep].sum(1))


def test_v_information_is_the_mutual_information_of_a_gaussian():
    rho = 0.8
    covariance = np.array([[1, rho], [rho, 1]])
    expected = -0.5 * np.log(np.linalg.det(covariance))
    np.testing.assert_allclose(review.v_information(np.array([rho**2, -3.0])), [expected, 0])


def test_a_code_gains_the_v_information_of_gaussian_data_and_nothing_on_shuffled_measures():
    x, y = gaussian(400, 5, 0.7)
    gain, coded = review.code_gains(x, y, orders=2)
    assert gain.sum() / coded.sum() == pytest.approx(0.5 * np.log(1 / 0.3), abs=0.1)
    gain, coded = review.code_gains(x, np.random.default_rng(2).permutation(y), orders=2)
    assert abs(gain.sum() / coded.sum()) < 0.05


def test_a_code_is_that_of_scikit_learn():
    x, y = gaussian(40, 6, 0.5)
    gain, coded = review.code_gains(x, y, orders=1, seed=3)
    order = np.argsort(np.random.default_rng((3, 0, 6)).permutation(40), kind="stable")
    z, expected = StandardScaler().fit_transform(x), np.zeros(40)
    known, rest = order[:20], order[20:]
    fitted = RidgeCV(evaluate.ALPHAS).fit(z[known], y[known])
    # of RidgeCV the best score is minus the mean squared leave-one-out error
    variance, mean = -fitted.best_score_, y[known].mean()
    alone = np.mean(np.square((y[known] - mean) * 20 / 19))
    loss = np.square(y - fitted.predict(z)) / variance + np.log(variance)
    expected[rest] = 0.5 * (np.square(y - mean) / alone + np.log(alone) - loss)[rest]
    np.testing.assert_allclose(gain, expected, atol=1e-8)
    np.testing.assert_array_equal(coded, np.isin(np.arange(40), rest))


def test_a_group_is_coded_in_one_block():
    x, y = gaussian(60, 3, 0.5)
    groups = np.repeat([*map(str, range(6))], 10)
    _, coded = review.code_gains(x, y, orders=3, groups=[*groups])
    assert all(len({*coded[groups == group]}) == 1 for group in groups)


def test_stacking_shares_are_those_of_constrained_least_squares():
    errors = np.random.default_rng(0).normal(size=(4, 50)) * np.array([[1], [0.8], [1.2], [3]])
    simplex = {"type": "eq", "fun": lambda s: s.sum() - 1}
    found = minimize(
        lambda s: np.square(s @ errors).sum(), np.full(4, 0.25), bounds=[(0, 1)] * 4, constraints=simplex
    )
    np.testing.assert_allclose(review.stacking_shares(errors), found.x, atol=1e-3)


def test_a_copy_of_a_layer_is_not_unique_and_two_noisy_readings_are():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 4000))
    folds = k_folds(4000, 5, 0)
    copied, halved = review.stacks(noise[[0, 0]], folds), review.stacks(noise, folds)
    np.testing.assert_allclose(copied.without[0], copied.together)
    # independent errors of variance 1: the mean of both has 1 / 2
    assert np.square(halved.together).mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(halved.without, noise[::-1])
    np.testing.assert_allclose(halved.until[1], halved.together)
    with pytest.raises(ValueError, match="two layers"):
        review.stacks(noise[:1], folds)


def test_gains_of_gaussian_data():
    """With many images the filter of one half steers that of the other by 1, and the pattern by R2."""
    x, y = gaussian(3000, 4, 0.6)
    found = review.fit_halves(x, y, random_splits(3000, 4, 0, 0.5))
    along_filter, along_pattern = found.gains
    np.testing.assert_allclose(along_filter, 1, atol=0.05)
    np.testing.assert_allclose(along_pattern, 0.6, atol=0.05)
    part, rest = found.parts[0], found.parts[4]
    np.testing.assert_array_equal(part, ~rest)
    fitted = np.linalg.lstsq(x[part] - x[part].mean(0), y[part] - y[part].mean(), rcond=None)[0]
    np.testing.assert_allclose(found.weights[0], fitted, rtol=0.01)  # ridge shrinks by about alpha / n
    shuffled = review.fit_halves(x, np.random.default_rng(1).permutation(y), random_splits(3000, 4, 0, 0.5))
    assert abs(shuffled.gains[1].mean()) < 0.02


def test_cosine():
    assert review.cosine(np.array([1.0, 0]), np.array([1.0, 1])) == pytest.approx(np.sqrt(0.5))
    assert review.cosine(np.zeros(2), np.ones(2)) == 0


def test_relevance_mass_counts_what_is_positive():
    scores, mask = np.array([[2.0, -5], [1, 1]]), np.array([[1, 1], [0, 0]])
    assert relevance_mass(scores, mask) == pytest.approx(0.5)
    assert relevance_mass(-np.ones((2, 2)), mask) == 0
