"""Activations of a layer and the gradient of a target by them, in one forward and one backward pass."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.compilation import jit
from scalecov_jax.explanation.capture import capture
from scalecov_jax.explanation.target import Target


class LayerGradients(NamedTuple):
    """Of N images at one layer."""

    activations: Float[Array, "N H W D"] | Float[Array, "N D"]  # output of the layer: maps, or a vector
    # derivative of the target of an image by its own activations
    gradients: Float[Array, "N H W D"] | Float[Array, "N D"]
    scores: Float[Array, " N"]  # the target


@partial(jit, static_argnames=("module", "layer"))
def layer_gradients(
    module: nn.Module, variables: Any, inputs: Float[Array, "N H W 3"], layer: str, target: Target
) -> LayerGradients:
    """The gradient of a target by the output of any module of any network.

    It is the derivative by a zero that is added to the output, so that no module needs to know of it, and the backward pass
    ends at the layer. A sum before its ReLU (`add_*`) is explained as it stands: pixels that the ReLU cuts have no gradient.
    float64 inputs give gradients in float64.

    Raises:
        ValueError: No such layer, or the target is read before it.
    """
    wanted = tuple(dict.fromkeys((layer, target.layer)))
    order: list[str] = []

    def plain() -> Array:
        outputs = capture(module, variables, inputs, wanted)
        order.extend(outputs)
        return outputs[layer]

    shape = jax.eval_shape(plain)
    if order[0] != layer:
        raise ValueError(
            f"The target is read at {target.layer}, before {layer}, which therefore cannot explain it; choose a layer up to "
            f"{target.layer}, or another target."
        )

    def forward(offset: Array) -> tuple[Array, Array]:
        outputs = capture(module, variables, inputs, wanted, {layer: offset})
        return target(outputs[target.layer]), outputs[layer]

    zeros = jnp.zeros(shape.shape, shape.dtype)
    scores, pull_back, activations = jax.vjp(forward, zeros, has_aux=True)
    (gradients,) = pull_back(jnp.ones_like(scores))  # each score depends on its own image alone
    return LayerGradients(activations, gradients, scores)


def check_gradients(computed: LayerGradients, layer: str, names: Sequence[str]) -> None:
    """Refuse what is not finite.

    Raises:
        FloatingPointError: Activations or gradients of some images are NaN or infinite; names them.
    """
    finite = np.ones(len(names), bool)
    for part in computed:
        finite &= np.isfinite(np.asarray(part).reshape(len(names), -1)).all(1)
    if not finite.all():
        bad = [name for name, fine in zip(names, finite, strict=True) if not fine]
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise FloatingPointError(
            f"Activations or gradients at {layer} are NaN or infinite for {len(bad)} of {len(names)} images: "
            f"{', '.join(bad[:5])}{more}. Check the weights, and that the images have the preprocessing that they expect."
        )
