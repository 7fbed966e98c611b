"""Sums of folds, and what is fitted from them, against scikit-learn on the images themselves."""

import itertools

import jax
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from scalecov_jax.probes import evaluate
from scalecov_jax.probes.route import choose_route
from scalecov_jax.probes.splits import k_folds, random_splits
from scalecov_jax.probes.streamed_ridge import score_folds
from scalecov_jax.probes.sums import Sums, add, empty, fold_of, merge, moved

ALPHAS = np.logspace(-1, 4, 6)
FOLDS = 4


@pytest.fixture(scope="module")
def problem():
    """Features whose means are far from 0, in float32 as a network gives them; two measures and a permuted one."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(600, 8))
    features = {}
    for name, width in (("narrow", 12), ("wide", 60)):
        x = np.maximum(latent @ rng.normal(size=(8, width)) + 1, 0) + 0.3 * rng.normal(size=(600, width))
        features[name] = (x + 5 * rng.normal(size=width)).astype(np.float32)
    y = latent[:, :2] + 0.5 * rng.normal(size=(600, 2))
    targets = np.concatenate([y + np.array([40, 0]), rng.permutation(y[:, :1])], axis=1)
    return features, targets, k_folds(600, FOLDS, seed=3)


def of_features(features, targets, folds, *, rows=256, products="float64"):
    """Sums of every fold from features in memory, `rows` images at a time."""
    step = jax.jit(add, static_argnames="products")
    found, targets = [], np.asarray(targets, np.float64)
    with jax.enable_x64(True):
        for fold in range(int(folds.max()) + 1):
            members = np.flatnonzero(folds == fold)
            sums = empty(features[:rows].mean(0), targets.mean(0))
            for start in range(0, len(members), rows):
                taken = np.resize(members[start : start + rows], rows)
                weight = (np.arange(rows) < len(members) - start).astype(np.float64)
                sums = step(sums, features[taken], targets[taken], weight, products)
            found.append(Sums(*map(np.asarray, sums)))
    return found


def sums_of(features, targets, splits, **options):
    fold = fold_of(splits)
    return {name: of_features(x, targets, fold, **options) for name, x in features.items()}


def reference(x, y, folds, alphas):
    """R2 of least squares and ridge, and the penalty: scikit-learn in float64, leaving folds out of the training part."""
    x = StandardScaler().fit_transform(x.astype(np.float64))
    ols, ridge, chosen = [], [], []
    for out in range(FOLDS):
        train, held = folds != out, folds == out
        errors = np.zeros(len(alphas))
        for inner in set(range(FOLDS)) - {out}:
            rest, left = train & (folds != inner), folds == inner
            for a, alpha in enumerate(alphas):
                fit = Ridge(alpha).fit(x[rest], y[rest])
                errors[a] += np.square(fit.predict(x[left]) - y[left]).sum()
        chosen.append(alphas[errors.argmin()])
        models = (LinearRegression(), Ridge(chosen[-1]))
        scores = [r2_score(y[held], model.fit(x[train], y[train]).predict(x[held])) for model in models]
        ols.append(scores[0])
        ridge.append(scores[1])
    return np.array(ols), np.array(ridge), np.array(chosen)


@pytest.mark.parametrize(("products", "gap"), [("float64", 1e-9), ("float32", 1e-5)])
def test_scores_equal_scikit_learn_on_the_images(problem, products, gap):
    features, targets, splits = problem
    folds = fold_of(splits)
    found, _ = score_folds(sums_of(features, targets, splits, products=products), ALPHAS, products=products)
    for (row, x), column in itertools.product(enumerate(features.values()), range(3)):
        ols, ridge, alpha = reference(x, targets[:, column], folds, ALPHAS)
        np.testing.assert_allclose(found.ols[row, :, column], ols, rtol=0, atol=gap)
        np.testing.assert_allclose(found.ridge[row, :, column], ridge, rtol=0, atol=gap)
        np.testing.assert_array_equal(found.alpha[row, :, column], alpha)
    np.testing.assert_array_equal(found.rank, [[12] * FOLDS, [60] * FOLDS])
    assert len(np.unique(found.alpha)) > 2
    assert np.abs(found.inner[:, :, :2] - found.ridge[:, :, :2]).max() < 0.2


def singular(rng, count):
    """Features of float32 that sum to 1, one twice, one that never changes, one that changes in a single image."""
    x = rng.exponential(size=(count, 10))
    x = x / x.sum(1, keepdims=True)
    never, once = np.full((count, 1), 0.1), np.zeros((count, 1))
    once[count // 2] = 3
    return np.concatenate([x, x[:, :1], never, once], axis=1).astype(np.float32)


def test_singular_layers_are_read_as_in_memory():
    rng = np.random.default_rng(1)
    splits = k_folds(90, FOLDS, seed=0)
    features = {"singular": singular(rng, 90), "wider than images": rng.normal(size=(90, 120))}
    features["wider than images"] = features["wider than images"].astype(np.float32)
    targets = features["singular"][:, :2].astype(np.float64) + 0.02 * rng.normal(size=(90, 2))
    one = np.array([0.5])
    found, _ = score_folds(sums_of(features, targets, splits), one)
    expected = evaluate.score_layers(features, targets, splits, one)
    np.testing.assert_allclose(found.ols, expected.ols, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(found.ridge, expected.ridge, rtol=0, atol=1e-9)
    assert found.rank[0].max() <= 10
    assert (found.rank[1] == splits.sum(1) - 1).all()
    single, _ = score_folds(sums_of(features, targets, splits, products="float32"), one, products="float32")
    for row, gap in enumerate((1e-5, 1e-4)):  # of the second, far below 0 as it interpolates noise
        np.testing.assert_allclose(single.ridge[row], expected.ridge[row], rtol=0, atol=gap)
    assert np.isfinite(single.ols).all()


def test_parts_add_up_in_any_order_whatever_their_shifts(problem):
    features, targets, _ = problem
    x = features["narrow"]
    whole = of_features(x, targets, np.zeros(600, int))[0]
    parts = [
        of_features(x[a:b], targets[a:b], np.zeros(b - a, int), rows=rows)[0]
        for a, b, rows in ((0, 100, 32), (100, 350, 7), (350, 600, 256))
    ]
    assert np.abs(parts[0].shift_x - parts[1].shift_x).max() > 0.1
    for order in itertools.permutations(parts):
        merged = moved(merge(*order), whole.shift_x, whole.shift_y)
        for one, other in zip(merged, whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-9)
    centred = x.astype(np.float64) - whole.shift_x
    np.testing.assert_allclose(whole.xx, centred.T @ centred, rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(
        whole.yy, np.square(targets - targets.mean(0).astype(np.float32)).sum(0), rtol=1e-11
    )


def test_a_mean_that_dwarfs_the_spread_costs_nothing():
    rng = np.random.default_rng(2)
    spread = rng.normal(size=(400, 6))
    x = (1000 + spread).astype(np.float32)
    y = spread[:, :1] + 1e6
    splits = k_folds(400, FOLDS, seed=0)
    ols, ridge, _ = reference(x, y[:, 0], fold_of(splits), ALPHAS)
    for products, gap in (("float64", 1e-9), ("float32", 1e-5)):
        found, _ = score_folds(
            sums_of({"x": x}, y, splits, products=products, rows=64), ALPHAS, products=products
        )
        np.testing.assert_allclose(found.ols[0, :, 0], ols, rtol=0, atol=gap)
        np.testing.assert_allclose(found.ridge[0, :, 0], ridge, rtol=0, atol=gap)


def test_padding_never_counts():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(5, 2))
    sums = empty(x.mean(0), y.mean(0))
    padded = np.concatenate([x, np.full((2, 3), np.nan, np.float32)]), np.concatenate([y, np.zeros((2, 2))])
    with jax.enable_x64(True):
        one = jax.jit(add)(sums, x, y, np.ones(5))
        two = jax.jit(add)(sums, *padded, np.array([1.0] * 5 + [0.0] * 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14)


def test_what_cannot_be_streamed_is_refused(problem):
    features, targets, splits = problem
    with pytest.raises(ValueError, match=r"held out once.*k_fold, grouped_k_fold or leave_one_group_out"):
        fold_of(random_splits(100, 3, seed=0))
    sums = sums_of({"narrow": features["narrow"]}, targets, splits)
    with pytest.raises(ValueError, match=r"at least 3.*'narrow': 2"):
        score_folds({"narrow": sums["narrow"][:2]})
    with pytest.raises(ValueError, match="no layer"):
        score_folds({})
    with pytest.raises(ValueError, match="Penalties must be positive"):
        score_folds(sums, np.array([0.0]))
    broken = features["narrow"].copy()
    broken[3, 3] = np.nan
    constant = targets.copy()
    constant[~splits[2]] = 0.1
    with pytest.raises(
        ValueError, match=r"layers broken hold NaN(.|\n)*constant on the held-out part of split 2:"
    ):
        score_folds(sums_of({"narrow": features["narrow"], "broken": broken}, constant, splits))
    alone = splits.copy()
    alone[:, ~splits[0]] = [[True], [False], [True], [True]]
    alone[:2, 0] = [False, True]
    with pytest.raises(ValueError, match="split 0 has 1 images"):
        score_folds(sums_of({"narrow": features["narrow"]}, targets, alone))


def choose(asked="auto", images=400, splitting="k_fold", splits=5, limit=8 * 10**9, **options):
    return choose_route(
        asked,
        images=images,
        widths=(256, 2048),
        splitting=splitting,
        splits=splits,
        measures=1,
        permutations=99,
        limit=limit,
        **options,
    )


def test_many_images_are_streamed_where_the_splits_allow_it():
    assert choose().name == "memory"
    assert choose(images=6000, limit=10**12) == choose(images=6000, limit=10**12)._replace(
        name="streamed", reason="6,000 are more than the 5,000 images from which streaming is faster"
    )
    large = choose(images=1_280_000)
    assert large.name == "streamed"
    assert "this run may use 8.0 GB" in large.reason
    assert large.memory_bytes > 8 * 1_280_000**2
    grown = large.streamed_bytes - choose(images=400).streamed_bytes
    assert grown == (1_280_000 - 400) * (4 * 99 + 16)  # the permutations alone
    assert large.streamed_bytes > 5 * 8 * (256**2 + 2048**2)
    assert choose("streamed").name == "streamed"
    assert choose("memory", images=1_280_000).name == "memory"
    stuck = choose(images=1_280_000, splitting="random")
    assert stuck.name == "memory"
    assert "config.splitting can be k_fold, grouped_k_fold, leave_one_group_out" in stuck.reason
    assert "kernel_ridge" in choose(images=1_280_000, needs_features=("kernel_ridge",)).reason
    for options, message in (
        ({"splitting": "random"}, "hold images out several times"),
        ({"splits": 2}, "config.splits must be at least 3"),
        ({"needs_features": ("config.n_train",)}, "config.n_train need the features"),
    ):
        with pytest.raises(ValueError, match=message):
            choose("streamed", **options)
    with pytest.raises(ValueError, match="did you mean streamed"):
        choose("steamed")
