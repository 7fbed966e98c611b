"""Outputs of layers in one forward pass, each with something added to it on the way."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models.layers import patch_maps


def capture(
    module: nn.Module,
    variables: Any,
    inputs: Float[Array, "N H W 3"],
    layers: tuple[str, ...],
    offsets: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Outputs of modules, by name, in the order in which they are computed; of tokens the patches, as maps.

    With an offset e the output a of a layer becomes a + e for all that follows, and is returned so: the derivative of anything
    by e at e = 0 is the one by a, for any module of any network.

    Pure; meant to be jitted, when the compiler drops whatever comes after the last wanted layer. Layers are modules at any depth.

    Raises:
        ValueError: No module, or more than one, has a wanted name.
    """
    found: dict[str, Array] = {}
    names: dict[str, None] = {}
    twice: dict[str, None] = {}
    added = offsets or {}

    def keep(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        name = context.module.name
        if context.method_name != "__call__" or name is None:
            return output
        names[name] = None
        if name not in layers:
            return output
        if name in found:
            twice[name] = None
        if name in added:
            offset = added[name]
            if output.ndim == 3:
                offset = offset.reshape(len(output), -1, output.shape[2])
                offset = jnp.pad(offset, ((0, 0), (output.shape[1] - offset.shape[1], 0), (0, 0)))
            output = output + offset
        found[name] = output
        return output

    with nn.intercept_methods(keep):
        module.apply(variables, inputs)
    problems = [f"{name!r} names several modules" for name in twice]
    for name in layers:
        if name not in found:
            near = get_close_matches(name, names, n=3)
            hint = f"did you mean {' or '.join(near)}" if near else f"there are {', '.join(names)}"
            problems.append(f"no module is called {name!r}; {hint}")
    if problems:
        raise ValueError(f"In this network {'; '.join(dict.fromkeys(problems))}.")
    return {name: patch_maps(module, output, inputs.shape[1:3]) for name, output in found.items()}
