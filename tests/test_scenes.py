"""Scenes: pure in the key, boxes of exactly the ratio asked for, and nothing but the object tells of class or size."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalecov_jax.concepts import scale
from scalecov_jax.imaging import scenes
from scalecov_jax.imaging.sources import open_images

SIZE = 64
COUNT = len(scenes.CLASSES)
RENDER = jax.jit(jax.vmap(partial(scenes.render, size=SIZE)))


def render(seeds, class_ids, ratios):
    """Scenes of equally long lists, padded so that all tests share one compilation."""
    seeds, class_ids, ratios = np.broadcast_arrays(seeds, class_ids, ratios)
    count = len(seeds)
    assert count <= COUNT
    keys = jax.vmap(jax.random.key)(jnp.asarray(np.resize(seeds, COUNT), jnp.uint32))
    images, boxes = RENDER(
        keys, jnp.asarray(np.resize(class_ids, COUNT)), jnp.asarray(np.resize(ratios, COUNT), jnp.float32)
    )
    return np.asarray(images[:count]).astype(int), np.asarray(boxes[:count], float)


def inside(box, margin):
    """The pixels whose centres lie in a box widened by `margin` pixels."""
    centre = np.arange(SIZE) + 0.5
    x_min, y_min, x_max, y_max = box
    x = (centre > x_min - margin) & (centre < x_max + margin)
    y = (centre > y_min - margin) & (centre < y_max + margin)
    return y[:, None] & x[None, :]


def shadow_margin(box):
    """How far a shadow reaches beyond the box: its offset, and half of its soft edge, with a pixel for rounding."""
    extent = (box[2] - box[0] + box[3] - box[1]) / 2
    return 0.06 * extent + 0.5 + 0.02 * extent + 1


def test_same_key_same_scene():
    images, boxes = render([1, 1, 2], 5, 0.3)
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(boxes[0], boxes[1])
    assert np.abs(images[0] - images[2]).mean() > 5
    assert (boxes[0] != boxes[2]).all()


@pytest.mark.parametrize("smallest", [0.005, 0.02, 0.85])
def test_box_has_the_ratio_and_lies_inside(smallest):
    rng = np.random.default_rng(0)
    for seed in range(6):
        ratios = np.exp(rng.uniform(np.log(smallest), np.log(0.98), COUNT))
        _, boxes = render(seed * COUNT + np.arange(COUNT), rng.integers(0, COUNT, COUNT), ratios)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        np.testing.assert_allclose(area, ratios * SIZE**2, rtol=1e-3)
        assert boxes.min() >= -1e-3
        assert boxes.max() <= SIZE * (1 + 1e-5)


@pytest.mark.parametrize("ratio", [0.02, 0.2, 0.7])
def test_class_changes_only_the_object_and_its_shadow(ratio):
    for seed in range(4):
        images, boxes = render(seed, np.arange(COUNT), ratio)
        np.testing.assert_array_equal(boxes, boxes[:1].repeat(COUNT, 0))
        outside = ~inside(boxes[0], shadow_margin(boxes[0]))
        assert (images == images[:1])[:, outside].all()


def test_object_fills_its_box():
    """Of scenes that differ only in the texture, the differing pixels (the object) reach all four sides of the box."""
    for seed in range(12):
        shape = seed % len(scenes.SHAPES)
        class_ids = shape * len(scenes.TEXTURES) + np.arange(len(scenes.TEXTURES))
        images, boxes = render(seed, class_ids, 0.4)
        y, x = np.nonzero((np.abs(images - images[:1]) > 2).any((0, 3)))
        found = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        # A tip may be thinner than a pixel, and textures may agree there.
        np.testing.assert_allclose(found, boxes[0], atol=4)
        assert not (images != images[:1])[:, ~inside(boxes[0], 1)].any()


def test_size_changes_neither_background_nor_colours():
    for seed in range(4):
        images, boxes = render(seed, 3, [0.02, 0.05, 0.1, 0.2])
        outside = ~np.any([inside(box, shadow_margin(box)) for box in boxes], axis=0)
        assert outside.any()
        assert (images == images[:1])[:, outside].all()
        middle = [
            np.sort(image[inside(box, -1)].reshape(-1, 3), axis=0)
            for image, box in zip(images, boxes, strict=True)
        ]
        brightest = np.array([np.percentile(pixels, 95, axis=0) for pixels in middle[1:]])
        assert np.ptp(brightest, axis=0).max() < 45


def test_every_class_looks_different():
    images, _ = render(7, np.arange(COUNT), 0.9)
    different = np.abs(images[:, None] - images[None]).max(-1) > 20
    share = different.mean((2, 3)) + np.eye(COUNT)
    assert share.min() > 0.03
    assert len(set(scenes.CLASSES)) == COUNT >= 16


@jax.jit
def drawn(smallest):
    """Classes and ratios of 4000 scenes; the compiler leaves the images out."""
    return scenes.draw(jax.random.key(0), 4000, size=4, smallest=smallest)[1:]


def test_draw_is_log_uniform_and_class_tells_nothing_of_size():
    class_ids, ratios = drawn(jnp.asarray(scenes.SMALLEST))
    log = np.log(ratios)
    low, high = np.log(scenes.SMALLEST), np.log(scenes.LARGEST)
    assert low - 1e-5 <= log.min() < low + 0.05
    assert high - 0.05 < log.max() <= high + 1e-5
    sd = (high - low) / np.sqrt(12)
    np.testing.assert_allclose(np.histogram(log, 8, (low, high))[0], 500, atol=5 * np.sqrt(500))
    counts = np.bincount(class_ids, minlength=COUNT)
    np.testing.assert_allclose(counts, 250, atol=5 * np.sqrt(250))
    means = np.bincount(class_ids, log) / counts
    np.testing.assert_allclose(means, (low + high) / 2, atol=5 * sd / np.sqrt(250))


def test_draw_keeps_to_the_smallest_ratio():
    _, ratios = drawn(jnp.asarray(0.3))
    assert 0.3 - 1e-6 <= ratios.min() < 0.31


def test_examples_measure_what_was_rendered():
    source = scenes.examples("ringed_star", 12, seed=3, size=32)
    class_id = scenes.CLASSES.index("ringed_star")
    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(3), class_id))
    low, high = np.log([scenes.SMALLEST, scenes.LARGEST])
    ratios = np.exp(jax.random.uniform(key, (12,), minval=low, maxval=high))
    np.testing.assert_allclose([scale.measure(one) for one in source], ratios, rtol=1e-3)
    for example in source:
        assert example.image.shape == (32, 32, 3)
        assert example.label == "ringed_star"
        assert min(example.box) >= 0
        assert max(example.box[2:]) <= 32 + 1e-3
    assert len({example.name for example in source}) == len({example.group for example in source}) == 12


def test_examples_depend_on_the_seed_and_nothing_else():
    first, again, other = (scenes.examples("striped_disc", 12, seed, size=32) for seed in (3, 3, 4))
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one.image, same.image)
        assert one._replace(image=0) == same._replace(image=0)
        assert one.box != different.box


def test_growing_changes_nothing_but_the_size():
    ratios = np.geomspace(0.02, 0.5, 4)
    source = scenes.growing("ringed_star", 3, ratios, seed=3, size=SIZE)
    np.testing.assert_allclose([scale.measure(one) for one in source], np.tile(ratios, 3), rtol=1e-4)
    for index in range(3):
        views = source[4 * index : 4 * index + 4]
        assert len({view.group for view in views}) == 1
        boxes = np.array([view.box for view in views]) - [1, 1, 0, 0]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        np.testing.assert_allclose(centre, SIZE / 2, atol=1e-3)
        sides = boxes[:, 2:] - boxes[:, :2]
        np.testing.assert_allclose(sides[:, 0] / sides[:, 1], sides[0, 0] / sides[0, 1], rtol=1e-4)
        images = np.array([view.image for view in views]).astype(int)
        outside = ~inside(boxes[-1], shadow_margin(boxes[-1]))
        assert outside.any()
        assert (images == images[:1])[:, outside].all()
        assert (np.diff([(image != images[0]).any(-1).sum() for image in images]) > 0).all()
    assert len({view.group for view in source}) == 3
    assert len({view.name for view in source}) == 12
    first, second = source[0].image, source[4].image
    assert np.abs(first.astype(int) - second).mean() > 5


def test_growing_objects_are_none_of_the_examples():
    again = scenes.growing("ringed_star", 2, [0.3], seed=3, size=32)
    for one, same in zip(again, scenes.growing("ringed_star", 2, [0.3], seed=3, size=32), strict=True):
        np.testing.assert_array_equal(one.image, same.image)
    others = [*scenes.examples("ringed_star", 8, 3, 32), *scenes.examples("striped_disc", 8, 3, 32)]
    corners = {tuple(example.image[0, :4].ravel()) for example in others}
    assert not corners & {tuple(example.image[0, :4].ravel()) for example in again}


def test_growing_fills_the_image_at_most():
    (whole,) = scenes.growing("striped_disc", 1, [1.0], seed=0, size=32)
    np.testing.assert_allclose(whole.box, (1, 1, 32, 32), atol=1e-3)
    with pytest.raises(ValueError, match=r"Ratios of 0, 1\.5; an object's share of the image lies in"):
        scenes.growing("striped_disc", 1, [0.0, 0.5, 1.5], seed=0)
    with pytest.raises(ValueError, match="'stripped_disc'; did you mean striped_disc"):
        scenes.growing("stripped_disc", 1, [0.5], seed=0)


def test_unknown_class_is_told_the_nearest():
    with pytest.raises(ValueError, match="'stripped_disc'; did you mean striped_disc") as error:
        open_images("scenes", "stripped_disc", count=12)
    assert all(name in str(error.value) for name in scenes.CLASSES)
    with pytest.raises(ValueError, match=r"'car'.*There are striped_disc"):
        scenes.examples("car", 12, 0)
