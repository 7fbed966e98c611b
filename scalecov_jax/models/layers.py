"""What the networks are made of: a convolution block, poolings, and the one place that chooses how to lower them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Padding = Literal["SAME", "VALID"] | int

MOMENTUM = 0.99  # of the running statistics of batch normalisation, as in Keras
WHOLE = (
    "avg_pool"  # Keras's name of what the classification head sees: the pooled output of the whole network
)

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


_FORWARD_ONLY = ContextVar("forward_only", default=False)


@contextmanager
def forward_only() -> Iterator[None]:
    """Let what is traced inside be lowered to suit a CPU's forward pass, not gradients or the search for receptive fields.

    To be entered inside the function that is compiled: JAX keeps what it traced and does not see this.
    """
    token = _FORWARD_ONLY.set(jax.default_backend() == "cpu")
    try:
        yield
    finally:
        _FORWARD_ONLY.reset(token)


def convolve(
    x: Float[Array, "N H W C"], kernel: Float[Array, "h w _ D"], stride: int = 1, padding: Padding = "SAME"
) -> Float[Array, "N H2 W2 D"]:
    """Convolve with square strides; equal to `lax.conv_general_dilated`, lowered as is fastest on the backend.

    It is the backend's own convolution (on a CPU to be compiled by `compilation.jit`), but for depthwise ones on a CPU: these
    are a sum of shifted maps, 3 to 56 times as fast there. Under `forward_only` 3x3 convolutions of many channels go by tiles.
    All forms agree to float32 rounding (tested).

    Filters of h x w pixels see all channels of x, or one channel each (depthwise) if their third axis is 1. The stride is in
    pixels along both axes; the padding SAME, VALID, or the number of zeros on every side.
    """
    inputs, outputs = kernel.shape[2:]
    depthwise = inputs == 1 < x.shape[-1]
    if depthwise and jax.default_backend() == "cpu":
        return _convolve_depthwise(x, kernel[:, :, 0], stride, padding)
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    # Tiles are worth their sums where there are many products for each number read, and where all of it fits in the caches.
    worth = inputs * outputs >= 38 * (inputs + outputs) and 14 <= x.shape[1] <= 35
    if _FORWARD_ONLY.get() and worth and (*kernel.shape[:2], stride) == (3, 3, 1) and x.dtype == jnp.float32:
        return _convolve_by_tiles(x, kernel, pads)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] if depthwise else 1,
    )


def _convolve_depthwise(
    x: Float[Array, "N H W C"], kernel: Float[Array, "h w C"], stride: int, padding: Padding
) -> Float[Array, "N H2 W2 C"]:
    """The sum over the pixels of the kernel, in float32 at least, for the sum is as long as the kernel."""
    sizes = kernel.shape[:2]
    pads = (
        [(padding, padding)] * 2
        if isinstance(padding, int)
        else jax.lax.padtype_to_pads(x.shape[1:3], sizes, (stride, stride), padding)
    )
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = ((side - size) // stride + 1 for side, size in zip(padded.shape[1:3], sizes, strict=True))
    kernel = kernel.astype(jnp.promote_types(x.dtype, jnp.float32))
    terms = (
        padded[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        * kernel[i, j].reshape(1, 1, 1, -1)
        for i in range(sizes[0])
        for j in range(sizes[1])
    )
    return reduce(jnp.add, terms).astype(x.dtype)


def _convolve_by_tiles(
    x: Float[Array, "N H W C"], kernel: Float[Array, "3 3 C D"], padding: str | Sequence[tuple[int, int]]
) -> Float[Array, "N H2 W2 D"]:
    """Winograd's F(2x2, 3x3): each tile of 2x2 outputs from 16 products in place of 36.

    In one dimension, inputs a, b, c, d under the filter p, q, r have the two outputs ap + bq + cr = A + B + C and
    bp + cq + dr = B - C - D, where A = (a - c) p, B = (b + c) (p + q + r) / 2, C = (c - b) (p - q + r) / 2 and D = (b - d) r:
    four products, not six. Once along rows and once along columns makes 4 x 4 sums of inputs, each with a matrix of its own.

    Source: Lavin and Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4.1.
    """

    def sums_of_inputs(maps: Array, axis: int) -> tuple[Array, ...]:
        last = maps.shape[axis] - 3  # the tiles, of four, overlap by two
        a, b, c, d = (jax.lax.slice_in_dim(maps, i, i + last, 2, axis) for i in range(4))
        return a - c, b + c, c - b, b - d

    def sums_of_filters(p: Array, q: Array, r: Array) -> tuple[Array, ...]:
        return p, (p + q + r) / 2, (p - q + r) / 2, r

    def outputs(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array]:
        return a + b + c, b - c - d

    pads = (
        jax.lax.padtype_to_pads(x.shape[1:3], (3, 3), (1, 1), padding)
        if isinstance(padding, str)
        else padding
    )
    sizes = [side + sum(pad) - 2 for side, pad in zip(x.shape[1:3], pads, strict=True)]
    whole = [(before, after + size % 2) for (before, after), size in zip(pads, sizes, strict=True)]
    padded = jnp.pad(x, ((0, 0), *whole, (0, 0)))
    rows = []
    for maps, filters in zip(sums_of_inputs(padded, 1), sums_of_filters(*kernel), strict=True):
        columns = zip(sums_of_inputs(maps, 2), sums_of_filters(*filters), strict=True)
        rows.append(outputs(*(one @ matrix for one, matrix in columns)))
    left, right = (outputs(*column) for column in zip(*rows, strict=True))
    tiles = jnp.stack([jnp.stack(pair, 3) for pair in zip(left, right, strict=True)], 2)
    count, tall, _, wide, _, channels = tiles.shape
    return tiles.reshape(count, 2 * tall, 2 * wide, channels)[:, : sizes[0], : sizes[1]]


def max_pool(x: Float[Array, "N H W C"], padding: int = 0, size: int = 3) -> Float[Array, "N H2 W2 C"]:
    """Maximum over square windows of `size` pixels with stride 2; what is padded never wins.

    Written as maxima of strided slices: on a CPU the gradient of a reduce-window maximum costs more than a convolution.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-jnp.inf)
    height, width = ((side - size) // 2 + 1 for side in x.shape[1:3])
    rows = reduce(jnp.maximum, (x[:, i : i + 2 * height - 1 : 2] for i in range(size)))
    return reduce(jnp.maximum, (rows[:, :, j : j + 2 * width - 1 : 2] for j in range(size)))


def average_pool(x: Float[Array, "N H W C"], count_padding: bool = False) -> Float[Array, "N H W C"]:
    """Mean over 3x3 windows with stride 1 and zero padding 1.

    With `count_padding` sums are divided by 9 everywhere (torchvision), else by the number of pixels inside the map (Keras).
    """
    return nn.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=count_padding)


