"""EfficientNetB0 (Tan and Le 2019) with the layer names of keras.applications."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models.layers import WHOLE, ConvBlock, GlobalAveragePool, Softmax, global_average_pool
from scalecov_jax.models.preprocessing import TORCH_MEAN, TORCH_SD, Preprocessing
from scalecov_jax.models.sources import TRACKED, KerasModel, Layout, Sources, official_pair, unnamed

EPSILON = 1e-3


class Block(NamedTuple):
    """One inverted residual block.

    Attributes:
        prefix: Keras's name of it, such as block2a.
        layer: Keras's name of its output: the sum, or the projection where there is no shortcut.
        features: Number of output channels.
        kernel_size: Height and width of its depthwise filters in pixels.
        stride: Step in pixels.
        expansion: Inner channels / input channels.
        stage: From 0.
        number: Within the stage, from 0; all but the first have a shortcut.
    """

    prefix: str
    layer: str
    features: int
    kernel_size: int
    stride: int
    expansion: int
    stage: int
    number: int


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


def _blocks() -> tuple[Block, ...]:
    found: list[Block] = []
    for stage, (features, count, size, stride) in enumerate(_STAGES):
        for number in range(count):
            prefix = f"block{stage + 1}{chr(97 + number)}"
            layer = f"{prefix}_{'add' if number else 'project_bn'}"
            step, expansion = (1 if number else stride), (6 if found else 1)
            found.append(Block(prefix, layer, features, size, step, expansion, stage, number))
    return tuple(found)


BLOCKS = _blocks()
LAYERS = (
    "stem_activation",
    *(block.layer for block in BLOCKS),
    "top_activation",
    "pre_softmax",
    "softmax",
)


class MBConv(nn.Module):
    """1x1 convolution to more channels, depthwise one, squeeze-and-excitation, linear 1x1 one to few, and a shortcut.

    Squeeze-and-excitation multiplies each channel by a gate computed from the means of all of them, so that every position
    sees the whole image.

    Attributes:
        block: What it is.
        width: Multiplier of its output channels.
        symmetric_padding: See `EfficientNetB0`.
        folded: See `layers.ConvBlock`.
    """

    block: Block
    width: float = 1.0
    symmetric_padding: bool = False
    folded: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H2 W2 D"]:
        """Apply the block."""
        conv = partial(ConvBlock, epsilon=EPSILON, use_scale=True, activation=nn.silu, folded=self.folded)
        prefix, size = self.block.prefix, self.block.kernel_size
        channels = self.block.expansion * x.shape[-1]
        y = x
        if self.block.expansion > 1:
            y = conv(channels, name=f"{prefix}_expand")(y, train)
        padding = size // 2 if self.symmetric_padding else "SAME"
        y = conv(channels, (size, size), self.block.stride, padding, depthwise=True, name=f"{prefix}_dwconv")(
            y, train
        )
        gate = nn.Dense(max(1, x.shape[-1] // 4), name=f"{prefix}_se_reduce")(global_average_pool(y))
        gate = nn.sigmoid(nn.Dense(channels, name=f"{prefix}_se_expand")(nn.silu(gate)))
        y = y * gate.reshape(len(y), 1, 1, channels)
        y = conv(round(self.block.features * self.width), activation=None, name=f"{prefix}_project")(y, train)
        return x + y if self.block.number else y


class EfficientNetB0(nn.Module):
    """EfficientNetB0, stopped after the layer `last`; dropout and stochastic depth are left out.

    Its input is normalised (see `preprocessing.preprocess`): Keras's layers for that are not part of it.

    Attributes:
        last: The layer whose output is returned; one of `LAYERS`, or avg_pool.
        width: Multiplier of all filter counts.
        classes: Number of classes of the head.
        symmetric_padding: Whether steps of 2 pad alike on every side (torch) or, on even sizes, one pixel less above and on the
            left (Keras).
        folded: Whether batch normalisation is folded into the convolutions.
    """

    last: str = "softmax"
    width: float = 1.0
    classes: int = 1000
    symmetric_padding: bool = False
    folded: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], train: bool = False) -> Array:
        """Return the output of `last` for preprocessed images: maps [N, h, w, D] or, from pre_softmax on, [N, classes]."""
        conv = partial(ConvBlock, epsilon=EPSILON, use_scale=True, activation=nn.silu, folded=self.folded)
        padding = 1 if self.symmetric_padding else "SAME"
        x = conv(round(32 * self.width), (3, 3), 2, padding, name="stem_activation")(x, train)
        if self.last == "stem_activation":
            return x
        for block in BLOCKS:
            x = MBConv(block, self.width, self.symmetric_padding, self.folded, name=block.layer)(x, train)
            if self.last == block.layer:
                return x
        x = conv(round(1280 * self.width), name="top_activation")(x, train)
        if self.last == "top_activation":
            return x
        x = GlobalAveragePool(name=WHOLE)(x)
        if self.last == WHOLE:
            return x
        x = nn.Dense(self.classes, name="pre_softmax")(x)
        return x if self.last == "pre_softmax" else Softmax(name="softmax")(x)


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


# The convolutions of a block: Keras's kind, convolution and normalisation.
_STEPS = {
    "expand": ("conv2d", "expand_conv", "expand_bn"),
    "dwconv": ("depthwise_conv2d", "dwconv", "bn"),
    "project": ("conv2d", "project_conv", "project_bn"),
}
_TIMM = {2: ("conv_dw", "conv_pw"), 3: ("conv_pw", "conv_dw", "conv_pwl")}  # by the number of them


def _layouts() -> tuple[Layout, ...]:
    keras, torchvision, timm, kinds = {}, {}, {}, {}

    def add(path: str, kind: str, *names: tuple[str, str]) -> None:
        for table, (conv, norm) in zip((keras, torchvision, timm), names, strict=True):
            table |= {path: conv, f"{path}/norm": norm}
        kinds.update({path: kind, f"{path}/norm": "batch_normalization"})

    add("stem_activation", "conv2d", ("stem_conv", "stem_bn"), _pair("features.0"), ("conv_stem", "bn1"))
    for block in BLOCKS:
        path, prefix = f"{block.layer}/{block.prefix}", block.prefix
        theirs, brief = (
            f"features.{block.stage + 1}.{block.number}.block",
            f"blocks.{block.stage}.{block.number}",
        )
        steps = list(_STEPS)[block.expansion == 1 :]
        for number, (step, conv) in enumerate(zip(steps, _TIMM[len(steps)], strict=True)):
            kind, ours, norm = _STEPS[step]
            add(
                f"{path}_{step}",
                kind,
                (f"{prefix}_{ours}", f"{prefix}_{norm}"),
                _pair(f"{theirs}.{number + (step == 'project')}"),  # squeeze-and-excitation counts before it
                (f"{brief}.{conv}", f"{brief}.bn{number + 1}"),
            )
            if step == "dwconv":
                for name, dense in (("reduce", "fc1"), ("expand", "fc2")):
                    module = f"{path}_se_{name}"
                    keras[module], kinds[module] = f"{prefix}_se_{name}", "conv2d"
                    torchvision[module] = f"{theirs}.{number + 1}.{dense}"
                    timm[module] = f"{brief}.se.conv_{name}"
    add("top_activation", "conv2d", ("top_conv", "top_bn"), _pair("features.8"), ("conv_head", "bn2"))
    keras["pre_softmax"], torchvision["pre_softmax"] = "predictions", "classifier.1"
    timm["pre_softmax"], kinds["pre_softmax"] = "classifier", "dense"
    within: dict[str, Any] = {
        "ignored": {"normalization of the input": r"^normalization_1/"},
        "declared": declared_preprocessing,
    }
    symmetric = {"symmetric_padding": True}
    return (
        Layout("Keras", "keras", keras, EPSILON, **within),
        Layout("Keras 3 without layer names", "keras_unnamed", unnamed(kinds), EPSILON, **within),
        Layout("torchvision", "torch", torchvision, 1e-5, symmetric, TRACKED, pixelwise=r"\.fc[12]\.weight$"),
        Layout("timm", "torch", timm, 1e-5, symmetric, TRACKED, pixelwise=r"\.conv_(reduce|expand)\.weight$"),
    )


def _pair(module: str) -> tuple[str, str]:
    return f"{module}.0", f"{module}.1"


# Source: keras.applications (efficientnet) 3.15; torchvision.models (efficientnet); timm.models (efficientnet_b0).
SOURCES = Sources(
    _layouts(),
    KerasModel("EfficientNetB0", {"pre_softmax": "predictions"}, after="normalization_1"),
    official_pair(
        "https://storage.googleapis.com/keras-applications/efficientnetb0",
        "902e53a9f72be733fc0bcb005b3ebbac",
        "50bc09e76180e00e4465e1a485ddc09d",
    ),
)
