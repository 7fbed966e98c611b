"""EfficientNetB0 (Tan and Le 2019) with the layer names of keras.applications."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from scalecov_jax.models import sources
from scalecov_jax.models.mobilenet_v2 import EPSILON, MobileNetV2, inverted_blocks
from scalecov_jax.models.preprocessing import TORCH_MEAN, TORCH_SD, Preprocessing

# Filters, blocks, kernel size and stride of each stage.
_STAGES = (
    (16, 1, 3, 1),
    (24, 2, 3, 2),
    (40, 2, 5, 2),
    (80, 3, 3, 2),
    (112, 3, 5, 1),
    (192, 4, 5, 2),
    (320, 1, 3, 1),
)


BLOCKS = inverted_blocks(
    _STAGES, lambda stage, number, _: f"block{stage + 1}{chr(97 + number)}", "project_bn"
)
_ENDS = ("stem_activation", "top_activation")
LAYERS = (_ENDS[0], *(block.layer for block in BLOCKS), _ENDS[1], "pre_softmax", "softmax")


class EfficientNetB0(MobileNetV2):
    """EfficientNetB0, stopped after the layer `last`; dropout and stochastic depth are left out.

    Its input is normalised (see `preprocessing.preprocess`): Keras's layers for that are not part of it. Fields: see
    `MobileNetV2`, from which it differs by squeeze-and-excitation and the activation.
    """

    blocks = BLOCKS
    ends = _ENDS
    depthwise, activation, squeeze = "dwconv", staticmethod(nn.silu), True


def declared_preprocessing(tensors: Mapping[str, np.ndarray]) -> Preprocessing | None:
    """What a Keras file says of its input, by the statistics of the normalisation inside the model.

    Keras computes x' = (x / 255 - mean) / sqrt(variance). Its ImageNet weights have the standard deviation in place of the
    variance, and the model divides by its root once more: altogether the preprocessing of torch.

    Raises:
        ValueError: Statistics that no preprocessing stands for.
    """
    if not {"normalization_1/mean", "normalization_1/variance"} <= tensors.keys():
        return None
    mean, variance = (tensors[f"normalization_1/{name}"] for name in ("mean", "variance"))
    known: tuple[tuple[Preprocessing, np.ndarray, tuple[np.ndarray, ...]], ...] = (
        ("torch", TORCH_MEAN, (TORCH_SD, TORCH_SD**2)),
        ("unit", np.zeros(3), (np.ones(3),)),
    )
    for preprocessing, its_mean, variances in known:
        same_mean = mean.shape == (3,) and np.allclose(mean, its_mean, atol=1e-6)
        if same_mean and any(np.allclose(variance, one, rtol=1e-5) for one in variances):
            return preprocessing
    raise ValueError(
        f"its normalization has the mean {mean.tolist()} and the variance {variance.tolist()}, and there is no such preprocessing"
    )


_KERAS = {
    "expand": ("expand_conv", "expand_bn"),
    "dwconv": ("dwconv", "bn"),
    "project": ("project_conv", "project_bn"),
}


def _layouts() -> tuple[sources.Layout, ...]:
    first, last = _ENDS
    keras: dict[str, Any] = {first: ("stem_conv", "stem_bn")}
    torchvision: dict[str, Any] = {first: ("features.0.0", "features.0.1")}
    timm: dict[str, Any] = {first: ("conv_stem", "bn1")}
    for block in BLOCKS:
        path, theirs = f"{block.layer}/{block.prefix}", f"features.{block.stage + 1}.{block.number}.block"
        for number, step, names in block.convolutions("dwconv"):
            inner = f"{theirs}.{number + (step == 'project')}"  # squeeze-and-excitation counts before it
            keras[f"{path}_{step}"] = tuple(f"{block.prefix}_{name}" for name in _KERAS[step])
            torchvision[f"{path}_{step}"], timm[f"{path}_{step}"] = (f"{inner}.0", f"{inner}.1"), names
            if step == "dwconv":
                for name, dense in (("se_reduce", "fc1"), ("se_expand", "fc2")):
                    keras[f"{path}_{name}"] = f"{block.prefix}_{name}"
                    torchvision[f"{path}_{name}"] = f"{theirs}.{number + 1}.{dense}"
                    timm[f"{path}_{name}"] = f"blocks.{block.stage}.{block.number}.se.conv_{name[3:]}"
    keras[last] = "top_conv", "top_bn"
    torchvision[last] = "features.8.0", "features.8.1"
    timm[last] = "conv_head", "bn2"
    normalised = {"normalization of the input": r"^normalization_1/"}
    symmetric, head = {"symmetric_padding": True}, "predictions"
    return (
        *sources.keras_layouts(
            sources.blocks(keras, head), EPSILON, ignored=normalised, declared=declared_preprocessing
        ),
        sources.Layout(
            "torchvision",
            "torch",
            sources.blocks(torchvision, "classifier.1"),
            1e-5,
            symmetric,
            sources.TRACKED,
            pixelwise=r"\.fc[12]\.weight$",
        ),
        sources.Layout(
            "timm",
            "torch",
            sources.blocks(timm, "classifier"),
            1e-5,
            symmetric,
            sources.TRACKED,
            pixelwise=r"\.conv_(reduce|expand)\.weight$",
        ),
    )


# Source: keras.applications (efficientnet) 3.15; torchvision.models (efficientnet); timm.models (efficientnet_b0).
SOURCES = sources.Sources(
    _layouts(),
    sources.KerasModel("EfficientNetB0", {"pre_softmax": "predictions"}, after="normalization_1"),
    sources.official_pair(
        "https://storage.googleapis.com/keras-applications/efficientnetb0",
        "902e53a9f72be733fc0bcb005b3ebbac",
        "50bc09e76180e00e4465e1a485ddc09d",
    ),
)
