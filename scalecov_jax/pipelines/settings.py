"""What every pipeline reads from its settings in the same way."""

from pathlib import Path

import jax.numpy as jnp

from scalecov_jax import checkpoints

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def load_networks(weights: str, architecture: str) -> dict[str, checkpoints.Network]:
    """The networks of checkpoint folders separated by commas, by the names of the folders.

    Args:
        weights: The folders.
        architecture: What all of them must hold; anything when empty.

    Raises:
        ValueError: No checkpoint, one of another architecture, or two folders of one name.
    """
    networks = {}
    for path in map(Path, names(weights)):
        network = checkpoints.load(path)
        if architecture and network.architecture.name != architecture:
            raise ValueError(
                f"{path} holds {network.architecture.name}, but config.architecture is {architecture}."
            )
        if path.name in networks:
            raise ValueError(f"Two weights are called {path.name}; rename one folder.")
        networks[path.name] = network
    return networks


def names(text: str) -> tuple[str, ...]:
    """The names in a list separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
