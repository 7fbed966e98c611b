"""Batch normalisation at inference as part of the convolution before it."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn


def fold(module: nn.Module, variables: Any, epsilon: float) -> tuple[nn.Module, Any]:
    """Fold every batch normalisation into its convolution.

    With s = scale / sqrt(var + epsilon): kernel' = kernel s, bias' = (bias - mean) s + offset.

    Args:
        module: A network of `ConvBlock`s, not folded yet.
        variables: Its params and batch_stats.
        epsilon: The architecture's.

    Returns:
        The folded module and its variables (params only); its outputs equal the original's up to rounding.
    """

    def walk(params: Any, stats: Any) -> Any:
        if "norm" not in params:
            return {k: walk(v, stats.get(k, {})) if isinstance(v, dict) else v for k, v in params.items()}
        norm, statistics = params["norm"], stats["norm"]
        scale = norm.get("scale", 1.0) / jnp.sqrt(statistics["var"] + epsilon)
        bias = (params.get("bias", 0.0) - statistics["mean"]) * scale + norm["bias"]
        return {"kernel": params["kernel"] * scale.reshape(1, 1, 1, -1), "bias": bias}

    folded = {"params": walk(variables["params"], variables.get("batch_stats", {}))}
    return module.clone(folded=True), folded  # pyright: ignore[reportCallIssue]
