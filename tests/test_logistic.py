"""Logistic regression against scikit-learn, and its approximate leave-one-out against the exact one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from scalecov_jax.probes import logistic
from scalecov_jax.probes.probe import PROBES, cross_validate
from scalecov_jax.probes.splits import stratified_splits

pytestmark = pytest.mark.usefixtures("quick_compilation")


def problem(n, width, noise=1.0):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, width))
    return z, (z @ rng.normal(size=width) / np.sqrt(width) + noise * rng.normal(size=n) > 0.3).astype(float)


def sklearn_fit(z, y, alpha):
    return LogisticRegression(C=1 / alpha, tol=1e-12, solver="newton-cholesky", max_iter=1000).fit(z, y)


@pytest.mark.parametrize("width", [5, 80])
@pytest.mark.parametrize("alpha", [0.01, 1.0, 1e3])
def test_equals_scikit_learn(width, alpha):
    z, y = problem(50, width)
    with jax.enable_x64(True):
        fit = logistic.fit_logistic(jnp.asarray(z), jnp.asarray(y[:, None]), jnp.asarray([alpha]))
        probabilities = logistic.predict(fit, jnp.asarray(z))
    oracle = sklearn_fit(z, y, alpha)
    np.testing.assert_allclose(fit.weights[:, 0], oracle.coef_[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fit.intercept, oracle.intercept_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(probabilities[:, 0], oracle.predict_proba(z)[:, 1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("width", [5, 80])
def test_the_penalty_is_nearly_the_one_of_exact_leave_one_out(width):
    z, y = problem(50, width)
    alphas = 10.0 ** np.arange(-2, 4)
    exact = []
    for alpha in alphas:
        out = [
            sklearn_fit(np.delete(z, i, 0), np.delete(y, i), alpha).predict_proba(z[i : i + 1])[0, 1]
            for i in range(len(y))
        ]
        exact.append(log_loss(y, out))
    with jax.enable_x64(True):
        fit = logistic.fit_logistic(jnp.asarray(z), jnp.asarray(y[:, None]), jnp.asarray(alphas))
    chosen = int(np.argmin(np.abs(alphas - float(fit.alpha[0]))))
    assert exact[chosen] < min(exact) + 0.02


def test_targets_are_fitted_each_by_itself():
    z, y = problem(40, 6)
    both = np.stack([y, 1 - y, np.roll(y, 7)], axis=1)
    together = logistic.concept_activation_vector(z, both)
    for column in range(3):
        alone = logistic.concept_activation_vector(z, both[:, column : column + 1])
        np.testing.assert_allclose(together.weights[:, column], alone.weights[:, 0], rtol=1e-8)
    np.testing.assert_allclose(together.weights[:, 0], -together.weights[:, 1], rtol=1e-6, atol=1e-9)


def test_separable_concepts_stay_finite():
    z, _ = problem(30, 4)
    y = (z[:, :1] > 0).astype(float)
    fit = logistic.concept_activation_vector(100 * z, y, alphas=(1e-6,))
    assert np.isfinite(fit.weights).all()
    np.testing.assert_array_equal(100 * z @ fit.weights + fit.intercept > 0, y == 1)


def test_the_concept_activation_vector_is_in_feature_units():
    z, y = problem(60, 5)
    units = np.array([1e-3, 1.0, 50.0, 3.0, 7.0])
    plain = logistic.concept_activation_vector(z, y[:, None])
    scaled = logistic.concept_activation_vector(z * units + 4, y[:, None])
    np.testing.assert_allclose(scaled.weights[:, 0] * units, plain.weights[:, 0], rtol=1e-6)
    logits = (x @ fit.weights + fit.intercept for x, fit in ((z, plain), (z * units + 4, scaled)))
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-8)


def test_r2_is_the_brier_skill_score_and_others_can_be_asked_for():
    z, y = problem(80, 5, noise=0.2)
    masks = stratified_splits(y, 2, seed=0)
    layers, targets = {"layer": z.astype(np.float32)}, np.tile(y[:, None], (2, 1, 1))
    brier, accuracy, auc = (
        cross_validate(PROBES["logistic"], layers, targets, masks, **score)
        for score in ({}, {"score": logistic.accuracy}, {"score": logistic.auc})
    )
    for split, train in enumerate(masks):
        x = StandardScaler().fit_transform(layers["layer"].astype(float))  # over all images
        x = x - x[train].mean(0)
        with jax.enable_x64(True):
            fit = logistic.fit_logistic(*map(jnp.asarray, (x[train], y[train, None], logistic.ALPHAS)))
        weights, intercept = np.asarray(fit.weights)[:, 0], float(fit.intercept[0])
        p = 1 / (1 + np.exp(-(x[~train] @ weights + intercept)))
        held = y[~train]
        skill = 1 - np.square(p - held).sum() / np.square(held - held.mean()).sum()
        np.testing.assert_allclose(brier[0, split, 0], skill, rtol=1e-8)
        assert accuracy[0, split, 0] == pytest.approx(accuracy_score(held, p > 0.5))
        assert auc[0, split, 0] == pytest.approx(roc_auc_score(held, p))


def test_auc_counts_ties_half():
    p, y = np.array([[0.2], [0.5], [0.5], [0.9]]), np.array([[0.0], [0.0], [1.0], [1.0]])
    assert logistic.auc(jnp.asarray(p), jnp.asarray(y))[0] == pytest.approx(roc_auc_score(y, p))


def test_a_continuous_measure_is_refused():
    z, y = problem(20, 3)
    masks = stratified_splits(y, 1, seed=0)
    with pytest.raises(ValueError, match=r"targets of 0 and 1, got .*and others; threshold the measure"):
        cross_validate(PROBES["logistic"], {"layer": z}, z[None, :, :1], masks)
    with pytest.raises(ValueError, match="with and without the concept"):
        logistic.concept_activation_vector(z, np.ones((20, 1)))
    with pytest.raises(ValueError, match="Penalties must be positive"):
        logistic.logistic(alphas=[0.0])
