"""The generic harness: equal to the batch, whatever the splits, and clear about what it cannot use."""

import re
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from scalecov_jax.probes import evaluate, logistic, splits
from scalecov_jax.probes.contract import Probe, check_problem
from scalecov_jax.probes.probe import PROBES, cross_validate

N = 60
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(N, 4))
    features = {
        f"width_{width}": (np.tanh(latent @ rng.normal(size=(4, width)) / 2)).astype(np.float32)
        + 0.1 * rng.normal(size=(N, width)).astype(np.float32)
        for width in (7, 90)
    }
    masks = splits.random_splits(N, 3, seed=1)
    measure = latent[:, 0] + 0.2 * rng.normal(size=N)
    targets = np.stack([np.tile(measure, (3, 1)), splits.shuffled(measure, 3, seed=1)], axis=-1)
    return features, targets, masks


def binary(targets):
    return (targets > 0).astype(float)


def tiled(measure, masks):
    return np.tile(measure[:, None], (len(masks), 1, 1))


@pytest.mark.parametrize("scaling", ["each", "common"])
@pytest.mark.parametrize("name", ["ridge", "ols"])
def test_linear_probes_equal_the_batch(problem, name, scaling):
    expected = getattr(evaluate.score_layers(*problem, scaling=scaling), name)
    np.testing.assert_allclose(cross_validate(PROBES[name], *problem, scaling=scaling), expected, atol=1e-10)


@pytest.mark.parametrize("kind", get_args(splits.Kind))
def test_every_kind_of_split_can_be_probed(problem, kind):
    features, targets, _ = problem
    features, measure = {"width_7": features["width_7"]}, targets[0, :, 0]
    masks = splits.make_splits(kind, N, 3, 0, groups=np.arange(N) % 4, values=measure)
    targets = tiled(measure, masks)
    scores = cross_validate(PROBES["ridge"], features, targets, masks)
    np.testing.assert_allclose(scores, evaluate.score_layers(features, targets, masks).ridge, atol=1e-10)


@pytest.mark.parametrize("name", PROBES)
def test_a_constant_feature_changes_nothing(problem, name):
    features, targets, masks = problem
    x = features["width_7"]
    widened = {"width_8": np.concatenate([x, np.full((N, 1), 0.7, np.float32)], axis=1)}
    scores = [
        cross_validate(PROBES[name], layers, binary(targets), masks) for layers in ({"width_7": x}, widened)
    ]
    np.testing.assert_allclose(*scores, atol=1e-7)
    assert scores[0][..., 0].mean() > (0.0 if name == "ols" else 0.2)  # the measure is there to be read


@pytest.mark.parametrize("name", PROBES)
def test_dead_duplicated_and_collinear_features_give_finite_scores(problem, name):
    features, targets, masks = problem
    x = features["width_7"]
    layers = {
        "dead": np.full((N, 7), 0.1, np.float32),
        "duplicated": np.concatenate([x, x[:, :1]], axis=1),
        "collinear": x[:, :1] * np.arange(1, 8, dtype=np.float32),
    }
    scores = cross_validate(PROBES[name], layers, binary(targets), masks)
    assert np.isfinite(scores).all()
    assert (scores[0] <= 1e-9).all()


@pytest.mark.parametrize("name", PROBES)
def test_eight_images_in_parts_of_unequal_size(problem, name):
    features, targets, _ = problem
    some = np.concatenate(
        [np.flatnonzero(targets[0, :, 0] > 0)[:4], np.flatnonzero(targets[0, :, 0] < 0)[:4]]
    )
    masks = splits.leave_one_group_out([*"aaabaabb"])
    measure = binary(targets[0, some, 0])
    scores = cross_validate(
        PROBES[name], {"width_90": features["width_90"][some]}, tiled(measure, masks), masks
    )
    assert scores.shape == (1, 2, 1)
    assert np.isfinite(scores).all()


def nearest(z, y):
    return z, y


def mean_of_nearest(fit, z):
    rows, y = fit
    distance = jnp.square(z[:, None] - rows[None]).sum(-1)
    return y[jnp.argsort(distance, axis=1)[:, :3]].mean(1)


def test_a_custom_probe_equals_scikit_learn(problem):
    features, targets, masks = problem
    scores = cross_validate(Probe("nearest", nearest, mean_of_nearest), *problem)
    for layer, values in enumerate(features.values()):
        for split, train in enumerate(masks):
            x = StandardScaler().fit_transform(values.astype(float))
            oracle = KNeighborsRegressor(3).fit(x[train], targets[split][train])
            expected = [
                1 - np.square(error).sum() / np.square(y - y.mean()).sum()
                for error, y in zip(
                    (oracle.predict(x[~train]) - targets[split][~train]).T,
                    targets[split][~train].T,
                    strict=True,
                )
            ]
            np.testing.assert_allclose(scores[layer, split], expected, rtol=1e-9)


