"""InceptionV3 (Szegedy et al. 2016) in the layout and with the layer names of keras.applications."""

from functools import partial
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models.layers import (
    WHOLE,
    ConvBlock,
    GlobalAveragePool,
    MaxPool,
    Softmax,
    average_pool,
    max_pool,
)


class Conv(NamedTuple):
    """One convolution of a branch: stride 2 goes with VALID padding, stride 1 with SAME."""

    features: int
    height: int = 1
    width: int = 1
    stride: int = 1


Step = Conv | tuple[Conv, Conv] | Literal["average", "max"]
Branches = tuple[tuple[Step, ...], ...]


def _block_35(pool_features: int) -> Branches:
    return (
        (Conv(64),),
        (Conv(48), Conv(64, 5, 5)),
        (Conv(64), Conv(96, 3, 3), Conv(96, 3, 3)),
        ("average", Conv(pool_features)),
    )


def _block_17(inner: int) -> Branches:
    return (
        (Conv(192),),
        (Conv(inner), Conv(inner, 1, 7), Conv(192, 7, 1)),
        (Conv(inner), Conv(inner, 7, 1), Conv(inner, 1, 7), Conv(inner, 7, 1), Conv(192, 1, 7)),
        ("average", Conv(192)),
    )


_BLOCK_8: Branches = (
    (Conv(320),),
    (Conv(384), (Conv(384, 1, 3), Conv(384, 3, 1))),
    (Conv(448), Conv(384, 3, 3), (Conv(384, 1, 3), Conv(384, 3, 1))),
    ("average", Conv(192)),
)

MIXED: dict[str, Branches] = {
    "mixed0": _block_35(32),
    "mixed1": _block_35(64),
    "mixed2": _block_35(64),
    "mixed3": ((Conv(384, 3, 3, 2),), (Conv(64), Conv(96, 3, 3), Conv(96, 3, 3, 2)), ("max",)),
    "mixed4": _block_17(128),
    "mixed5": _block_17(160),
    "mixed6": _block_17(160),
    "mixed7": _block_17(192),
    "mixed8": (
        (Conv(192), Conv(320, 3, 3, 2)),
        (Conv(192), Conv(192, 1, 7), Conv(192, 7, 1), Conv(192, 3, 3, 2)),
        ("max",),
    ),
    "mixed9": _BLOCK_8,
    "mixed10": _BLOCK_8,
}

EPSILON = 1e-3
LAYERS = ("conv2d_3", "conv2d_5", *MIXED, "pre_softmax", "softmax")


def _convolutions(branches: Branches) -> list[Conv]:
    """Every convolution of a block in the order in which Keras numbers them."""
    flat: list[Conv] = []
    for branch in branches:
        for step in branch:
            if isinstance(step, Conv):
                flat.append(step)
            elif not isinstance(step, str):
                flat.extend(step)
    return flat


class Mixed(nn.Module):
    """One inception block: parallel branches, joined along the channels.

    Attributes:
        branches: What each branch does, from left to right in the source.
        first: Keras's number of the block's first convolution.
        width: Multiplier of all filter counts.
        count_padding: See `layers.average_pool`.
        use_scale: See `layers.ConvBlock`.
        folded: See `layers.ConvBlock`.
    """

    branches: Branches
    first: int
    width: float = 1.0
    count_padding: bool = False
    use_scale: bool = False
    folded: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H2 W2 D"]:
        """Apply all branches."""
        numbers = iter(range(self.first, self.first + len(_convolutions(self.branches))))

        def apply(conv: Conv, inputs: Array) -> Array:
            block = ConvBlock(
                round(conv.features * self.width),
                (conv.height, conv.width),
                conv.stride,
                "SAME" if conv.stride == 1 else "VALID",
                use_scale=self.use_scale,
                folded=self.folded,
                name=f"conv2d_{next(numbers)}",
            )
            return block(inputs, train)

        outputs = []
        for branch in self.branches:
            y = x
            for step in branch:
                if step == "average":
                    y = average_pool(y, self.count_padding)
                elif step == "max":
                    y = max_pool(y)
                elif isinstance(step, Conv):
                    y = apply(step, y)
                else:
                    y = jnp.concatenate([apply(conv, y) for conv in step], axis=-1)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=-1)


class InceptionV3(nn.Module):
    """InceptionV3, stopped after the layer `last`.

    Attributes:
        last: The layer whose output is returned; one of `LAYERS`, or avg_pool.
        width: Multiplier of all filter counts.
        classes: Number of classes of the head.
        count_padding: Average pooling divides by 9 also at the border (torchvision) and not only by what it covers (Keras).
        use_scale: Whether batch normalisation has a scale (torchvision) or none (Keras).
        folded: Whether batch normalisation is folded into the convolutions.
    """

    last: str = "softmax"
    width: float = 1.0
    classes: int = 1000
    count_padding: bool = False
    use_scale: bool = False
    folded: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], train: bool = False) -> Array:
        """Return the output of `last` for preprocessed images: maps [N, h, w, D] or, from pre_softmax on, [N, classes]."""
        conv = partial(ConvBlock, use_scale=self.use_scale, folded=self.folded)

        def width(features: int) -> int:
            return round(features * self.width)

        x = conv(width(32), (3, 3), 2, "VALID", name="conv2d_1")(x, train)
        x = conv(width(32), (3, 3), 1, "VALID", name="conv2d_2")(x, train)
        x = conv(width(64), (3, 3), name="conv2d_3")(x, train)
        if self.last == "conv2d_3":
            return x
        x = MaxPool(name="max_pooling2d_1")(x)
        x = conv(width(80), name="conv2d_4")(x, train)
        x = conv(width(192), (3, 3), 1, "VALID", name="conv2d_5")(x, train)
        if self.last == "conv2d_5":
            return x
        x = MaxPool(name="max_pooling2d_2")(x)
        first = 6
        for name, branches in MIXED.items():
            block = Mixed(
                branches, first, self.width, self.count_padding, self.use_scale, self.folded, name=name
            )
            x = block(x, train)
            if self.last == name:
                return x
            first += len(_convolutions(branches))
        x = GlobalAveragePool(name=WHOLE)(x)
        if self.last == WHOLE:
            return x
        x = nn.Dense(self.classes, name="pre_softmax")(x)
        return x if self.last == "pre_softmax" else Softmax(name="softmax")(x)
