"""Colour: colourfulness, and the share of the pixels whose hue lies in a band."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Int, UInt8

from scalecov_jax.imaging.image_set import Example

BANDS = {
    "red": (165, 10),
    "orange": (10, 25),
    "yellow": (25, 40),
    "green": (40, 75),
    "cyan": (75, 100),
    "blue": (100, 125),
    "purple": (125, 145),
    "magenta": (145, 165),
}
COLOURS = (*BANDS, "black", "white")


def colourfulness(image: UInt8[np.ndarray, "H W 3"], *, published: bool = False) -> float:
    """sqrt(sd(rg)^2 + sd(yb)^2) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2) with rg = R - G and yb = (R + G) / 2 - B.

    Published is what rcvtool computes from an RGB image: the absolute values of rg and yb, red and blue swapped.

    Source: Hasler & Suesstrunk, Measuring colourfulness in natural images, Proc. SPIE 5007, 2003; rcvtool (color_analysis).
    """
    red, green, blue = np.moveaxis(image[..., ::-1] if published else image, -1, 0).astype(np.float64)
    rg, yb = red - green, (red + green) / 2 - blue
    if published:
        rg, yb = np.abs(rg), np.abs(yb)
    return math.hypot(rg.std(), yb.std()) + 0.3 * math.hypot(rg.mean(), yb.mean())


def colour_share(image: UInt8[np.ndarray, "H W 3"], colour: str, *, published: bool = False) -> float:
    """Share of the pixels that have a colour.

    On OpenCV's scales (hue 0 to 180, saturation and value 0 to 255): a hue of `BANDS` with saturation >= 50 and value >= 77;
    black is value < 100 and saturation < 100, white value >= 190 and saturation < 50. The eight hues are disjoint and together
    hold every pixel with that saturation and value; dark dull pixels (77 <= value < 100) can be black and of a hue.

    Published is as rcvtool: 8-bit rounding of OpenCV, both ends of every band included, so that neighbours share an edge, and red
    only from 0 to 10.

    Raises:
        ValueError: There is no such colour.

    Source: rcvtool (color_analysis).
    """
    if colour not in COLOURS:
        raise ValueError(f"There is no colour {colour!r}; expected one of {', '.join(COLOURS)}.")
    turn, chroma, value = _hexagon(image)
    if published:
        hue, saturation = _eight_bit(turn, chroma, value)
        if colour == "black":
            inside = (value <= 100) & (saturation <= 100)
        elif colour == "white":
            inside = (value >= 190) & (saturation <= 50)
        else:
            first, last = (0, 10) if colour == "red" else BANDS[colour]
            inside = (first <= hue) & (hue <= last) & (saturation >= 50) & (value >= 77)
        return float(inside.mean())
    # In whole numbers: hue = 30 turn / chroma and saturation = 255 chroma / value are compared without rounding.
    if colour == "black":
        inside = (value < 100) & (255 * chroma < 100 * np.maximum(value, 1))
    elif colour == "white":
        inside = (value >= 190) & (255 * chroma < 50 * value)
    else:
        first, end = BANDS[colour]
        turn = turn + 6 * chroma * (turn < 0)
        after, before = first * chroma <= 30 * turn, 30 * turn < end * chroma
        hue_inside = after & before if first < end else after | before
        inside = hue_inside & (chroma > 0) & (255 * chroma >= 50 * value) & (value >= 77)
    return float(inside.mean())


def colourfulness_measure(*, published: bool = False) -> Callable[[Example], float]:
    """Concept measure: `colourfulness` of the image."""
    return lambda example: colourfulness(example.image, published=published)


def colour_share_measure(colour: str, *, published: bool = False) -> Callable[[Example], float]:
    """Concept measure: `colour_share` of the image."""
    return lambda example: colour_share(example.image, colour, published=published)


def _hexagon(
    image: UInt8[np.ndarray, "H W 3"],
) -> tuple[Int[np.ndarray, "H W"], Int[np.ndarray, "H W"], Int[np.ndarray, "H W"]]:
    """Place on the hexagon of hues in [-chroma, 5 chroma), chroma max - min, and value max, in whole numbers."""
    red, green, blue = np.moveaxis(image, -1, 0).astype(np.int32)
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    turn = np.where(
        value == red,
        green - blue,
        np.where(value == green, 2 * chroma + blue - red, 4 * chroma + red - green),
    )
    return turn, chroma, value


def _eight_bit(turn, chroma, value) -> tuple[Int[np.ndarray, "H W"], Int[np.ndarray, "H W"]]:
    """Hue 0-179 and saturation 0-255 rounded as OpenCV's BGR2HSV does, with reciprocals in 12 bits."""
    per_chroma = np.rint((180 << 12) / (6 * np.maximum(chroma, 1))).astype(np.int32)
    per_value = np.rint((255 << 12) / np.maximum(value, 1)).astype(np.int32)
    hue = (turn * per_chroma + (1 << 11)) >> 12
    return hue + 180 * (hue < 0), (chroma * per_value + (1 << 11)) >> 12
