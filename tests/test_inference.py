"""What the algebra says against refitting everything with scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from scalecov_jax.probes import deletion, inference
from scalecov_jax.probes.splits import grouped_splits, leave_one_group_out, random_splits

pytestmark = pytest.mark.usefixtures("quick_compilation")

N = 60
ALPHAS = np.logspace(-2, 5, 8)
GROUPS = np.concatenate([np.arange(30), 30 + np.arange(30) // 5])  # 30 single images and 6 patients with 5


@pytest.fixture(scope="module")
def problem():
    """Fewer, about as many and more features than training images, a dead and a duplicated one among them."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(N, 5))
    features = {}
    for width in (12, 42, 200):
        values = np.tanh(latent @ rng.normal(size=(5, width))) + 0.3 * rng.normal(size=(N, width))
        values[:, 0] = 0.7
        values[:, 1] = values[:, 2]
        features[f"width_{width}"] = (values * rng.lognormal(sigma=2, size=width)).astype(np.float32)
    measures = np.stack([latent[:, 0] + 0.4 * rng.normal(size=N), rng.normal(size=N)], axis=1)
    return features, measures


def standardised(features):
    return {layer: StandardScaler().fit_transform(x.astype(np.float64)) for layer, x in features.items()}


SPLITS = {
    "random": random_splits(N, 3, seed=1),
    "unequal": grouped_splits(GROUPS, 3, seed=2),
    "groups": leave_one_group_out(np.arange(N) // 12),
}


@pytest.fixture(scope="module", params=list(SPLITS))
def fitted(request, problem):
    features, measures = problem
    splits = SPLITS[request.param]
    return *problem, splits, inference.infer(features, measures, splits, GROUPS, alphas=ALPHAS)


def test_held_out_r2_and_penalty_equal_scikit_learn(fitted):
    features, measures, splits, found = fitted
    for layer, x in enumerate(standardised(features).values()):
        for split, train in enumerate(splits):
            for target, y in enumerate(measures.T):
                ridge = RidgeCV(ALPHAS, store_cv_results=True).fit(x[train], y[train])
                r2 = r2_score(y[~train], ridge.predict(x[~train]))
                np.testing.assert_allclose(found.r2[layer, split, target], r2, atol=1e-9)
                np.testing.assert_allclose(found.alpha[layer, split, target], ridge.alpha_)
                inner = 1 - ridge.cv_results_.mean(0).min() / y[train].var()
                np.testing.assert_allclose(found.inner[layer, split, target], inner, atol=1e-9)


def test_experiment_without_a_group_equals_refitting(fitted):
    features, measures, splits, found = fitted
    x = standardised(features)
    for layer, values in enumerate(x.values()):
        for split, train in enumerate(splits):
            for group in (0, 7, 30, 35):
                keep = group != GROUPS
                y = measures[:, 0]
                ridge = Ridge(found.alpha[layer, split, 0]).fit(values[train & keep], y[train & keep])
                r2 = r2_score(y[~train & keep], ridge.predict(values[~train & keep]))
                np.testing.assert_allclose(found.without[layer, split, group, 0], r2, atol=1e-9)
    assert found.defined.all()


def test_leave_one_out_equals_refitting(problem, fitted):
    features, measures, _, found = fitted
    y = measures[:, 0]
    for layer, x in enumerate(standardised(features).values()):
        alpha = RidgeCV(ALPHAS).fit(x, y).alpha_
        assert found.alpha_all[layer, 0] == alpha
        for image in (0, 17, 59):
            rest = np.arange(N) != image
            ridge = Ridge(alpha).fit(x[rest], y[rest])
            error = y[image] - ridge.predict(x[[image]])[0]
            np.testing.assert_allclose(found.errors[layer, image, 0], error, rtol=1e-8, atol=1e-10)
        hat = 1 / N + x @ np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T)
        np.testing.assert_allclose(found.leverage[layer, :, 0], np.diag(hat), atol=1e-9)
        np.testing.assert_allclose(found.dof[layer, 0], np.trace(hat), rtol=1e-8)
        r2 = 1 - np.square(found.errors[layer, :, 0]).sum() / np.square(y - y.mean()).sum()
        np.testing.assert_allclose(found.r2_left_out[layer, 0], r2, rtol=1e-12)


def test_groups_that_are_the_whole_held_out_part_leave_it_undefined(problem):
    features, measures = problem
    groups = np.arange(N) // 12
    found = inference.infer(features, measures, leave_one_group_out(groups), groups, alphas=ALPHAS)
    np.testing.assert_array_equal(found.defined[..., 0], ~np.eye(5, dtype=bool))
    assert np.isfinite(found.without).all()


