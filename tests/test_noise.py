"""White noise and the probes of its width: oracles, and why the width is readable."""

from itertools import product

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from tiny_network import LAYERS, random_network

from scalecov_jax.experiments import noise_features as of_noise
from scalecov_jax.experiments import noise_maths
from scalecov_jax.experiments.noise_features import (
    Clean,
    clean_layers,
    map_layers,
    noise_features,
    reference_layer,
)
from scalecov_jax.experiments.noise_maths import (
    Design,
    draws,
    log_distance,
    main_window,
    targets_of,
    windows,
)
from scalecov_jax.extraction import compute_features
from scalecov_jax.imaging.decoding import resize_image
from scalecov_jax.imaging.noise import examples, white_noise
from scalecov_jax.models.preprocessing import preprocess
from scalecov_jax.probes import evaluate
from scalecov_jax.report.plots import median_split

MAPS = LAYERS[:3]
SIZES = (24, 28, 32, 36, 40, 44, 48)
PER_SIZE = 8
DESIGN = Design(splits=4, seed=3)


@pytest.fixture(scope="module")
def measured():
    network = random_network()
    clean = clean_layers(network, MAPS, SIZES)
    return network, clean, noise_features(network, clean, SIZES, PER_SIZE, 0, batch_size=3)


# Images


