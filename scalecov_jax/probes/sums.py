"""What ridge and least squares need to know of the images of one fold, in sums that fit in memory whatever their number.

Of the features x and targets y of a layer: how many, sum x, sum y, sum x x^T, sum x y^T, sum y^2. Sums of parts add up to
those of the whole, in any order. All are taken about a first guess of the mean, so that what is left after subtracting
n mean mean^T does not drown in rounding.

Source: Chan, Golub & LeVeque 1983, Algorithms for Computing the Sample Variance (shifted data, and how parts combine).
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Products = Literal["float64", "float32"]


ROWS = 2048  # images added at a time, where batches are smaller


class Sums(NamedTuple):
    """Sums over the images of one fold at one layer, float64; features and targets are those minus their shift."""

    count: Float[Any, ""]  # number of images
    shift_x: Float[Any, " D"]  # first guess of the mean of each feature
    shift_y: Float[Any, " M"]  # first guess of the mean of each target
    x: Float[Any, " D"]  # sum of the features
    y: Float[Any, " M"]  # sum of the targets
    xx: Float[Any, "D D"]  # sum of products of features
    xy: Float[Any, "D M"]  # sum of products of features and targets
    yy: Float[Any, " M"]  # sum of squared targets


def empty(shift_x: Float[np.ndarray, " D"], shift_y: Float[np.ndarray, " M"]) -> Sums:
    """Sums of no image; shifts are rounded to float32, so that features minus shift are exact where the two are close."""
    x, y = (np.asarray(shift, np.float32).astype(np.float64) for shift in (shift_x, shift_y))
    d, m = len(x), len(y)
    return Sums(np.zeros(()), x, y, np.zeros(d), np.zeros(m), np.zeros((d, d)), np.zeros((d, m)), np.zeros(m))


def add(
    sums: Sums,
    features: Float[Array, "R D"],
    targets: Float[Array, "R M"],
    weight: Float[Array, " R"],
    products: Products = "float64",
) -> Sums:
    """Add images of weight 1 to sums; those of weight 0 are padding. Pure; meant to be jitted under `jax.enable_x64`.

    Targets are float64. Features are multiplied in `products`: each call in float32 rounds to about 1e-7, which the float64 sums
    over calls average out.
    """
    kept = weight[:, None] > 0
    y = jnp.where(kept, targets - sums.shift_y[None], 0)
    shift = sums.shift_x.astype(products)
    x = jnp.where(kept, features.astype(products) - shift[None], 0)

    def product(right: Array) -> Array:
        return jnp.matmul(x.T, right.astype(products), precision="highest").astype(jnp.float64)

    return Sums(
        sums.count + weight.sum(dtype=jnp.float64),
        sums.shift_x,
        sums.shift_y,
        sums.x + x.sum(0, dtype=jnp.float64),
        sums.y + y.sum(0),
        sums.xx + product(x),
        sums.xy + product(y),
        sums.yy + jnp.square(y).sum(0),
    )


def moved(sums: Sums, shift_x: Float[Any, " D"], shift_y: Float[Any, " M"]) -> Sums:
    """The same sums about other shifts."""
    n, a, b = sums.count, sums.shift_x - shift_x, sums.shift_y - shift_y
    x, y = sums.x + n * a, sums.y + n * b
    # sum (x + a)(x + a)^T = sum x x^T + a (sum x)^T + (sum (x + a)) a^T
    xx = sums.xx + a[:, None] * sums.x[None] + x[:, None] * a[None]
    xy = sums.xy + a[:, None] * sums.y[None] + x[:, None] * b[None]
    return Sums(n, shift_x, shift_y, x, y, xx, xy, sums.yy + b * (sums.y + y))


def merge(*parts: Sums) -> Sums:
    """Sums over all images of several parts, about the shifts of the first."""
    return reduce(_merge, parts)


def _merge(one: Sums, other: Sums) -> Sums:
    other = moved(other, one.shift_x, one.shift_y)
    return Sums(
        one.count + other.count,
        one.shift_x,
        one.shift_y,
        *(a + b for a, b in zip(one[3:], other[3:], strict=True)),
    )


def fold_of(splits: Bool[np.ndarray, "K N"]) -> Int[np.ndarray, " N"]:
    """The one split that holds each image out. It depends on the splits alone, not on the order in which images are read.

    Raises:
        ValueError: An image is held out by no split, or by several.
    """
    times = (~splits).sum(0)
    if (times != 1).any():
        raise ValueError(
            f"Statistics can be streamed where every image is held out once; here {int((times != 1).sum())} of {len(times)} "
            "images are held out never or several times. Take splits of kind k_fold, grouped_k_fold or leave_one_group_out."
        )
    return np.argmin(splits, axis=0)


def bytes_of(widths: Sequence[int], targets: int) -> int:
    """Bytes of the sums of one fold over layers of these widths."""
    return 8 * sum(d * d + d * targets + 2 * d + 3 * targets + 1 for d in widths)
