"""How fast maps change while a network forgets its weights from the output down."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalecov_jax.checkpoints import Network
from scalecov_jax.explain import grad_cam
from scalecov_jax.explain.capture import capture
from scalecov_jax.explain.faithfulness import parts_downwards, weight_randomisation
from scalecov_jax.explain.gradients import layer_gradients
from scalecov_jax.explain.score_propagation import propagate_scores
from scalecov_jax.explain.target import Target, settled
from scalecov_jax.features import Features, cached_features
from scalecov_jax.images.batching import batches
from scalecov_jax.images.example import Skipped, Source
from scalecov_jax.models.folding import fold
from scalecov_jax.models.preprocessing import preprocess
from scalecov_jax.pipelines.propagation import class_targets, total_maps
from scalecov_jax.report.explain_randomised import Forgotten


def randomise_maps(
    folder: Path,
    networks: Mapping[str, Network],
    targets: Mapping[str, Target],
    source: Source,
    settings: Mapping[str, Any],
) -> list[Forgotten]:
    """The rows of randomised.csv; networks whose weights are random from the start are left out.

    The target of an image stays that of the trained network: its predicted class is chosen once.
    """
    rows = []
    for name, network in networks.items():
        if settings["random_weights"] and name.endswith("-random"):
            continue
        found = cached_features(
            folder / "randomised" / f"{name}.npz",
            partial(_correlations, network, targets[name], source, settings),
        )
        rows += [
            Forgotten(name, part, len(one), float(one.mean()), float(one.std()))
            for part, one in found.values.items()
        ]
    return rows


def _correlations(network: Network, target: Target, source: Source, settings: Mapping[str, Any]) -> Features:
    """Rank correlations of each image, by the last part that was made random; of score propagation the first target's."""
    size = settings["size"] or network.card.input_size
    propagated = settings["method"] == "score_propagation"
    if propagated:
        target = class_targets(network, target, settings)[0]
    skipped: list[Skipped] = []
    prepared: list[tuple[Any, np.ndarray, Target]] = []
    indices: list[np.ndarray] = []
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    for batch in batches(source, size, min(settings["batch_size"], len(source)), skipped):
        inputs = preprocess(jnp.asarray(batch.images), network.card.preprocessing)
        output = capture(module, variables, inputs, (target.layer,))[target.layer]
        prepared.append((inputs, batch.valid, settled(target, output)))
        indices.append(batch.indices[batch.valid])

    def drawn(variables: Any, inputs: Any, own: Target) -> np.ndarray:
        if propagated:
            parts = jax.device_get(propagate_scores(module, variables, inputs, [own]))
            parts = jax.tree.map(lambda one: np.moveaxis(one, 0, 1), parts)
            return total_maps(parts, network, size, settings["prior"])[:, 0].astype(np.float32)
        computed = layer_gradients(module, variables, inputs, settings["layer"], own)
        return np.asarray(
            grad_cam.cam(
                settings["method"], computed.activations, computed.gradients, signed=settings["signed"]
            )
        )

    def maps(variables: Any) -> np.ndarray:
        _, folded = fold(network.module, variables, network.architecture.epsilon)
        return np.concatenate([drawn(folded, inputs, own)[valid] for inputs, valid, own in prepared])

    results = weight_randomisation(network, maps, parts_downwards(network, size), settings["seed"])
    return Features({one.layer: one.correlation for one in results}, np.concatenate(indices), tuple(skipped))
