"""Resizing: ranks, groups, intervals and plateaus against oracles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from flax import linen as nn
from PIL import Image
from tiny_network import random_network

from scalecov_jax import extraction as features
from scalecov_jax.experiments import resize_maths
from scalecov_jax.experiments.resize_maths import (
    check_sizes,
    classes_of,
    classify,
    curves,
    filter_differences,
    grid_losses,
    group_images,
    kind_of,
    means,
    plateaus,
    resampled_means,
    true_class,
    wilson_interval,
)
from scalecov_jax.imaging.decoding import FILTERS
from scalecov_jax.imaging.image_set import Box, Example, ImageError, image_set
from scalecov_jax.models.layers import Softmax
from scalecov_jax.models.preprocessing import preprocess

SIZES = (100, 175, 200, 250, 300, 400)


# One image


def test_rank_counts_every_class_that_is_at_least_as_probable():
    rng = np.random.default_rng(0)
    outputs = rng.integers(0, 6, (200, 9)) / 5
    truth = rng.integers(0, 9, 200)
    probability, rank = true_class(outputs, truth)
    np.testing.assert_array_equal(
        probability, [row[index] for row, index in zip(outputs, truth, strict=True)]
    )
    expected = [
        scipy.stats.rankdata(-row, method="max")[index] for row, index in zip(outputs, truth, strict=True)
    ]
    np.testing.assert_array_equal(rank, expected)
    assert true_class(np.full((1, 9), 1 / 9), np.array([4]))[1] == [9]  # no success by chance


def test_outputs_that_are_not_finite_are_refused():
    outputs = np.full((3, 4), 0.25)
    outputs[1, 2] = np.nan
    with pytest.raises(FloatingPointError, match="1 of 3 images have outputs that are not finite"):
        true_class(outputs, np.zeros(3, int))


# Networks


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture(scope="module")
def images():
    """Images of random shapes whose box covers a known part."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (*rng.integers(20, 60, 2), 3), dtype=np.uint8) for _ in range(7)]
    return image_set(
        Example(one, str(index % 5), Box(1, 1, one.shape[1], 10), None, "", f"{index}.png")
        for index, one in enumerate(pixels)
    )


def run(network, images, **options):
    settings = {"sizes": (20, 33), "filters": ("bicubic", "nearest"), "batch_size": 4, **options}
    truth = np.arange(len(images)) % 5
    return classify(network, "tiny", images, truth, group_images(images, 0.8), **settings)


def test_rows_are_those_of_a_plain_forward_pass(network, images):
    rows, skipped = run(network, images)
    assert skipped == ()
    assert len(rows) == 7 * 2 * 2
    by_image = rows.set_index(["image", "filter", "size"])
    variables = jax.tree.map(jnp.asarray, network.variables)
    for index, example in enumerate(images):
        for name, size in (("bicubic", 20), ("nearest", 33)):
            resized = Image.fromarray(example.image).resize((size, size), Image.Resampling[name.upper()])
            inputs = preprocess(jnp.asarray(resized)[None], "tf")
            output = np.asarray(network.module.apply(variables, inputs))[0]
            row = by_image.loc[(example.name, name, size)]
            np.testing.assert_allclose(row["probability"], output[index % 5], rtol=1e-4)
            assert row["rank"] == 1 + (output > output[index % 5]).sum()
            assert row["object_ratio"] == pytest.approx(10 / example.image.shape[0])
            assert row["group"] == group_images(images, 0.8)[index]
    assert rows["probability"].round(6).nunique() > 20  # sizes and filters do differ


def test_filters_share_a_compilation_and_sizes_do_not(network, images):
    before = features._compiled.program()._cache_size()
    run(network, images, sizes=(21, 22, 23), filters=FILTERS)
    assert features._compiled.program()._cache_size() == before + 3


def test_what_is_cached_is_not_computed_again(network, images, tmp_path, monkeypatch):
    first = run(network, images, cache=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"tiny-{size}-{name}.npz" for size in (20, 33) for name in ("bicubic", "nearest")
    }
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 3000  # two numbers an image
    monkeypatch.setattr(resize_maths, "compute_features", None)
    again = run(network, images, cache=tmp_path)
    pd.testing.assert_frame_equal(again[0], first[0], check_exact=True)
    assert again[1] == first[1] == ()


