import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import lstsq
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from scalecov_jax.probes import batch, linear
from scalecov_jax.probes.splits import random_splits, shuffled

WIDTHS = (16, 64, 97, 256, 768)
N = 150  # 105 to train: D < n, D ~ n and D > n


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(N, 12))
    features = {}
    for width in WIDTHS:
        values = np.tanh(latent @ rng.normal(size=(12, width)) / 3) + 0.1 * rng.normal(size=(N, width))
        values[:, 0] = 0.7  # a dead channel
        values[:, 1] = values[:, 2]  # a duplicate
        features[f"width_{width}"] = (values * rng.lognormal(sigma=2, size=width)).astype(np.float32)
    measure = latent[:, 0] + 0.3 * np.square(latent[:, 1]) + 0.1 * rng.normal(size=N)
    splits = random_splits(N, 4, seed=1)
    return features, np.stack([np.tile(measure, (4, 1)), shuffled(measure, 4, seed=1)], axis=-1), splits


def sklearn_scores(features, targets, train, alphas):
    """The same loop with scikit-learn, in float64: (ols, ridge, alpha), each one a target."""
    scaler = StandardScaler().fit(features[train].astype(np.float64))
    x, x_test = (scaler.transform(features[part].astype(np.float64)) for part in (train, ~train))
    rows = []
    for y in targets.T:
        ols = LinearRegression(tol=1e-6).fit(x, y[train])
        # LinearRegression keeps what is only float32 rounding; the same cut as ours belongs to the definition.
        weights = lstsq(x - x.mean(0), y[train] - y[train].mean(), cond=1e-6)[0]
        assert ols.rank_ >= 1
        ridge = RidgeCV(alphas).fit(x, y[train])
        predicted = x_test @ weights + y[train].mean()
        rows.append(
            (r2_score(y[~train], predicted), r2_score(y[~train], ridge.predict(x_test)), ridge.alpha_)
        )
    return np.transpose(rows)


