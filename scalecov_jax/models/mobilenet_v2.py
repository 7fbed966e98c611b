"""MobileNetV2 (Sandler et al. 2018) with the layer names of keras.applications, and the blocks that EfficientNet has too."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models.layers import ConvBlock, classify, global_average_pool, run_to
from scalecov_jax.models.sources import TRACKED, KerasModel, Layout, Sources, blocks, keras_layouts

EPSILON = 1e-3
_TIMM = {2: ("conv_dw", "conv_pw"), 3: ("conv_pw", "conv_dw", "conv_pwl")}  # by the number of convolutions


class Block(NamedTuple):
    """One inverted residual block."""

    prefix: str  # Keras's name of it, such as block_1
    layer: str  # Keras's name of its output: the sum, or the projection where there is no shortcut
    features: int  # number of output channels
    kernel_size: int  # height and width of its depthwise filters in pixels
    stride: int  # step in pixels
    expansion: int  # inner channels / input channels
    stage: int  # from 0
    number: int  # within the stage, from 0; all but the first have a shortcut

    def convolutions(self, depthwise: str) -> Iterator[tuple[int, str, tuple[str, str]]]:
        """Of each convolution its number, its name without the prefix, and timm's names of it and its normalisation."""
        steps = ("expand", depthwise, "project")[self.expansion == 1 :]
        inner = f"blocks.{self.stage}.{self.number}"
        for number, (step, conv) in enumerate(zip(steps, _TIMM[len(steps)], strict=True)):
            yield number, step, (f"{inner}.{conv}", f"{inner}.bn{number + 1}")


def inverted_blocks(
    stages: Iterable[tuple[int, int, int, int]], prefix: Callable[[int, int, int], str], norm: str
) -> tuple[Block, ...]:
    """The blocks of stages of so many filters, blocks, pixels of the kernel and pixels of the first step.

    Keras calls them by stage, number in the stage and number of all, from 0, and the last normalisation of each `norm`.
    """
    every: list[Block] = []
    for stage, (features, count, size, stride) in enumerate(stages):
        for number in range(count):
            name = prefix(stage, number, len(every))
            layer = f"{name}_{'add' if number else norm}"
            step, expansion = (1 if number else stride), (6 if every else 1)
            every.append(Block(name, layer, features, size, step, expansion, stage, number))
    return tuple(every)


