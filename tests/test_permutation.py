import numpy as np
import pytest
from scipy import stats

from scalecov_jax.probes import inference, permutation
from scalecov_jax.probes.splits import random_splits

ALPHAS = np.logspace(-1, 6, 5)


def problem(seed, count=40, width=30, signal=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width))
    return {"a": x, "b": rng.normal(size=(count, 2 * width))}, signal * x[:, :1] + rng.normal(size=(count, 1))


def test_p_is_uniform_where_nothing_is_to_be_read():
    splits = random_splits(40, 2, seed=0)
    tests = [
        permutation.permutation_test(*problem(seed), splits, 99, seed, alphas=ALPHAS) for seed in range(120)
    ]
    for name in ("p", "p_family"):
        p = np.array([getattr(test, name) for test in tests])
        assert p.min() >= 0.01
        assert stats.kstest(p[:, 0, 0] if name == "p" else p.min((1, 2)), "uniform").pvalue > 0.01
    # The chance that any layer looks significant: 5 % for p_family, more for p.
    any_family, any_layer = (
        np.mean([getattr(t, name).min() <= 0.05 for t in tests]) for name in ("p_family", "p")
    )
    assert any_family < 0.12
    assert any_layer >= any_family


def test_observed_is_the_mean_over_splits_and_a_signal_is_found():
    features, measure = problem(3, signal=2.0)
    splits = random_splits(40, 5, seed=1)
    test = permutation.permutation_test(features, measure, splits, 199, alphas=ALPHAS)
    expected = inference.infer(features, measure, splits, alphas=ALPHAS).r2.mean(1)
    np.testing.assert_allclose(test.observed, expected, atol=1e-5)
    assert test.p[0, 0] == 1 / 200
    assert test.p_family[0, 0] < 0.05
    assert test.p[1, 0] > 0.05
    assert test.null.shape == (2, 1, 199)
    np.testing.assert_allclose(test.control, test.null.mean(-1))
    assert (test.p_family >= test.p - 1e-12).all()


def test_measures_are_permuted_alike():
    orders = permutation.orders(20, 50, 0, None)
    np.testing.assert_array_equal(orders[0], np.arange(20))
    assert (np.sort(orders, axis=1) == np.arange(20)).all()
    assert len(np.unique(orders, axis=0)) == 51
    features, measure = problem(0, count=20)
    twice = permutation.permutation_test(
        features, np.repeat(measure, 2, axis=1), random_splits(20, 2, seed=0), 30, alphas=ALPHAS
    )
    np.testing.assert_allclose(twice.null[:, 0], twice.null[:, 1], atol=1e-6)


def test_blocks_keep_their_measures():
    blocks = np.array(["b", "a", "b", "c", "a", "b", "c"])
    orders = permutation.orders(7, 40, 0, blocks)
    assert (blocks[orders] == blocks).all()
    assert len(np.unique(orders, axis=0)) > 10


@pytest.mark.parametrize(
    ("permutations", "blocks", "message"),
    [
        (18, None, "cannot show p of 5 %"),
        (99, np.arange(40), "Every block holds a single image"),
        (99, np.arange(3), "3 blocks for 40 images"),
    ],
)
def test_what_cannot_be_permuted(permutations, blocks, message):
    with pytest.raises(ValueError, match=message):
        permutation.permutation_test(*problem(0), random_splits(40, 2, seed=0), permutations, blocks=blocks)
