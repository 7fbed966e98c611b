"""What both networks are made of: a convolution block, two poolings, and the one place that chooses how to lower them."""

from collections.abc import Sequence
from functools import reduce
from typing import Literal

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


def convolve(
    x: Float[Array, "N H W C"], kernel: Float[Array, "h w C D"], stride: int = 1, padding: Padding = "SAME"
) -> Float[Array, "N H2 W2 D"]:
    """Convolve with square strides; equal to `lax.conv_general_dilated`, lowered as is fastest on a CPU.

    A 1x1 convolution is a matrix product, and a VALID one is a SAME one without its border, which XLA's CPU backend runs
    about twice as fast. All forms agree to float32 rounding (tested).

    Args:
        x: Images or feature maps.
        kernel: Filters of h x w pixels.
        stride: Step in pixels along both axes.
        padding: SAME, VALID, or the number of zeros on every side.
    """
    if kernel.shape[:2] == (1, 1) and padding in ("SAME", "VALID", 0):
        if stride > 1:
            x = x[:, ::stride, ::stride]
        return jnp.einsum("nhwc,cd->nhwd", x, kernel[0, 0])
    height, width = kernel.shape[:2]
    if padding == "VALID" and stride == 1 and height % 2 == width % 2 == 1:
        top, left = height // 2, width // 2
        return convolve(x, kernel)[:, top : x.shape[1] - top, left : x.shape[2] - left]
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def max_pool(x: Float[Array, "N H W C"], padding: int = 0) -> Float[Array, "N H2 W2 C"]:
    """Maximum over 3x3 windows with stride 2; what is padded never wins.

    Written as maxima of strided slices: on a CPU the gradient of a reduce-window maximum costs more than a convolution.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-jnp.inf)
    height, width = ((side - 3) // 2 + 1 for side in x.shape[1:3])
    rows = reduce(jnp.maximum, (x[:, i : i + 2 * height - 1 : 2] for i in range(3)))
    return reduce(jnp.maximum, (rows[:, :, j : j + 2 * width - 1 : 2] for j in range(3)))


def average_pool(x: Float[Array, "N H W C"], count_padding: bool = False) -> Float[Array, "N H W C"]:
    """Mean over 3x3 windows with stride 1 and zero padding 1.

    Args:
        x: Feature maps.
        count_padding: Divide by 9 everywhere (torchvision) and not by the number of pixels inside the map (Keras).
    """
    return nn.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=count_padding)


class ConvBlock(nn.Module):
    """Convolution, batch normalisation and ReLU, so that one captured output is one layer of the source.

    y = relu(scale (conv(x) + bias - mean) / sqrt(var + epsilon) + offset). When `folded`, the normalisation is part of the
    kernel and the bias (see `folding.fold`), which saves a pass over the maps.

    Attributes:
        features: Number of filters.
        kernel_size: Height and width of the filters in pixels.
        stride: Step in pixels.
        padding: SAME, VALID or zeros on every side.
        epsilon: Added to the variance.
        use_bias: Whether the convolution has a bias before the normalisation (Keras's ResNet50 has).
        use_scale: Whether the normalisation has a scale (Keras's InceptionV3 has none).
        relu: Whether to end with a ReLU.
        folded: Whether the variables hold the normalisation in kernel and bias.
    """

    features: int
    kernel_size: Sequence[int] = (1, 1)
    stride: int = 1
    padding: Padding = "SAME"
    epsilon: float = 1e-3
    use_bias: bool = False
    use_scale: bool = False
    relu: bool = True
    folded: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H2 W2 D"]:
        """Apply the block; with `train`, normalise by the batch and update the running statistics."""
        kernel = self.param("kernel", he_normal, (*self.kernel_size, x.shape[-1], self.features), jnp.float32)
        x = convolve(x, kernel.astype(x.dtype), self.stride, self.padding)
        if self.use_bias or self.folded:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            x = x + bias.astype(x.dtype).reshape(1, 1, 1, -1)
        if not self.folded:
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=MOMENTUM,
                epsilon=self.epsilon,
                use_scale=self.use_scale,
                dtype=x.dtype,
                name="norm",
            )(x)
        return nn.relu(x) if self.relu else x


class MaxPool(nn.Module):
    """`max_pool` as a module, so that its output can be captured."""

    padding: int = 0

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 C"]:
        """Pool."""
        return max_pool(x, self.padding)


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


def global_average_pool(x: Float[Array, "N H W D"] | Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Mean over the pixels of feature maps; vectors pass unchanged."""
    return x.mean((1, 2)) if x.ndim == 4 else x
