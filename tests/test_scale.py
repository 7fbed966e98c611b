"""The concept measure of scale and the values that nothing can be regressed on."""

import csv

import numpy as np
import pytest

from scalecov_jax.concepts.scale import check_measures, measure, scale_ratio
from scalecov_jax.images.boxes import read_boxes
from scalecov_jax.images.example import Box, Example


def test_corners_are_inclusive():
    assert scale_ratio(Box(1, 1, 50, 20), height=20, width=50) == 1
    assert scale_ratio(Box(3, 4, 3, 4), height=20, width=50) == 1 / 1000
    assert scale_ratio(Box(11, 6, 20, 10), height=20, width=50) == 50 / 1000


def test_measure_agrees_with_the_ratio_and_needs_a_box():
    example = Example(np.zeros((20, 50, 3), np.uint8), "car", Box(11, 6, 20, 10), None, "a", "a.jpg")
    assert measure(example) == 50 / 1000
    with pytest.raises(ValueError, match=r"a\.jpg.*box"):
        measure(example._replace(box=None))


def test_real_ratios_equal_the_index(shared):
    folder = shared / "data" / "voc_single"
    with (folder / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = {row["file"]: float(row["r"]) for row in rows}
    measured = {
        annotation.name: scale_ratio(annotation.box, annotation.height, annotation.width)
        for image_class in ("car", "cat", "train")
        for annotation in read_boxes(folder, image_class).annotations
    }
    assert len(measured) == 570
    assert measured.keys() == expected.keys()
    np.testing.assert_allclose(
        [measured[name] for name in expected], list(expected.values()), atol=1e-6, rtol=0
    )


def test_measures_that_cannot_be_regressed():
    names = [f"image {index}" for index in range(12)]
    good = np.linspace(0.1, 0.9, 12)
    check_measures(good, names)
    bad = good.copy()
    bad[[3, 7]] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 images: image 3, image 7"):
        check_measures(bad, names)
    for constant in (0.0, 0.3):
        with pytest.raises(ValueError, match="nothing can be regressed"):
            check_measures(np.full(12, constant), names)
    with pytest.raises(ValueError, match="9 images; at least 10"):
        check_measures(good[:9], names[:9])
    with pytest.raises(ValueError, match="0 images"):
        check_measures(good[:0], [])
    with pytest.raises(ValueError, match=r"12 values.*11 images"):
        check_measures(good, names[:11])
