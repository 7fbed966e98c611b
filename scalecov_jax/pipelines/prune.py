"""Cutting a checkpoint after a layer, from names to files."""

import json
from pathlib import Path

from scalecov_jax import checkpoints, cutting
from scalecov_jax.models.pruning import count_parameters
from scalecov_jax.scores import Estimator


def run(
    weights: str, output: str, layer: str | None, scores: str | None, estimator: Estimator = "ridge"
) -> str:
    """Cut a checkpoint after `layer`, or after the layer selected in the summary.json of an earlier run.

    Returns:
        What was kept, for people.

    Raises:
        ValueError: No such layer, a summary of another network or without a selection, or an existing output.
    """
    network = checkpoints.load(Path(weights))
    if layer is None:
        layer = selected_layer(
            Path(str(scores)) / "summary.json", network.architecture.name, Path(weights).name, estimator
        )
    pruned = cutting.pruned_network(network, layer)
    checkpoints.save(Path(output), pruned)
    before = cutting.parameters_to_cut(network, layer)
    after = count_parameters(pruned.variables)
    return (
        f"{network.architecture.name} cut after {layer}: {before:,} -> {after:,} parameters "
        f"({100 * (1 - after / before):.2f} % less than without its head), saved in {output}"
    )


def selected_layer(path: Path, architecture: str, weights: str, estimator: Estimator) -> str:
    """The layer that an earlier run selected for these weights, from its summary.json.

    Raises:
        ValueError: There is none, or the summary is about another architecture.
    """
    try:
        summary = json.loads(path.read_text())
        summary = summary.get("networks", {weights: summary})[weights]
        layer = summary["selected"][estimator]["layer"]
        probed = summary["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no layer selected by {estimator} for {weights}; pass the --workdir of probe.py."
        ) from error
    if probed != architecture:
        raise ValueError(f"{path} is about {probed}, but the weights are {architecture}.")
    return layer
