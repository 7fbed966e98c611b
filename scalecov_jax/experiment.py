"""The main job on one network: features, probes under three conditions, the layer to cut at, the pruned network."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging

from scalecov_jax.checkpoints import Network, random_network
from scalecov_jax.concepts import scale
from scalecov_jax.features import Features, Pooling, check_request, compute_features
from scalecov_jax.images.example import Example, ImageError, Skipped, Source
from scalecov_jax.models.architecture import available_layers, check_layer
from scalecov_jax.models.folding import folded
from scalecov_jax.models.pruning import Pruning, abstract_variables, count_parameters, prune
from scalecov_jax.models.receptive_field import undefined_layers
from scalecov_jax.probes import batch, sample_size
from scalecov_jax.probes.splits import random_splits, shuffled
from scalecov_jax.scores import Condition, Estimator, Score
from scalecov_jax.selection import Selected, select_layers


class ProbeResult(NamedTuple):
    """Everything measured on one network.

    Attributes:
        architecture: Name of the family.
        weights: Name of the weights.
        scores: One a class, layer, condition, split and estimator.
        widths: Features of each layer D, from input to output.
        images: Images used of each class.
        n_train: Images in one training part, of each class.
        skipped: Images left out because they could not be decoded.
        selected: The peak of each estimator over all classes.
        pooling: How maps became features.
        undefined: Layers left out because the pooling is not defined there, with the smallest size of the image in pixels at
            which it is; None where it is at none.
        sizes: R2 against the number of training images, if that was asked for.
    """

    architecture: str
    weights: str
    scores: tuple[Score, ...]
    widths: dict[str, int]
    images: dict[str, int]
    n_train: dict[str, int]
    skipped: tuple[Skipped, ...]
    selected: tuple[Selected, ...]
    pooling: Pooling = "gap"
    undefined: Mapping[str, int | None] = {}
    sizes: tuple[sample_size.SizeScore, ...] = ()


def probe(
    network: Network,
    weights: str,
    sources: Mapping[str, Source],
    *,
    layers: Sequence[str] = (),
    splits: int = 25,
    seed: int = 0,
    alphas: np.ndarray = batch.ALPHAS,
    size: int | None = None,
    batch_size: int = 32,
    dtype: Any = jnp.float32,
    pooling: Pooling = "gap",
    sizes: Sequence[int] = (),
    cache: Path | None = None,
    progress: bool = False,
) -> ProbeResult:
    """Regress object scale from every layer of a network, of the same network with random weights, and shuffled.

    Args:
        network: Whose layers are probed.
        weights: Its name in the table of scores.
        sources: Images of each class.
        layers: Layers to probe; all at which the pooling is defined when empty.
        splits: Random splits into 70 % training and 30 % held-out images, the same for all layers and conditions.
        seed: Of the splits, the shuffling and the random weights.
        alphas: Penalties of ridge to choose from.
        size: Height and width to which images are resized, in pixels; the network's own when absent.
        batch_size: Images a forward pass.
        dtype: Of the forward pass.
        pooling: One of `features.POOLINGS`.
        sizes: Numbers of training images for the sweep of `sample_size.sweep`; none when empty.
        cache: Folder for the features; what lies there already is not computed again.
        progress: Whether to show progress bars on stderr.

    Raises:
        ValueError: Layers that cannot be probed (see `layers_to_probe`), or images on which nothing can be regressed.

    Source: Graziani et al. 2021, sections 3.4 and 4.3.
    """
    layers, undefined = layers_to_probe(network, layers, size, pooling)
    pooled = "" if pooling == "gap" else f"-{pooling}"
    networks: dict[Condition, Network] = {
        "trained": network,
        "random_weights": random_network(network, seed),
    }
    scores: list[Score] = []
    skipped: list[Skipped] = []
    images, n_train, widths = {}, {}, {}
    measured = {image_class: scale.measure_all(source) for image_class, source in sources.items()}
    for measures in measured.values():  # before any forward pass
        scale.check_measures(measures, [str(index) for index in range(len(measures))])
        if sizes:
            sample_size.usable_sizes(sizes, len(measures))
    swept: list[sample_size.SizeScore] = []
    for image_class, source in sources.items():
        measures = measured[image_class]
        features: dict[str, Features] = {}
        for condition, one in networks.items():
            features[condition] = cached_features(
                cache and cache / f"{weights}-{image_class}-{condition}{pooled}.npz",
                lambda one=one, condition=condition, source=source, image_class=image_class: compute_features(
                    one,
                    source,
                    layers,
                    size=size,
                    batch_size=batch_size,
                    dtype=dtype,
                    pooling=pooling,
                    progress=f"{weights} {image_class} {condition}" if progress else None,
                ),
            )
        kept = features["trained"].indices
        skipped += features["trained"].skipped
        scale.check_measures(measures[kept], [str(index) for index in kept])
        masks = random_splits(len(kept), splits, seed)
        widths = {layer: values.shape[1] for layer, values in features["trained"].values.items()}
        images[image_class], n_train[image_class] = len(kept), int(masks[0].sum())
        real = np.tile(measures[kept], (splits, 1))
        both = np.stack([real, shuffled(measures[kept], splits, seed)], axis=-1)
        logging.info(
            "Solving %d layers x %d splits x %d penalties for %s.",
            len(layers),
            splits,
            len(alphas),
            image_class,
        )
        runs: list[tuple[tuple[Condition, ...], batch.ProbeScores]] = [
            (
                ("trained", "shuffled_measure"),
                batch.score_layers(features["trained"].values, both, masks, alphas),
            ),
            (
                ("random_weights",),
                batch.score_layers(features["random_weights"].values, real[..., None], masks, alphas),
            ),
        ]
        for conditions, solved in runs:
            scores += _records(network.architecture.name, weights, image_class, layers, conditions, solved)
        if sizes:
            swept += sample_size.sweep(
                features["trained"].values,
                measures[kept],
                sizes,
                weights=weights,
                image_class=image_class,
                seed=seed,
                alphas=alphas,
                progress=f"{weights} {image_class} by n_train" if progress else None,
            )
    return ProbeResult(
        network.architecture.name,
        weights,
        tuple(scores),
        widths,
        images,
        n_train,
        tuple(skipped),
        select_layers(scores, layers),
        pooling,
        undefined,
        tuple(swept),
    )


def layers_to_probe(
    network: Network, layers: Sequence[str], size: int | None, pooling: Pooling
) -> tuple[tuple[str, ...], dict[str, int | None]]:
    """The layers to probe, and those that the pooling is not defined at, as in `ProbeResult`.

    Args:
        network: See `probe`.
        layers: Asked for; all at which the pooling is defined when empty.
        size: See `probe`.
        pooling: See `probe`.

    Raises:
        ValueError: A layer that the network has not, images too small for the network, or a pooling that is not defined at a
            layer asked for, or at none.
    """
    known = available_layers(network.architecture, network.module)
    if layers or pooling != "corrected_gap":
        layers = tuple(check_layer(network.architecture, layer, known[-1]) for layer in layers) or known
        check_request(network, layers, size, pooling)
        return layers, {}
    size = check_request(network, known, size, "gap")
    undefined = undefined_layers(folded(network.module), size, known)
    defined = tuple(layer for layer in known if layer not in undefined)
    check_request(network, defined or known, size, pooling)
    return defined, undefined


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
    """Count what a cut keeps, and compare features of the whole and the pruned network on four images."""
    layer = pruned.card.options["last"]
    some: list[Example] = []
    for index in range(len(source)):
        with suppress(ImageError):
            some.append(source[index])
        if len(some) == 4:
            break
    first, second = (
        compute_features(one, some, (layer,), size=size, batch_size=4, pooling=pooling).values[layer]
        for one in (whole, pruned)
    )
    return Pruning(
        layer,
        parameters_to_cut(whole, layer),
        count_parameters(pruned.variables),
        float(np.abs(first - second).max()),
    )


def parameters_to_cut(whole: Network, layer: str) -> int:
    """Parameters of the whole network without its classification head, or with it where the cut lies in the head."""
    family = whole.architecture
    if layer not in family.trunk_layers:
        return count_parameters(whole.variables)
    return count_parameters(abstract_variables(whole.module.clone(last=family.trunk), family))  # pyright: ignore[reportCallIssue]


def _records(
    architecture: str,
    weights: str,
    image_class: str,
    layers: Sequence[str],
    conditions: Sequence[Condition],
    solved: batch.ProbeScores,
) -> list[Score]:
    estimators: tuple[tuple[Estimator, np.ndarray], ...] = (("ols", solved.ols), ("ridge", solved.ridge))
    return [
        Score(
            architecture,
            weights,
            condition,
            "scale",
            image_class,
            layer,
            split,
            estimator,
            float(solved.alpha[row, split, target]) if estimator == "ridge" else None,
            float(r2[row, split, target]),
        )
        for target, condition in enumerate(conditions)
        for estimator, r2 in estimators
        for row, layer in enumerate(layers)
        for split in range(r2.shape[1])
    ]


def cached_features(path: Path | None, compute: Any) -> Features:
    """Read features from `path`, or compute and write them (a file appears there only when it is complete)."""
    if path is not None and path.exists():
        with np.load(path, allow_pickle=False) as file:
            names = [str(name) for name in file["layers"]]
            skipped = tuple(Skipped(*map(str, row)) for row in file["skipped"])
            return Features({name: file[f"layer_{name}"] for name in names}, file["indices"], skipped)
    features = compute()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_suffix(".partial.npz")
        np.savez(
            partial_path,
            layers=list(features.values),
            indices=features.indices,
            skipped=np.array(features.skipped, dtype=str).reshape(-1, 3),
            **{f"layer_{name}": values for name, values in features.values.items()},
        )
        partial_path.replace(path)
    return features
