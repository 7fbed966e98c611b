"""Covariance as an operation: identities of the steps, bounds of the shares, and probes against an oracle."""

import itertools

import numpy as np
import pytest
from scipy.linalg import lstsq
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.preprocessing import StandardScaler

from scalecov_jax.experiments import covariance_maths as maths

RNG = np.random.default_rng(0)
K, R, D = 5, 4, 12
RATIOS = np.geomspace(0.02, 0.9, R)
FEATURES = RNG.normal(size=(K, R, D))
SIZES = np.tile(RATIOS, (K, 1))


def covariant(translation, noise=0.0):
    """Features of objects that move by `translation` for each unit of the ratio."""
    moved = RNG.normal(size=(K, 1, D)) + SIZES[:, :, None] * translation
    return moved + noise * RNG.normal(size=moved.shape)


# Steps


def test_published_step_overshoots_by_the_squared_norm_and_the_right_one_does_not():
    features, rcv, intercept, sigma = RNG.normal(size=(7, D)), RNG.normal(size=D), 0.3, 0.25
    before = features @ rcv + intercept
    published = (features + sigma * rcv) @ rcv + intercept
    right = (features + sigma * maths.smallest_translation(rcv)) @ rcv + intercept
    np.testing.assert_allclose(published - before, sigma * (rcv @ rcv))
    np.testing.assert_allclose(right - before, sigma)
    assert abs(rcv @ rcv - 1) > 1


def test_no_shorter_step_changes_the_reading_as_much():
    rcv = RNG.normal(size=D)
    smallest = maths.smallest_translation(rcv)
    for _ in range(20):
        other = smallest + RNG.normal(size=D)
        other /= other @ rcv
        assert np.linalg.norm(other) > np.linalg.norm(smallest)


def test_pattern_is_the_regression_of_the_features_on_the_reading():
    scenes = RNG.normal(size=(50, D)) @ RNG.normal(size=(D, D))
    rcv = RNG.normal(size=D)
    pattern = maths.pattern_translation(scenes, rcv)
    expected = LinearRegression().fit((scenes @ rcv)[:, None], scenes).coef_[:, 0]
    np.testing.assert_allclose(pattern, expected)
    np.testing.assert_allclose(pattern @ rcv, 1)


def test_the_filter_is_not_the_direction_of_change_but_the_pattern_is():
    """Scale moves features along `along`, a distractor along both: the probe must cancel it and so points elsewhere."""
    along, distractor = np.eye(D)[0], np.eye(D)[0] + np.eye(D)[1]
    ratio = RNG.uniform(0, 1, 400)
    scenes = (
        ratio[:, None] * along + RNG.normal(size=(400, 1)) * distractor + 1e-3 * RNG.normal(size=(400, D))
    )
    rcv = LinearRegression().fit(scenes, ratio).coef_
    moved = maths.changes(covariant(along))
    np.testing.assert_allclose(maths.share_along(moved, rcv)[0], 0.5, atol=0.02)
    pattern = maths.pattern_translation(scenes, rcv)
    assert maths.share_along(moved, pattern)[0] > 0.98


# Shares


def test_changes_about_the_mean_are_all_pairs():
    moved = maths.changes(FEATURES)
    pairs = sum(
        np.square(FEATURES[:, r] - FEATURES[:, q]).sum() for r, q in itertools.combinations(range(R), 2)
    )
    np.testing.assert_allclose(R * np.square(moved).sum(), pairs)


def test_share_is_bounded_and_all_directions_make_one():
    moved = maths.changes(FEATURES)
    best = maths.best_share(moved)
    basis = np.linalg.qr(RNG.normal(size=(D, D)))[0]
    shares = [maths.share_along(moved, -3.0 * direction)[0] for direction in basis.T]
    np.testing.assert_allclose(sum(shares), 1)
    assert max(shares) <= best <= 1
    first = np.linalg.svd(moved.reshape(-1, D))[2][0]
    share, low, high = maths.share_along(moved, first)
    np.testing.assert_allclose(share, best)
    assert low <= share <= high


def test_share_of_random_directions_is_chance():
    moved = maths.changes(FEATURES)
    shares = [maths.random_share(moved, seed) for seed in range(40)]
    np.testing.assert_allclose(np.mean(shares), 1 / D, rtol=0.05)
    assert maths.random_share(moved, 3) == maths.random_share(moved, 3)


def test_interval_is_narrow_where_objects_agree():
    along = RNG.normal(size=D)
    same = maths.share_along(maths.changes(covariant(along)), along)
    np.testing.assert_allclose(same, 1)
    _, low, high = maths.share_along(maths.changes(FEATURES), along)
    assert high - low > 0.01


# Steps that explain the change