def test_equals_scikit_learn(problem):
    features, targets, splits = problem
    scores = batch.score_layers(features, targets, splits)
    for layer, values in enumerate(features.values()):
        for split, train in enumerate(splits):
            ols, ridge, alpha = sklearn_scores(values, targets[split], train, batch.ALPHAS)
            np.testing.assert_allclose(scores.ridge[layer, split], ridge, atol=1e-6)
            np.testing.assert_allclose(scores.alpha[layer, split], alpha)
            # Least squares amplifies rounding where D ~ n, the more the worse it predicts.
            np.testing.assert_allclose(scores.ols[layer, split], ols, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alphas", [[1e-6], [1e-3, 1.0], [1e8]])
def test_extreme_penalties_equal_scikit_learn(problem, alphas):
    features, targets, splits = problem
    scores = batch.score_layers(features, targets[:1], splits[:1], np.array(alphas))
    for layer, values in enumerate(features.values()):
        _, ridge, alpha = sklearn_scores(values, targets[0], splits[0], alphas)
        np.testing.assert_allclose(scores.ridge[layer, 0], ridge, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(scores.alpha[layer, 0], alpha)


def test_least_squares_dips_where_width_meets_images():
    """Random targets: R2 of least squares is about -D / (n - D - 2) below n and -n / (D - n - 1) above (METHODS 1.4)."""
    rng = np.random.default_rng(0)
    n, splits = 143, random_splits(143, 20, seed=0)
    assert splits[0].sum() == 100
    features = {str(width): rng.normal(size=(n, width)).astype(np.float32) for width in (50, 98, 300)}
    targets = np.tile(rng.normal(size=(n, 1)), (20, 1, 1))
    scores = batch.score_layers(features, targets, splits)
    narrow, equal, wide = scores.ols.mean((1, 2))
    assert equal < -10
    assert -2.0 < narrow < -0.5
    assert -1.2 < wide < -0.2
    assert scores.ridge.mean((1, 2)).min() > -0.2


def test_parts_may_differ_in_size(problem):
    features, targets, _ = problem
    splits = np.ones((2, N), bool)
    splits[0, :30], splits[1, 50:120] = False, False
    together = batch.score_layers(features, targets[:2], splits)
    for split in range(2):
        alone = batch.score_layers(features, targets[split : split + 1], splits[split : split + 1])
        for both, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(both[:, split], one[:, 0], rtol=1e-8, atol=1e-9)


def test_scores_do_not_depend_on_order_or_scale(problem):
    features, targets, splits = problem
    order = np.random.default_rng(3).permutation(N)
    permuted = batch.score_layers(
        {layer: 8 * values[order] for layer, values in features.items()}, targets[:, order], splits[:, order]
    )
    scores = batch.score_layers(features, targets, splits)
    np.testing.assert_allclose(permuted.ridge, scores.ridge, atol=1e-8)
    np.testing.assert_allclose(permuted.alpha, scores.alpha)


@pytest.mark.parametrize(
    "fit", [linear.fit_ols, lambda x, y: linear.fit_ridge(x, y, jnp.asarray(batch.ALPHAS))]
)
def test_single_probe_agrees_with_the_batch(problem, fit):
    features, targets, splits = problem
    train = splits[0]
    scores = batch.score_layers(features, targets[:1], splits[:1])
    with jax.enable_x64(True):
        for layer, values in enumerate(features.values()):
            x = values.astype(np.float64)
            probe = jax.jit(fit)(x[train], targets[0][train])
            predicted = np.asarray(jax.jit(linear.predict)(probe, x[~train]))
            r2 = r2_score(targets[0][~train], predicted, multioutput="raw_values")
            expected = scores.ols if probe.alpha[0] == 0 else scores.ridge
            np.testing.assert_allclose(r2, expected[layer, 0], rtol=1e-5, atol=1e-6)


def test_one_compilation_a_problem(problem):
    features, targets, splits = problem
    batch.score_layers(features, targets, splits)
    before = batch._score._cache_size()
    batch.score_layers(features, targets + 1, splits[::-1])
    assert batch._score._cache_size() == before


def test_constant_features_score_zero_and_are_never_nan(problem):
    _, targets, splits = problem
    scores = batch.score_layers({"dead": np.full((N, 8), 0.1, np.float32)}, targets, splits)
    assert np.isfinite(scores).all()
    assert (scores.ridge <= 0).all()
    np.testing.assert_allclose(scores.ridge, scores.ols)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, t, s: (f | {"bad": np.full((N, 3), np.nan, np.float32)}, t, s), "layers bad hold NaN"),
        (lambda f, t, s: (f, np.where(t == t[0, 0, 0], np.inf, t), s), "targets hold NaN"),
        (lambda f, t, s: (f, np.ones_like(t), s), "constant on the training part of split 0"),
        (lambda f, t, s: (f, t, np.ones_like(s)), "held-out part of split 0 has 0 images"),
    ],
)
def test_bad_input_is_named(problem, change, message):
    with pytest.raises(ValueError, match=message):
        batch.score_layers(*change(*problem))


def test_penalties_must_be_positive(problem):
    with pytest.raises(ValueError, match="must be positive"):
        batch.score_layers(*problem, np.array([0.0, 1.0]))


def test_random_splits():
    splits = random_splits(334, 25, seed=0)
    assert splits.shape == (25, 334)
    assert set(splits.sum(1)) == {233}
    np.testing.assert_array_equal(splits[:5], random_splits(334, 5, seed=0))
    assert (random_splits(334, 5, seed=1) != splits[:5]).any()
    with pytest.raises(ValueError, match="both need at least 2"):
        random_splits(3, 1, seed=0)


def test_shuffled_keeps_the_values():
    values = np.arange(50.0)
    permuted = shuffled(values, 3, seed=0)
    np.testing.assert_array_equal(np.sort(permuted, axis=1), np.tile(values, (3, 1)))
    assert (permuted != values).any(1).all()
