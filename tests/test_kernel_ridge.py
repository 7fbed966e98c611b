"""Kernel ridge against scikit-learn's kernels and an explicit leave-one-out loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import KernelCenterer

from scalecov_jax.probes.kernel_ridge import kernel_ridge
from scalecov_jax.probes.probe import PROBES, cross_validate
from scalecov_jax.probes.splits import random_splits

pytestmark = pytest.mark.usefixtures("quick_compilation")

BANDWIDTHS, ALPHAS = (0.5, 1.0, 2.0), (1e-4, 1e-2, 1.0, 100.0)


def problem(n=40, width=6):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, width))
    smooth = np.sin(2 * z[:, 0]) + 0.1 * rng.normal(size=n)
    return z, np.stack([smooth, z @ rng.normal(size=width), rng.normal(size=n)], axis=1)


def oracle(z, y, new, gamma, alpha):
    """Centre the kernel and the target, then scikit-learn."""
    kernel = rbf_kernel(z, gamma=gamma)
    centerer = KernelCenterer().fit(kernel)
    model = KernelRidge(alpha=alpha, kernel="precomputed").fit(centerer.transform(kernel), y - y.mean())
    return model.predict(centerer.transform(rbf_kernel(new, z, gamma=gamma))) + y.mean()


def test_equals_scikit_learn_with_an_explicit_leave_one_out_loop():
    z, targets = problem()
    new = np.random.default_rng(1).normal(size=(15, z.shape[1]))
    probe = kernel_ridge(BANDWIDTHS, ALPHAS)
    with jax.enable_x64(True):
        fit = jax.jit(probe.fit)(z, targets)
        predicted = np.asarray(probe.predict(fit, jnp.asarray(new)))
        chosen = [(float(one), float(other)) for one, other in zip(fit.bandwidth, fit.alpha, strict=True)]
    median = np.median(np.square(z[:, None] - z[None]).sum(-1)[np.triu_indices(len(z), 1)])
    for column, y in enumerate(targets.T):
        errors = {}
        for bandwidth in BANDWIDTHS:
            for alpha in ALPHAS:
                gamma = 1 / (2 * bandwidth**2 * median)
                out = [
                    oracle(np.delete(z, i, 0), np.delete(y, i), z[i : i + 1], gamma, alpha)[0]
                    for i in range(len(y))
                ]
                errors[bandwidth, alpha] = np.square(out - y).sum()
        best = min(errors, key=errors.__getitem__)
        assert chosen[column] == best
        expected = oracle(z, y, new, 1 / (2 * best[0] ** 2 * median), best[1])
        np.testing.assert_allclose(predicted[:, column], expected, rtol=1e-8, atol=1e-8)
    assert len({*chosen}) > 1


def test_reads_what_is_not_linear():
    z, targets = problem(n=150, width=3)
    masks = random_splits(len(z), 3, seed=0)
    targets = np.tile(targets[:, :1], (3, 1, 1))
    layers = {"layer": z.astype(np.float32)}
    kernel, linear = (
        cross_validate(PROBES[name], layers, targets, masks) for name in ("kernel_ridge", "ridge")
    )
    assert kernel.min() > 0.8
    assert linear.max() < 0.5


def test_rows_that_mostly_coincide_have_a_bandwidth():
    z = np.zeros((20, 2))
    z[:3] = np.random.default_rng(0).normal(size=(3, 2))
    probe = kernel_ridge()
    with jax.enable_x64(True):
        for rows in (z, np.zeros((20, 2))):
            fit = probe.fit(jnp.asarray(rows), jnp.asarray(z[:, :1]))
            assert np.isfinite(probe.predict(fit, jnp.asarray(z))).all()


def test_bandwidths_and_penalties_must_be_positive():
    with pytest.raises(ValueError, match=r"Bandwidths must be positive numbers, got \[0.0, 1.0\]"):
        kernel_ridge(bandwidths=(0.0, 1.0))
    with pytest.raises(ValueError, match="Penalties must be positive"):
        kernel_ridge(alphas=())