def test_a_covariant_network_is_explained_by_its_own_translation():
    along = RNG.normal(size=D)
    moved, measured = maths.changes(covariant(along)), maths.changes(SIZES)
    np.testing.assert_allclose(maths.explained(moved, measured, along), 1)
    np.testing.assert_allclose(maths.best_translation(moved, measured), along)
    np.testing.assert_allclose(maths.explained(moved, measured, np.zeros(D)), 0)
    np.testing.assert_allclose(maths.explained(moved, measured, -along), -3)
    np.testing.assert_allclose(maths.explained(moved, measured, 2 * along), 0, atol=1e-12)


def test_no_translation_does_better_than_the_best():
    moved, measured = maths.changes(covariant(RNG.normal(size=D), 0.3)), maths.changes(SIZES)
    best = maths.best_translation(moved, measured)
    most = maths.explained(moved, measured, best)
    own = maths.best_translation(moved, measured, own=True)
    assert most <= maths.explained(moved, measured, own) <= 1
    each = [maths.best_translation(*pair) for pair in zip(moved[:, None], measured[:, None], strict=True)]
    np.testing.assert_allclose(own, each)
    assert most <= maths.best_share(moved)
    for _ in range(20):
        assert maths.explained(moved, measured, best + 0.1 * RNG.normal(size=D)) < most


def test_response_is_slope_and_r2_within_objects():
    readings = 0.7 * SIZES + RNG.normal(size=(K, 1))
    slope, r2 = maths.response(readings, SIZES)
    np.testing.assert_allclose([slope, r2], [0.7, 1 - 0.3**2])
    np.testing.assert_allclose(maths.response(0 * SIZES + 0.4, SIZES), (0, 0), atol=1e-12)


def test_r2_with_its_own_intercept_forgives_an_offset():
    true = RNG.normal(size=(3, 20))
    np.testing.assert_allclose(maths.r2(true + 5, true, own_intercept=True), 1)
    assert (maths.r2(true + 5, true) < -10).all()
    np.testing.assert_allclose(maths.r2(0 * true + true.mean(1, keepdims=True), true), 0, atol=1e-12)


def test_cosines_and_correlations():
    first, second = RNG.normal(size=(2, 4, 30))
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(maths.correlations(first, second), expected)
    np.testing.assert_allclose(maths.correlations(first, 2 * first + 1), 1)
    np.testing.assert_allclose(maths.cosines(first, -first), -1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: maths.smallest_translation(np.zeros(D)), "The RCV is zero"),
        (lambda: maths.pattern_translation(np.ones((9, D)), np.ones(D)), "reads the same"),
        (lambda: maths.changes(FEATURES[:, :1]), "at 1 sizes; a change needs at least 2"),
        (lambda: maths.changes(FEATURES * np.nan), "NaN"),
        (lambda: maths.share_along(FEATURES, np.zeros(D)), "direction is zero"),
        (lambda: maths.share_along(0 * FEATURES, np.ones(D)), "same at all its sizes"),
        (lambda: maths.best_share(0 * FEATURES), "Nothing moves"),
        (lambda: maths.response(SIZES, 0 * SIZES), "does not change"),
        (lambda: maths.best_translation(FEATURES, 0 * SIZES, own=True), "does not change"),
        (lambda: maths.cosines(np.zeros((2, D)), np.ones((2, D))), "no direction"),
        (lambda: maths.r2(SIZES, 0 * SIZES), "same for all scenes"),
    ],
)
def test_what_is_undefined_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Probes and tables

C, N, SPLITS = 2, 24, 2
ALPHAS = np.logspace(-1, 3, 5)
CLASSES = ("one", "two")


def scenes_of(width, seed=1):
    """Scenes of two classes, one layer, in which the ratio moves features along one direction."""
    rng = np.random.default_rng(seed)
    ratio = np.exp(rng.uniform(np.log(0.02), np.log(0.9), (C, N)))
    along = rng.normal(size=width)
    seen = maths.Seen(
        rng.normal(size=(C, N, width)) + 3 * ratio[..., None] * along,
        rng.normal(size=(C, K, 1, width)) + 3 * RATIOS[:, None] * along,
    )
    return seen, np.stack([transform(ratio) for transform in maths.MEASURES.values()], axis=-1)


@pytest.fixture(scope="module")
def parts():
    return maths.halves(N, SPLITS, seed=3)


def test_halves_share_no_scene():
    odd = maths.halves(11, 6, seed=0)
    assert odd.shape == (6, 2, 5)
    for first, second in odd:
        assert len({*first, *second}) == 10
    np.testing.assert_array_equal(odd[:2], maths.halves(11, 2, seed=0))


