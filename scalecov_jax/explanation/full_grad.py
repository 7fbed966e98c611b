"""Maps that score propagation is compared with and that need no more than its parts: FullGrad and the plain gradient."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.explanation.score_propagation import Parts, propagate_scores
from scalecov_jax.explanation.target import Target


def rescaled(scores: Float[Array, "N *P D"]) -> Array:
    """Absolute values brought to [0, 1] over an image, its channels together, and summed over channels; 0 if all are equal."""
    size = jnp.abs(scores)
    axes = tuple(range(1, scores.ndim))
    low, high = size.min(axes, keepdims=True), size.max(axes, keepdims=True)
    return jnp.where(high > low, (size - low) / jnp.where(high > low, high - low, 1), 0).sum(-1)


def full_grad(
    module: nn.Module, variables: Any, inputs: Float[Array, "N H W 3"], targets: Sequence[Target]
) -> Float[Array, "T N H W"]:
    """FullGrad: psi(input x gradient) + sum over layers with a bias of psi(bias x gradient), psi = upsample(rescale(|.|)).

    As in the published program a layer is rescaled as a whole, its channels together; vectors, and biases of 0, are left out.
    Maps are upsampled bilinearly with the centres of pixels in line, where that program puts the corners in line.
    Batch normalisation must be folded. Raises as `propagate_scores`.

    Source: Srinivas and Fleuret 2019, Full-Gradient Representation for Neural Network Visualization, equation 5.
    """
    parts = propagate_scores(module, variables, inputs, targets, rescaled)
    total = parts.inputs
    for name, one in parts.constants.items():
        if one.ndim == 4 and _has_bias(variables["params"], name):
            total = total + jax.image.resize(one, total.shape, "bilinear")
    return total


def gradient_size(parts: Parts) -> Float[Array, "T N H W"]:
    """The plain gradient: its largest absolute value over the channels.

    Source: Simonyan, Vedaldi and Zisserman 2014, Deep Inside Convolutional Networks, section 3.1.
    """
    return jnp.abs(jnp.asarray(parts.gradients)).max(-1)


def _has_bias(params: Mapping[str, Any], path: str) -> bool:
    """Whether a layer has a bias that is not 0: the part of one that is 0 is rounding, which rescaling would blow up."""
    for name in path.rstrip("'").split("/"):
        params = params.get(name, {})
    return bool(np.any(np.asarray(params.get("bias", 0.0))))