def test_one_trace_a_width_and_training_size(problem, capsys):
    features, targets, masks = problem
    traced = []

    def fit(z, y):
        traced.append(z.shape)
        return z, y

    custom = Probe("counted", fit, mean_of_nearest)
    masks = np.concatenate([masks, splits.random_splits(N, 2, seed=1, held_out=0.5)])
    targets = np.concatenate([targets, targets[:2]])
    layers = features | {"again": features["width_7"]}
    scores = cross_validate(custom, layers, targets, masks, progress="neighbours")
    assert "neighbours: 100%" in capsys.readouterr().err
    assert sorted(traced) == [(30, 7), (30, 90), (42, 7), (42, 90)]
    np.testing.assert_array_equal(scores[0], scores[2])
    np.testing.assert_allclose(scores[:2, :3], cross_validate(custom, features, targets[:3], masks[:3]))
    assert len(traced) == 4


@pytest.mark.parametrize(
    ("fit", "predict", "message"),
    [
        (
            nearest,
            lambda fit, z: fit[1][0, 0] + z[:, 0],
            r"'mine' cannot be used on layer 'width_7', where fit gets features \[42, 7\] and targets \[42, 2\] and predict gets "
            r"features \[18, 7\]: .*predict returns float64 \[18\]; expected floats \[18, 2\]",
        ),
        (nearest, lambda fit, z: (z, z), r"predict returns tuple; expected an array \[18, 2\]"),
        (nearest, lambda fit, z: jnp.argsort(z, axis=0)[:, :2], r"predict returns int64 \[18, 2\]"),
        (nearest, lambda fit, z: z @ fit[1], r"cannot be used on layer 'width_7'.*TypeError: dot_general"),
        (
            lambda z, y: RandomForestRegressor(1).fit(z, y),
            lambda fit, z: fit.predict(z),
            r"it is not pure JAX \(TracerArrayConversionError\); write it with jax.numpy",
        ),
        (
            lambda z, y: z if z.mean() > 0 else -z,
            lambda fit, z: z[:, :2],
            r"not pure JAX \(TracerBoolConversionError\)",
        ),
    ],
)
def test_a_probe_that_cannot_be_used_is_told_why(problem, fit, predict, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        cross_validate(Probe("mine", fit, predict), *problem)


def test_predictions_that_are_not_finite_are_named_whatever_the_score(problem):
    features, targets, masks = problem
    broken = Probe("broken", nearest, lambda fit, z: jnp.log(z[:, :2]))
    with pytest.raises(
        ValueError, match=r"'broken' gives NaN or infinity on layer 'width_7' .*split 0, 1, 2;"
    ):
        cross_validate(broken, features, binary(targets), masks, score=logistic.accuracy)


def test_nothing_is_computed_before_all_layers_were_tried(problem):
    ran = []

    def fit(z, y):
        jax.debug.callback(lambda: ran.append(z.shape))
        return z, y

    def predict(fit, z):
        assert z.shape[1] == 7, "only seven"
        return z[:, :2]

    with pytest.raises(ValueError, match=r"on layer 'width_90'.*AssertionError: only seven"):
        cross_validate(Probe("seven", fit, predict), *problem)
    assert not ran


def test_a_score_must_be_one_number_a_target(problem):
    with pytest.raises(ValueError, match=r"score returns float64 \[\]; expected floats \[2\]"):
        cross_validate(PROBES["ridge"], *problem, score=lambda predictions, y: (predictions - y).mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, t, s: ({}, t, s), "There is no layer"),
        (lambda f, t, s: (f, t[0], s), r"Targets must be \[S, N, M\] = \[3, 60, 1\].*got \[60, 2\]"),
        (lambda f, t, s: (f, t, s.astype(int)), r"booleans.*got int64 \[3, 60\]"),
        (
            lambda f, t, s: (f | {"short": np.ones((4, 2))}, t, s),
            r"60 images of the splits, got \[4, 2\] for short",
        ),
        (lambda f, t, s: (f | {"bad": np.full((N, 3), np.nan)}, t, s), "layers bad hold NaN"),
        (lambda f, t, s: (f, np.where(t == t[0, 0, 0], np.inf, t), s), "targets hold NaN"),
        (lambda f, t, s: (f, np.ones_like(t), s), "constant on the training part of split 0, 1, 2: R2"),
        (lambda f, t, s: (f, t, np.ones_like(s)), "held-out part of split 0 has 0 images, split 1 has 0"),
    ],
)
def test_bad_input_is_named(problem, change, message):
    with pytest.raises(ValueError, match=message):
        check_problem(*change(*problem))


def test_all_problems_are_named_at_once(problem):
    features, targets, masks = problem
    with pytest.raises(ValueError, match=r"layers bad hold NaN.*\n.*targets hold NaN"):
        check_problem(features | {"bad": np.full((N, 3), np.inf)}, targets * np.nan, masks)


def test_a_measure_that_is_constant_in_a_group_is_refused_with_advice(problem):
    features, targets, _ = problem
    measure = np.where(np.arange(N) < 20, 1.0, targets[0, :, 0])
    masks = splits.leave_one_group_out(np.arange(N) // 20)
    with pytest.raises(
        ValueError, match=r"constant on the held-out part of split 0: .*fewer folds.*stratified"
    ):
        cross_validate(PROBES["ridge"], features, tiled(measure, masks), masks)


def test_fits_stay_on_the_device_that_was_chosen():
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu), evaluate.float64():
        assert jax.config.jax_default_device == cpu
        assert jnp.ones(1).dtype == np.float64