def test_noise_is_uniform_and_independent():
    image = white_noise(1, 2, 200)
    counts = np.bincount(image.ravel(), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-3
    centred = image / 255 - 0.5
    neighbours = (
        centred[1:] * centred[:-1],
        centred[:, 1:] * centred[:, :-1],
        centred[..., 1:] * centred[..., :-1],
    )
    for products in neighbours:
        assert abs(products.mean()) < 4 * products.std() / np.sqrt(products.size)


def test_noise_depends_on_seed_index_and_size_alone():
    first = white_noise(1, 2, 30)
    np.testing.assert_array_equal(first, white_noise(1, 2, 30))
    for other in (white_noise(2, 2, 30), white_noise(1, 3, 30), white_noise(1, 2, 31)[:30, :30]):
        assert (first != other).mean() > 0.9


def test_examples_are_never_changed_by_resizing():
    for size in (1, 75, 130):
        for index, one in enumerate(examples(2, size, 5)):
            np.testing.assert_array_equal(resize_image(one.image, size), white_noise(5, index, size))
    with pytest.raises(ValueError, match="at least 1, got 0 and 30"):
        examples(0, 30, 0)


# Features


def test_clean_layers_by_hand():
    """Receptive fields 3, 15, 31 at strides 2, 8, 16 and offsets -1, -7, -15: clean from 4, 16 and 32 pixels on."""
    clean = clean_layers(random_network(), MAPS, SIZES)
    assert [clean[layer].needed for layer in MAPS] == [4, 16, 32]
    assert clean["block_2"].positions == {32: 1, 36: 1, 40: 1, 44: 1, 48: 4}
    assert clean["block_1"].positions[24] == 4
    assert [clean[layer].start for layer in MAPS] == [24, 24, 32]
    assert clean_layers(random_network(), MAPS, (24, 28, 32, 36))["block_2"].start is None


def test_reference_layer():
    assert reference_layer({"a": 24, "b": 24, "c": 32, "d": None}) == "b"
    assert reference_layer({"a": 40, "b": 32}) == "b"
    assert reference_layer({"a": None}) is None
    assert reference_layer({}) is None


def test_both_poolings_are_those_of_compute_features(measured):
    network, clean, features = measured
    np.testing.assert_array_equal(features.widths, np.repeat(SIZES, PER_SIZE))
    for size in (24, 48):
        source = examples(PER_SIZE, size, 0)
        layers = [layer for layer in MAPS if size in clean[layer].positions]
        gap = compute_features(network, source, MAPS, size=size).values
        corrected = compute_features(network, source, layers, size=size, pooling="corrected_gap").values
        for layer in MAPS:
            np.testing.assert_allclose(features.rows("gap", layer, size, size), gap[layer], atol=1e-5)
        for layer in layers:
            rows = features.rows("corrected_gap", layer, size, size)
            np.testing.assert_allclose(rows, corrected[layer], atol=1e-5)
    assert len(features.corrected_gap["block_2"]) == 5 * PER_SIZE


def test_one_forward_pass_serves_both_poolings():
    network = random_network(last="block_1")
    images = np.zeros((2, 32, 32, 3), np.uint8)

    def convolutions(corrected):
        lowered = of_noise._both_poolings.program().lower(
            network.module, network.variables, images, ("block_1",), corrected, "tf", np.float32
        )
        return lowered.compile().as_text().count("convolution(")

    assert convolutions(("block_1",)) == convolutions(()) > 0


def test_features_are_cached_by_width(measured, tmp_path, monkeypatch):
    network, clean, features = measured
    options = {"cache": tmp_path, "name": "n"}
    noise_features(network, clean, SIZES, PER_SIZE, 0, **options)
    assert {path.name for path in tmp_path.iterdir()} == {f"n-{size}.npz" for size in SIZES}
    monkeypatch.setattr(of_noise, "_both_poolings", None)
    again = noise_features(network, clean, SIZES, PER_SIZE, 0, **options)
    for layer, rows in again.corrected_gap.items():
        np.testing.assert_allclose(rows, features.corrected_gap[layer], atol=1e-5)


def test_corrected_gap_does_not_know_where_the_image_ends():
    """Cut out of a larger noise image, a clean position keeps its value and a position at the border does not."""
    network = random_network(last="block_1")
    large = white_noise(0, 0, 96)
    stride, offset, size = 8, 24, 56
    crop = large[offset : offset + size, offset : offset + size]

    @jax.jit
    def maps(variables, image):
        return network.module.apply(variables, preprocess(image[None], "tf"))[0]

    whole, part = (np.asarray(maps(network.variables, image)) for image in (large, crop))
    window = whole[offset // stride :, offset // stride :][: part.shape[0], : part.shape[1]]
    clean = slice(1, (size - 15 + 7) // stride + 1)
    corrected = clean_layers(network, ("block_1",), (size,))["block_1"].positions[size]
    assert part[clean, clean].shape[:2] == (corrected**0.5, corrected**0.5)
    np.testing.assert_allclose(part[clean, clean].mean((0, 1)), window[clean, clean].mean((0, 1)), rtol=1e-5)
    assert np.abs(part - window)[0].max() > 0.1
    assert np.abs(part.mean((0, 1)) - window.mean((0, 1))).max() > 1e-3


def test_layers_without_a_map_and_sizes_too_small_are_refused():
    network = random_network()
    assert map_layers(network) == MAPS
    assert map_layers(network, ("block_2", "stem")) == ("stem", "block_2")
    with pytest.raises(
        ValueError, match="pre_softmax of tiny has no map to pool; choose among stem, block_1"
    ):
        map_layers(network, ("pre_softmax",))
    with pytest.raises(ValueError, match="no layer 'block_3'; did you mean"):
        map_layers(network, ("block_3",))
    small = random_network("inception_v3", last="conv2d_5")
    with pytest.raises(
        ValueError, match=r"inception_v3 needs images of at least .* up to conv2d_5; got 8 x 8"
    ):
        clean_layers(small, ("conv2d_5",), (8, 80, 90))


# Draws and windows


def test_draws():
    widths = np.repeat(SIZES, PER_SIZE)
    rows = draws(widths, 5, 20, 6, seed=1)
    assert rows.shape == (6, 25)
    assert all(len({*row}) == 25 for row in rows.tolist())
    np.testing.assert_array_equal(rows[:3], draws(widths, 5, 20, 3, seed=1))
    assert (rows != draws(widths, 5, 20, 6, seed=2)).any()
    # Of 2 training images from 2 widths half the draws have one width; none is kept.
    few = draws(np.repeat([10, 20], 10), 2, 2, 50, seed=0)
    assert all(
        np.ptp(np.repeat([10, 20], 10)[row[:2]]) and np.ptp(np.repeat([10, 20], 10)[row[2:]]) for row in few
    )
    for count, train, test in ((24, 5, 20), (30, 1, 20), (30, 5, 1)):
        with pytest.raises(ValueError, match="cannot be drawn from"):
            draws(widths[:count], train, test, 1, seed=0)
    with pytest.raises(ValueError, match="30 images of 1 widths"):
        draws(np.full(30, 75), 5, 20, 1, seed=0)


def test_windows():
    positions = dict.fromkeys(SIZES, 1)
    clean = {
        "a": Clean(10, positions),
        "b": Clean(40, {size: 1 for size in SIZES if size >= 40}),
        "c": Clean(44, {44: 1, 48: 1}),
    }
    design = DESIGN._replace(ranges=((28, 40), (24, 48), (40, 48)))
    ranges = windows(clean, SIZES, design, PER_SIZE)
    # b has 3 widths: 24 images are too few to draw 25 of, and 30 % of the widths would be one.
    assert [window[:3] for window in ranges] == [
        (24, 48, ("published", "larger", "unseen_sizes")),
        (40, 48, ("larger",)),
        (28, 40, ("published",)),
        (40, 48, ()),
    ]
    assert [window.layers["gap"] for window in ranges] == [
        ("a", "b", "c"),
        ("b",),
        ("a", "b", "c"),
        ("a", "c"),
    ]
    assert [window.layers["corrected_gap"] for window in ranges] == [("a",), ("b",), ("a",), ("a",)]
    assert [main_window(ranges, layer)[:2] for layer in "abc"] == [(24, 48), (40, 48), (24, 48)]


# Probes


def reference(x, y, train, test, alphas):
    """R2 of unstandardised minimum-norm least squares, and of RidgeCV on features with one common scale."""
    mean = x[train].mean(0)
    scale = np.sqrt(x[np.concatenate([train, test])].var(0).mean())
    z, z_test = (x[train] - mean) / scale, (x[test] - mean) / scale
    weights = np.linalg.pinv(x[train] - mean, rcond=1e-6) @ (y[train] - y[train].mean())
    ols = r2_score(y[test], (x[test] - mean) @ weights + y[train].mean())
    ridge = RidgeCV(alphas).fit(z, y[train])
    return ols, r2_score(y[test], ridge.predict(z_test)), ridge.alpha_


@pytest.fixture(scope="module")
def scored(measured):
    _, clean, features = measured
    ranges = windows(clean, SIZES, DESIGN, PER_SIZE)
    return ranges, noise_maths.score_noise(features, ranges, DESIGN)


KEYS = ["setting", "pooling", "layer", "smallest", "target", "split", "estimator"]


def test_scores_equal_numpy_and_scikit_learn(measured, scored):
    features, scores = measured[2], scored[1].set_index(KEYS)
    assert scores.index.is_unique
    widths = features.widths
    drawn = draws(widths, 5, 20, DESIGN.splits, DESIGN.seed)
    for layer, pooling, split in (("stem", "gap", 0), ("block_1", "corrected_gap", 1), ("block_2", "gap", 3)):
        x, y = features.rows(pooling, layer, 24, 48), targets_of(widths)
        parts = [("published", drawn[split][:5], drawn[split][5:])]
        for setting, make, what in (
            ("larger", noise_maths.random_splits, len(widths)),
            ("unseen_sizes", noise_maths.grouped_splits, widths),
        ):
            mask = make(what, DESIGN.splits, DESIGN.seed)[split]
            parts.append((setting, np.flatnonzero(mask), np.flatnonzero(~mask)))
        for setting, train, test in parts:
            for column, target in enumerate(noise_maths.TARGETS):
                expected = reference(x, y[:, column], train, test, DESIGN.alphas)
                ols, ridge = (
                    scores.loc[(setting, pooling, layer, 24, target, split, e)] for e in ("ols", "ridge")
                )
                np.testing.assert_allclose(ols["r2"], expected[0], rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(ridge["r2"], expected[1], rtol=1e-5, atol=1e-5)
                assert np.isnan(ols["alpha"])
                assert ridge["alpha"] == pytest.approx(expected[2])
    unseen = noise_maths.grouped_splits(widths, DESIGN.splits, DESIGN.seed)
    assert not any({*widths[mask]} & {*widths[~mask]} for mask in unseen)


def test_width_is_read_with_gap_and_not_with_corrected_gap(measured, scored):
    _, clean, features = measured
    ranges, scores = scored
    medians = scores.groupby(["setting", "estimator", "target", "pooling", "layer"])["r2"].median()
    medians = medians.loc["larger", "ridge", "inverse_width"]
    assert medians["gap", "block_1"] > 0.7
    assert medians["corrected_gap", "block_1"] < 0.3
    effects = noise_maths.measure_effects(features, clean, ranges)
    effects = effects.set_index(["pooling", "layer", "smallest"]).sort_index()
    share, slopes = effects["between_widths"], effects["slope"]
    assert share["gap", "block_1", 24] > 0.5
    assert abs(share["corrected_gap", "block_1", 24]) < 0.15
    assert slopes["corrected_gap"].drop("block_2").between(-1.4, -0.6).all()
    assert slopes["gap"].isna().all()


def test_predictions_have_the_scores_that_are_reported(measured, scored):
    ranges, scores = scored
    predictions = noise_maths.predict_noise(measured[2], ranges[0], DESIGN, "block_1").rename(
        columns={"width": "true"}
    )
    scores = scores[scores["smallest"] == 24].set_index(KEYS)["r2"]
    parts = predictions.groupby(["setting", "pooling", "estimator", "target"])
    for (setting, estimator), pooling in product(
        (("published", "ols"), ("larger", "ridge")), noise_maths.POOLED
    ):
        split, r2 = median_split(parts.get_group((setting, pooling, estimator, "width")))
        expected = [
            scores[setting, pooling, "block_1", 24, "width", x, estimator] for x in range(DESIGN.splits)
        ]
        assert r2 == pytest.approx(expected[split], abs=1e-6)
        assert r2 == pytest.approx(sorted(expected)[1], abs=1e-6)
    inverse = predictions[predictions["target"] == "inverse_width"]
    assert len(inverse)
    assert (inverse["predicted"] > 0).all()
    with pytest.raises(ValueError, match="no predictions"):
        median_split(pd.DataFrame({"split": [], "true": [], "predicted": []}))


def test_share_between_widths_is_omega_squared():
    rng = np.random.default_rng(0)
    widths = np.repeat([10, 20, 30, 40], 6)
    x = rng.normal(size=24) + widths / 20
    f, _ = stats.f_oneway(*(x[widths == width] for width in (10, 20, 30, 40)))
    share, within = noise_maths.between_widths(x[:, None], widths)
    assert share == pytest.approx(3 * (f - 1) / (3 * (f - 1) + 24))
    assert within[20] == pytest.approx(x[6:12].var(ddof=1))
    both, _ = noise_maths.between_widths(np.stack([x, 0 * x], 1), widths)
    assert both == pytest.approx(share)
    assert noise_maths.between_widths(np.ones((24, 2)), widths)[0] == 0
    # One mean, variances that differ: 0 in expectation.
    shares = [
        noise_maths.between_widths(rng.normal(size=(24, 30)) * 10 / widths[:, None], widths)[0]
        for _ in range(200)
    ]
    assert abs(np.mean(shares)) < 4 * np.std(shares) / np.sqrt(200)


def test_distance_tells_the_variance():
    rng = np.random.default_rng(0)
    sd = np.repeat([0.5, 1.0, 2.0], 20)
    distance = log_distance(sd[:, None] * rng.normal(size=(60, 50)))
    assert distance.shape == (60, 1)
    assert np.corrcoef(distance[:, 0], np.log(sd))[0, 1] > 0.98
    assert np.isfinite(log_distance(np.ones((5, 3)))).all()


def test_common_scaling_keeps_silent_features_small():
    """A feature silent but for one held-out image ruins no probe, whether features have one scale or each its own."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=60)
    x = np.stack([y + 0.1 * rng.normal(size=60) for _ in range(5)] + [1e-4 * rng.normal(size=60)], 1)
    x[50, 5] = 1.0
    masks = (np.arange(60) < 40)[None]
    each, common = (
        evaluate.score_layers({"x": x}, y.reshape(1, 60, 1), masks, scaling=scaling).ridge[0, 0, 0]
        for scaling in ("each", "common")
    )
    assert each > 0.95
    assert common > 0.95
