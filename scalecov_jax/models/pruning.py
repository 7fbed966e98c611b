"""Cutting a network after a layer."""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scalecov_jax.models.architecture import Architecture, check_layer


class Pruning(NamedTuple):
    """What a cut keeps."""

    layer: str  # the last layer kept
    parameters_before: int  # parameters of the whole network without its classification head
    parameters_after: int  # parameters of the pruned network
    # largest absolute difference between the pooled output of the pruned network and the feature captured in the whole
    # one
    max_difference: float
    largest: float | None = None  # largest absolute value of that feature; None if not known

    @property
    def relative_difference(self) -> float:
        """Largest difference in units of the largest feature."""
        return self.max_difference / (self.largest or 1.0)


def prune(module: nn.Module, variables: Any, architecture: Architecture, layer: str) -> tuple[nn.Module, Any]:
    """Cut a network after `layer`: the smaller module with the part of the variables that it still needs.

    Which leaves these are follows from the cut module itself (the shapes of its initialisation), so there is no code per
    architecture. The output of the cut network, pooled, equals the feature captured at `layer` in the whole one.

    Raises:
        ValueError: The network has no such layer.

    Source: Graziani et al. 2021, section 3.5 (Network Pruning Strategy).
    """
    check_layer(architecture, layer, module.last)  # pyright: ignore[reportAttributeAccessIssue]
    cut = module.clone(last=layer)  # pyright: ignore[reportCallIssue]
    return cut, _select(variables, abstract_variables(cut, architecture))


def abstract_variables(module: nn.Module, architecture: Architecture, size: int | None = None) -> Any:
    """Shapes and dtypes of every variable of a module, without computing anything.

    They depend on the height and width of the images in pixels, `size` (by default the family's), where maps are flattened.
    """
    shapes = _remembered_variables(module, size or architecture.input_size)
    return jax.tree.map(lambda leaf: leaf, shapes)  # a copy


def trace_variables(module: nn.Module, size: int) -> Any:
    """Initialise a module in the abstract: every method is called, nothing is computed."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), images)


_remembered_variables = lru_cache(maxsize=64)(trace_variables)


def count_parameters(variables: Any) -> int:
    """Number of all values, the statistics of the batch normalisation among them (as Keras counts)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables))


def cumulative_parameters(module: nn.Module, architecture: Architecture) -> dict[str, int]:
    """Number of parameters up to and including each layer of the whole network, its classification head left out.

    Those that exist when the layer is computed, for a network that stops there makes no others.
    """
    layers, counts = [one for one in architecture.every_layer if one not in architecture.head], {}

    def count(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if context.method_name == "__call__" and context.module.name in layers:
            counts[context.module.name] = count_parameters(context.module.scope.root.variables())
        return result

    trunk = module.clone(last=architecture.trunk)  # pyright: ignore[reportCallIssue]
    with nn.intercept_methods(count):
        trace_variables(trunk, architecture.input_size)
    return {layer: counts[layer] for layer in layers}


def _select(variables: Any, needed: Any) -> Any:
    if isinstance(needed, dict):
        return {name: _select(variables[name], part) for name, part in needed.items()}
    return variables
