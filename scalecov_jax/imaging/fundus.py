"""The visible disc of a fundus photograph, and the photograph trimmed to it."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from scalecov_jax.imaging.image_set import Example

SMALLEST = 0.25  # of the photograph's shorter side: the least diameter
_FINE = 400  # pixels of the longer side that the disc is sought in
_EDGE = 0.12  # of the way from the surround's light to the retina's
_LEAST_LIGHT = 20  # of 255 between surround and retina
_GREY = 6  # of 255 between the channels, in the most coloured hundredth of the disc


class Disc(NamedTuple):
    """A circle in pixels of the photograph, whose first pixel's centre is (0.5, 0.5); it may reach beyond the photograph."""

    centre_x: float
    centre_y: float
    radius: float


def visible_disc(image: UInt8[np.ndarray, "H W 3"]) -> Disc:
    """Find the circle that a fundus camera sees, also where the photograph cuts it off.

    The largest region lighter than the photograph's own surround (the median of its corners) is taken, and a circle is fitted by
    least squares to the vertices of its convex hull, but for those on the photograph's edge, where it is cut off, and those that
    stick out. Shadows at the rim do not count, since the hull closes them.

    Raises:
        ValueError: No disc before a dark surround, a disc smaller than a quarter of the shorter side, or grey instead of colours;
            the text names no image.
    """
    height, width = image.shape[:2]
    step = max(1, max(height, width) // _FINE)
    small = np.asarray(Image.fromarray(image).reduce(step))
    light = ndimage.median_filter(small.max(-1), 3, mode="nearest").astype(np.float64)
    corner = max(1, min(light.shape) // 40)
    rows, columns = (np.r_[:corner, -corner:0] for _ in range(2))
    surround = float(np.median(light[np.ix_(rows, columns)]))
    retina = float(np.percentile(light, 99))
    if retina - surround < max(_LEAST_LIGHT, surround):
        raise ValueError(
            f"no visible disc: the corners have a light of {surround:.0f} of 255, the lightest parts {retina:.0f}; expected a "
            "bright retina before a dark surround"
        )
    bright = light > surround + _EDGE * (retina - surround)
    regions, _ = ndimage.label(bright)  # pyright: ignore[reportGeneralTypeIssues]
    sizes = np.bincount(regions[bright])  # pyright: ignore[reportArgumentType]
    region = regions == np.argmax(sizes)
    disc = _fit(region)
    if disc is None or not _is_disc(disc, region, bright):
        raise ValueError(
            "no visible disc: what is lighter than the corners is no circle before a dark surround; expected a fundus photograph"
        )
    if disc.radius < SMALLEST / 2 * min(light.shape):
        raise ValueError(
            f"the visible disc is {2 * disc.radius / min(light.shape):.0%} of the photograph's shorter side wide; expected "
            f"at least {SMALLEST:.0%}"
        )
    pixels = small[_inside(disc, region.shape)].astype(np.int16)
    if np.percentile(pixels.max(-1) - pixels.min(-1), 99) < _GREY:
        raise ValueError("a grey image (equal channels, as of an angiogram); expected a photograph in colour")
    return Disc(*(float(step * value) for value in disc))


def trim(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Cut the square around the visible disc out of a fundus photograph, and resize it with antialiasing.

    Where the photograph cuts the disc off, the square is black.

    Args:
        image: A fundus photograph of any shape.
        size: Height and width of the result in pixels.

    Raises:
        ValueError: See `visible_disc`.
    """
    return _cut(image, visible_disc(image), size, Image.Resampling.LANCZOS)


def trim_example(example: Example, size: int) -> Example:
    """Likewise a photograph with its mask, which keeps its values; boxes are dropped.

    Raises:
        ValueError: See `visible_disc`.
    """
    disc = visible_disc(example.image)
    image = _cut(example.image, disc, size, Image.Resampling.LANCZOS)
    mask = None if example.mask is None else np.asarray(example.mask)
    if mask is not None:
        whole = mask.astype(np.uint8 if mask.dtype == bool else np.int32)
        mask = _cut(whole, disc, size, Image.Resampling.NEAREST).astype(mask.dtype)
    return example._replace(image=image, mask=mask, box=None)


def _cut(
    image: Shaped[np.ndarray, "H W *C"], disc: Disc, size: int, resampling: Image.Resampling
) -> Shaped[np.ndarray, "size size *C"]:
    """The square around a disc, resized; zero beyond the photograph."""
    x, y, radius = disc
    left, top = math.floor(x - radius), math.floor(y - radius)
    right, bottom = math.ceil(x + radius), math.ceil(y + radius)
    square = np.zeros((bottom - top, right - left, *image.shape[2:]), image.dtype)
    part = image[max(top, 0) : bottom, max(left, 0) : right]
    square[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]] = part
    box = (x - radius - left, y - radius - top, x + radius - left, y + radius - top)
    return np.array(Image.fromarray(square).resize((size, size), resampling, box))


def _fit(region: Bool[np.ndarray, "h w"]) -> Disc | None:
    """Circle through the hull of a region, whose points further from it than 1 % of the radius are dropped in turn.

    None where more than half of them are dropped or two quadrants have none left.
    """
    height, width = region.shape
    inner = np.asarray(ndimage.binary_erosion(region), bool)
    points = np.argwhere(region & ~inner).astype(np.float64)[:, ::-1]
    try:
        points = points[ConvexHull(points).vertices]
    except (QhullError, ValueError):  # fewer than three points, or on a line
        return None
    edge = 2 if min(height, width) > 60 else 1
    free = ((points >= edge) & (points <= np.array([[width, height]]) - 1 - edge)).all(1)
    points = points[free] + 0.5
    disc = None
    for tolerance in (0.05, 0.02, 0.01, 0.01):
        if len(points) < 6:
            return None
        disc = _circle(points)
        away = np.hypot(points[:, 0] - disc.centre_x, points[:, 1] - disc.centre_y) - disc.radius
        points = points[np.abs(away) <= max(tolerance * disc.radius, 1.0)]
    assert disc is not None
    quadrants = {(x > disc.centre_x, y > disc.centre_y) for x, y in points.tolist()}
    if len(points) < free.sum() / 2 or len(quadrants) < 3:
        return None
    return disc


def _circle(points: Float[np.ndarray, "P 2"]) -> Disc:
    """Least squares of x^2 + y^2 = 2 a x + 2 b y + c, around the mean."""
    middle = points.mean(0)
    near = points - middle[None]
    terms = np.concatenate([2 * near, np.ones((len(near), 1))], 1)
    a, b, c = np.linalg.lstsq(terms, np.square(near).sum(1), rcond=None)[0]
    return Disc(float(a + middle[0]), float(b + middle[1]), float(np.sqrt(c + a**2 + b**2)))


def _is_disc(disc: Disc, region: Bool[np.ndarray, "h w"], bright: Bool[np.ndarray, "h w"]) -> bool:
    """Whether the region fills most of the circle, the rest is dark, and the circle is central and not too large."""
    within = _inside(disc, region.shape)
    near = _inside(disc._replace(radius=1.02 * disc.radius + 1), region.shape)
    fills = within.any() and region[within].mean() > 0.8
    is_dark = (~near).mean() > 0.01 and bright[~near].mean() < 0.1
    height, width = region.shape
    off = max(abs(disc.centre_x / width - 0.5), abs(disc.centre_y / height - 0.5))
    return bool(fills and is_dark and off < 0.25 and 2 * disc.radius < 1.4 * max(height, width))


def _inside(disc: Disc, shape: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (x + 0.5 - disc.centre_x) ** 2 + (y + 0.5 - disc.centre_y) ** 2 <= disc.radius**2
