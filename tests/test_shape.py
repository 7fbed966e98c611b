"""Shape measures by hand, against scikit-image on shared instance maps, and against `nuclei`."""

import math

import numpy as np
import pytest
from PIL import Image
from skimage.measure import regionprops

from scalecov_jax.concepts.measure import get_measure
from scalecov_jax.concepts.nuclei import mean_area_of_instances
from scalecov_jax.concepts.shape import PROPERTIES, instances
from scalecov_jax.imaging.image_set import Example


def measured(name, mask):
    image = np.zeros((*mask.shape, 3), np.uint8)
    return get_measure(name).measure(Example(image, None, None, mask, "", "a.png"))


def rectangles(*boxes, size=30):
    labels = np.zeros((size, size), np.int32)
    for number, (y, x, height, width) in enumerate(boxes, start=1):
        labels[y : y + height, x : x + width] = number
    return labels


def test_a_rectangle_by_hand():
    mask = rectangles((5, 7, 4, 9))
    # The ellipse with the moments of n pixels in a row: variance (n^2 - 1) / 12, axis 4 sd.
    long, short = (81 - 1) / 12, (16 - 1) / 12
    assert measured("area", mask) == 36
    assert measured("perimeter", mask) == 2 * (3 + 8)
    assert measured("major_axis", mask) == pytest.approx(4 * math.sqrt(long), rel=1e-12)
    assert measured("eccentricity", mask) == pytest.approx(math.sqrt(1 - short / long), rel=1e-12)
    assert measured("euler_number", mask) == 1
    assert measured("solidity", mask) == 1
    assert measured("count", mask) == 1


def test_holes_and_notches():
    ring = rectangles((5, 5, 7, 7))
    ring[8, 8] = 0
    assert measured("euler_number", ring) == 0
    assert measured("solidity", ring) == pytest.approx(48 / 49)
    parts = rectangles((5, 5, 3, 3))
    parts[20:23, 20:23] = 1
    assert measured("euler_number", parts) == 2
    assert measured("count", parts) == 1


def test_every_instance_counts_once():
    mask = rectangles((2, 2, 3, 3), (10, 2, 3, 3), (10, 10, 10, 12))
    assert measured("area", mask) == (9 + 9 + 120) / 3
    assert measured("count", mask) == 3
    for name in PROPERTIES:
        each = [measured(name, np.where(mask == number, 1, 0)) for number in (1, 2, 3)]
        assert measured(name, mask) == pytest.approx(np.mean(each), rel=1e-12)
        assert measured(name, np.rot90(mask)) == pytest.approx(measured(name, mask), rel=1e-9)


def test_numbers_and_components():
    touching = rectangles((4, 4, 4, 4), (4, 8, 4, 4))
    assert measured("count", touching) == 2
    assert measured("count", touching > 0) == 1
    assert measured("area", touching > 0) == 32
    corners = rectangles((4, 4, 4, 4), (8, 8, 4, 4))
    assert measured("count", corners > 0) == 1
    large = touching.astype(np.int64) * 2**40
    np.testing.assert_array_equal(instances(large), touching)


def test_what_touches_the_border_or_is_tiny():
    mask = rectangles((0, 4, 4, 4), (10, 10, 2, 2), (20, 20, 1, 2))
    assert (measured("count", mask), measured("area", mask)) == (1, 4)
    assert (measured("count:border=1", mask), measured("area:border=1", mask)) == (2, 10)
    mask[20, 22] = 3
    assert (measured("count", mask), measured("area", mask)) == (2, 3.5)
    for corner in ((0, 8), (26, 8), (8, 0), (8, 26)):
        assert measured("count", rectangles((*corner, 4, 4))) == 0


def test_no_instance_is_an_error_but_for_the_count():
    for mask in (np.zeros((9, 9), np.int32), np.zeros((9, 9), bool), np.ones((9, 9), np.int32)):
        assert measured("count", mask) == 0
        for name in PROPERTIES:
            with pytest.raises(ValueError, match=r"a\.png: no instance of 3 pixels or more off the border"):
                measured(name, mask)
    with pytest.raises(ValueError, match=r"a\.png: no instance of 3 pixels or more\."):
        measured("area:border=1", np.zeros((9, 9), np.int32))
    for name in ("count", "area"):
        one = Example(np.zeros((9, 9, 3), np.uint8), None, None, None, "", "b.png")
        with pytest.raises(ValueError, match=r"b\.png: needs a mask"):
            get_measure(name).measure(one)


def test_real_nuclei(shared):
    paths = sorted((shared / "data" / "nuclei" / "dsb2018").glob("*_labels.png"))[:8]
    assert len(paths) == 8
    counted = 0
    for path in paths:
        labels = np.array(Image.open(path)).astype(np.int32)
        nuclei = mean_area_of_instances(labels)
        assert measured("count", labels) == (0 if nuclei is None else nuclei.count)
        if nuclei is None:
            continue
        counted += nuclei.count
        assert measured("area", labels) == pytest.approx(nuclei.mean_area, rel=1e-12)
        height, width = labels.shape
        regions = [
            region
            for region in regionprops(labels)
            if region.area >= 3
            and region.bbox[0] > 0
            and region.bbox[1] > 0
            and region.bbox[2] < height
            and region.bbox[3] < width
        ]
        assert len(regions) == nuclei.count
        for name, its in PROPERTIES.items():
            expected = np.mean([region[its] for region in regions])
            assert measured(name, labels) == pytest.approx(expected, rel=1e-9)
    assert counted > 50
