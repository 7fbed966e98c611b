"""Intervals and tests keep their word in simulated images; run with -m slow. benchmarks/coverage.py has every size and design."""

import numpy as np
import pytest
from scipy import stats
from scipy.fft import dct

from scalecov_jax.evidence import weigh
from scalecov_jax.probes import permutation, statistics
from scalecov_jax.probes.splits import grouped_splits, random_splits

pytestmark = pytest.mark.slow


def components(rng, images, width):
    """Hidden in features, with variances 1 / k as in pooled ones."""
    return rng.normal(size=(images, width)) / np.sqrt(np.arange(1, width + 1))


def mix(hidden):
    """Features that each hold all components."""
    return dct(hidden, norm="ortho")


def concept(hidden, noise):
    """A sum of the ten leading components, which explains 80 %."""
    return np.sqrt(0.8 / (1 / np.arange(1, 11)).sum()) * hidden[:, :10].sum(1) + np.sqrt(0.2) * noise


def covers(estimates):
    """Whether each interval holds the mean of all values."""
    truth = np.mean([one.value for one in estimates])
    return np.array([one.interval.low <= truth <= one.interval.high for one in estimates])


def assert_share(true, low, high):
    """The share of what is true is not significantly (1 %) outside."""
    true = np.ravel(true)
    assert stats.binomtest(int(true.sum()), true.size, low, "less").pvalue > 0.01, true.mean()
    assert stats.binomtest(int(true.sum()), true.size, high, "greater").pvalue > 0.01, true.mean()


@pytest.mark.parametrize(
    ("images", "width", "replicates"), [(50, 64, 400), (50, 2048, 400), (500, 64, 120), (500, 2048, 120)]
)
def test_intervals_of_r2_cover(images, width, replicates):
    estimates = []
    for seed in range(replicates):
        rng = np.random.default_rng((images, width, seed))
        hidden = components(rng, images, width)
        measure = concept(hidden, rng.normal(size=images))[:, None]
        found = weigh({"": mix(hidden)}, measure, ["concept"], random_splits(images, 25, seed)).r2
        estimates.append(statistics.jackknife(found.value[0, 0], found.deviation[0, 0]))
    assert_share(covers(estimates), 0.93, 0.97)


def test_intervals_of_differences_and_of_the_nested_r2_cover():
    differences, nested = [], []
    for seed in range(400):
        rng = np.random.default_rng((1, seed))
        hidden = components(rng, 100, 512)
        layers = {
            name: mix(hidden + noise * components(rng, 100, 512))
            for name, noise in (("sharp", 0.4), ("dull", 0.6))
        }
        measure = concept(hidden, rng.normal(size=100))[:, None]
        found = weigh(layers, measure, ["concept"], random_splits(100, 25, seed))
        (sharp, dull), deviation = found.r2.value[:, 0], found.r2.deviation[:, 0]
        differences.append(statistics.jackknife(sharp - dull, deviation[0] - deviation[1]))
        nested.append(statistics.jackknife(found.nested.value[0, 0], found.nested.deviation[0, 0]))
    assert_share(covers(differences), 0.93, 0.97)
    assert_share(covers(nested), 0.93, 0.97)


def test_intervals_over_patients_cover_where_those_over_images_do_not():
    patients = np.arange(100) // 5
    over_patients, over_images = [], []
    for seed in range(300):
        rng = np.random.default_rng((2, seed))
        hidden = np.sqrt(0.8) * components(rng, 20, 512)[patients] + np.sqrt(0.2) * components(rng, 100, 512)
        noise = np.sqrt(0.8) * rng.normal(size=20)[patients] + np.sqrt(0.2) * rng.normal(size=100)
        features, measure = {"": mix(hidden)}, concept(hidden, noise)[:, None]
        splits = grouped_splits(patients, 25, seed)
        for groups, estimates in ((patients, over_patients), (None, over_images)):
            found = weigh(features, measure, ["concept"], splits, groups=groups).r2
            estimates.append(statistics.jackknife(found.value[0, 0], found.deviation[0, 0]))
    assert_share(covers(over_patients), 0.93, 0.97)
    assert covers(over_images).mean() < 0.9


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(("images", "replicates"), [(50, 400), (500, 80)])
def test_permutation_tests_reject_one_null_in_twenty(images, replicates, blocks):
    """Five skewed measures a data set; with blocks, features and measures agree on the patient and on nothing else."""
    patients = np.arange(images) // 5
    rejects, rejects_family = [], []
    for seed in range(replicates):
        rng = np.random.default_rng((3, images, seed))
        shared = blocks * rng.exponential(size=patients[-1] + 1)[patients]
        layers = {}
        for width in (64, 2048):
            hidden = components(rng, images, width)
            hidden[:, 0] += shared
            layers[f"{width}"] = mix(hidden)
        measures = shared[:, None] + rng.exponential(size=(images, 5))
        splits = random_splits(images, 2, seed)
        found = permutation.permutation_test(
            layers, measures, splits, 199, seed, blocks=patients if blocks else None
        )
        rejects.append(found.p <= 0.05)
        scores = np.concatenate([found.observed[..., None], found.null], axis=-1)
        for one in range(5):
            family = permutation.compare_orders(scores[:, one : one + 1]).p_family
            rejects_family.append(family.min() <= 0.05)
    for layer in np.moveaxis(np.array(rejects), 1, 0):
        assert_share(layer, 0.04, 0.06)
    assert_share(rejects_family, 0.04, 0.06)
