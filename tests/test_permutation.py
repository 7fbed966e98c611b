import numpy as np
import pytest
from scipy import stats

from scalecov_jax.probes import evaluate, permutation
from scalecov_jax.probes.splits import grouped_splits, random_splits

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
    expected = evaluate.infer(features, measure, splits, alphas=ALPHAS).r2.mean(1)
    np.testing.assert_allclose(test.observed, expected, atol=1e-5)
    assert test.p[0, 0] == 1 / 200
    assert test.p_family[0, 0] < 0.05
    assert test.p[1, 0] > 0.05
    assert test.null.shape == (2, 1, 199)
    np.testing.assert_allclose(test.control, test.null.mean(-1))
    assert (test.p_family >= test.p - 1e-12).all()


def test_measures_are_permuted_alike():
    measures = np.arange(40.0).reshape(20, 2)
    drawn = permutation.Permuted.draw(measures, 50, 0).rows(np.arange(20))  # N B M
    assert (np.sort(drawn, axis=0) == measures[:, None]).all()
    assert len(np.unique(drawn[..., 0].T, axis=0)) == 50
    np.testing.assert_array_equal(drawn[..., 1], drawn[..., 0] + 1)
    features, measure = problem(0, count=20)
    twice = permutation.permutation_test(
        features, np.repeat(measure, 2, axis=1), random_splits(20, 2, seed=0), 30, alphas=ALPHAS
    )
    np.testing.assert_allclose(twice.null[:, 0], twice.null[:, 1], atol=1e-6)


GROUPS = np.array(["b", "a", "b", "c", "a", "b", "c", "d", "d", "e"])


def test_a_measure_of_the_patient_is_permuted_over_patients():
    age = np.array([{"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "e": 0.5}[group] for group in GROUPS])[:, None]
    drawn = permutation.Permuted.draw(age, 40, 0, GROUPS)
    assert permutation.exchanged(age, GROUPS) == "groups"
    for permuted in drawn.rows(np.arange(10))[..., 0].T:
        ages = [{*permuted[group == GROUPS]} for group in "abcde"]
        assert all(len(one) == 1 for one in ages)
        assert {next(iter(one)) for one in ages} == {*age[:, 0]}


def test_groups_of_one_size_exchange_all_that_they_have():
    groups = np.repeat(["x", "y", "z", "w"], 3)[[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]]
    measures = np.stack([np.arange(12.0), np.arange(12.0) ** 2], axis=1)
    drawn = permutation.Permuted.draw(measures, 300, 0, groups).rows(np.arange(12))  # N B M
    np.testing.assert_array_equal(drawn[..., 1], drawn[..., 0] ** 2)
    whole = {frozenset(measures[groups == group, 0]) for group in "xyzw"}
    seen = set()
    for permuted in drawn[..., 0].T:
        assert {frozenset(permuted[groups == group]) for group in "xyzw"} == whole
        seen.add(tuple(permuted[groups == "x"]))
    assert len(seen) == 24  # every order of the three images of every group


def test_groups_of_several_sizes_exchange_means_in_units_of_their_spread():
    rng = np.random.default_rng(0)
    measure = rng.normal(size=(10, 1))
    drawn = permutation.Permuted.draw(measure, 200, 0, GROUPS)
    assert permutation.exchanged(measure, GROUPS) == "groups, and images within groups"
    sizes, means = (
        np.array([f(measure[group == GROUPS, 0]) for group in "abcde"]) for f in (np.size, np.mean)
    )
    within = (
        sum(((measure[group == GROUPS] - measure[group == GROUPS].mean()) ** 2).sum() for group in "abcde")
        / 5
    )
    between = ((sizes * (means - measure.mean()) ** 2).sum() - 4 * within) / (10 - (sizes**2).sum() / 10)
    sd = np.sqrt(max(between, 0) + within / sizes)
    centre = np.average(means, weights=sd**-2)
    seen = set()
    for permuted in drawn.rows(np.arange(10))[..., 0].T:
        there = np.array([permuted[group == GROUPS].mean() for group in "abcde"])
        np.testing.assert_allclose(np.sort((there - centre) / sd), np.sort((means - centre) / sd))
        b = permuted[GROUPS == "b"] - there[1]
        np.testing.assert_allclose(np.sort(b), np.sort(measure[GROUPS == "b", 0] - means[1]), atol=1e-12)
        seen.add(tuple(np.round(b, 9)))
    assert len(seen) == 6  # every order of the three images of b


def test_orders_inside_groups_alone_are_counted_as_such():
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 3])
    measure = np.array([1.0, -1, 2, -2, 3, -3, 0, 0, 0])[:, None]
    permutation.Permuted.draw(measure, 20, 0, groups)  # 2 * 2 * 2 * 6 ways
    with pytest.raises(ValueError, match="in 8 ways only"):
        permutation.Permuted.draw(measure[:6], 20, 0, groups[:6])


def test_a_measure_with_equal_means_is_permuted_inside_patients():
    measure = np.array([1.0, 0, 0, 1, 1, -1, 0, 0, 1, 0.5])[:, None]
    for group in "abcde":
        measure[group == GROUPS] -= measure[group == GROUPS].mean()
    assert permutation.exchanged(measure, GROUPS) == "images within groups"
    drawn = permutation.Permuted.draw(measure, 30, 0, GROUPS).rows(np.arange(10))[..., 0]
    for group in "abcde":
        rows = group == GROUPS
        np.testing.assert_allclose(
            np.sort(drawn[rows], 0), np.repeat(np.sort(measure[rows], 0), 30, 1), atol=1e-12
        )


def test_a_measure_of_the_patient_that_features_read_is_found():
    """Permuted inside patients alone, nothing would change and p would be 1 whatever the features say."""
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(24), 3)
    age = rng.normal(size=24)[patients][:, None]
    features = {"reads": age + 0.3 * rng.normal(size=(72, 5)), "does not": rng.normal(size=(72, 5))}
    splits = grouped_splits(patients, 5, 0)
    test = permutation.permutation_test(features, age, splits, 99, groups=patients, alphas=ALPHAS)
    assert test.permuted == "groups"
    assert test.p[0, 0] == 0.01
    assert test.p[1, 0] > 0.05


def test_permuted_measures_may_be_constant_on_a_part_of_a_split():
    patients = np.repeat(np.arange(6), 4)
    grade = np.array([0.0, 0, 0, 0, 1, 2])[patients][:, None]
    features = {"a": np.random.default_rng(0).normal(size=(24, 3))}
    splits = np.stack([~np.isin(patients, held) for held in ((0, 4), (1, 5), (2, 5))])
    test = permutation.permutation_test(features, grade, splits, 50, groups=patients, alphas=ALPHAS)
    assert np.isfinite(test.null).all()


@pytest.mark.parametrize(
    ("permutations", "groups", "message"),
    [
        (18, None, "cannot show p of 5 %"),
        (99, np.arange(40) // 14, r"40 images in 3 groups can be permuted in 6 ways only"),
        (99, np.arange(3), "3 groups for 40 images"),
    ],
)
def test_what_cannot_be_permuted(permutations, groups, message):
    features, measure = problem(0)
    if groups is not None and len(groups) == 40:
        measure = groups[:, None].astype(float)
    with pytest.raises(ValueError, match=message):
        permutation.permutation_test(
            features, measure, random_splits(40, 2, seed=0), permutations, groups=groups
        )
