"""Batch normalisation at inference as part of the convolution before it, or as one multiplication and one addition."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn


def fold(module: nn.Module, variables: Any, epsilon: float) -> tuple[nn.Module, Any]:
    """Fold every batch normalisation into its convolution.

    With s = scale / sqrt(var + epsilon): kernel' = kernel s, bias' = (bias - mean) s + offset. Where none comes right before
    (`NormBlock`), s takes the place of the scale. Layer normalisation depends on the image and stays. Epsilon is the
    architecture's.

    Returns:
        The folded module and its variables (params only); its outputs equal the original's up to rounding. The module as it
        is, if it is folded or has no field `folded`.
    """
    if module is (changed := folded(module)):
        return module, variables

    def walk(params: Any, stats: Any) -> Any:
        if "norm" not in stats:
            return {k: walk(v, stats.get(k, {})) if isinstance(v, dict) else v for k, v in params.items()}
        norm, statistics = params["norm"], stats["norm"]
        scale = norm.get("scale", 1.0) / jnp.sqrt(statistics["var"] + epsilon)
        bias = (params.get("bias", 0.0) - statistics["mean"]) * scale + norm["bias"]
        if "kernel" not in params:
            return {"scale": scale, "bias": bias}
        return {"kernel": params["kernel"] * scale.reshape(1, 1, 1, -1), "bias": bias}

    return changed, {"params": walk(variables["params"], variables.get("batch_stats", {}))}


def folded(module: nn.Module) -> nn.Module:
    """The module that `fold` makes of this one."""
    unfolded = getattr(module, "folded", None) is False
    return module.clone(folded=True) if unfolded else module  # pyright: ignore[reportCallIssue]
