"""What each set of weights expects at its input."""

from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
import skimage
from jaxtyping import Array, Float, UInt8

Name = Literal["tf", "caffe", "torch", "unit", "raw"]
PREPROCESSINGS: tuple[Name, ...] = get_args(Name)


class Normalise(NamedTuple):
    """(x / 255 - mean) / sd, red, green, blue."""

    mean: tuple[float, float, float]
    sd: tuple[float, float, float]


Preprocessing = Name | Normalise

TORCH_MEAN, TORCH_SD = (
    np.array([0.485, 0.456, 0.406], np.float32),
    np.array([0.229, 0.224, 0.225], np.float32),
)
_CAFFE_MEAN_BGR = np.array([103.939, 116.779, 123.68], np.float32)
_STRIDE = 4  # pixels between the patches of `misfit`


def preprocess(
    images: UInt8[Array, "N H W 3"] | Float[Array, "N H W 3"], preprocessing: Preprocessing
) -> Float[Array, "N H W 3"]:
    """Bring RGB pixels in 0-255 into the range that the weights were trained on.

    tf: x / 127.5 - 1. caffe: BGR minus the ImageNet mean. torch: (x / 255 - mean) / sd per channel, as `Normalise` with a mean
    and sd of its own. unit: x / 255. raw: unchanged.

    Source: keras.applications.imagenet_utils.preprocess_input (the three modes).
    """
    x = images.astype(jnp.float32)
    if preprocessing == "tf":
        return x / 127.5 - 1.0
    if preprocessing == "caffe":
        return x[..., ::-1] - _CAFFE_MEAN_BGR.reshape(1, 1, 1, 3)
    if preprocessing == "torch":
        preprocessing = Normalise(TORCH_MEAN, TORCH_SD)  # pyright: ignore[reportArgumentType]
    if isinstance(preprocessing, Normalise):
        mean, sd = (np.asarray(one, np.float32).reshape(1, 1, 1, 3) for one in preprocessing)
        return (x / 255.0 - mean) / sd
    return x / 255.0 if preprocessing == "unit" else x


def as_preprocessing(given: Any) -> Preprocessing:
    """A name in `PREPROCESSINGS`, or mean and sd of pixels from 0 to 1, as the name of it where it has one.

    Raises:
        ValueError: No such name, or no three numbers each, the sd above 0.
    """
    if isinstance(given, str) and given in PREPROCESSINGS:
        return given
    try:
        (red, green, blue), (sd_red, sd_green, sd_blue) = ([float(number) for number in one] for one in given)
        own = Normalise((red, green, blue), (sd_red, sd_green, sd_blue))
        if not (all(0 <= m <= 1 for m in own.mean) and all(0 < s <= 10 for s in own.sd)):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"No preprocessing is called {given!r}; there are {', '.join(PREPROCESSINGS)}, and mean and sd of red, green and "
            "blue for pixels from 0 to 1, such as 0.5,0.5,0.5 and 0.25,0.25,0.25."
        ) from None
    named: dict[Name, Any] = {
        "torch": (TORCH_MEAN, TORCH_SD),
        "tf": np.full((2, 3), 0.5),
        "unit": ((0, 0, 0), (1, 1, 1)),
    }
    return next((name for name, known in named.items() if np.allclose(own, known, atol=1e-4)), own)


def misfit(
    kernel: Float[np.ndarray, "h w 3 D"],
    bias: Float[np.ndarray, "D"],
    mean: Float[np.ndarray, "D"],
    var: Float[np.ndarray, "D"],
    preprocessing: Preprocessing,
) -> float:
    """How far the running statistics of a first batch normalisation are from those of two photographs.

    Jeffreys divergence of two normal distributions, m and v being mean and variance of the convolution of the photographs:
    J = (v / var + var / v - 2 + (m - mean)^2 (1 / v + 1 / var)) / 2, the median over filters. 0 is a perfect fit.

    Source: Jeffreys 1946, An Invariant Form for the Prior Probability in Estimation Problems.
    """
    x = np.asarray(preprocess(jnp.asarray(_photographs()), preprocessing), np.float64)
    patches = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))[:, ::_STRIDE, ::_STRIDE]
    y = np.tensordot(patches, kernel.astype(np.float64), ([4, 5, 3], [0, 1, 2])).reshape(-1, len(var)) + bias
    m, v, var = y.mean(0), y.var(0), var.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = (v / var + var / v - 2 + (m - mean) ** 2 * (1 / v + 1 / var)) / 2
    return float(np.median(np.nan_to_num(divergence, nan=np.inf, posinf=np.inf)))


@cache
def _photographs() -> UInt8[np.ndarray, "2 224 224 3"]:
    """Two photographs that come with scikit-image."""
    pictures = (skimage.data.astronaut(), skimage.data.coffee())
    resized = [np.asarray(skimage.transform.resize(one, (224, 224), anti_aliasing=True)) for one in pictures]
    return np.round(255 * np.stack(resized)).astype(np.uint8)
