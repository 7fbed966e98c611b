"""Heads by gradient descent: least squares in px, every seed as alone; and the sweep over layers by both heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from tiny_heads import LONG, SEEDS, D, N, make_problem, predict

from scalecov_jax.probes import evaluate
from scalecov_jax.transfer import heads


@pytest.fixture(scope="module")
def problem():
    return make_problem(N, D, len(SEEDS))


@pytest.fixture(scope="module")
def trained(problem):
    return heads.train_heads(*problem, SEEDS, **LONG)


def test_training_reaches_least_squares_in_px(problem, trained):
    features, targets, train = problem
    assert 450 < targets.mean() < 550
    assert 250 < targets.std() < 350
    for row, part in enumerate(train):
        x = StandardScaler().fit(features[part]).transform(features)
        expected = LinearRegression().fit(x[part], targets[part]).predict(x)
        predicted = predict(trained, features)[row]
        for rows in (part, ~part):
            assert (
                abs(r2_score(targets[rows], predicted[rows]) - r2_score(targets[rows], expected[rows])) < 5e-3
            )
        error = np.square(predicted - targets)[part].mean()
        np.testing.assert_allclose(trained.losses[row, -1], error, rtol=0.15)
    assert (trained.losses[:, -1] < 0.3 * trained.losses[:, 0]).all()


def test_same_seeds_same_bits(problem, trained):
    for a, b in zip(trained, heads.train_heads(*problem, SEEDS, **LONG), strict=True):
        np.testing.assert_array_equal(a, b)


def test_seeds_together_equal_each_alone(problem, trained):
    features, targets, train = problem
    for row, seed in enumerate(SEEDS):
        alone = heads.train_heads(features, targets, train[row : row + 1], [seed], **LONG)
        for both, one in zip(trained, alone, strict=True):
            np.testing.assert_allclose(both[row], one[0], rtol=1e-5, atol=1e-5 * np.abs(one[0]).max())


def test_seeds_differ_in_their_initial_kernel_alone(problem):
    features, targets, train = problem
    seeds = (0, 1, 1, *SEEDS[3:])
    fit = heads.train_heads(features, targets, np.tile(train[1], (10, 1)), seeds, learning_rate=1e-6, **LONG)
    assert (fit.kernel[0, 3:] != fit.kernel[1, 3:]).all()
    for part in fit:
        np.testing.assert_array_equal(part[1], part[2])
    initial = jax.nn.initializers.glorot_uniform()(jax.random.key(1), (D, 1))[3:, 0]
    expected = initial * targets[train[1]].std() / features[train[1]].std(0)[3:]
    np.testing.assert_allclose(fit.kernel[1, 3:], expected, rtol=0.02)


def test_rows_outside_the_mask_have_no_influence(problem):
    features, targets, train = problem
    train = train[:1]
    others = ~train[0]
    changed, changed_targets = features.copy(), targets.copy()
    changed[others] = 1e4 * changed[others][::-1] + 3
    changed_targets[others] = -1e6
    fits = [
        heads.train_heads(*both, train, [7], **LONG)
        for both in ((features, targets), (changed, changed_targets))
    ]
    for a, b in zip(*fits, strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_of_other_seeds_have_no_influence(problem, trained):
    """They enter the standardisation that all seeds share, but only as rounding."""
    features, targets, train = problem
    changed, changed_targets = features.copy(), targets.copy()
    changed[~train[0]] *= 3
    changed_targets[~train[0]] = 20.0
    fit = heads.train_heads(changed, changed_targets, train, SEEDS, **LONG)
    np.testing.assert_allclose(
        predict(fit, features)[0, train[0]], predict(trained, features)[0, train[0]], rtol=1e-4, atol=0.01
    )


def test_dead_features_are_never_nan(problem, trained):
    _, targets, train = problem
    assert all(np.isfinite(part).all() for part in trained)
    assert (trained.kernel[:, 1] == 0).all()
    assert trained.kernel[0, 2] == 0
    dead = np.full((N, D), 0.1, np.float32)
    fit = heads.train_heads(dead, targets, train, SEEDS, **LONG)
    means = np.array([targets[part].mean() for part in train])
    np.testing.assert_allclose(predict(fit, dead)[:, 0], means, rtol=0.05)


def test_what_varies_by_rounding_alone_is_constant(problem):
    _, targets, train = problem
    noise = (1000 + 1e-4 * np.random.default_rng(0).normal(size=(N, D))).astype(np.float32)
    assert len(np.unique(noise)) > 1
    fit = heads.train_heads(noise, targets, train, SEEDS, **LONG)
    assert not fit.kernel.any()


def test_jax_arrays_and_numeric_masks_are_the_same(problem, trained):
    features, targets, train = problem
    mask = jnp.asarray(train, jnp.float32)
    same = heads.train_heads(jnp.asarray(features), jnp.asarray(targets), mask, SEEDS, **LONG)
    assert same.losses.shape == (len(SEEDS), LONG["epochs"])
    np.testing.assert_array_equal(trained.kernel, same.kernel)


@pytest.mark.parametrize("head", ["ridge", "head"])
def test_sweep(problem, capsys, head):
    features, targets, train = problem
    settings = LONG if head == "head" else {}
    layers = {"wide": features, "narrow": features[:, :7], "other": features[::-1].copy()}
    predictions = heads.sweep(layers, targets, train, SEEDS, head=head, **settings, progress=True)
    assert "layer" in capsys.readouterr().err
    backwards = heads.sweep(dict(reversed(layers.items())), targets, train, SEEDS, head=head, **settings)
    assert capsys.readouterr().err == ""
    assert list(predictions) == list(layers)
    for name, swept in predictions.items():
        assert swept.predicted.shape == (len(SEEDS), N)
        np.testing.assert_array_equal(swept.predicted, backwards[name].predicted)
    narrow = features[:, :7]
    if head == "ridge":
        fit = evaluate.fit(narrow, targets[:, None], train)
        expected = fit.weights[:, :, 0] @ narrow.T.astype(np.float64) + fit.intercept
    else:
        expected = predict(heads.train_heads(narrow, targets, train, SEEDS, **LONG), narrow)
    np.testing.assert_allclose(predictions["narrow"].predicted, expected, rtol=1e-12, atol=1e-9)


def test_one_compilation_a_shape(problem):
    features, targets, train = problem
    heads.train_heads(features, targets, train, SEEDS, **LONG)
    before = heads._train.program()._cache_size()
    heads.train_heads(features + 1, targets, train[::-1], SEEDS[::-1], learning_rate=1e-3, **LONG)
    assert heads._train.program()._cache_size() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, t, m: (np.where(f == f[5, 3], np.nan, f), t, m), r"features: 1 of .* first at \[5, 3\]"),
        (lambda f, t, m: (f, np.where(t == t[4], np.inf, t), m), r"targets: 1 of 600 .* first at \[4\]"),
        (
            lambda f, t, m: (f, np.full_like(t, 50), m),
            "targets: all equal 50.0 on the training part of mask 0",
        ),
        (lambda f, t, m: (f, t, m & (np.arange(N) < 0)), "mask 9 selects 0 rows"),
        (lambda f, t, m: (f, t, 0.5 * m.astype(np.float32)), "only 0 and 1 are allowed, got 0.5"),
        (lambda f, t, m: (f, t, m[:2]), "got 10 for 2 training masks"),
    ],
)
def test_bad_input_is_named(problem, change, message):
    changed = change(*problem)
    with pytest.raises(ValueError, match=message):
        heads.train_heads(*changed, SEEDS)
    with pytest.raises(ValueError, match=message.replace("features", "bad")):
        heads.sweep({"good": problem[0], "bad": changed[0]}, *changed[1:], SEEDS, head="ridge")


def test_bad_settings(problem):
    features, targets, train = problem
    with pytest.raises(ValueError, match="epochs, batch_size and learning_rate must be positive, got 0"):
        heads.train_heads(features, targets, train, SEEDS, epochs=0)
    with pytest.raises(TypeError, match="epochs"):
        heads.sweep({"a": features}, targets, train, SEEDS, head="ridge", epochs=3)


def test_overflow_names_seed_epoch_and_layer(problem):
    features, targets, train = problem
    with pytest.raises(FloatingPointError, match="loss of seed 3 is not finite from epoch 0 of 150") as error:
        heads.sweep({"mixed3": features}, targets, train, SEEDS, head="head", learning_rate=1e30, **LONG)
    assert error.value.__notes__ == ["In layer mixed3."]
