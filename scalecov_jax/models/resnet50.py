"""ResNet50 (He et al. 2016) in the layout and with the layer names of keras.applications."""

from functools import partial

from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models.layers import WHOLE, ConvBlock, GlobalAveragePool, MaxPool, Softmax

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
EPSILON = 1.001e-5
LAYERS = ("max_pool", *(f"add_{i}" for i in range(1, 17)), "pre_softmax", "softmax")


class Residual(nn.Module):
    """A bottleneck block that returns the sum BEFORE its ReLU, as Keras's `Add` layers do.

    Attributes:
        prefix: Keras's name of the block, such as conv2_block1.
        features: Filters of the two inner convolutions; the block has four times as many outputs.
        stride: Step in pixels of the block.
        project: Whether the shortcut is a 1x1 convolution.
        stride_on_3x3: Whether the 3x3 convolution takes the step (torchvision) or the first 1x1 (Keras).
        folded: See `layers.ConvBlock`.
    """

    prefix: str
    features: int
    stride: int
    project: bool
    stride_on_3x3: bool = False
    folded: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H2 W2 D"]:
        """Return shortcut + residual."""
        conv = partial(ConvBlock, epsilon=EPSILON, use_bias=True, use_scale=True, folded=self.folded)
        first, second = (1, self.stride) if self.stride_on_3x3 else (self.stride, 1)
        shortcut = x
        if self.project:
            shortcut = conv(4 * self.features, stride=self.stride, relu=False, name=f"{self.prefix}_0")(
                x, train
            )
        x = conv(self.features, stride=first, name=f"{self.prefix}_1")(x, train)
        x = conv(self.features, (3, 3), second, 1, name=f"{self.prefix}_2")(x, train)
        x = conv(4 * self.features, relu=False, name=f"{self.prefix}_3")(x, train)
        return shortcut + x


class ResNet50(nn.Module):
    """ResNet50, stopped after the layer `last`.

    Attributes:
        last: The layer whose output is returned; one of `LAYERS`, or avg_pool. An `add_*` layer is the sum before its ReLU.
        width: Multiplier of all filter counts.
        classes: Number of classes of the head.
        max_pool_padding: Zeros around the input of the first pooling: 1 in Keras since 2.2.3 (and in torchvision), 0 before.
        stride_on_3x3: Whether the 3x3 convolutions take the steps (torchvision) or the first 1x1 of each stage (Keras).
        folded: Whether batch normalisation is folded into the convolutions.
    """

    last: str = "softmax"
    width: float = 1.0
    classes: int = 1000
    max_pool_padding: int = 1
    stride_on_3x3: bool = False
    folded: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], train: bool = False) -> Array:
        """Return the output of `last` for preprocessed images: maps [N, h, w, D] or, from pre_softmax on, [N, classes]."""
        x = ConvBlock(
            round(64 * self.width),
            (7, 7),
            2,
            3,
            EPSILON,
            use_bias=True,
            use_scale=True,
            folded=self.folded,
            name="conv1",
        )(x, train)
        x = MaxPool(self.max_pool_padding, name="max_pool")(x)
        if self.last == "max_pool":
            return x
        number = 0
        for stage, (features, blocks) in enumerate(STAGES, start=2):
            for block in range(1, blocks + 1):
                number += 1
                x = Residual(
                    f"conv{stage}_block{block}",
                    round(features * self.width),
                    stride=2 if block == 1 and stage > 2 else 1,
                    project=block == 1,
                    stride_on_3x3=self.stride_on_3x3,
                    folded=self.folded,
                    name=f"add_{number}",
                )(x, train)
                if self.last == f"add_{number}":
                    return x
                x = nn.relu(x)
        x = GlobalAveragePool(name=WHOLE)(x)
        if self.last == WHOLE:
            return x
        x = nn.Dense(self.classes, name="pre_softmax")(x)
        return x if self.last == "pre_softmax" else Softmax(name="softmax")(x)
