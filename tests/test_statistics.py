import numpy as np
import pytest
from scipy import stats

from scalecov_jax.probes import statistics


def test_jackknife_of_a_mean_is_the_t_interval():
    values = np.random.default_rng(0).normal(size=17)
    without = (values.sum() - values) / 16
    found = statistics.jackknife(values.mean(), statistics.deviations(without))
    low, high = stats.t.interval(0.95, 16, values.mean(), stats.sem(values))
    np.testing.assert_allclose([found.error, *found.interval], [stats.sem(values), low, high])


def test_bootstrap_of_a_mean_equals_drawing_values():
    values = np.random.default_rng(1).exponential(size=30)
    deviation = statistics.deviations((values.sum() - values) / 29)
    found = statistics.bootstrap(values.mean(), deviation, replicates=40_000, seed=2)
    rng = np.random.default_rng(3)
    means = np.array([rng.choice(values, 30).mean() for _ in range(40_000)])
    means = values.mean() + np.sqrt(30 / 29) * (means - values.mean())  # as s divides by n - 1
    np.testing.assert_allclose(found, np.percentile(means, [2.5, 97.5]), atol=0.02)
    assert values.mean() - found.low < found.high - values.mean()  # skewed as the values are


def test_corrected_resampled_t():
    scores = np.array([0.5, 0.7, 0.6, 0.8])
    error = np.sqrt((1 / 4 + 30 / 70) * scores.var(ddof=1))
    found = statistics.corrected_resampled_t(scores, 70.0, 30.0)
    np.testing.assert_allclose(found.interval, stats.t.interval(0.95, 3, 0.65, error))
    with pytest.raises(ValueError, match="at least two of them, got 1"):
        statistics.corrected_resampled_t(scores[:1], 70.0, 30.0)


def test_mean_without_passes_over_splits_where_it_is_undefined():
    without = np.array([[[1.0, 0.0], [3.0, 5.0]]])
    defined = np.array([[True, False], [True, True]])
    np.testing.assert_array_equal(statistics.mean_without(without, defined), [[2.0, 5.0]])
    with pytest.raises(ValueError, match="Without group 1 R2 is defined in no split"):
        statistics.mean_without(without, np.array([[True, False], [True, False]]))


def layers(gains, noise=0.1, groups=80, seed=0):
    """Layers whose values share most of their noise, and their deviations."""
    rng = np.random.default_rng(seed)
    values = (
        rng.normal(size=(1, groups))
        + noise * rng.normal(size=(len(gains), groups))
        + np.array(gains)[:, None]
    )
    without = (values.sum(1, keepdims=True) - values) / (groups - 1)
    return values.mean(1), statistics.deviations(without)


def test_peak_set_holds_what_cannot_be_told_from_the_best():
    found = statistics.peak_set(*layers([0.0, 1.0, 1.0, 0.5]))
    np.testing.assert_array_equal(found.members, [False, True, True, False])
    assert found.p[[1, 2]].max() > 0.5
    assert found.p[[0, 3]].max() < 0.01


def test_peak_set_misses_the_best_layer_in_one_of_twenty_samples_at_most():
    """Five equally good layers: each is the best one, and each must be in the set with at least 95 %."""
    missed = np.mean(
        [~statistics.peak_set(*layers([0.0] * 5, seed=seed), replicates=499).members for seed in range(400)]
    )
    assert 0.01 < missed < 0.07


def test_layers_with_the_same_predictions_are_equals():
    values, deviation = layers([0.0, 1.0])
    found = statistics.peak_set(values[[0, 1, 1]], deviation[[0, 1, 1]])
    np.testing.assert_array_equal(found.members, [False, True, True])
    assert statistics.peak_set(values[:1], deviation[:1]).members.all()
