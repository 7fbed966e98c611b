"""Heads in closed form equal scikit-learn and the probe, seed by seed."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny_heads import SEEDS, D, N, make_problem, predict

from scalecov_jax.probes import batch, linear
from scalecov_jax.transfer.ridge_heads import _ridge, ridge_heads


@pytest.fixture(scope="module")
def problem():
    return make_problem(N, D, len(SEEDS))


@pytest.mark.parametrize(("count", "width", "seeds"), [(N, D, len(SEEDS)), (120, 84, 3), (90, 120, 3)])
def test_ridge_equals_scikit_learn_and_the_probe(count, width, seeds):
    """With D below, among and above the numbers of training rows."""
    alphas = batch.ALPHAS
    features, targets, train = make_problem(count, width, seeds)
    fit = ridge_heads(features, targets, train, alphas)
    x, y = features.astype(np.float64), targets.astype(np.float64)
    for row, part in enumerate(train):
        peer = make_pipeline(StandardScaler(), RidgeCV(alphas)).fit(x[part], y[part])
        np.testing.assert_allclose(predict(fit, x)[row], peer.predict(x), rtol=1e-8, atol=1e-6)
        np.testing.assert_allclose(fit.alpha[row], peer[-1].alpha_)
    part = train[0]
    with jax.enable_x64(True):
        probe = jax.jit(linear.fit_ridge)(x[part], y[part, None], alphas)
    weights = np.asarray(probe.weights)[:, 0]
    np.testing.assert_allclose(fit.kernel[0], weights, rtol=1e-8, atol=1e-8 * np.abs(weights).max())


def test_small_penalties_equal_scikit_learn(problem):
    features, targets, train = problem
    alphas = np.geomspace(1e-6, 1e-3, len(batch.ALPHAS))  # as many as elsewhere: one compilation
    fit = ridge_heads(features, targets, train, alphas)
    x, part = StandardScaler().fit_transform(features[train[2]].astype(np.float64)), train[2]
    peer = RidgeCV(alphas).fit(x, targets[part].astype(np.float64))
    np.testing.assert_allclose(predict(fit, features)[2, part], peer.predict(x), rtol=1e-8)


def test_rows_outside_the_mask_have_no_influence(problem):
    """Not even where they are training rows of other seeds, or fill up the part of this one to the length of the largest."""
    features, targets, train = problem
    changed, changed_targets = features.copy(), targets.copy()
    changed[~train[0]] = 1e4 * changed[~train[0]][::-1] + 3
    changed_targets[~train[0]] = -1e6
    for a, b in zip(
        ridge_heads(features, targets, train), ridge_heads(changed, changed_targets, train), strict=True
    ):
        np.testing.assert_array_equal(a[0], b[0])


def test_dead_features_leave_the_mean(problem):
    _, targets, train = problem
    dead = np.full((N, D), 0.1, np.float32)
    means = np.array([targets[part].mean() for part in train])
    np.testing.assert_allclose(predict(ridge_heads(dead, targets, train), dead)[:, 0], means, rtol=1e-6)


def test_one_compilation_a_shape(problem):
    features, targets, train = problem
    ridge_heads(features, targets, train)
    before = _ridge._cache_size()
    ridge_heads(features + 1, targets, train[::-1])
    assert _ridge._cache_size() == before


def test_penalties_that_are_not_positive(problem):
    with pytest.raises(ValueError, match="Penalties must be positive"):
        ridge_heads(*problem, np.array([0.0, 1.0]))
