"""The whole network, the pruned and the whole from scratch, trained for nucleus area on the same patches and splits."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from scalecov_jax import checkpoints
from scalecov_jax.atomic import kept_arrays, write_arrays
from scalecov_jax.checkpoints import Network, random_network
from scalecov_jax.cutting import pruned_network
from scalecov_jax.extraction import compute_features
from scalecov_jax.imaging.image_set import ImageSet
from scalecov_jax.models.architecture import available_layers
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.models.preprocessing import Preprocessing
from scalecov_jax.probes.splits import grouped_splits
from scalecov_jax.tables import labelled
from scalecov_jax.transfer import metrics
from scalecov_jax.transfer.fine_tuning import Fitted, Recipe, fine_tune
from scalecov_jax.transfer.heads import sweep
from scalecov_jax.vectors import Rcv, make_rcvs, save_rcvs

Model = Literal["whole", "pruned", "scratch"]
MEASURE = "nucleus_area"
_KIND = "predictions 1"
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

    `folder/NAME-MODEL-SEED` holds network/, a checkpoint with the statistics used for prediction, and head.npz, the head with the
    offset and scale of the areas as an RCV: what it predicts from the pooled features of the network is the area in pixels.

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
        stored = kept_arrays(where / "predictions.npz", _KIND)
        if stored is None:
            inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
            options: Any = {"size": size, "seed": seed, "recipe": recipe, "preprocessing": preprocessing}
            options["progress"] = f"{name} {model} {last} seed {seed}"
            area = patches.column("area")
            fitted = fine_tune(start, patches, area, inside, outside, where, **options)
            tuned = tuned_network(start, fitted, size, preprocessing)
            checkpoints.save(where / "network", tuned, overwrite=True)
            read = compute_features(
                tuned, patches.take(inside), (last,), size=size, batch_size=recipe.batch_size
            )
            kernel, bias = (
                np.asarray(fitted.params["head"][part], np.float64) for part in ("kernel", "bias")
            )
            offset, scale = map(float, fitted.units)
            head = scale * kernel, offset + scale * float(bias), 0.0
            origin = {"network": read.origins[last], "weights_name": where.name}
            held = fitted.predicted, area[outside]
            _head_vector(MEASURE, last, head, read.values[last], area[inside], held, **origin).save(
                where / "head.npz"
            )
            stored = {"area": fitted.predicted, "curve": np.array(fitted.curve)}
            write_arrays(where / "predictions.npz", stored, _KIND)
        named = {"architecture": network.architecture.name, "weights": name, "model": model}
        columns = {**named, "layer": last, "trainable": "all", "seed": seed}
        predictions.append(metrics.held_out(patches, mask, stored["area"], **columns))
        curve = pd.DataFrame(stored["curve"], columns=["epoch", "mse", "mae"]).astype({"epoch": int})
        learning.append(labelled(curve, weights=name, model=model, seed=seed))
    return pd.concat(predictions, ignore_index=True), pd.concat(learning, ignore_index=True)


def tuned_network(
    start: Network, fitted: Fitted, size: int, preprocessing: Preprocessing | None = None
) -> Network:
    """What fine-tuning made of a network, without the head; `preprocessing` takes the place of that of the weights."""
    variables = {"params": fitted.params["trunk"]} | (
        {"batch_stats": fitted.batch_stats} if fitted.batch_stats else {}
    )
    card = dataclasses.replace(
        start.card,
        preprocessing=preprocessing or start.card.preprocessing,
        input_size=size,
        origin=f"fine-tuned for {MEASURE} from {start.card.origin}",
        sha256="",
    )
    return start._replace(variables=jax.tree.map(np.asarray, variables), card=card)


def _head_vector(
    measure: str,
    layer: str,
    head: tuple[Float[np.ndarray, " D"], float, float],
    features: Float[np.ndarray, "N D"],
    area: Float[np.ndarray, " N"],
    held_out: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]],
    **origin: str,
) -> Rcv:
    """A head (kernel, bias and penalty) as an RCV, with the features and areas that it was trained on.

    R2 is that of the held-out patches, from their predicted and true areas; missing where all are equal.
    """
    kernel, bias, alpha = head
    predicted, true = held_out
    r2 = 1 - np.square(predicted - true).mean() / true.var() if true.var() > 0 else np.nan
    scale = features.std(0, dtype=np.float64)
    fit = kernel[:, None], np.array([bias]), np.where(scale > 0, scale, 1)
    networks = {layer: origin["network"]}
    (rcv,) = make_rcvs(
        {measure: area}, {layer: features}, {layer: fit}, np.array([[alpha]]), np.array([[r2]]),
        networks=networks, weights_name=origin["weights_name"],
    )  # fmt: skip
    return rcv


def heads_compared(
    features: Mapping[str, Mapping[str, Float[np.ndarray, "N _"]]],
    patches: ImageSet,
    train: Mapping[int, Bool[np.ndarray, " N"]],
    layers: Mapping[int, str],
    *,
    architecture: str,
    weights: str,
    path: Path | None = None,
    origins: Mapping[str, Mapping[str, str]] | None = None,
    **descent: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train a head on every layer, for all seeds together, by gradient descent and in closed form.

    Features of the whole network come last; `descent` is epochs, batch_size and learning_rate of `heads.train_heads`. The heads
    of the three models are written to `path` as RCVs, which are called nucleus_area_HEAD_SEED; `origins` are the fingerprints of
    the network by condition and layer.

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
    predictions, rcvs = [], []
    rows = enumerate(train.items())
    for head, (row, (seed, mask)), model in itertools.product(("head", "ridge"), rows, MODELS):
        layer = layers[seed] if model == "pruned" else [*features["trained"]][-1]
        condition = "random_weights" if model == "scratch" else "trained"
        found, true = swept[condition, head][layer], patches.column("area")
        area = found.predicted[row, ~mask]
        origin = {"network": (origins or {}).get(condition, {}).get(layer, ""), "weights_name": weights}
        parts = found.kernel[row], found.bias[row], found.alpha[row]
        trained_on, held = (features[condition][layer][mask], true[mask]), (area, true[~mask])
        rcvs.append(_head_vector(f"{MEASURE}_{head}_{seed}", layer, parts, *trained_on, held, **origin))
        named = {"architecture": architecture, "weights": weights, "model": model, "layer": layer}
        predictions.append(metrics.held_out(patches, mask, area, **named, trainable=head, seed=seed))
    errors = [
        metrics.layer_scores(
            {layer: one.predicted for layer, one in values.items()},
            patches, train, weights=weights, condition=condition, head=head,
        )
        for (condition, head), values in swept.items()
    ]  # fmt: skip
    if path is not None:
        save_rcvs(path, rcvs)
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
    swept = sweep(
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
            layer: np.nanmean(
                np.where(outer & ~inner, np.abs(one.predicted - patches.column("area")), np.nan), axis=1
            )
            for layer, one in swept.items()
        }
    )
    best: Any = errors.groupby(np.repeat([*train], splits), sort=False).mean().idxmin(axis=1)
    return dict(zip(train, best, strict=True))