def test_nuisances_are_fitted_beside_the_intercept(problem):
    features, measures = problem
    splits, y = SPLITS["random"], measures[:, 0]
    nuisances = np.random.default_rng(3).normal(size=(N, 2)) + 5
    both = np.concatenate([nuisances, nuisances @ [[2.0], [3.0]], np.full((N, 1), 4.0)], axis=1)
    found = inference.infer(features, measures, splits, nuisances=both, alphas=ALPHAS)
    alone = inference.infer({"none": np.zeros((N, 3))}, measures, splits, nuisances=both, alphas=ALPHAS)
    for split, train in enumerate(splits):
        plain = LinearRegression().fit(nuisances[train], y[train])
        np.testing.assert_allclose(
            alone.r2[0, split, 0], r2_score(y[~train], plain.predict(nuisances[~train])), atol=1e-9
        )
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


def test_thousands_of_targets_equal_a_few(problem):
    features, measures = problem
    rng = np.random.default_rng(5)
    targets = np.concatenate([measures, rng.normal(size=(N, 70))], axis=1)
    few = inference.infer(features, targets[:, :4], SPLITS["unequal"], alphas=ALPHAS).r2.mean(1)
    many = inference.mean_r2(features, targets, SPLITS["unequal"], alphas=ALPHAS)
    assert many.shape == (3, 72)
    np.testing.assert_allclose(many[:, :4], few, atol=2e-6)


def test_targets_in_chunks_equal_all_at_once(problem, monkeypatch):
    features, measures = problem
    targets = np.concatenate([measures, np.random.default_rng(5).normal(size=(N, 70))], axis=1)
    whole = inference.mean_r2(features, targets, SPLITS["random"], alphas=ALPHAS)
    monkeypatch.setattr(inference, "CHUNK", 40)
    np.testing.assert_allclose(
        inference.mean_r2(features, targets, SPLITS["random"], alphas=ALPHAS), whole, atol=1e-6
    )


def test_one_compilation_serves_all_layers(problem):
    features, measures = problem
    inference._infer.clear_cache()
    inference.infer(features, measures, SPLITS["random"], alphas=ALPHAS)
    assert inference._infer._cache_size() == 1


def test_plan_holds_the_memory_that_xla_takes():
    """The compiler's own figure for one layer, beside the share that the plan gives to one worker."""
    count, splits, measures = 120, random_splits(120, 4, seed=0), np.zeros((120, 1))
    with jax.enable_x64(True):
        compiled = inference._infer.lower(
            np.zeros((count, count)),
            np.zeros((count, 1)),
            measures,
            inference._parts(splits),
            ALPHAS,
            inference.grouping(None, count),
        ).compile()
    memory = compiled.memory_analysis()
    planned = inference.plan_memory(1, count, 4, count, 1, int((~splits[0]).sum())) / inference._workers()
    assert 0.3 * planned < memory.temp_size_in_bytes < planned


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
    ],
)
def test_problems_that_cannot_be_solved(problem, change, message):
    features, measures = problem
    given = {"targets": measures, "groups": None, "alphas": ALPHAS, **change}
    with pytest.raises(ValueError, match=message):
        inference.infer(features, splits=SPLITS["random"], **given)


def test_shapes_that_do_not_fit(problem):
    """What the type checker of the tests would refuse first."""
    with pytest.raises(ValueError, match=r"Targets must be \[N, M\].*got \[60\]"):
        inference._check(problem[0], np.zeros(N), SPLITS["random"], ALPHAS)
    with pytest.raises(ValueError, match=r"one row for each of the 60 images, got \[3, 1\]"):
        inference._unpenalised(np.zeros((3, 1)), N)


def test_operator_annihilates_what_is_not_penalised(problem):
    """P C = 0, and P (K + alpha) is the projection on the complement of C."""
    features, _ = problem
    with jax.enable_x64(True):
        x = standardised(features)["width_42"]
        c = inference._unpenalised(np.random.default_rng(0).normal(size=(N, 2)), N)
        layer = deletion.factorise(jax.numpy.asarray(x @ x.T), jax.numpy.asarray(c))
        p = np.asarray(deletion.operator(layer, jax.numpy.asarray(3.0)))
    projection = np.eye(N) - c @ c.T
    np.testing.assert_allclose(p @ c, 0, atol=1e-12)
    gram = projection @ x @ x.T @ projection
    np.testing.assert_allclose(p @ (gram + 3 * np.eye(N)), projection, atol=1e-9)