# Filters, blocks, kernel size and stride of each stage.
_STAGES = (
    (16, 1, 3, 1),
    (24, 2, 3, 2),
    (32, 3, 3, 2),
    (64, 4, 3, 2),
    (96, 3, 3, 1),
    (160, 3, 3, 2),
    (320, 1, 3, 1),
)
BLOCKS = inverted_blocks(_STAGES, lambda *at: f"block_{at[2]}" if at[2] else "expanded_conv", "project_BN")
LAYERS = ("Conv1_relu", *(block.layer for block in BLOCKS), "out_relu", "pre_softmax", "softmax")


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depthwise convolution, linear 1x1 convolution to few, and a shortcut.

    With squeeze-and-excitation each channel is multiplied, before the last convolution, by a gate computed from the means of all
    of them, so that every position sees the whole image.
    """

    block: Block  # what it is
    width: float = 1.0  # multiplier of its output channels
    symmetric_padding: bool = False  # see `MobileNetV2`
    folded: bool = False  # see `layers.ConvBlock`
    depthwise: str = "depthwise"  # name of the second convolution
    activation: Callable[[Any], Any] = nn.relu6  # behind the first two
    squeeze: bool = False  # whether there is squeeze-and-excitation

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H2 W2 D"]:
        """Apply the block."""
        conv = partial(
            ConvBlock, epsilon=EPSILON, use_scale=True, activation=self.activation, folded=self.folded
        )
        prefix, size = self.block.prefix, (self.block.kernel_size,) * 2
        channels = self.block.expansion * x.shape[-1]
        y = conv(channels, name=f"{prefix}_expand")(x, train) if self.block.expansion > 1 else x
        padding = size[0] // 2 if self.symmetric_padding else "SAME"
        own = conv(
            channels, size, self.block.stride, padding, depthwise=True, name=f"{prefix}_{self.depthwise}"
        )
        y = own(y, train)
        if self.squeeze:
            gate = nn.Dense(max(1, x.shape[-1] // 4), name=f"{prefix}_se_reduce")(global_average_pool(y))
            gate = nn.sigmoid(nn.Dense(channels, name=f"{prefix}_se_expand")(nn.silu(gate)))
            y = y * gate.reshape(len(y), 1, 1, channels)
        features = round(self.block.features * self.width)
        y = conv(features, activation=None, name=f"{prefix}_project")(y, train)
        return x + y if self.block.number else y


class MobileNetV2(nn.Module):
    """MobileNetV2, stopped after the layer `last`."""

    blocks = BLOCKS
    ends = ("Conv1_relu", "out_relu")  # the convolutions before and behind them
    depthwise, activation, squeeze = "depthwise", staticmethod(nn.relu6), False  # see `InvertedResidual`

    last: str = "softmax"  # the layer whose output is returned; one of the architecture's, or avg_pool
    # multiplier of all filter counts (Keras's alpha, without its rounding to multiples of 8)
    width: float = 1.0
    classes: int = 1000  # number of classes of the head
    # whether steps of 2 pad alike on every side (torch) or, on even sizes, one pixel less above and on the left (Keras)
    symmetric_padding: bool = False
    folded: bool = False  # whether batch normalisation is folded into the convolutions

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], train: bool = False) -> Array:
        """Return the output of `last` for preprocessed images: maps [N, h, w, D] or, from pre_softmax on, [N, classes]."""
        same = {"activation": self.activation, "folded": self.folded}
        conv = partial(ConvBlock, epsilon=EPSILON, use_scale=True, **same)
        padding = 1 if self.symmetric_padding else "SAME"
        own = {"depthwise": self.depthwise, "squeeze": self.squeeze, **same}
        residual = partial(
            InvertedResidual, width=self.width, symmetric_padding=self.symmetric_padding, **own
        )
        steps = (
            conv(round(32 * self.width), (3, 3), 2, padding, name=self.ends[0]),
            *(residual(block, name=block.layer) for block in self.blocks),
            conv(round(1280 * self.width), name=self.ends[1]),
        )
        x, reached = run_to(self.last, steps, x, train)
        return x if reached else classify(self.last, x, self.classes)


def _layouts() -> tuple[Layout, ...]:
    keras: dict[str, Any] = {"Conv1_relu": ("Conv1", "bn_Conv1")}
    torchvision: dict[str, Any] = {"Conv1_relu": ("features.0.0", "features.0.1")}
    timm: dict[str, Any] = {"Conv1_relu": ("conv_stem", "bn1")}
    for at, block in enumerate(BLOCKS, start=1):
        for number, step, names in block.convolutions("depthwise"):
            path, ours = f"{block.layer}/{block.prefix}_{step}", f"{block.prefix}_{step}"
            inner = f"features.{at}.conv.{number}"
            keras[path], timm[path] = (ours, f"{ours}_BN"), names
            torchvision[path] = f"{inner}.0", f"{inner}.1"
            if step == "project":  # which is not wrapped with its normalisation
                torchvision[path] = inner, f"features.{at}.conv.{number + 1}"
    keras["out_relu"] = "Conv_1", "Conv_1_bn"
    torchvision["out_relu"] = "features.18.0", "features.18.1"
    timm["out_relu"] = "conv_head", "bn2"
    symmetric = {"symmetric_padding": True}
    return (
        *keras_layouts(blocks(keras, "predictions"), EPSILON),
        Layout("torchvision", "torch", blocks(torchvision, "classifier.1"), 1e-5, symmetric, TRACKED),
        Layout("timm", "torch", blocks(timm, "classifier"), 1e-5, symmetric, TRACKED),
    )


# Source: keras.applications (mobilenet_v2) 3.15, which publishes no checksums; torchvision.models (mobilenetv2); timm.models
# (mobilenetv2_100).
SOURCES = Sources(_layouts(), KerasModel("MobileNetV2", {"pre_softmax": "predictions"}))
