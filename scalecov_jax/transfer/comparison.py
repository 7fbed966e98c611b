"""The whole network, the pruned and the whole from scratch, trained for nucleus area on the same patches and splits."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from scalecov_jax.atomic import replacing
from scalecov_jax.checkpoints import Network, random_network
from scalecov_jax.cutting import pruned_network
from scalecov_jax.imaging.image_set import ImageSet
from scalecov_jax.models.architecture import available_layers
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.models.preprocessing import Preprocessing
from scalecov_jax.probes.splits import grouped_splits
from scalecov_jax.tables import labelled
from scalecov_jax.transfer import metrics
from scalecov_jax.transfer.fine_tuning import Recipe, fine_tune
from scalecov_jax.transfer.heads import sweep

Model = Literal["whole", "pruned", "scratch"]
MODELS: tuple[Model, ...] = ("whole", "pruned", "scratch")


def whole_layer(network: Network) -> str:
    """Where the whole network ends: its pooled output, or the last layer that its weights hold."""
    module: Any = network.module
    return WHOLE if module.last in (WHOLE, *network.architecture.head) else module.last


def cut_layers(network: Network) -> tuple[str, ...]:
    """Every layer at which the network can be cut, from input to output, and the whole at the end."""
    layers = available_layers(network.architecture, network.module)
    whole = whole_layer(network)
    return (*(layer for layer in layers if layer not in (*network.architecture.head, whole)), whole)


def starting_point(network: Network, model: Model, layer: str, seed: int) -> Network:
    """The network that a model starts from, stopped after its layer."""
    if model == "pruned":
        return pruned_network(network, layer)
    whole = pruned_network(network, whole_layer(network))
    return random_network(whole, seed) if model == "scratch" else whole


def fine_tuned(
    network: Network,
    name: str,
    patches: ImageSet,
    train: Mapping[int, Bool[np.ndarray, " N"]],
    layers: Mapping[int, str],
    folder: Path,
    *,
    size: int,
    recipe: Recipe,
    preprocessing: Preprocessing | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fine-tune the three models with every seed; a finished training in `folder` is read, an unfinished goes on.

    `layers` says where the pruned network is cut for each seed; `preprocessing` takes the place of that of the weights.

    Returns:
        Predictions, see `metrics.held_out`; and weights, model, seed, epoch, mse (training, px^2) and mae (held-out, px), which
        chose nothing.

    Source: Graziani et al. 2021, section 4.4.
    """
    predictions, learning = [], []
    for (seed, mask), model in itertools.product(train.items(), MODELS):
        where = folder / f"{name}-{model}-{seed}"
        start = starting_point(network, model, layers[seed], seed)
        last = layers[seed] if model == "pruned" else whole_layer(network)
        finished = where / "predictions.npz"
        if not finished.exists():
            inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
            options: Any = {"size": size, "seed": seed, "recipe": recipe, "preprocessing": preprocessing}
            options["progress"] = f"{name} {model} {last} seed {seed}"
            fitted = fine_tune(start, patches, patches.column("area"), inside, outside, where, **options)
            with replacing(finished) as partial:
                np.savez(partial, area=fitted.predicted, curve=np.array(fitted.curve))
        with np.load(finished, allow_pickle=False) as file:
            named = {"architecture": network.architecture.name, "weights": name, "model": model}
            columns = {**named, "layer": last, "trainable": "all", "seed": seed}
            predictions.append(metrics.held_out(patches, mask, file["area"], **columns))
            curve = pd.DataFrame(file["curve"], columns=["epoch", "mse", "mae"]).astype({"epoch": int})
        learning.append(labelled(curve, weights=name, model=model, seed=seed))
    return pd.concat(predictions, ignore_index=True), pd.concat(learning, ignore_index=True)


def heads_compared(
    features: Mapping[str, Mapping[str, Float[np.ndarray, "N _"]]],
    patches: ImageSet,
    train: Mapping[int, Bool[np.ndarray, " N"]],
    layers: Mapping[int, str],
    *,
    architecture: str,
    weights: str,
    **descent: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train a head on every layer, for all seeds together, by gradient descent and in closed form.

    Features of the whole network come last; `descent` is epochs, batch_size and learning_rate of `heads.train_heads`.

    Returns:
        Predictions of the three models by both heads, see `metrics.held_out`; and `metrics.layer_scores`.
    """
    masks = np.stack([*train.values()])
    settings_of: dict[Literal["head", "ridge"], Mapping[str, Any]] = {"ridge": {}, "head": descent}
    swept = {
        (condition, head): sweep(
            values, patches.column("area"), masks, [*train], head=head, progress=True, **settings
        )
        for condition, values in features.items()
        for head, settings in settings_of.items()
    }
    predictions = []
    rows = enumerate(train.items())
    for head, (row, (seed, mask)), model in itertools.product(("head", "ridge"), rows, MODELS):
        layer = layers[seed] if model == "pruned" else [*features["trained"]][-1]
        area = swept["random_weights" if model == "scratch" else "trained", head][layer][row, ~mask]
        named = {"architecture": architecture, "weights": weights, "model": model, "layer": layer}
        predictions.append(metrics.held_out(patches, mask, area, **named, trainable=head, seed=seed))
    errors = [
        metrics.layer_scores(values, patches, train, weights=weights, condition=condition, head=head)
        for (condition, head), values in swept.items()
    ]
    return pd.concat(predictions, ignore_index=True), pd.concat(errors, ignore_index=True)


def select_cuts(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    patches: ImageSet,
    train: Mapping[int, Bool[np.ndarray, " N"]],
    *,
    splits: int,
) -> dict[int, str]:
    """For each seed the layer from which ridge reads nucleus area best in its training part: lowest mean MAE over inner splits.

    The whole network is no candidate: what is chosen is where to cut, and whether cutting helps is tested.

    Features of the whole come last; patches outside the training part of a seed, which is also the seed of the inner splits, have
    no influence on its choice.

    Raises:
        ValueError: A training part has too few source images for an inner split, see `grouped_splits`.
    """
    outer = np.repeat([*train.values()], splits, axis=0)
    inner = outer.copy()
    for row, (seed, mask) in enumerate(train.items()):
        inner[row * splits : (row + 1) * splits, mask] = grouped_splits(
            patches.column("group")[mask], splits, seed
        )
    # One call for all seeds, so that each width of layer is compiled once.
    candidates = {layer: features[layer] for layer in list(features)[:-1]}
    predicted = sweep(
        candidates,
        patches.column("area"),
        inner,
        range(len(inner)),
        head="ridge",
        progress=True,
        scale_over=outer,
    )
    errors = pd.DataFrame(
        {
            layer: np.nanmean(np.where(outer & ~inner, np.abs(rows - patches.column("area")), np.nan), axis=1)
            for layer, rows in predicted.items()
        }
    )
    best: Any = errors.groupby(np.repeat([*train], splits), sort=False).mean().idxmin(axis=1)
    return dict(zip(train, best, strict=True))
