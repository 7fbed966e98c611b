"""Local ridge: the global one where it must be, better where a concept is piecewise linear, no better on noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import RidgeCV

from scalecov_jax.probes.evaluate import ALPHAS
from scalecov_jax.probes.local_ridge import local_ridge
from scalecov_jax.probes.probe import PROBES, cross_validate
from scalecov_jax.probes.splits import random_splits

pytestmark = pytest.mark.usefixtures("quick_compilation")


def problem(n=120, width=5):
    """Three clouds; the measure follows another direction in each."""
    rng = np.random.default_rng(0)
    cloud = np.arange(n) % 3
    x = 8 * rng.normal(size=(3, width))[cloud] + rng.normal(size=(n, width))
    slopes = rng.normal(size=(3, width))[cloud]
    return x, np.einsum("nd,nd->n", x, slopes) + 0.1 * rng.normal(size=n), cloud


def scores(probe, x, y, masks):
    return cross_validate(
        probe, {"layer": x.astype(np.float32)}, np.tile(y[:, None], (len(masks), 1, 1)), masks
    )


def test_beats_ridge_on_a_piecewise_linear_concept_and_not_on_noise():
    x, y, _ = problem()
    masks = random_splits(len(y), 5, seed=0)
    local, whole = (scores(PROBES[name], x, y, masks) for name in ("local_ridge", "ridge"))
    assert local.min() > 0.98
    assert (local > whole + 0.005).all()
    noise = np.random.default_rng(1).normal(size=len(y))
    local, whole = (scores(PROBES[name], x, noise, masks) for name in ("local_ridge", "ridge"))
    assert local.mean() < min(0.0, whole.mean() + 0.02)


def test_each_cluster_is_a_ridge_of_its_own_images():
    x, y, cloud = problem()
    probe = local_ridge()
    with jax.enable_x64(True):
        fit = jax.jit(probe.fit)(x, y[:, None])
        predicted = np.asarray(probe.predict(fit, jnp.asarray(x)))
    means = np.stack([x[cloud == one].mean(0) for one in range(3)])
    np.testing.assert_allclose(np.sort(fit.centres, axis=0), np.sort(means, axis=0))
    for one in range(3):
        own = cloud == one
        oracle = RidgeCV(ALPHAS).fit(x[own], y[own])
        np.testing.assert_allclose(predicted[own, 0], oracle.predict(x[own]), rtol=1e-8)


@pytest.mark.parametrize("probe", [local_ridge(clusters=1), local_ridge(clusters=3, minimum=10_000)])
def test_one_cluster_and_small_clusters_are_the_ridge_of_all(probe):
    x, y, _ = problem()
    masks = random_splits(len(y), 2, seed=0)
    np.testing.assert_allclose(scores(probe, x, y, masks), scores(PROBES["ridge"], x, y, masks), atol=1e-9)


def test_more_clusters_than_images_are_finite():
    x, y, _ = problem(n=12)
    assert np.isfinite(scores(local_ridge(clusters=20), x, y, random_splits(12, 2, seed=0))).all()


def test_no_cluster_is_refused():
    with pytest.raises(ValueError, match="at least 1 cluster of at least 2 images, got clusters=0"):
        local_ridge(clusters=0)
