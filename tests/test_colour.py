"""Colourfulness by hand, hue bands against scikit-image and at their edges, and the published variants."""

import math

import numpy as np
import pytest
from skimage import data
from skimage.color import rgb2hsv

from scalecov_jax.concepts.colour import (
    BANDS,
    COLOURS,
    _eight_bit,
    _hexagon,
    colour_share,
    colourfulness,
)
from scalecov_jax.concepts.measure import get_measure
from scalecov_jax.imaging.image_set import Example

RNG = np.random.default_rng(0)
# Pixels, and their 8-bit hue, saturation and value by cv2.cvtColor(image, cv2.COLOR_RGB2HSV) of OpenCV 5.0.
OPENCV = {
    (171, 206, 5): (35, 249, 206),
    (206, 120, 131): (176, 106, 206),
    (161, 73, 250): (135, 181, 250),
    (13, 71, 98): (100, 221, 98),
    (146, 104, 33): (19, 197, 146),
    (11, 0, 12): (148, 255, 12),
    (249, 45, 229): (153, 209, 249),
    (100, 160, 126): (73, 96, 160),
    (255, 86, 0): (10, 255, 255),
    (240, 200, 1): (25, 254, 240),
    (160, 241, 0): (40, 255, 241),
    (0, 240, 122): (75, 255, 240),
    (255, 0, 3): (0, 255, 255),
    (90, 65, 66): (179, 71, 90),
    (255, 206, 205): (1, 50, 255),
    (99, 61, 60): (1, 100, 99),
    (200, 163, 161): (2, 50, 200),
}


def pixels(*colours):
    return np.array([colours], np.uint8)


def colours_of(*colour, published=False):
    return {name for name in COLOURS if colour_share(pixels(colour), name, published=published)}


def test_colourfulness_by_hand():
    image = pixels((255, 0, 0), (0, 255, 0))
    # rg = 255, -255; yb = 127.5 twice.
    assert colourfulness(image) == pytest.approx(255 + 0.3 * 127.5, rel=1e-12)
    # Red and blue swapped, absolute values: rg = 0, 255; yb = 255, 127.5.
    published = math.hypot(127.5, 63.75) + 0.3 * math.hypot(127.5, 191.25)
    assert colourfulness(image, published=True) == pytest.approx(published, rel=1e-12)
    assert get_measure("colourfulness:published=1").measure(
        Example(image, None, None, None, "", "a.png")
    ) == pytest.approx(published, rel=1e-12)


def test_colourfulness_of_grey_is_nothing_and_grows_with_saturation():
    grey = np.repeat(RNG.integers(0, 256, (8, 9, 1), dtype=np.uint8), 3, axis=2)
    assert colourfulness(grey) == colourfulness(grey, published=True) == 0
    image = data.astronaut()[::8, ::8]
    half = (image / 2 + image.mean(axis=2, keepdims=True) / 2).astype(np.uint8)
    assert 0 < colourfulness(half) < colourfulness(image)
    assert colourfulness(image[::-1, ::-1]) == pytest.approx(colourfulness(image), rel=1e-12)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((255, 0, 0), "red"),
        ((255, 128, 0), "orange"),
        ((255, 255, 0), "yellow"),
        ((0, 255, 0), "green"),
        ((0, 255, 255), "cyan"),
        ((0, 0, 255), "blue"),
        ((128, 0, 255), "purple"),
        ((255, 0, 255), "magenta"),
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((255, 0, 60), "red"),  # hue 173: red wraps around
    ],
)
def test_pure_colours(colour, expected):
    assert colours_of(*colour) == {expected}


@pytest.mark.parametrize(
    ("colour", "expected", "published"),
    [
        ((255, 85, 0), {"orange"}, {"orange", "red"}),  # hue 10
        ((240, 200, 0), {"yellow"}, {"orange", "yellow"}),  # 25
        ((160, 240, 0), {"green"}, {"green", "yellow"}),  # 40
        ((0, 240, 120), {"cyan"}, {"cyan", "green"}),  # 75
        ((0, 160, 240), {"blue"}, {"cyan", "blue"}),  # 100
        ((40, 0, 240), {"purple"}, {"blue", "purple"}),  # 125
        ((200, 0, 240), {"magenta"}, {"purple", "magenta"}),  # 145
        ((254, 0, 127), {"red"}, {"magenta"}),  # 165
        ((255, 205, 205), {"red"}, {"red", "white"}),  # saturation 50
        ((255, 206, 206), {"white"}, {"white"}),
        ((77, 0, 0), {"red"}, {"red"}),  # value 77
        ((76, 0, 0), set(), set()),
        ((190, 190, 190), {"white"}, {"white"}),
        ((189, 189, 189), set(), set()),
        ((99, 99, 99), {"black"}, {"black"}),
        ((100, 100, 100), set(), {"black"}),
        ((51, 31, 31), set(), {"black"}),  # saturation 100
        ((90, 66, 66), {"black", "red"}, {"black", "red"}),  # dark and dull
    ],
)
def test_edges(colour, expected, published):
    assert colours_of(*colour) == expected
    assert colours_of(*colour, published=True) == published


def test_bands_share_no_edge_and_leave_no_gap():
    for image in (data.astronaut()[::3, ::3], RNG.integers(0, 256, (60, 70, 3), dtype=np.uint8)):
        hsv = rgb2hsv(image)
        vivid = (hsv[..., 1] >= 50 / 255 - 1e-12) & (hsv[..., 2] >= 77 / 255 - 1e-12)
        shares = [colour_share(image, name) for name in BANDS]
        assert sum(shares) == pytest.approx(vivid.mean(), abs=1e-12)
        assert sum(colour_share(image, name) for name in ("black", "white")) <= 1
        published = [colour_share(image, name, published=True) for name in BANDS if name != "red"]
        assert sum(published) > sum(shares[1:])


def test_equals_scikit_image_away_from_edges():
    image = RNG.integers(0, 256, (120, 130, 3), dtype=np.uint8)
    hue, saturation, value = np.moveaxis(rgb2hsv(image) * (180, 255, 255), -1, 0)
    for name, (first, end) in BANDS.items():
        after, before = hue >= first - 1e-9, hue < end - 1e-9
        inside = (after | before if name == "red" else after & before) & (saturation >= 50 - 1e-9)
        assert colour_share(image, name) == (inside & (value >= 77 - 1e-9)).mean()
    assert colour_share(image, "black") == ((value < 100 - 1e-9) & (saturation < 100 - 1e-9)).mean()
    assert colour_share(image, "white") == ((value >= 190 - 1e-9) & (saturation < 50 - 1e-9)).mean()


def test_published_hue_is_rounded_as_by_opencv():
    for (red, green, blue), (hue, saturation, value) in OPENCV.items():
        expected = {
            name
            for name, (first, last) in (BANDS | {"red": (0, 10)}).items()
            if first <= hue <= last and saturation >= 50 and value >= 77
        }
        expected |= {"black"} if value <= 100 and saturation <= 100 else set()
        expected |= {"white"} if value >= 190 and saturation <= 50 else set()
        assert colours_of(red, green, blue, published=True) == expected
        found = _eight_bit(*_hexagon(pixels((red, green, blue))))
        assert [int(one[0, 0]) for one in found] == [hue, saturation]


def test_unknown_colour():
    with pytest.raises(ValueError, match="There is no colour 'pink'; expected one of red, orange"):
        colour_share(pixels((0, 0, 0)), "pink")
