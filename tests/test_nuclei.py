"""Mean nucleus area against scikit-image and an independent scipy pipeline on every shared annotation."""

from itertools import pairwise

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops
from skimage.morphology import closing, footprint_rectangle
from skimage.segmentation import clear_border

from scalecov_jax.concepts.nuclei import (
    PUBLISHED_MEANS,
    Nuclei,
    class_means,
    mean_area,
    mean_area_of_instances,
    nearest_class,
)


def as_published(mask):
    """The notebook's own sequence of calls."""
    closed = closing(mask > threshold_otsu(mask), footprint_rectangle((2, 2)))
    areas = [region.area for region in regionprops(label(clear_border(closed))) if region.area >= 3]
    return (len(areas), sum(areas) / len(areas)) if areas else None


def otsu(mask):
    """The level whose split of the histogram has the largest variance between its two parts."""
    counts = np.bincount(mask.ravel(), minlength=256).astype(float)
    levels = np.arange(256)
    best, at = -1.0, 0
    for level in range(mask.min(), mask.max()):
        low, high = counts[: level + 1], counts[level + 1 :]
        apart = (low @ levels[: level + 1]) / low.sum() - (high @ levels[level + 1 :]) / high.sum()
        if (between := low.sum() * high.sum() * apart**2) > best * (1 + 1e-12):
            best, at = between, level
    return at


def whole_objects(labels, count):
    """Areas of the objects 1 to count whose bounding box stays off the border."""
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    height, width = labels.shape
    kept = []
    for number, box in enumerate(ndimage.find_objects(labels, count), start=1):
        if box is None or areas[number] < 3:
            continue
        rows, columns = box
        if rows.start > 0 and columns.start > 0 and rows.stop < height and columns.stop < width:
            kept.append(areas[number])
    return (len(kept), np.mean(kept)) if kept else None


def plain(mask):
    """Nothing of scikit-image: shifts for the closing, scipy for the components."""
    bright = np.pad(mask > otsu(mask), ((0, 1), (0, 1)))
    dilated = bright[1:, 1:] | bright[:-1, 1:] | bright[1:, :-1] | bright[:-1, :-1]
    dilated = np.pad(dilated, ((1, 0), (1, 0)), constant_values=True)
    closed = dilated[1:, 1:] & dilated[:-1, 1:] & dilated[1:, :-1] & dilated[:-1, :-1]
    return whole_objects(*ndimage.label(closed, np.ones((3, 3))))


def same(found, expected):
    if expected is None:
        assert found is None
    else:
        assert found == Nuclei(expected[0], pytest.approx(expected[1], rel=1e-12))


def test_every_shared_mask(shared):
    paths = sorted((shared / "data" / "nuclei").rglob("*_mask.png"))
    assert len(paths) >= 50
    counted = 0
    for path in paths:
        mask = np.array(Image.open(path))
        found = mean_area(mask)
        same(found, as_published(mask))
        same(found, plain(mask))
        counted += 0 if found is None else found.count
    assert counted > 1000


def test_grey_masks_as_downsampling_leaves_them(shared):
    paths = sorted((shared / "data" / "nuclei").rglob("*_mask.png"))
    assert len(paths) >= 50
    for path in paths[::3]:
        for side in (30, 64, 100):
            mask = np.array(Image.open(path).resize((side, side + 7), Image.Resampling.BOX))
            same(mean_area(mask), as_published(mask))
            same(mean_area(mask), plain(mask))


def test_every_shared_instance_map(shared):
    paths = sorted((shared / "data" / "nuclei").rglob("*_labels.png"))
    assert len(paths) >= 50
    for path in paths:
        labels = np.array(Image.open(path)).astype(np.int32)
        same(mean_area_of_instances(labels), whole_objects(labels, labels.max()))


@pytest.mark.parametrize("seed", range(30))
def test_noise(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 24, 2)
    mask = (rng.random((height, width)) < rng.uniform(0.05, 0.6)).astype(np.uint8) * 200
    same(mean_area(mask), as_published(mask))
    labels = rng.integers(0, 12, (height, width)).astype(np.uint16)
    same(mean_area_of_instances(labels), whole_objects(labels.astype(int), 11))


def square(*corners, size=20, side=4, value=255):
    mask = np.zeros((size, size), np.uint8)
    for y, x in corners:
        mask[y : y + side, x : x + side] = value
    return mask


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_constant_masks_hold_no_nucleus(value):
    assert mean_area(np.full((20, 30), value, np.uint8)) is None
    assert mean_area_of_instances(np.full((20, 30), value, np.uint8)) is None


def test_a_hole_in_the_foreground_is_no_nucleus():
    assert mean_area(255 - square((8, 8))) is None


@pytest.mark.parametrize("value", [1, 255])
def test_whole_nuclei_are_averaged(value):
    mask = square((2, 2), (10, 10), value=value)
    mask[15:17, 3:5] = value
    assert mean_area(mask) == Nuclei(3, 12.0)


