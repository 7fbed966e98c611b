"""Rendered retinas: seeded, graded by their lesions, with masks of what was drawn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalecov_jax.imaging import fundus, retina
from scalecov_jax.imaging.sources import open_images

SIZE = 160  # at which every lesion is larger than a pixel


@pytest.fixture(scope="module")
def eyes():
    """One eye in all five grades: all else is the same."""
    draw = jax.jit(lambda key: jax.lax.map(lambda grade: retina.render(key, grade, SIZE), jnp.arange(5)))
    return draw, *map(np.asarray, draw(jax.random.key(0)))


def test_seeded(eyes):
    draw, images, masks = eyes
    again = draw(jax.random.key(0))
    np.testing.assert_array_equal(again[0], images)
    np.testing.assert_array_equal(again[1], masks)
    assert (np.asarray(draw(jax.random.key(1))[0]) != images).any((1, 2, 3)).all()


def test_grades_have_the_lesions_of_the_rule(eyes):
    masks = eyes[2]
    kinds = [{int(kind) for kind in np.unique(mask)} - {0} for mask in masks]
    assert kinds[:2] == [set(), {1}]
    assert {2, 3} <= kinds[2]
    assert {2, 3} <= kinds[3] <= {1, 2, 3}
    assert {4, 5} <= kinds[4]
    assert (masks[3] == 2).sum() > (masks[2] == 2).sum()
    assert (retina.FEWEST <= retina.MOST).all()


def test_masks_cover_what_was_drawn(eyes):
    """Against the same eye without lesions, pixels differ in the mask, or within two pixels of it where edges are soft."""
    images, masks = eyes[1].astype(int), eyes[2]
    central = np.hypot(*(np.indices((SIZE, SIZE)) + 0.5 - SIZE / 2)) < 0.45 * SIZE
    for image, mask in zip(images[1:], masks[1:], strict=True):
        changed = np.abs(image - images[0]).max(-1) > 2
        near = mask > 0
        for axis in (0, 1):
            near = near | np.any([np.roll(near, step, axis) for step in (-2, -1, 1, 2)], 0)
        assert not (changed & ~near & central).any()
        solid = (mask > 0) & (mask < 5)
        assert changed[solid].mean() > 0.9


def test_windows_hold_all_that_is_painted(eyes, monkeypatch):
    """Painting the whole canvas each time, which takes ten times as long, gives the same eye."""

    def paint_all(canvas, centre, reach, change):
        x, y = jnp.meshgrid(*2 * [(jnp.arange(canvas.shape[0]) + 0.5) / canvas.shape[0]])
        return change(canvas, x, y)

    monkeypatch.setattr(retina, "_paint", paint_all)
    image, mask = jax.jit(retina.render.__wrapped__, static_argnums=2)(jax.random.key(0), 4, SIZE)
    image, expected = np.asarray(image).astype(int), eyes[1][4].astype(int)
    assert (image != expected).mean() < 1e-3  # rounding
    assert np.abs(image - expected).max() <= 1
    np.testing.assert_array_equal(mask, eyes[2][4])


def test_surround_is_black_and_the_retina_is_not(eyes):
    images = eyes[1]
    away = np.hypot(*(np.indices((SIZE, SIZE)) + 0.5 - SIZE / 2)) / SIZE
    assert not images[:, away > 0.5].any()
    assert images[0, away < 0.4].mean(0)[0] > images[0, away < 0.4].mean(0)[2] > 0


def test_trimming_leaves_a_rendered_eye_as_it_is(eyes):
    for image in eyes[1]:
        np.testing.assert_allclose(fundus.visible_disc(image), (SIZE / 2, SIZE / 2, 0.495 * SIZE), atol=0.5)
        trimmed = fundus.trim(image, SIZE).astype(int)
        assert np.abs(trimmed - image).mean() < 4


def test_source(monkeypatch):
    monkeypatch.setattr(
        retina,
        "render",
        partial(
            lambda key, grade, size, left: (
                jnp.full((size, size, 3), grade, jnp.uint8),
                jnp.zeros((size, size), jnp.uint8),
            )
        ),
    )
    found = open_images("retina", "retina", count=7, seed=3, size=4)
    assert [one.group[-1] for one in found] == ["0", "0", "1", "1", "2", "2", "3"]
    assert {one.label for one in found} <= set(retina.GRADES)
    assert all(one.image[0, 0, 0] == int(one.label) for one in found)
    assert len({one.name for one in found}) == 7
    first, second = (np.array([int(one.label) for one in [*found][eye::2]][:3]) for eye in (0, 1))
    assert (np.abs(first - second) <= 1).all()
