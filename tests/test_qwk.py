"""The loss of quadratic weighted kappa against scikit-learn, a loop in float64, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from scalecov_jax.experiments.grade_training import qwk_loss


def loop(probabilities, grades):
    """As METHODS 4.2 writes it, term by term."""
    count, classes = probabilities.shape
    omega = [[(i - j) ** 2 / (classes - 1) ** 2 for j in range(classes)] for i in range(classes)]
    observed = sum(omega[grades[k]][c] * probabilities[k, c] for k in range(count) for c in range(classes))
    expected = sum(
        (grades == i).sum() / count * sum(omega[i][j] * probabilities[:, j].sum() for j in range(classes))
        for i in range(classes)
    )
    return np.log(observed) - np.log(expected)


def batch(present):
    rng = np.random.default_rng(len(present))
    return rng.dirichlet(np.ones(5), 15), rng.choice(present, 15)


@pytest.mark.parametrize("present", [(0, 1, 2, 3, 4), (0, 2, 3), (4,)])
def test_loss_and_its_gradient(present):
    """Also where the batch lacks grades."""
    probabilities, grades = batch(present)
    loss, gradient = jax.value_and_grad(qwk_loss)(
        jnp.asarray(probabilities, jnp.float32), jnp.asarray(grades)
    )
    np.testing.assert_allclose(loss, loop(probabilities, grades), atol=2e-6)
    for k, c in ((0, 0), (3, 2), (14, 4)):
        step = np.zeros_like(probabilities)
        step[k, c] = 1e-6
        slope = (loop(probabilities + step, grades) - loop(probabilities - step, grades)) / 2e-6
        np.testing.assert_allclose(gradient[k, c], slope, rtol=1e-3, atol=1e-5)


def test_certain_probabilities_give_the_metric():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 5, 60)
    predicted = np.clip(true + rng.integers(-1, 2, 60), 0, 4)
    loss = qwk_loss(jnp.eye(5)[predicted], jnp.asarray(true))
    np.testing.assert_allclose(
        1 - np.exp(loss), cohen_kappa_score(true, predicted, weights="quadratic"), atol=1e-5
    )


def test_loss_is_finite_where_kappa_is_not():
    perfect = jnp.arange(5)
    loss, gradient = jax.value_and_grad(qwk_loss)(jnp.eye(5), perfect)
    assert np.isfinite(loss)
    assert loss < -10
    assert np.isfinite(gradient).all()
    alone, gradient = jax.value_and_grad(qwk_loss)(jnp.eye(5)[jnp.full(4, 2)], jnp.full(4, 2))
    assert alone == 0
    assert np.isfinite(gradient).all()