@pytest.mark.parametrize("corner", [(0, 8), (16, 8), (8, 0), (8, 16)])
def test_a_nucleus_at_the_border_is_left_out(corner):
    assert mean_area(square(corner)) is None
    assert mean_area(square(corner, (8, 8))) == Nuclei(1, 16.0)
    labels = square(corner, value=3) + square((8, 8), value=7)
    assert mean_area_of_instances(labels) == Nuclei(1, 16.0)


@pytest.mark.parametrize(("corner", "count"), [((1, 8), 1), ((8, 1), 1), ((15, 8), 2), ((8, 15), 2)])
def test_the_closing_reaches_the_left_and_upper_border_over_one_pixel(corner, count):
    assert mean_area(square(corner, (8, 8))) == Nuclei(count, 16.0)


def test_closing_joins_what_one_pixel_parts_and_corners_touch():
    assert mean_area(square((4, 4), (4, 9))) == Nuclei(1, 36.0)
    assert mean_area(square((4, 4), (4, 10))) == Nuclei(2, 16.0)
    assert mean_area(square((4, 4), (8, 8))) == Nuclei(1, 32.0)


def test_small_objects_are_left_out():
    mask = square((8, 8))
    mask[3, 3:5] = 255
    assert mean_area(mask) == Nuclei(1, 16.0)
    mask[3, 3:6] = 255
    assert mean_area(mask) == Nuclei(2, 9.5)


def test_one_number_is_one_instance():
    labels = square((4, 4), (12, 12), value=1)
    assert mean_area_of_instances(labels) == Nuclei(1, 32.0)
    assert mean_area_of_instances(labels + square((0, 0), value=1)) is None
    touching = square((4, 4), value=1) + square((4, 8), value=2)
    assert mean_area_of_instances(touching) == Nuclei(2, 16.0)


def test_numbers_need_not_be_small():
    assert mean_area_of_instances(square((4, 4), value=1).astype(np.int64) * 2**40) == Nuclei(1, 16.0)


@pytest.mark.parametrize(
    "mask", [np.zeros((4, 4, 1), np.uint8), np.zeros(4, np.uint8), np.zeros((4, 4)), np.zeros((4, 4), bool)]
)
def test_other_shapes_and_kinds_are_refused(mask):
    with pytest.raises(TypeCheckError):
        mean_area(mask)
    with pytest.raises(TypeCheckError):
        mean_area_of_instances(mask)
    with pytest.raises(TypeCheckError):
        class_means(np.ones(3), np.ones(2))


def test_published_class_boundaries():
    centres = list(PUBLISHED_MEANS.values())
    boundaries = [(low + high) / 2 for low, high in pairwise(centres)]
    assert [round(one, 2) for one in boundaries] == [32.26, 55.23, 104.85, 184.04, 357.84, 701.90]
    around = np.array([[one - 0.01, one + 0.01] for one in boundaries]).ravel()
    expected = [5, 8, 8, 10, 10, 15, 15, 20, 20, 30, 30, 40]
    assert nearest_class(around, PUBLISHED_MEANS).tolist() == expected
    assert nearest_class(np.array([-1e9, 1e9]), PUBLISHED_MEANS).tolist() == [5, 40]
    assert nearest_class(np.zeros(0), PUBLISHED_MEANS).shape == (0,)


def test_equally_near_means_give_the_lower_magnification():
    for means in ({5.0: 10.0, 7.5: 20.0}, {7.5: 20.0, 5.0: 10.0}, {5.0: 20.0, 7.5: 10.0}):
        assert nearest_class(np.array([15.0]), means).tolist() == [5.0]


def test_class_means_of_training_patches():
    areas = np.array([10.0, 900.0, 30.0, 20.0, 100.0])
    means = class_means(areas, np.array([5.0, 40.0, 5.0, 5.0, 7.5]))
    assert list(means.items()) == [(5.0, 20.0), (7.5, 100.0), (40.0, 900.0)]
    assert nearest_class(areas, means).tolist() == [5, 40, 5, 5, 7.5]


def test_what_cannot_be_classed_is_refused():
    areas = np.array([1.0, np.nan, np.inf])
    with pytest.raises(ValueError, match=r"2 of 3 patches .* not finite, at \[1, 2\]"):
        class_means(areas, np.ones(3))
    with pytest.raises(ValueError, match=r"1 of 3 patches .* not finite, at \[0\]"):
        class_means(np.ones(3), np.array([np.nan, 5, 5]))
    with pytest.raises(ValueError, match=r"2 of 3 areas are not finite, at \[1, 2\]"):
        nearest_class(areas, PUBLISHED_MEANS)
    with pytest.raises(ValueError, match="there are none"):
        class_means(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="No class means"):
        nearest_class(np.ones(1), {})
