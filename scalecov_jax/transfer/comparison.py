"""The whole network, the pruned one and the whole one from scratch, trained for nucleus area on the same patches and splits."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from scalecov_jax.atomic import replacing
from scalecov_jax.checkpoints import Network, random_network
from scalecov_jax.cutting import pruned_network
from scalecov_jax.images.patches import Patches
from scalecov_jax.models.architecture import available_layers
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.models.preprocessing import Preprocessing
from scalecov_jax.probes.splits import grouped_splits
from scalecov_jax.transfer.fine_tuning import Recipe, fine_tune
from scalecov_jax.transfer.sweep import sweep

Model = Literal["whole", "pruned", "scratch"]
MODELS: tuple[Model, ...] = ("whole", "pruned", "scratch")


class Prediction(NamedTuple):
    """What one model with one seed says of the held-out patches.

    Attributes:
        architecture: Name of the family.
        weights: Name of the weights, or of the random ones in their place.
        model: Which of the three.
        layer: Where the network ends; avg_pool for the whole one.
        trainable: all (fine-tuned), head (linear head by gradient descent) or ridge (in closed form).
        seed: Of the split, the head and the order of the patches.
        test: Indices of the held-out patches.
        area: Their predicted mean nucleus areas in pixels.
        curve: Epoch, training MSE (px^2) and held-out MAE (px); empty for ridge.
    """

    architecture: str
    weights: str
    model: Model
    layer: str
    trainable: str
    seed: int
    test: Int[np.ndarray, " n"]
    area: Float[np.ndarray, " n"]
    curve: tuple[tuple[int, float, float], ...] = ()


def whole_layer(network: Network) -> str:
    """Where the whole network ends: its pooled output, or the last layer that its weights hold."""
    module: Any = network.module
    return WHOLE if module.last in (WHOLE, *network.architecture.head) else module.last


def cut_layers(network: Network) -> tuple[str, ...]:
    """Every layer at which the network can be cut, from input to output, and the whole one at the end."""
    layers = available_layers(network.architecture, network.module)
    whole = whole_layer(network)
    return (*(layer for layer in layers if layer not in (*network.architecture.head, whole)), whole)


def random_name(weights: str) -> str:
    """The name of random weights for the network of these weights, in tables."""
    return f"random ({weights})"


def starting_point(network: Network, model: Model, layer: str, seed: int) -> Network:
    """The network that a model starts from, stopped after its layer."""
    if model == "pruned":
        return pruned_network(network, layer)
    whole = pruned_network(network, whole_layer(network))
    return random_network(whole, seed) if model == "scratch" else whole


def fine_tuned(
    network: Network,
    weights: str,
    patches: Patches,
    train: Bool[np.ndarray, "R N"],
    layers: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    size: int,
    recipe: Recipe,
    preprocessing: Preprocessing | None = None,
) -> Iterator[Prediction]:
    """Fine-tune the three models with every seed; a finished training in `folder` is read, an interrupted one goes on.

    Args:
        network: Pretrained.
        weights: Its name.
        patches: All patches.
        train: The training part of each seed.
        layers: Where the pruned network is cut, for each seed.
        seeds: Seeds.
        folder: For the trainings, one folder each.
        size: Height and width of the patches in pixels.
        recipe: How to train.
        preprocessing: In place of that of the weights.

    Source: Graziani et al. 2021, section 4.4.
    """
    for mask, layer, seed in zip(train, layers, seeds, strict=True):
        inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
        for model in MODELS:
            where = folder / f"{weights}-{model}-{seed}"
            start = starting_point(network, model, layer, seed)
            name = random_name(weights) if model == "scratch" else weights
            last = layer if model == "pruned" else whole_layer(network)
            finished = where / "predictions.npz"
            if not finished.exists():
                label = f"{weights} {model} {last} seed {seed}"
                fitted = fine_tune(
                    start,
                    patches,
                    patches.area,
                    inside,
                    outside,
                    where,
                    size=size,
                    seed=seed,
                    recipe=recipe,
                    preprocessing=preprocessing,
                    progress=label,
                )
                with replacing(finished) as partial:
                    np.savez(partial, test=outside, area=fitted.predicted, curve=np.array(fitted.curve))
            with np.load(finished, allow_pickle=False) as file:
                curve = tuple((int(epoch), float(mse), float(mae)) for epoch, mse, mae in file["curve"])
                yield Prediction(
                    network.architecture.name,
                    name,
                    model,
                    last,
                    "all",
                    seed,
                    file["test"],
                    file["area"],
                    curve,
                )


class HeadResult(NamedTuple):
    """Linear heads on the features of one network.

    Attributes:
        predictions: Of the three models, by both heads.
        sweep: Predicted areas of all patches [R, N] by (condition, head) and layer.
        layers: Where the pruned network is cut, for each seed.
    """

    predictions: tuple[Prediction, ...]
    sweep: dict[tuple[str, str], dict[str, Float[np.ndarray, "R N"]]]
    layers: tuple[str, ...]


def heads_compared(
    architecture: str,
    weights: str,
    features: Mapping[str, Mapping[str, Float[np.ndarray, "N _"]]],
    patches: Patches,
    train: Bool[np.ndarray, "R N"],
    layers: Sequence[str],
    seeds: Sequence[int],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    progress: bool = False,
) -> HeadResult:
    """Train a head on every layer, for all seeds together, by gradient descent and in closed form.

    Args:
        architecture: Name of the family.
        weights: Name of the weights.
        features: Pooled features of every layer, the whole network's last, under trained and random_weights.
        patches: All patches.
        train: The training part of each seed.
        layers: Where the pruned network is cut, for each seed.
        seeds: Seeds.
        epochs: See `heads.train_heads`.
        batch_size: See `heads.train_heads`.
        learning_rate: See `heads.train_heads`.
        progress: Whether to show progress bars.
    """
    settings = {
        "ridge": {},
        "head": {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate},
    }
    swept = {
        (condition, head): sweep(
            values, patches.area, train, seeds, head=head, progress=progress, **settings[head]
        )
        for condition, values in features.items()
        for head in ("ridge", "head")
    }
    whole = list(features["trained"])[-1]
    predictions = []
    for head in ("head", "ridge"):
        for row, (mask, layer, seed) in enumerate(zip(train, layers, seeds, strict=True)):
            test = np.flatnonzero(~mask)
            compared: tuple[tuple[Model, str, str], ...] = (
                ("whole", "trained", whole),
                ("pruned", "trained", layer),
                ("scratch", "random_weights", whole),
            )
            for model, condition, last in compared:
                name = weights if condition == "trained" else random_name(weights)
                area = swept[condition, head][last][row, test]
                predictions.append(Prediction(architecture, name, model, last, head, seed, test, area))
    return HeadResult(tuple(predictions), swept, tuple(layers))


def select_cuts(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    patches: Patches,
    train: Bool[np.ndarray, "R N"],
    seeds: Sequence[int],
    *,
    splits: int,
) -> tuple[str, ...]:
    """For each seed the layer from which ridge reads nucleus area best in its training part: lowest mean MAE over inner splits.

    The whole network is no candidate: what is chosen is where to cut, and whether cutting helps is tested.

    Args:
        features: Of every layer at which the network can be cut, the whole one last.
        patches: All patches; those outside the training part of a seed have no influence on its choice.
        train: The training part of each seed.
        seeds: Of the inner splits.
        splits: Inner splits by source image, for each seed.

    Raises:
        ValueError: A training part has too few source images for an inner split, see `grouped_splits`.
    """
    masks = []
    for mask, seed in zip(train, seeds, strict=True):
        for inner in grouped_splits(patches.group[mask], splits, seed):
            masks.append(mask.copy())
            masks[-1][mask] = inner
    inner = np.stack(masks)
    # One call for all seeds, so that each width of layer is compiled once.
    candidates = {layer: features[layer] for layer in list(features)[:-1]}
    predicted = sweep(
        candidates, patches.area, inner, range(len(inner)), head="ridge", progress=True,
        scale_over=np.repeat(train, splits, axis=0),
    )  # fmt: skip
    held_out = np.repeat(train, splits, axis=0) & ~inner
    error = {
        layer: np.array(
            [np.abs(row - patches.area)[out].mean() for row, out in zip(rows, held_out, strict=True)]
        )
        .reshape(len(seeds), splits)
        .mean(1)
        for layer, rows in predicted.items()
    }
    return tuple(min(error, key=lambda layer: error[layer][row]) for row in range(len(seeds)))
