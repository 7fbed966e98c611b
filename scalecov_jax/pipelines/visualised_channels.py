"""Images optimised for parts of networks, chunk by chunk; a broken run goes on where it was."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from scalecov_jax.checkpoints import Network
from scalecov_jax.explain import feature_visualization
from scalecov_jax.explain.feature_visualization import RECIPES, Objective, Stage
from scalecov_jax.explain.visualization_state import load_state, save_state
from scalecov_jax.models.folding import fold
from scalecov_jax.report.explain import Optimised

_CHUNK = 32  # steps between two states


def visualise(
    folder: Path,
    networks: Mapping[str, Network],
    objectives: Mapping[str, list[Objective]],
    labels: Sequence[tuple[str, str]],
    settings: Mapping[str, Any],
) -> tuple[list[Optimised], dict[str, np.ndarray]]:
    """The rows of visualisations.csv and the images of each network.

    Args:
        folder: Of the run.
        networks: By name.
        objectives: Of each network.
        labels: What each of its images is for: the objective, and the channel or direction.
        settings: See configs/explain.py.

    Raises:
        ValueError: An earlier state is damaged or of other objectives.
        FloatingPointError: A channel is dead.
    """
    recipe = RECIPES[settings["recipe"]]
    if settings["steps"] and settings["recipe"] == "lucid":
        recipe = (Stage(settings["steps"]),)
    total, size = sum(stage.steps for stage in recipe), picture_size(settings)
    rows: list[Optimised] = []
    pictures: dict[str, np.ndarray] = {}
    for name, network in networks.items():
        path = folder / "states" / f"{name}.npz"
        own = objectives[name]
        module, variables = fold(network.module, network.variables, network.architecture.epsilon)
        state = load_state(path, own, size=size)
        with tqdm(total=total, initial=state.step if state else 0, desc=name, unit="step") as bar:

            def keep(state: Any, path: Path = path, bar: Any = bar) -> None:
                save_state(path, state)
                bar.update(state.step - bar.n)

            state = feature_visualization.visualise(
                module,
                jax.device_put(variables),
                network.card.preprocessing,
                own,
                recipe=recipe,
                size=size,
                seed=settings["seed"],
                state=state,
                chunk=_CHUNK,
                each_chunk=keep,
            )
        pictures[name] = feature_visualization.pictures(state)[:, 0]
        rows += [
            Optimised(name, settings["layer"], objective, part, state.step, float(value))
            for (objective, part), value in zip(labels, np.asarray(state.values), strict=True)
        ]
    return rows, pictures


def picture_size(settings: Mapping[str, Any]) -> int:
    """Pixels of an optimised image."""
    return settings["size"] or 128