def test_undecodable_images_are_left_out_of_every_size(network, images, tmp_path):
    def read(index):
        if index == 2:
            raise ImageError("2.png", "broken")
        return images.decode(index)

    rows, skipped = run(network, dataclasses.replace(images, decode=read), cache=tmp_path)
    assert [x.name for x in skipped] == ["2.png"]
    assert {*rows["image"]} == {f"{index}.png" for index in (0, 1, 3, 4, 5, 6)}
    expected = run(network, images)[0].query("image != '2.png'").reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, expected, rtol=1e-5)


def test_networks_without_classes_are_refused(network):
    assert classes_of(network, "good") == 5
    with pytest.raises(
        ValueError, match="cut: This tiny stops at block_2, before softmax, so it names no class"
    ):
        classes_of(random_network(last="block_2"), "cut")


class Valid(nn.Module):
    """A network that needs 9 pixels."""

    @nn.compact
    def __call__(self, x):
        return Softmax(name="softmax")(nn.Conv(3, (9, 9), padding="VALID", name="stem")(x).mean((1, 2)))


def test_sizes_below_the_minimum_are_named(network):
    valid = network._replace(module=Valid(), variables={"params": {}})
    check_sizes(network, "good", (12, 9))
    check_sizes(valid, "some", (12, 9))
    with pytest.raises(
        ValueError, match=r"some needs .* at least 9 x 9 pixels up to softmax; got 7 x 7\. Leave out"
    ):
        check_sizes(valid, "some", (20, 7, 8))


# Groups


def known(sizes, boxes):
    """Images of which only width, height and box are known."""
    blank = (np.broadcast_to(np.uint8(0), (height, width, 3)) for width, height in sizes)
    return image_set(Example(one, "0", box, None, "", "") for one, box in zip(blank, boxes, strict=True))


def boxed(*ratios):
    return known([(100, 100)] * len(ratios), [Box(1, 1, 100, 100 * ratio) for ratio in ratios])


def test_groups_by_object():
    ratios = [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.79]
    groups = group_images(boxed(*ratios), 0.8)
    assert [kind_of(group) for group in groups] == [
        "filled", "small objects", "small objects", "medium objects", "medium objects", "medium objects", "large objects",
        "filled", "large objects",
    ]  # fmt: skip
    assert groups[0] == "filled (at least 80 % of the image)"
    assert groups[1] == "small objects (10.0 to 20.0 % of the image)"
    assert groups[6] == "large objects (60.0 to 79.0 % of the image)"


def test_groups_by_image():
    sizes = [(500, 375), (375, 500), (500, 375), (375, 375), (300, 200), (1000, 800), (500, 333)]
    groups = group_images(known(sizes, [None] * len(sizes)), 0.8)
    small, large = "smaller images (shorter side 200 to 333 px)", "larger images (shorter side 375 to 800 px)"
    assert groups == [large, large, large, large, small, large, small]
    same = group_images(known([(32, 32)] * 4, [None] * 4), 0.8)
    assert same == ["images (shorter side 32 to 32 px)"] * 4


@pytest.mark.parametrize("seed", range(20))
def test_equal_values_never_part_and_parts_are_nearly_even(seed):
    rng = np.random.default_rng(seed)
    ratios = rng.integers(1, rng.integers(2, 80), 60) / 100
    groups = group_images(boxed(*ratios), 1.0)
    owner = {}
    for ratio, group in zip(ratios, groups, strict=True):
        assert owner.setdefault(ratio, group) == group
    assert len(set(groups)) <= 3
    largest_tie = max(np.unique(ratios, return_counts=True)[1])
    if largest_tie <= 10:
        counts = np.unique(groups, return_counts=True)[1]
        assert len(counts) == 3
        assert np.ptp(counts) <= 2 * largest_tie


# Curves