@pytest.mark.parametrize("width", [6, 40])
def test_probes_equal_those_of_a_single_layer(width, parts):
    seen, targets = scenes_of(width)
    found = maths.fit(seen.scenes, {"trained": targets, "shuffled_measure": targets[:, ::-1]}, parts, ALPHAS)

    def peer(index, rows, y, estimator):
        """Scikit-learn on features that are divided by their sd over all scenes of the class."""
        scaler = StandardScaler().fit(seen.scenes[index])
        z = scaler.transform(seen.scenes[index, rows])
        if estimator == "ridge":
            weights = RidgeCV(ALPHAS).fit(z, y[rows]).coef_
        else:
            weights = lstsq(z - z.mean(0), y[rows] - y[rows].mean(), cond=1e-6)[0]
        return weights / scaler.scale_, y[rows].mean() - z.mean(0) @ weights - scaler.mean_ @ (
            weights / scaler.scale_
        )

    for index, (condition, y), estimator in itertools.product(
        range(C), (("trained", targets), ("shuffled_measure", targets[:, ::-1])), ("ridge", "ols")
    ):
        for rows, half in ((np.arange(N), None), (parts[1, 0], (1, 0)), (parts[0, 1], (0, 1))):
            weights, _ = peer(index, rows, y[index, :, 0], estimator)
            one = found[condition, estimator]
            rcv = one.halves[(index, *half)] if half else one.whole[index, :, 0]
            np.testing.assert_allclose(rcv, weights, rtol=1e-6, atol=1e-9)
    weights, intercept = peer(0, parts[1, 0], targets[0, :, 0], "ridge")
    for index in range(C):
        read = seen.scenes[index, parts[1, 1]] @ weights + intercept
        np.testing.assert_allclose(found["trained", "ridge"].crossed[0, index, 1], read, atol=1e-8)
    for column in range(targets.shape[2]):
        weights, intercept = peer(0, parts[1, 0], targets[0, :, column], "ridge")
        read = seen.scenes[0, parts[1, 1]] @ weights + intercept
        np.testing.assert_allclose(found["trained", "ridge"].held_out[0, 1, :, column], read, atol=1e-8)
    rcv, half = found["trained", "ridge"].halves[1, 0, 0], seen.scenes[1, parts[0, 0]]
    pattern = found["trained", "ridge"].patterns[1, 0, 0]
    expected = maths.pattern_translation(half, rcv)
    np.testing.assert_allclose(pattern / np.linalg.norm(pattern), expected / np.linalg.norm(expected))


def measured(layers, targets, parts):
    sizes = np.tile(RATIOS, (C, K, 1))
    return maths.measure(
        layers, CLASSES, {"trained": targets}, sizes, parts, ("ridge",), seed=0, name="w", alphas=ALPHAS
    )


def test_layers_of_equal_width_have_angles_and_all_have_correlations(parts):
    first, targets = scenes_of(6)
    second = maths.Seen(first.scenes + 0.01, first.growing + 0.01)
    other = scenes_of(9)[0]
    angles = measured({"a": first, "b": second, "c": other}, targets, parts)["angles"]
    between = angles[angles["kind"] == "layers"]
    kinds = {*zip(between["layer"], between["other"], between["metric"], strict=True)}
    correlated = {(*pair, metric) for pair in ("ab", "ac", "bc") for metric in ("readings", "errors")}
    assert kinds == correlated | {("a", "b", "raw"), ("a", "b", "standardised")}
    assert between["chance"].isna().equals(between["metric"].isin(["readings", "errors"]))
    same = between.query("image_class == 'one' and layer == 'a' and other == 'b'").set_index("metric")[
        "value"
    ]
    np.testing.assert_allclose(same[["readings", "errors"]], 1)
    split = angles.query("image_class == 'one' and layer == 'a' and kind == 'splits' and metric == 'raw'")
    np.testing.assert_allclose(same["raw"], split["value"])  # the same halves of the same scenes
    assert split["chance"].tolist() == [6**-0.5]


def test_a_covariant_layer_is_found_covariant(parts):
    seen, targets = scenes_of(6)
    tables = measured({"a": seen}, targets, parts)
    rows = tables["change"].query("measure == 'r' and metric == 'raw'")
    assert len(rows) == C
    np.testing.assert_allclose(rows[["best", "best_step", "own_step"]], 1)
    assert (rows["pattern"] > 0.8).all()
    within = tables["linearity"].query("image_class == 'one'").set_index("measure")["r2_within"]
    assert within["r"] > within["log_r"]


def test_a_layer_that_cannot_be_measured_is_named(parts):
    seen, targets = scenes_of(6)
    still = seen._replace(growing=0 * seen.growing)
    with pytest.raises(
        ValueError, match=r"w, b: .*same at all its sizes.*config\.layers|w, b: Nothing moves"
    ):
        measured({"a": seen, "b": still}, targets, parts)
    with pytest.raises(ValueError, match="w, a: Features of the scenes hold NaN"):
        measured({"a": seen._replace(scenes=seen.scenes * np.nan)}, targets, parts)
