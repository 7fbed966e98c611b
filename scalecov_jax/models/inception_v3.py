"""InceptionV3 (Szegedy et al. 2016) in the layout and with the layer names of keras.applications."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models import sources
from scalecov_jax.models.layers import ConvBlock, MaxPool, average_pool, classify, max_pool, run_to


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
    """One inception block: parallel branches, joined along the channels."""

    branches: Branches  # what each branch does, from left to right in the source
    first: int  # Keras's number of the block's first convolution
    width: float = 1.0  # multiplier of all filter counts
    count_padding: bool = False  # see `layers.average_pool`
    use_scale: bool = False  # see `layers.ConvBlock`
    folded: bool = False  # see `layers.ConvBlock`

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H2 W2 D"]:
        """Apply all branches."""
        numbers = iter(range(self.first, self.first + len(_convolutions(self.branches))))

        def apply(conv: Conv, inputs: Array, pool: Callable[[Array], Array] | None = None) -> Array:
            block = ConvBlock(
                round(conv.features * self.width),
                (conv.height, conv.width),
                conv.stride,
                "SAME" if conv.stride == 1 else "VALID",
                use_scale=self.use_scale,
                folded=self.folded,
                pool=pool,
                name=f"conv2d_{next(numbers)}",
            )
            return block(inputs, train)

        outputs = []
        for branch in self.branches:
            y, pool = x, None
            for step in branch:
                if step == "average":
                    # A 1x1 convolution follows, and either may come first: a mean of its 32 to 192 channels is cheaper than one
                    # of the 192 to 2048 that it reads.
                    pool = partial(average_pool, count_padding=self.count_padding)
                elif step == "max":
                    y = max_pool(y)
                elif isinstance(step, Conv):
                    y = apply(step, y, pool)
                else:
                    y = jnp.concatenate([apply(conv, y) for conv in step], axis=-1)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=-1)


class InceptionV3(nn.Module):
    """InceptionV3, stopped after the layer `last`."""

    last: str = "softmax"  # the layer whose output is returned; one of `LAYERS`, or avg_pool
    width: float = 1.0  # multiplier of all filter counts
    classes: int = 1000  # number of classes of the head
    # average pooling divides by 9 also at the border (torchvision) and not only by what it covers (Keras)
    count_padding: bool = False
    use_scale: bool = False  # whether batch normalisation has a scale (torchvision) or none (Keras)
    folded: bool = False  # whether batch normalisation is folded into the convolutions

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], train: bool = False) -> Array:
        """Return the output of `last` for preprocessed images: maps [N, h, w, D] or, from pre_softmax on, [N, classes]."""
        conv = partial(ConvBlock, use_scale=self.use_scale, folded=self.folded)

        widths = [round(features * self.width) for features in (32, 32, 64, 80, 192)]
        steps: list[nn.Module] = [
            conv(widths[0], (3, 3), 2, "VALID", name="conv2d_1"),
            conv(widths[1], (3, 3), 1, "VALID", name="conv2d_2"),
            conv(widths[2], (3, 3), name="conv2d_3"),
            MaxPool(name="max_pooling2d_1"),
            conv(widths[3], name="conv2d_4"),
            conv(widths[4], (3, 3), 1, "VALID", name="conv2d_5"),
            MaxPool(name="max_pooling2d_2"),
        ]
        options, first = (self.width, self.count_padding, self.use_scale, self.folded), 6
        for name, branches in MIXED.items():
            steps.append(Mixed(branches, first, *options, name=name))
            first += len(_convolutions(branches))
        x, reached = run_to(self.last, steps, x, train)
        return x if reached else classify(self.last, x, self.classes)


def _numbered(branch: str, count: int) -> tuple[str, ...]:
    return tuple(f"{branch}_{i}" for i in range(1, count + 1))


class _Kind(NamedTuple):
    """How others name and list the convolutions of an inception block."""

    branches: tuple[str, ...]  # torchvision's names, in the order in which Keras makes them
    # the order in which Keras lists them in a file, by depth: the n-th is the convolution `listed[n]`
    listed: tuple[int, ...]


_A = _Kind(
    ("branch1x1", *_numbered("branch5x5", 2), *_numbered("branch3x3dbl", 3), "branch_pool"),
    (3, 1, 4, 0, 2, 5, 6),
)
_B = _Kind(("branch3x3", *_numbered("branch3x3dbl", 3)), (1, 2, 0, 3))
_C = _Kind(
    ("branch1x1", *_numbered("branch7x7", 3), *_numbered("branch7x7dbl", 5), "branch_pool"),
    (4, 5, 1, 6, 2, 7, 0, 3, 8, 9),
)
_D = _Kind((*_numbered("branch3x3", 2), *_numbered("branch7x7x3", 4)), (2, 3, 0, 4, 1, 5))
_E = _Kind(
    (
        *("branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b"),
        *(f"branch3x3dbl_{part}" for part in ("1", "2", "3a", "3b")),
        "branch_pool",
    ),
    (4, 1, 5, 2, 3, 6, 7, 0, 8),
)
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_LETTERS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")  # of torchvision's blocks
_KINDS = (_A, _A, _A, _B, _C, _C, _C, _C, _D, _E, _E)


def _layouts() -> tuple[sources.Layout, ...]:
    keras, torch, listed = {}, {}, []

    def add(path: str, number: int, module: str) -> None:
        keras[path] = f"conv2d_{number}", f"batch_normalization_{number}"
        torch[path] = f"{module}.conv", f"{module}.bn"

    for number, module in enumerate(_STEM, start=1):
        add(f"conv2d_{number}", number, module)
        listed.append(f"conv2d_{number}")
    first = len(_STEM) + 1
    for layer, letters, kind in zip(MIXED, _LETTERS, _KINDS, strict=True):
        for number, branch in enumerate(kind.branches, start=first):
            add(f"{layer}/conv2d_{number}", number, f"Mixed_{letters}.{branch}")
        listed += [f"{layer}/conv2d_{first + i}" for i in kind.listed]
        first += len(kind.branches)
    in_file = sources.blocks({path: keras[path] for path in listed}, "")
    return (
        *sources.keras_layouts(sources.blocks(keras, "predictions"), EPSILON, listed=in_file),
        sources.Layout(
            "torchvision or timm",
            "torch",
            sources.blocks(torch, "fc"),
            EPSILON,
            {"count_padding": True, "use_scale": True},
            {"AuxLogits": r"^AuxLogits\.", **sources.TRACKED},
        ),
    )


# Source: keras.applications (inception_v3) 3.15; torchvision.models (inception).
SOURCES = sources.Sources(
    _layouts(),
    sources.KerasModel(
        "InceptionV3",
        {"conv2d_3": "activation_3", "conv2d_5": "activation_5", "pre_softmax": "predictions"},
    ),
    sources.official_pair(
        f"{sources.KERAS}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels",
        "9a0d58056eeedaa3f26cb7ebd46da564",
        "bcbd6486424b2319ff4ef7d526e38f63",
    ),
)