def rows_of(probabilities, ranks=None, name="lanczos", groups=None, sizes=SIZES):
    """A row for each image and size of N x K probabilities."""
    count, ranks = len(probabilities), np.where(probabilities > 0.5, 1, 9) if ranks is None else ranks
    groups = groups or ["images (x)"] * count
    columns = {
        "image": np.repeat([f"{n}.png" for n in range(count)], len(sizes)),
        "group": np.repeat(groups, len(sizes)),
    }
    columns |= {"size": np.tile(sizes, count), "probability": probabilities.ravel(), "rank": ranks.ravel()}
    return pd.DataFrame({"weights": "w", "object_ratio": np.nan, "filter": name, **columns})


def rows(frame):
    """Each row with its columns as attributes."""
    return [*frame.itertuples(index=False)]


def curve(*means, count=40):
    """Means of each size; images differ among each other and not in the loss between sizes, but for a little noise."""
    rng = np.random.default_rng(0)
    own, shared = rng.normal(0, 0.01, (count, len(means))), rng.normal(0, 0.05, (count, 1))
    return np.clip(np.array(means)[None] + shared - shared.mean() + own - own.mean(0), 0, 1)


def test_intervals_are_scipys():
    rng = np.random.default_rng(0)
    values = rng.beta(2, 1, 60)
    interval = means(pd.DataFrame(values), 3).loc[0, ["low", "high"]].to_numpy(float)
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0))
    np.testing.assert_allclose(interval, expected.confidence_interval, atol=0.004)
    for hits, count in ((0, 7), (7, 7), (45, 60)):
        z, share = scipy.stats.norm.ppf(0.975), hits / count
        middle = (share + z**2 / 2 / count) / (1 + z**2 / count)
        half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / 4 / count**2)
        np.testing.assert_allclose(wilson_interval(hits, count), (middle - half, middle + half), atol=1e-9)


def test_columns_are_resampled_together():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 3))
    both = resampled_means(np.concatenate([values, values[:, :1] - values[:, 1:2]], axis=1), 1, 500)
    np.testing.assert_allclose(both[:, 3], both[:, 0] - both[:, 1], atol=1e-12)
    np.testing.assert_array_equal(
        both, resampled_means(np.concatenate([values, values[:, :1] - values[:, 1:2]], axis=1), 1, 500)
    )
    assert (both[:, 0] != resampled_means(values, 2, 500)[:, 0]).any()


def test_points_are_means_by_group_and_size():
    rng = np.random.default_rng(0)
    probabilities = rng.random((12, len(SIZES)))
    ranks = rng.integers(1, 9, (12, len(SIZES)))
    groups = ["small objects (a)"] * 5 + ["filled (b)"] * 6 + ["large objects (c)"]
    table = rows(curves(rows_of(probabilities, ranks, groups=groups)[::-1]))
    order = ["all", "small objects (a)", "large objects (c)", "filled (b)"]
    assert [(x.group, x.size) for x in table] == [(group, size) for group in order for size in SIZES]
    for x in table:
        members = [n for n in range(12) if x.group in ("all", groups[n])]
        column = SIZES.index(x.size)
        assert x.images == len(members)
        assert x.probability == pytest.approx(probabilities[members, column].mean())
        assert x.top1 == pytest.approx((ranks[members, column] == 1).mean())
        assert x.top5 == pytest.approx((ranks[members, column] <= 5).mean())
        assert x.probability_low <= x.probability <= x.probability_high
        assert x.top5_low <= x.top5 <= x.top5_high
        if x.images == 1:
            assert (x.probability_low, x.probability_high) == (0, 1)


def test_a_group_of_all_images_is_not_repeated():
    rng = np.random.default_rng(0)
    assert {*curves(rows_of(rng.random((5, 6))))["group"]} == {"all"}


def test_every_image_needs_every_size():
    rng = np.random.default_rng(0)
    frame = rows_of(rng.random((5, 6)))
    with pytest.raises(
        ValueError, match=r"w, lanczos: expected every image once at every size; others have 4\.png"
    ):
        curves(frame[:-1])
    with pytest.raises(ValueError, match="once at every size"):
        plateaus(pd.concat([frame, frame]), {"w": 224})