def halve(x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 C"]:
    """Mean over 2x2 windows with stride 2; an odd last row or column is left out."""
    height, width = (side // 2 for side in x.shape[1:3])
    parts = (x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i in range(2) for j in range(2))
    return reduce(jnp.add, parts) / 4


class ConvBlock(nn.Module):
    """Convolution, batch normalisation and an activation, so that one captured output is one layer of the source.

    y = f(scale (conv(x) + bias - mean) / sqrt(var + epsilon) + offset). When `folded`, the normalisation is part of the
    kernel and the bias (see `folding.fold`), which saves a pass over the maps.
    """

    features: int  # number of filters
    kernel_size: Sequence[int] = (1, 1)  # height and width of the filters in pixels
    stride: int = 1  # step in pixels
    padding: Padding = "SAME"  # SAME, VALID or zeros on every side
    epsilon: float = 1e-3  # added to the variance
    # whether the convolution has a bias before the normalisation (Keras's ResNet50 has)
    use_bias: bool = False
    use_scale: bool = False  # whether the normalisation has a scale (Keras's InceptionV3 has none)
    activation: Callable[[Any], Any] | None = nn.relu  # what to end with; nothing if None
    # whether each filter sees one channel alone; `features` is then the number of channels
    depthwise: bool = False
    normalise: bool = True  # whether there is a normalisation; without it the block is the same folded or not
    folded: bool = False  # whether the variables hold the normalisation in kernel and bias
    # what comes between the convolution and its bias; nothing if None
    pool: Callable[[Any], Any] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H2 W2 D"]:
        """Apply the block; with `train`, normalise by the batch and update the running statistics."""
        channels = 1 if self.depthwise else x.shape[-1]
        kernel = self.param("kernel", he_normal, (*self.kernel_size, channels, self.features), jnp.float32)
        x = convolve(x, kernel.astype(x.dtype), self.stride, self.padding)
        x = self.pool(x) if self.pool else x
        if self.use_bias or (self.normalise and self.folded):
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            x = x + bias.astype(x.dtype).reshape(1, 1, 1, -1)
        if self.normalise and not self.folded:
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=MOMENTUM,
                epsilon=self.epsilon,
                use_scale=self.use_scale,
                dtype=x.dtype,
                name="norm",
            )(x)
        return self.activation(x) if self.activation else x


class NormBlock(nn.Module):
    """Batch normalisation and ReLU of what no convolution comes before.

    y = relu(scale (x - mean) / sqrt(var + epsilon) + offset). When `folded`, it is relu(scale x + bias).
    """

    epsilon: float = 1e-3  # added to the variance
    folded: bool = False  # whether the variables hold the statistics in scale and bias

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H W C"]:
        """Apply the block; with `train`, normalise by the batch and update the running statistics."""
        if self.folded:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
            scale, bias = (one.astype(x.dtype).reshape(1, 1, 1, -1) for one in (scale, bias))
            return nn.relu(x * scale + bias)
        norm = nn.BatchNorm(not train, momentum=MOMENTUM, epsilon=self.epsilon, dtype=x.dtype, name="norm")
        return nn.relu(norm(x))


class MaxPool(nn.Module):
    """`max_pool` as a module, so that its output can be captured."""

    padding: int = 0
    size: int = 3

    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H2 W2 C"]:
        """Pool."""
        return max_pool(x, self.padding, self.size)


class GlobalAveragePool(nn.Module):
    """`global_average_pool` as a module, so that what a classification head sees can be captured."""

    def __call__(self, x: Float[Array, "N H W D"]) -> Float[Array, "N D"]:
        """Pool."""
        return global_average_pool(x)


class Softmax(nn.Module):
    """Class probabilities as a module, so that they can be captured."""

    def __call__(self, x: Float[Array, "N C"]) -> Float[Array, "N C"]:
        """Normalise the logits."""
        return nn.softmax(x)


def run_to(last: str, steps: Iterable[nn.Module], x: Array, train: bool) -> tuple[Array, bool]:
    """The output of the step called `last`, or of all; and whether that step was reached."""
    for step in steps:
        x = step(x, train)  # pyright: ignore[reportCallIssue]
        if step.name == last:
            return x, True
    return x, False


def classify(
    last: str, x: Array, classes: int, normalise: Callable[[Array], Array] | None = None
) -> Float[Array, "N _"]:
    """What comes behind the last map, up to the layer `last`: avg_pool, a normalisation if any, pre_softmax, softmax.

    To be called inside a compact method, whose module then owns these layers.
    """
    x = GlobalAveragePool(name=WHOLE)(x)
    if last == WHOLE:
        return x
    x = nn.Dense(classes, name="pre_softmax")(normalise(x) if normalise else x)
    return x if last == "pre_softmax" else Softmax(name="softmax")(x)


class LayerScale(nn.Module):
    """A factor for each channel, `initial` at the start."""

    initial: float

    @nn.compact
    def __call__(self, x: Float[Array, "N *P C"]) -> Float[Array, "N *P C"]:
        """Scale."""
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * gamma.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def layer_norm(dtype: Any, name: str, epsilon: float) -> nn.LayerNorm:
    """Normalisation of each pixel or token over its channels."""
    return nn.LayerNorm(epsilon, dtype, use_fast_variance=False, name=name)


def global_average_pool(x: Float[Array, "N H W D"] | Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Mean over the pixels of feature maps; vectors pass unchanged."""
    return x.mean((1, 2)) if x.ndim == 4 else x


def patch_maps(module: nn.Module, output: Array, image: Sequence[int]) -> Array:
    """The patch tokens [N, T, D] of a layer as maps [N, h, w, D], without those in front of them; other outputs as they are.

    `prefix_tokens` of the module says how many those are; `image` is its height and width in pixels.

    Raises:
        ValueError: The patches are no grid of the image's proportions.
    """
    if output.ndim != 3:
        return output
    count = output.shape[1] - check_tokens(module)
    height = round((count * image[0] / image[1]) ** 0.5)
    if height < 1 or count % height:
        raise ValueError(f"{count} patches are no grid on an image of {image[0]} x {image[1]} pixels.")
    return output[:, -count:].reshape(len(output), height, count // height, output.shape[2])


def check_tokens(module: nn.Module) -> int:
    """How many tokens of a network are in front of its patches.

    Raises:
        ValueError: The module does not say it.
    """
    prefix = getattr(module, "prefix_tokens", None)
    if prefix is None:
        raise ValueError(
            f"{type(module).__name__} gives tokens, and does not say how many of them are no patches: expected a property "
            "prefix_tokens."
        )
    return prefix


def mean_patch(x: Float[Array, "N T D"], prefix: int) -> Float[Array, "N D"]:
    """Mean over the tokens behind the first `prefix`."""
    return x[:, prefix:].mean(1)


def mean_by_rows(x: Float[Array, "N H W D"] | Float[Array, "N D"]) -> Float[Array, "N D"]:
    """`global_average_pool` as a loop that adds whole rows; vectors pass unchanged.

    XLA's own mean on a CPU is merged with what computes the map and repeats that, and walks each channel across all pixels: with
    all its blocks pooled, ResNet50 falls from 22 to 14 images/s. A loop stays apart, reads the map once in the order in which it
    lies in memory, and rounds less, for a sum of H sums has fewer terms.
    """
    if x.ndim != 4 or jax.default_backend() != "cpu":
        return global_average_pool(x)

    def add_row(row: Array, total: Float[Array, "N W D"]) -> Float[Array, "N W D"]:
        return total + jax.lax.dynamic_index_in_dim(x, row, axis=1, keepdims=False)

    return jax.lax.fori_loop(1, x.shape[1], add_row, x[:, 0]).sum(1) / (x.shape[1] * x.shape[2])
