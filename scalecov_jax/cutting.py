"""Cut a network after a layer, and check what is left."""

import dataclasses
import json
from contextlib import suppress
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from scalecov_jax import checkpoints
from scalecov_jax.checkpoints import Network
from scalecov_jax.extraction import Pooling, compute_features, pooled_output
from scalecov_jax.imaging.decoding import resize_image
from scalecov_jax.imaging.image_set import Example, ImageError, Source
from scalecov_jax.models.export import export
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.models.pruning import Pruning, abstract_variables, count_parameters, prune
from scalecov_jax.scores import Estimator


def pruned_network(network: Network, layer: str) -> Network:
    """Cut a network after `layer`; its card says so.

    Raises:
        ValueError: The network has no such layer.
    """
    module, variables = prune(network.module, network.variables, network.architecture, layer)
    card = dataclasses.replace(
        network.card,
        options={**network.card.options, "last": layer},
        class_names=(),
        notes={**network.card.notes, "pruned_after": layer},
    )
    return Network(module, variables, network.architecture, card)


def check_pruning(
    whole: Network, pruned: Network, source: Source, size: int | None = None, pooling: Pooling = "gap"
) -> Pruning:
    """Count what a cut keeps, and compare on four images what the pruned network returns with the feature of the whole one.

    What it returns, pooled, and not what is captured at the layer: a module may go on behind its last captured layer.
    """
    layer = pruned.card.options["last"]
    some: list[Example] = []
    for index in range(len(source)):
        with suppress(ImageError):
            some.append(source[index])
        if len(some) == 4:
            break
    captured = compute_features(whole, some, (layer,), size=size, batch_size=4, pooling=pooling).values[layer]
    size = size or whole.card.input_size
    images = jnp.asarray(np.stack([resize_image(one.image, size) for one in some]))
    returned = pooled_output(
        pruned.module, pruned.variables, images, pruned.card.preprocessing, layer, pooling
    )
    return Pruning(
        layer,
        parameters_to_cut(whole, layer),
        count_parameters(pruned.variables),
        float(np.abs(captured - np.asarray(returned)).max()),
        float(np.abs(captured).max()),
    )


def parameters_to_cut(whole: Network, layer: str) -> int:
    """Parameters of the whole network without its classification head, or with it where the cut lies in the head."""
    family = whole.architecture
    if layer in (WHOLE, *family.head):
        return count_parameters(whole.variables)
    return count_parameters(abstract_variables(whole.module.clone(last=family.trunk), family))  # pyright: ignore[reportCallIssue]


def cut_checkpoint(
    weights: str,
    output: str,
    layer: str | None,
    scores: str | None,
    estimator: Estimator = "ridge",
    torch: str | None = None,
) -> str:
    """Cut a checkpoint after `layer`, or after the layer selected in the summary.json of an earlier run.

    `torch` names a file for the same in the names of torch, see `models.export.export`.

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
    pruned = pruned_network(network, layer)
    checkpoints.save(Path(output), pruned)
    if torch:
        export(pruned, Path(torch))
    exported = f" and, for torch, in {torch}" if torch else ""
    before, after = parameters_to_cut(network, layer), count_parameters(pruned.variables)
    return (
        f"{network.architecture.name} cut after {layer}: {before:,} -> {after:,} parameters "
        f"({100 * (1 - after / before):.2f} % less than without its head), saved in {output}{exported}"
    )


def selected_layer(path: Path, architecture: str, weights: str, estimator: Estimator) -> str:
    """The layer that an earlier run of the probes selected for these weights, from its summary.json.

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