def test_plateau_is_where_no_loss_is_shown():
    """Means 0.3, 0.80, 0.81, 0.80, 0.8, 0.6 with noise shared by all sizes and a little of each size's own."""
    rng = np.random.default_rng(0)
    shared, own = rng.normal(0, 0.1, (100, 1)), rng.normal(0, 0.02, (100, 6))
    probabilities = np.clip(
        np.array([0.3, 0.8, 0.81, 0.8, 0.8, 0.6])[None] + shared + own - own.mean(0), 0, 1
    )
    flat, top1, top5 = rows(plateaus(rows_of(probabilities, np.full((100, 6), 3)), {"w": 224}))
    assert (flat.measure, flat.best, flat.value) == (
        "probability",
        200,
        pytest.approx(probabilities[:, 2].mean()),
    )
    # A paired loss of 0.01 +- 0.003 is shown, which the intervals of single sizes (+- 0.02) hide.
    assert (flat.first, flat.last, flat.smallest, flat.largest) == (200, 200, 100, 400)
    assert (top1.value, top1.first, top1.last) == (0, 100, 400)
    assert (top5.value, top5.first, top5.last) == (1, 100, 400)
    probabilities[:, 1:5] = probabilities[:, 2:3] + 0.02 * rng.normal(size=(100, 4))
    flat = rows(plateaus(rows_of(probabilities), {"w": 224}))[0]
    assert (flat.first, flat.last) == (175, 300)


def test_plateau_ends_at_the_first_size_that_is_worse():
    flat = rows(plateaus(rows_of(curve(0.8, 0.5, 0.8, 0.8005, 0.8, 0.8)), {"w": 224}))[0]
    assert (flat.first, flat.last) == (200, 400)


def test_sizes_off_the_grid_do_not_break_a_plateau():
    sizes = (96, 128, 160, 192, 193, 224, 256)
    values = curve(0.3, 0.8, 0.8, 0.8005, 0.6, 0.8, 0.4)
    flat = rows(plateaus(rows_of(values, sizes=sizes), {"w": 224}))[0]
    assert (flat.best, flat.first, flat.last, flat.smallest, flat.largest) == (192, 128, 224, 96, 256)
    flat = rows(plateaus(rows_of(values, sizes=sizes), {"w": 100}))[
        0
    ]  # no size on the grid, so that all count
    assert (flat.first, flat.last) == (128, 192)


def test_filters_are_paired_with_lanczos():
    rng = np.random.default_rng(0)
    lanczos = rng.random((50, 6))
    nearest = lanczos - 0.1
    nearest[:, 3:] = lanczos[:, 3:]
    table = rows(filter_differences(pd.concat([rows_of(lanczos), rows_of(nearest, name="nearest")])))
    assert [(x.filter, x.size) for x in table] == [("nearest", size) for size in SIZES]
    for x, expected in zip(table, (-0.1, -0.1, -0.1, 0, 0, 0), strict=True):
        np.testing.assert_allclose((x.difference, x.low, x.high), expected, atol=1e-12)
    assert filter_differences(rows_of(nearest, name="nearest")).empty


def test_grid_losses_are_those_below_the_line():
    rng = np.random.default_rng(0)
    sizes = (70, 96, 100, 128, 160, 224, 225)
    values = rng.normal(0.5, 0.01, (30, 1)) + np.array([0.0, 0.1, 0.1, 0.3, 0.2, 0.1, -0.1])[None]
    table = rows(grid_losses(rows_of(values, sizes=sizes), {"w": 224}))
    assert [x.size for x in table] == [100]  # 70 and 225 have no neighbours on both sides
    np.testing.assert_allclose((table[0].loss, table[0].low, table[0].high), 0.2 * 4 / 32, atol=1e-9)
    off = rows(grid_losses(rows_of(values, sizes=sizes), {"w": 193}))
    assert [x.size for x in off] == []
    shifted = rows(grid_losses(rows_of(values, sizes=sizes, name="nearest"), {"w": 132}))
    assert [x.size for x in shifted] == []
    nearest = rows_of(values, sizes=(75, 90, 107, 110, 120, 130, 139), name="nearest")
    shifted = rows(grid_losses(nearest, {"w": 299}))
    assert [x.size for x in shifted] == [90, 110, 120, 130]
    np.testing.assert_allclose(shifted[0].loss, 0.1 * 15 / 32 - 0.1, atol=1e-9)
