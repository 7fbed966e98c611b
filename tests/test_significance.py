"""Exact tests against enumeration and scipy, the clustered interval against its promise, Holm by hand."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from scalecov_jax.probes.statistics import clustered_bootstrap
from scalecov_jax.transfer.significance import compare, holm

# The published ResNet50 log, seeds 1001, 1003, 1005, 1006 and 1008 (METHODS 1.2).
BASE_MAE = np.array([60.884, 59.805, 75.332, 58.425, 57.978])
PRUNED_MAE = np.array([58.138, 53.872, 54.307, 61.067, 53.120])
BASE_KAPPA = np.array([0.6358, 0.5582, 0.5870, 0.6155, 0.6053])
PRUNED_KAPPA = np.array([0.6455, 0.6428, 0.6435, 0.6319, 0.6343])


def enumerated(difference):
    """Two-sided p over all signs, by definition."""
    d = difference[difference != 0]
    ranks = stats.rankdata(np.abs(d))
    sums = [np.dot(signs, ranks) for signs in product((0, 1), repeat=len(d))]
    observed = ranks[d > 0].sum()
    lower, upper = (np.mean([s <= observed for s in sums]), np.mean([s >= observed for s in sums]))
    return min(1.0, 2 * min(lower, upper))


@pytest.mark.parametrize("n", [2, 3, 5, 10, 11, 25, 50])
def test_without_ties_as_scipy(n):
    rng = np.random.default_rng(n)
    for shift in (0, 0.3, 1):
        first, second = rng.standard_normal((2, n))
        expected = stats.wilcoxon(first - shift, second, method="exact").pvalue
        assert compare(first - shift, second).p == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(40))
def test_ties_and_zeros_by_enumeration(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 11))
    first, second = rng.integers(0, 4, (2, n)).astype(float)
    result = compare(first, second)
    assert result.p == pytest.approx(enumerated(first - second), abs=1e-12)
    assert result.ties == (first == second).sum()
    assert result.wins == (first < second).sum()
    swapped = compare(second, first)
    assert swapped.p == result.p
    assert swapped.mean_difference == -result.mean_difference
    assert result.smallest_p <= result.p


@pytest.mark.parametrize(("n", "p"), [(5, 0.0625), (8, 0.0078125), (10, 0.001953125), (11, 0.0009765625)])
def test_smallest_p(n, p):
    result = compare(np.arange(1.0, n + 1), np.zeros(n))
    assert result.p == result.smallest_p == p
    assert compare(np.ones(n), np.zeros(n)).p == p
    assert compare(np.append(np.ones(n), 0.0), np.zeros(n + 1)).smallest_p == p


def test_the_published_seeds():
    mae = compare(PRUNED_MAE, BASE_MAE)
    assert mae.p == 0.125
    assert (mae.wins, mae.ties, mae.smallest_p) == (4, 0, 0.0625)
    assert mae.mean_difference == pytest.approx(56.10 - 62.48, abs=0.01)
    assert mae.sd_difference == pytest.approx(np.std(PRUNED_MAE - BASE_MAE, ddof=1))
    assert compare(BASE_KAPPA, PRUNED_KAPPA).p == 0.0625
    assert compare(BASE_KAPPA, PRUNED_KAPPA).wins == 5


def test_equal_networks():
    assert compare(np.ones(4), np.ones(4)) == (0.0, 0.0, 0, 4, 1.0, 1.0)


def test_one_difference_says_nothing():
    assert compare(np.array([1.0, 2.0]), np.array([1.0, 3.0]))[2:] == (1, 1, 1.0, 1.0)


def test_seeds_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="at least 2 seeds, got 1"):
        compare(np.ones(1), np.zeros(1))
    with pytest.raises(ValueError, match=r"2 of 3 pairs are not finite, at \[0, 2\]"):
        compare(np.array([np.nan, 1, 1]), np.array([1, 1, np.inf]))


def images_with_common_errors(rng, images=40, seeds=2, spread=1.0):
    """Differences of mean 0 that patches of one image share, and noise that they do not."""
    common = spread * rng.standard_normal(images)
    owners = [np.repeat(np.arange(images), rng.integers(2, 12, images)) for _ in range(seeds)]
    owner = np.concatenate(owners)
    return 10 + common[owner] + 0.5 * rng.standard_normal(len(owner)), np.full(len(owner), 10.0), owner


def test_the_interval_holds_the_truth_95_times_in_100():
    rng = np.random.default_rng(0)
    runs, held = 400, 0
    for run in range(runs):
        low, high = clustered_bootstrap(*images_with_common_errors(rng), replicates=1000, seed=run)
        held += low <= 0 <= high
    # Five standard errors of the count; percentile intervals of 40 images hold a little less than they promise.
    assert 0.88 <= held / runs <= 0.98


def test_wider_than_patch_by_patch_where_patches_of_an_image_agree():
    a, b, owners = images_with_common_errors(np.random.default_rng(1))
    single = np.arange(len(owners))
    clustered, naive = clustered_bootstrap(a, b, owners), clustered_bootstrap(a, b, single)
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)
    independent = images_with_common_errors(np.random.default_rng(1), spread=0.0)
    clustered = clustered_bootstrap(*independent)
    naive = clustered_bootstrap(*independent[:2], single)
    assert (clustered.high - clustered.low) / (naive.high - naive.low) == pytest.approx(1, abs=0.25)


def test_interval_is_that_of_drawing_images_one_by_one():
    a, b, owners = images_with_common_errors(np.random.default_rng(2), images=8)
    difference, owner = a - b, owners
    rng = np.random.default_rng(3)
    means = []
    for _ in range(4000):
        drawn = [difference[owner == image] for image in rng.integers(0, 8, 8)]
        means.append(np.concatenate(drawn).mean())
    expected = np.percentile(means, [2.5, 97.5])
    assert clustered_bootstrap(a, b, owners) == pytest.approx(expected, abs=0.05 * np.ptp(expected))


def test_two_images_by_hand():
    ones, zeros = np.ones(3), np.zeros(3)
    interval = clustered_bootstrap(ones * 5, np.array([1.0, 2, 4]), np.array([1, 1, 2]))
    assert interval == (1.0, 3.5)  # each image alone comes in a quarter of the draws
    assert clustered_bootstrap(ones, zeros, np.array(["a", "b", "b"])) == (1.0, 1.0)


def test_names_of_images_and_order_of_patches_do_not_matter():
    a, b, owners = images_with_common_errors(np.random.default_rng(4), images=12)
    names = np.array([f"image {number:03d}" for number in owners])
    expected = clustered_bootstrap(a, b, owners, seed=7)
    assert clustered_bootstrap(a, b, names, seed=7) == expected
    assert clustered_bootstrap(a, b, owners, seed=7) == expected != clustered_bootstrap(a, b, owners, seed=8)
    back = [each[::-1] for each in (a, b, owners)]
    assert clustered_bootstrap(*back, seed=7) == pytest.approx(expected, rel=1e-9)


def test_an_image_is_drawn_with_its_patches_of_all_seeds():
    a, zeros = np.array([0.0, 1.0, 0.0, 1.0]), np.zeros(4)
    shared_images = np.array(["x", "y", "x", "y"])
    assert clustered_bootstrap(a, zeros, shared_images) == (0.0, 1.0)
    other_images = np.array(["x", "y", "u", "v"])
    assert clustered_bootstrap(a, zeros, other_images, replicates=100_000) == (0.0, 1.0)  # (1/2)^4 = 6 % each


def test_what_has_no_interval_is_refused():
    one = np.ones(3)
    with pytest.raises(ValueError, match="at least two source images, got 1"):
        clustered_bootstrap(one, one, np.zeros(3, int))
    with pytest.raises(ValueError, match="at least two source images, got 0"):
        clustered_bootstrap(one[:0], one[:0], np.zeros(0, int))
    with pytest.raises(ValueError, match="3 errors for 4 patches"):
        clustered_bootstrap(one, one, np.arange(4))
    with pytest.raises(ValueError, match="1 of 3 errors are not finite"):
        clustered_bootstrap(np.array([1, np.nan, 1]), one, np.arange(3))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4, 0.9]) == pytest.approx([1.0, 1.0, 1.0])
    assert holm([0.02, 0.021, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
    assert holm([2 / 2**10] * 4) == pytest.approx([8 / 2**10] * 4)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(bad):
    with pytest.raises(ValueError, match=r"1 of 2 p values lie outside \[0, 1\], at \[1\]"):
        holm([0.5, bad])
