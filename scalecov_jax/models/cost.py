"""What a network costs: parameters and floating-point operations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from scalecov_jax.compilation import jit
from scalecov_jax.models.pruning import count_parameters


class Cost(NamedTuple):
    """Of one network."""

    parameters: int  # number of all values, the statistics of the batch normalisation among them
    # floating-point operations of one forward pass on one image (a multiplication and an addition are two), as the compiler
    # counts them before it optimises
    flops: float


def measure_cost(module: nn.Module, variables: Any, size: int) -> Cost:
    """Count without computing anything; `size` is the height and width of the image in pixels."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    analysis: Any = jit(module.apply).program().lower(shapes, images).cost_analysis()
    return Cost(count_parameters(variables), float(analysis["flops"]))
