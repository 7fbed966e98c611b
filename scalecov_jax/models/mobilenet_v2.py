"""MobileNetV2 (Sandler et al. 2018) with the layer names of keras.applications."""

from functools import partial
from typing import NamedTuple

from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models.layers import WHOLE, ConvBlock, GlobalAveragePool, Softmax
from scalecov_jax.models.sources import TRACKED, KerasModel, Layout, Sources, blocks, unnamed

EPSILON = 1e-3


class Block(NamedTuple):
    """One inverted residual block.

    Attributes:
        prefix: Keras's name of it, such as block_1.
        layer: Keras's name of its output: the sum, or the projection where there is no shortcut.
        features: Number of output channels.
        stride: Step in pixels.
        expansion: Inner channels / input channels.
        stage: Of torch, from 0.
        number: Within the stage, from 0; all but the first have a shortcut.
    """

    prefix: str
    layer: str
    features: int
    stride: int
    expansion: int
    stage: int
    number: int


_STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


def _blocks() -> tuple[Block, ...]:
    found: list[Block] = []
    for stage, (features, count, stride) in enumerate(_STAGES):
        for number in range(count):
            prefix = f"block_{len(found)}" if found else "expanded_conv"
            layer = f"{prefix}_{'add' if number else 'project_BN'}"
            step, expansion = (1 if number else stride), (6 if found else 1)
            found.append(Block(prefix, layer, features, step, expansion, stage, number))
    return tuple(found)


BLOCKS = _blocks()
LAYERS = ("Conv1_relu", *(block.layer for block in BLOCKS), "out_relu", "pre_softmax", "softmax")


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depthwise 3x3 convolution, linear 1x1 convolution to few, and a shortcut.

    Attributes:
        block: What it is.
        width: Multiplier of its output channels.
        symmetric_padding: See `MobileNetV2`.
        folded: See `layers.ConvBlock`.
    """

    block: Block
    width: float = 1.0
    symmetric_padding: bool = False
    folded: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H2 W2 D"]:
        """Apply the block."""
        conv = partial(ConvBlock, epsilon=EPSILON, use_scale=True, activation=nn.relu6, folded=self.folded)
        prefix, channels = self.block.prefix, self.block.expansion * x.shape[-1]
        y = x
        if self.block.expansion > 1:
            y = conv(channels, name=f"{prefix}_expand")(y, train)
        padding = 1 if self.symmetric_padding else "SAME"
        y = conv(channels, (3, 3), self.block.stride, padding, depthwise=True, name=f"{prefix}_depthwise")(
            y, train
        )
        features = round(self.block.features * self.width)
        y = conv(features, activation=None, name=f"{prefix}_project")(y, train)
        return x + y if self.block.number else y


class MobileNetV2(nn.Module):
    """MobileNetV2, stopped after the layer `last`.

    Attributes:
        last: The layer whose output is returned; one of `LAYERS`, or avg_pool.
        width: Multiplier of all filter counts (Keras's alpha, without its rounding to multiples of 8).
        classes: Number of classes of the head.
        symmetric_padding: Whether steps of 2 pad 1 pixel on every side (torch) or, on even sizes, below and right alone (Keras).
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
        conv = partial(ConvBlock, epsilon=EPSILON, use_scale=True, activation=nn.relu6, folded=self.folded)
        padding = 1 if self.symmetric_padding else "SAME"
        x = conv(round(32 * self.width), (3, 3), 2, padding, name="Conv1_relu")(x, train)
        if self.last == "Conv1_relu":
            return x
        for block in BLOCKS:
            x = InvertedResidual(block, self.width, self.symmetric_padding, self.folded, name=block.layer)(
                x, train
            )
            if self.last == block.layer:
                return x
        x = conv(round(1280 * self.width), name="out_relu")(x, train)
        if self.last == "out_relu":
            return x
        x = GlobalAveragePool(name=WHOLE)(x)
        if self.last == WHOLE:
            return x
        x = nn.Dense(self.classes, name="pre_softmax")(x)
        return x if self.last == "pre_softmax" else Softmax(name="softmax")(x)


_TIMM = {2: ("conv_dw", "conv_pw"), 3: ("conv_pw", "conv_dw", "conv_pwl")}  # by the number of convolutions


def _layouts() -> tuple[Layout, ...]:
    keras, kinds = {"Conv1_relu": ("Conv1", "bn_Conv1")}, {}
    torchvision = {"Conv1_relu": ("features.0.0", "features.0.1")}
    timm = {"Conv1_relu": ("conv_stem", "bn1")}
    for at, block in enumerate(BLOCKS, start=1):
        steps = ("expand", "depthwise", "project")[block.expansion == 1 :]
        for number, step in enumerate(steps):
            path = f"{block.layer}/{block.prefix}_{step}"
            keras[path] = f"{block.prefix}_{step}", f"{block.prefix}_{step}_BN"
            inner = f"features.{at}.conv.{number}"
            # The last convolution is not wrapped with its normalisation.
            torchvision[path] = (
                (inner, f"features.{at}.conv.{number + 1}")
                if step == "project"
                else (f"{inner}.0", f"{inner}.1")
            )
            inner = f"blocks.{block.stage}.{block.number}"
            timm[path] = f"{inner}.{_TIMM[len(steps)][number]}", f"{inner}.bn{number + 1}"
    keras["out_relu"] = "Conv_1", "Conv_1_bn"
    torchvision["out_relu"] = "features.18.0", "features.18.1"
    timm["out_relu"] = "conv_head", "bn2"
    for path in keras:
        kind = "depthwise_conv2d" if path.endswith("_depthwise") else "conv2d"
        kinds[path] = kind, "batch_normalization"
    symmetric = {"symmetric_padding": True}
    return (
        Layout("Keras", "keras", blocks(keras, "predictions"), EPSILON),
        Layout("Keras 3 without layer names", "keras_unnamed", unnamed(blocks(kinds, "dense")), EPSILON),
        Layout("torchvision", "torch", blocks(torchvision, "classifier.1"), 1e-5, symmetric, TRACKED),
        Layout("timm", "torch", blocks(timm, "classifier"), 1e-5, symmetric, TRACKED),
    )


# Source: keras.applications (mobilenet_v2) 3.15, which publishes no checksums; torchvision.models (mobilenetv2); timm.models
# (mobilenetv2_100).
SOURCES = Sources(_layouts(), KerasModel("MobileNetV2", {"pre_softmax": "predictions"}))
