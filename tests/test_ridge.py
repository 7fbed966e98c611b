"""Ridge, least squares and what follows from them, against refitting everything with scikit-learn in float64."""

import jax
import numpy as np
import pytest
from scipy.linalg import lstsq
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from scalecov_jax.probes import evaluate, ridge
from scalecov_jax.probes.permutation import shuffled
from scalecov_jax.probes.route import memory_bytes
from scalecov_jax.probes.splits import grouped_splits, leave_one_group_out, random_splits

N = 60
ALPHAS = np.logspace(-2, 5, 8)
GROUPS = np.concatenate([np.arange(30), 30 + np.arange(30) // 5])  # 30 single images and 6 patients with 5


def make_features(rng, count, width, latent):
    """Features of some latent variables: constant, duplicated and nearly silent ones among them, of very different sizes."""
    values = np.tanh(latent @ rng.normal(size=(latent.shape[1], width)) / 2) + 0.3 * rng.normal(
        size=(count, width)
    )
    if width > 3:
        values[:, 0] = 0.7
        values[:, 1] = values[:, 2]
        values[:, 3] = 0
        values[rng.integers(count), 3] = 1
    return (values * rng.lognormal(sigma=2, size=width)).astype(np.float32)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(N, 5))
    features = {f"width_{width}": make_features(rng, N, width, latent) for width in (12, 42, 200)}
    measures = np.stack([latent[:, 0] + 0.4 * rng.normal(size=N), rng.normal(size=N)], axis=1)
    return features, measures


def standardised(features):
    return {layer: StandardScaler().fit_transform(x.astype(np.float64)) for layer, x in features.items()}


SPLITS = {
    "random": random_splits(N, 3, seed=1),
    "unequal": grouped_splits(GROUPS, 3, seed=2),
    "groups": leave_one_group_out(np.arange(N) // 12),
    "small_training_parts": ~random_splits(N, 3, seed=4),
}


@pytest.fixture(scope="module", params=list(SPLITS))
def inferred(request, problem):
    features, measures = problem
    splits = SPLITS[request.param]
    return *problem, splits, evaluate.infer(features, measures, splits, GROUPS, alphas=ALPHAS)


def test_held_out_r2_and_penalty_equal_scikit_learn(inferred):
    features, measures, splits, found = inferred
    for layer, x in enumerate(standardised(features).values()):
        for split, train in enumerate(splits):
            for target, y in enumerate(measures.T):
                peer = RidgeCV(ALPHAS, store_cv_results=True).fit(x[train], y[train])
                r2 = r2_score(y[~train], peer.predict(x[~train]))
                np.testing.assert_allclose(found.r2[layer, split, target], r2, rtol=1e-9, atol=1e-9)
                np.testing.assert_allclose(found.alpha[layer, split, target], peer.alpha_)
                inner = 1 - peer.cv_results_.mean(0).min() / y[train].var()
                np.testing.assert_allclose(found.inner[layer, split, target], inner, atol=1e-9)


@pytest.mark.parametrize(
    ("count", "widths"),
    [(10, (1, 5, 50)), (110, (1, 30, 77, 300)), (334, (64, 256, 4096)), (2000, (64,))],
)
@pytest.mark.parametrize("signal", [1.0, 0.0])
def test_any_size_equals_scikit_learn(count, widths, signal):
    """Where a layer reads the measure few penalties are tried, else all: either way those of scikit-learn win."""
    rng = np.random.default_rng(count)
    latent = rng.normal(size=(count, 8))
    features = {str(width): make_features(rng, count, width, latent) for width in widths}
    y = signal * latent[:, 0] + (0.4 if signal else 1) * rng.normal(size=count)
    splits = random_splits(count, 5 if count < 1000 else 1, seed=count)
    found = evaluate.held_out(features, y[:, None], splits)
    for layer, x in enumerate(standardised(features).values()):
        for split, train in enumerate(splits):
            peer = RidgeCV(evaluate.ALPHAS).fit(x[train], y[train])
            assert found.alpha[layer, split, 0] == pytest.approx(peer.alpha_)
            r2 = r2_score(y[~train], peer.predict(x[~train]))
            np.testing.assert_allclose(found.r2[layer, split, 0], r2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("alphas", [[1e-6], [1e-3, 1.0], [1e8]])
def test_extreme_penalties_equal_scikit_learn(problem, alphas):
    features, measures = problem
    train, y = SPLITS["random"][0], measures[:, 0]
    found = evaluate.held_out(features, measures[:, :1], SPLITS["random"][:1], alphas=np.array(alphas))
    for layer, x in enumerate(standardised(features).values()):
        peer = RidgeCV(alphas).fit(x[train], y[train])
        r2 = r2_score(y[~train], peer.predict(x[~train]))
        np.testing.assert_allclose(found.r2[layer, 0, 0], r2, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.alpha[layer, 0, 0], peer.alpha_)


def test_least_squares_of_minimum_norm_equals_lapack(problem):
    features, measures = problem
    splits = SPLITS["random"]
    control = shuffled(measures, len(splits), seed=1)
    both = evaluate.score_layers(features, np.concatenate([np.tile(measures, (3, 1, 1)), control], 2), splits)
    inferred = evaluate.infer(features, measures, splits, shuffled=control, alphas=evaluate.ALPHAS)
    for values, name in ((inferred.ols, "ols"), (inferred.r2, "ridge"), (inferred.alpha, "alpha")):
        np.testing.assert_allclose(values, getattr(both, name), atol=1e-9)
    for layer, x in enumerate(standardised(features).values()):
        for split, train in enumerate(splits):
            for target, y in enumerate(np.concatenate([measures, control[split]], axis=1).T):
                # LinearRegression keeps what is only float32 rounding; the same cut as ours belongs to the definition.
                mean = x[train].mean(0)
                weights = lstsq(x[train] - mean, y[train] - y[train].mean(), cond=ridge.ABSENT)[0]
                r2 = r2_score(y[~train], (x[~train] - mean) @ weights + y[train].mean())
                np.testing.assert_allclose(both.ols[layer, split, target], r2, rtol=1e-6, atol=1e-6)
                peer = RidgeCV(evaluate.ALPHAS).fit(x[train], y[train])
                r2 = r2_score(y[~train], peer.predict(x[~train]))
                np.testing.assert_allclose(both.ridge[layer, split, target], r2, rtol=1e-9, atol=1e-9)


def test_least_squares_dips_where_width_meets_images():
    """Random targets: R2 of least squares is about -D / (n - D - 2) below n and -n / (D - n - 1) above (METHODS 1.4)."""
    rng = np.random.default_rng(0)
    splits = random_splits(143, 20, seed=0)
    assert splits[0].sum() == 100
    features = {str(width): rng.normal(size=(143, width)).astype(np.float32) for width in (50, 98, 300)}
    scores = evaluate.score_layers(features, rng.normal(size=(143, 1)), splits)
    narrow, equal, wide = scores.ols.mean((1, 2))
    assert equal < -10
    assert -2.0 < narrow < -0.5
    assert -1.2 < wide < -0.2
    assert scores.ridge.mean((1, 2)).min() > -0.2


def test_experiment_without_a_group_equals_refitting(inferred):
    features, measures, splits, found = inferred
    for layer, values in enumerate(standardised(features).values()):
        for split, train in enumerate(splits):
            for group in (0, 7, 30, 35):
                keep = group != GROUPS
                y = measures[:, 0]
                peer = Ridge(found.alpha[layer, split, 0]).fit(values[train & keep], y[train & keep])
                r2 = r2_score(y[~train & keep], peer.predict(values[~train & keep]))
                np.testing.assert_allclose(found.without[layer, split, group, 0], r2, rtol=1e-8, atol=1e-9)
    assert found.defined.all()


def test_dual_coefficients_are_those_of_each_training_part(inferred):
    features, measures, splits, found = inferred
    for layer, x in enumerate(standardised(features).values()):
        for split, train in enumerate(splits):
            peer = Ridge(found.alpha[layer, split, 1]).fit(x[train], measures[train, 1])
            assert not found.dual[layer, split, ~train].any()
            weights = x.T @ found.dual[layer, split, :, 1]
            np.testing.assert_allclose(weights, peer.coef_, rtol=1e-7, atol=1e-9)
        whole = Ridge(found.alpha_all[layer, 1]).fit(x, measures[:, 1])
        np.testing.assert_allclose(x.T @ found.dual_all[layer, :, 1], whole.coef_, rtol=1e-7, atol=1e-9)


def test_leave_one_out_equals_refitting(problem):
    features, measures = problem
    found = evaluate.infer(features, measures, SPLITS["random"], alphas=ALPHAS)
    y = measures[:, 0]
    for layer, x in enumerate(standardised(features).values()):
        alpha = RidgeCV(ALPHAS).fit(x, y).alpha_
        assert found.alpha_all[layer, 0] == alpha
        for image in (0, 17, 59):
            rest = np.arange(N) != image
            error = y[image] - Ridge(alpha).fit(x[rest], y[rest]).predict(x[[image]])[0]
            np.testing.assert_allclose(found.errors[layer, image, 0], error, rtol=1e-8, atol=1e-10)
        hat = 1 / N + x @ np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T)
        np.testing.assert_allclose(found.leverage[layer, :, 0], np.diag(hat), atol=1e-9)
        np.testing.assert_allclose(found.dof[layer, 0], np.trace(hat), rtol=1e-8)


def test_groups_that_are_the_whole_held_out_part_leave_it_undefined(problem):
    features, measures = problem
    groups = np.arange(N) // 12
    found = evaluate.infer(features, measures, leave_one_group_out(groups), groups, alphas=ALPHAS)
    np.testing.assert_array_equal(found.defined[..., 0], ~np.eye(5, dtype=bool))
    assert np.isfinite(found.without).all()


@pytest.mark.parametrize("splits", ["random", "small_training_parts"])
def test_nuisances_are_fitted_beside_the_intercept(problem, splits):
    features, measures = problem
    splits, y = SPLITS[splits], measures[:, 0]
    nuisances = np.random.default_rng(3).normal(size=(N, 2)) + 5
    both = np.concatenate([nuisances, nuisances @ [[2.0], [3.0]], np.full((N, 1), 4.0)], axis=1)
    found = evaluate.infer(features, measures, splits, nuisances=both, alphas=ALPHAS)
    alone = evaluate.infer({"none": np.zeros((N, 3))}, measures, splits, nuisances=both, alphas=ALPHAS)
    for split, train in enumerate(splits):
        plain = LinearRegression().fit(nuisances[train], y[train])
        r2 = r2_score(y[~train], plain.predict(nuisances[~train]))
        np.testing.assert_allclose(alone.r2[0, split, 0], r2, atol=1e-9)
        for layer, x in enumerate(standardised(features).values()):
            w = np.c_[np.ones(N), nuisances]
            # Ridge on what is left of features and measure after a regression on the nuisances of the training part.
            project = np.eye(train.sum()) - w[train] @ np.linalg.pinv(w[train])
            alpha = found.alpha[layer, split, 0]
            gram = x[train].T @ project @ x[train] + alpha * np.eye(x.shape[1])
            slope = np.linalg.solve(gram, x[train].T @ project @ y[train])
            rest = np.linalg.pinv(w[train]) @ (y[train] - x[train] @ slope)
            r2 = r2_score(y[~train], x[~train] @ slope + w[~train] @ rest)
            np.testing.assert_allclose(found.r2[layer, split, 0], r2, atol=1e-8)
    np.testing.assert_allclose(alone.dof, 3)


def test_a_nuisance_that_is_constant_in_a_training_part_gives_no_nan(problem):
    features, measures = problem
    splits = SPLITS["random"]
    only_held_out = (~splits[0]).astype(np.float64)[:, None]
    found = evaluate.infer(features, measures, splits, nuisances=only_held_out, alphas=ALPHAS)
    assert all(np.isfinite(values).all() for values in found)


def test_thousands_of_targets_equal_a_few(problem, monkeypatch):
    features, measures = problem
    splits = SPLITS["unequal"]
    targets = np.concatenate([measures, np.random.default_rng(5).normal(size=(N, 70))], axis=1)
    few = evaluate.held_out(features, targets[:, :4], splits, alphas=ALPHAS)
    many = evaluate.held_out(features, targets, splits, alphas=ALPHAS)
    assert many.r2.shape == (3, 3, 72)
    np.testing.assert_allclose(many.r2[..., :4], few.r2, atol=2e-5)
    monkeypatch.setattr(evaluate, "CHUNK", 40)
    chunked = evaluate.held_out(features, targets, splits, alphas=ALPHAS)
    np.testing.assert_allclose(chunked.r2, many.r2, rtol=1e-5, atol=1e-5)  # float32 products of another width


def test_all_layers_and_splits_in_one_vectorised_call_equal_one_after_the_other(problem, monkeypatch):
    """As an accelerator runs it: vmap over layers, splits and penalties."""
    features, measures = problem
    splits = SPLITS["unequal"]
    expected = evaluate.infer(features, measures, splits, GROUPS, alphas=ALPHAS)
    monkeypatch.setattr(evaluate, "layers_at_once", lambda: 0)
    monkeypatch.setattr(ridge, "over_splits", lambda function, splits: jax.vmap(function)(splits))
    evaluate._infer.program().clear_cache()
    found = evaluate.infer(features, measures, splits, GROUPS, alphas=ALPHAS)
    evaluate._infer.program().clear_cache()
    evaluate._vectorised.cache_clear()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9)


def test_scores_do_not_depend_on_order_or_scale(problem):
    features, measures = problem
    splits, order = SPLITS["random"], np.random.default_rng(3).permutation(N)
    scores = evaluate.score_layers(features, measures, splits)
    scaled = {layer: 8 * values[order] for layer, values in features.items()}
    permuted = evaluate.score_layers(scaled, measures[order], splits[:, order])
    np.testing.assert_allclose(permuted.ridge, scores.ridge, atol=1e-8)
    np.testing.assert_allclose(permuted.alpha, scores.alpha)


def test_one_compilation_serves_all_layers(problem):
    features, measures = problem
    evaluate._infer.program().clear_cache()
    evaluate.infer(features, measures, SPLITS["random"], alphas=ALPHAS)
    evaluate.infer(features, measures + 1, SPLITS["random"][::-1], alphas=ALPHAS)
    assert evaluate._infer.program()._cache_size() == 1


def test_a_feature_that_is_nearly_silent_in_training_does_not_spoil_a_split():
    """Divided by its sd over all images it stays small; by that of a training part it would reach hundreds when held out."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6)).astype(np.float32)
    y = x[:, :1] + 0.1 * rng.normal(size=(80, 1))
    x[:, 5] = 1e-6 * rng.normal(size=80)
    x[0, 5] = 50
    splits = random_splits(80, 25, seed=0)
    found = evaluate.held_out({"layer": x}, y.astype(np.float64), splits)
    assert found.r2.min() > 0.9


@pytest.mark.parametrize("estimator", ["ridge", "ols"])
@pytest.mark.parametrize(("count", "width"), [(60, 200), (120, 84), (200, 12)])
def test_fits_to_parts_equal_scikit_learn(count, width, estimator):
    """Through the Gram matrix of the images or of the features, whichever is smaller; parts differ in size."""
    rng = np.random.default_rng(width)
    x = make_features(rng, count, width, rng.normal(size=(count, 5)))
    y = np.stack([x[:, -1] / x[:, -1].std() + rng.normal(size=count), rng.normal(size=count)], 1).astype(
        np.float64
    )
    parts = np.stack([np.arange(count) < size for size in (count, count // 2, count // 3)])
    found = evaluate.fit(x, y, parts, evaluate.ALPHAS if estimator == "ridge" else None)
    z = StandardScaler().fit_transform(x.astype(np.float64))
    for part, rows in enumerate(parts):
        for target in range(2):
            if estimator == "ridge":
                peer = RidgeCV(evaluate.ALPHAS).fit(z[rows], y[rows, target])
                assert found.alpha[part, target] == pytest.approx(peer.alpha_)
                expected = peer.predict(z)
            else:
                mean, middle = z[rows].mean(0), y[rows, target].mean()
                expected = (z - mean) @ lstsq(z[rows] - mean, y[rows, target] - middle, cond=ridge.ABSENT)[
                    0
                ] + middle
            read = x.astype(np.float64) @ found.weights[part, :, target] + found.intercept[part, target]
            np.testing.assert_allclose(read, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_constant_features_score_zero_and_are_never_nan(problem):
    _, measures = problem
    scores = evaluate.score_layers({"dead": np.full((N, 8), 0.1, np.float32)}, measures, SPLITS["random"])
    assert np.isfinite(scores).all()
    assert (scores.ridge <= 0).all()
    np.testing.assert_allclose(scores.ridge, scores.ols)


def test_plan_covers_the_memory_that_xla_takes():
    """The compiler's own figure for one layer, beside the share that the plan gives to one worker."""
    count, splits = 120, random_splits(120, 4, seed=0)
    problem = evaluate._problem(
        {"layer": np.zeros((count, 1))}, np.arange(count)[:, None] * 1.0, splits, ALPHAS
    )
    with evaluate.float64():
        compiled = (
            evaluate._infer.program()
            .lower(np.zeros((count, count)), problem, evaluate.grouping(None, count))
            .compile()
        )
    memory = compiled.memory_analysis()
    planned = memory_bytes(1, count, 4, count, 1, int((~splits[0]).sum())) / evaluate.layers_at_once()
    assert 0 < memory.temp_size_in_bytes < planned


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.full((N, 1), 2.0)}, "constant on the training part of split 0, 1, 2"),
        ({"targets": np.full((N, 1), np.nan)}, "NaN or infinity"),
        ({"groups": np.zeros(N)}, "belong to one group"),
        ({"groups": np.arange(3)}, "3 groups for 60 images"),
        ({"alphas": np.zeros(2)}, "Penalties must be positive"),
        ({"nuisances": np.full((N, 1), np.inf)}, "must be finite"),
        ({"nuisances": np.random.default_rng(0).normal(size=(N, 58))}, "leave nothing of 60 images"),
        ({"features": {"bad": np.full((N, 3), np.nan, np.float32)}}, "layers bad hold NaN"),
        ({"splits": np.ones((2, N), bool)}, "held-out part of split 0 has 0 images"),
    ],
)
def test_problems_that_cannot_be_solved(problem, change, message):
    features, measures = problem
    given = {
        "features": features,
        "targets": measures,
        "splits": SPLITS["random"],
        "alphas": ALPHAS,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        evaluate.infer(**given)


def test_shapes_that_do_not_fit():
    """What the type checker of the tests would refuse first."""
    with pytest.raises(ValueError, match=r"one row for each of the 60 images, got \[3, 1\]"):
        evaluate._unpenalised(np.zeros((3, 1)), N)


def test_operator_annihilates_what_is_not_penalised(problem):
    """P C = 0, and P (K + alpha) is the projection on the complement of C."""
    features, _ = problem
    with jax.enable_x64(True):
        for layer in (
            "width_42",
            "width_12",
        ):  # through the features, and through the smaller matrix of the two
            x = jax.numpy.asarray(standardised(features)[layer])
            c = jax.numpy.asarray(evaluate._unpenalised(np.random.default_rng(0).normal(size=(N, 2)), N))
            for spectrum in (ridge.decompose(x @ x.T, c), ridge.decompose_features(x, c)):
                p = np.asarray(ridge.operator(spectrum, jax.numpy.asarray(3.0)))
                projection = np.eye(N) - c @ c.T
                np.testing.assert_allclose(p @ c, 0, atol=1e-10)
                gram = projection @ x @ x.T @ projection
                np.testing.assert_allclose(p @ (gram + 3 * np.eye(N)), projection, atol=1e-9)
