"""The state of a visualisation on disk, so that an interrupted one goes on."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalecov_jax.atomic import replacing
from scalecov_jax.explain.feature_visualization import Objective, State, start


def save_state(path: Path, state: State) -> None:
    """Write a state; the file appears only when it is complete."""
    leaves = jax.tree.leaves((state.spectra, state.moments, state.values))
    named: dict[str, Any] = {f"leaf_{index}": np.asarray(leaf) for index, leaf in enumerate(leaves)}
    keys = np.asarray(jax.random.key_data(state.keys))
    with replacing(path) as partial:
        np.savez(partial, step=state.step, keys=keys, **named)


def load_state(path: Path, objectives: Sequence[Objective], *, size: int, images: int = 1) -> State | None:
    """Read a state of `save_state`, of these objectives, size and number of images; nothing where there is no file.

    Raises:
        ValueError: The file is damaged or holds the state of other objectives.
    """
    if not path.exists():
        return None
    fresh = start(objectives, size=size, images=images)
    expected, tree = jax.tree.flatten((fresh.spectra, fresh.moments, fresh.values))
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            leaves = [jnp.asarray(file[f"leaf_{index}"]) for index in range(len(expected))]
            keys, step = jax.random.wrap_key_data(jnp.asarray(file["keys"])), int(file["step"])
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start again.") from error
    if [one.shape for one in leaves] != [one.shape for one in expected]:
        raise ValueError(f"{path} holds images of another number or size; delete it to start again.")
    spectra, moments, values = jax.tree.unflatten(tree, leaves)
    return State(spectra, moments, keys, step, values)
