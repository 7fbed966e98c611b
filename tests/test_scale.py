"""The concept measure of scale."""

import csv
import math

import numpy as np
import pytest

from scalecov_jax.concepts.scale import log_scale, measure, scale_ratio, sqrt_scale
from scalecov_jax.imaging.image_set import Box, Example
from scalecov_jax.imaging.voc import read_boxes


def test_corners_are_inclusive():
    assert scale_ratio(Box(1, 1, 50, 20), height=20, width=50) == 1
    assert scale_ratio(Box(3, 4, 3, 4), height=20, width=50) == 1 / 1000
    assert scale_ratio(Box(11, 6, 20, 10), height=20, width=50) == 50 / 1000


def test_measure_agrees_with_the_ratio_and_needs_a_box():
    example = Example(np.zeros((20, 50, 3), np.uint8), "car", Box(11, 6, 20, 10), None, "a", "a.jpg")
    assert measure(example) == 50 / 1000
    assert sqrt_scale(example) == math.sqrt(50 / 1000)
    assert log_scale(example) == math.log(50 / 1000)
    with pytest.raises(ValueError, match=r"a\.jpg.*box"):
        measure(example._replace(box=None))


def test_real_ratios_equal_the_index(shared):
    folder = shared / "data" / "voc_single"
    with (folder / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = {row["file"]: float(row["r"]) for row in rows}
    measured = {
        known.name: scale_ratio(known.box, *known.image.shape[:2])
        for image_class in ("car", "cat", "train")
        for images in [read_boxes(folder, image_class)]
        for known in map(images.outline, range(len(images)))
    }
    assert len(measured) == 570
    assert measured.keys() == expected.keys()
    np.testing.assert_allclose(
        [measured[name] for name in expected], list(expected.values()), atol=1e-6, rtol=0
    )
