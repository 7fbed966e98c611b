"""What each set of weights expects at its input."""

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

Preprocessing = Literal["tf", "caffe", "torch", "unit", "raw"]
PREPROCESSINGS: tuple[Preprocessing, ...] = get_args(Preprocessing)

TORCH_MEAN, TORCH_SD = (
    np.array([0.485, 0.456, 0.406], np.float32),
    np.array([0.229, 0.224, 0.225], np.float32),
)
_CAFFE_MEAN_BGR = np.array([103.939, 116.779, 123.68], np.float32)


def preprocess(
    images: UInt8[Array, "N H W 3"] | Float[Array, "N H W 3"], preprocessing: Preprocessing
) -> Float[Array, "N H W 3"]:
    """Bring RGB pixels in 0-255 into the range that the weights were trained on.

    tf: x / 127.5 - 1. caffe: BGR minus the ImageNet mean. torch: (x / 255 - mean) / sd per channel. unit: x / 255. raw:
    unchanged.

    Source: keras.applications.imagenet_utils.preprocess_input (the three modes).
    """
    x = images.astype(jnp.float32)
    if preprocessing == "tf":
        return x / 127.5 - 1.0
    if preprocessing == "caffe":
        return x[..., ::-1] - _CAFFE_MEAN_BGR.reshape(1, 1, 1, 3)
    if preprocessing == "torch":
        return (x / 255.0 - TORCH_MEAN.reshape(1, 1, 1, 3)) / TORCH_SD.reshape(1, 1, 1, 3)
    return x / 255.0 if preprocessing == "unit" else x
