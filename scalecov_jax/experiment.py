"""The main job on one network: features, probes under three conditions, and what the images say of every layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float

from scalecov_jax.cache import FeatureStore
from scalecov_jax.checkpoints import Network, random_network
from scalecov_jax.concepts.compute import Measured, check_measures
from scalecov_jax.design import Design, check_design, measure
from scalecov_jax.evidence import Evidence, weigh
from scalecov_jax.features import Features, Pooling, cached_features, check_request, compute_features
from scalecov_jax.images.example import Skipped, Source
from scalecov_jax.models.architecture import available_layers, check_layer
from scalecov_jax.models.folding import folded
from scalecov_jax.models.receptive_field import undefined_layers
from scalecov_jax.probes import evaluate, sample_size
from scalecov_jax.probes.controls import pixel_features
from scalecov_jax.probes.permutation import shuffled
from scalecov_jax.probes.probe import PROBES, cross_validate
from scalecov_jax.probes.splits import make_splits
from scalecov_jax.rcv import Rcv, make_rcvs
from scalecov_jax.scores import CONDITIONS, Condition, Score
from scalecov_jax.selection import Selected, select_layers


class ClassResult(NamedTuple):
    """What was measured on the images of one class.

    Attributes:
        scores: One a concept, layer, condition, split and estimator.
        evidence: See `evidence.weigh`; None where images were streamed.
        indices: Which examples of the source were used.
        names: Of these images.
        groups: Of these images.
        n_train: Images in one training part (the first, where they differ).
        widths: Features of each layer D.
        ranks: How many of them are linearly independent, as far as the images can tell: D where more would need more images.
        skipped: Images left out because they could not be decoded.
        sizes: R2 against the number of training images, if that was asked for.
        rcvs: Of every concept and layer, fitted to all images.
        split_rcvs: Of every layer the filters [S, D, M] fitted to the training parts.
    """

    scores: tuple[Score, ...]
    evidence: Evidence | None
    indices: np.ndarray
    names: tuple[str, ...]
    groups: tuple[str, ...]
    n_train: int
    widths: dict[str, int]
    ranks: dict[str, int]
    skipped: tuple[Skipped, ...]
    sizes: tuple[sample_size.SizeScore, ...]
    rcvs: tuple[Rcv, ...]
    split_rcvs: Mapping[str, Float[np.ndarray, "S D M"]]


class ProbeResult(NamedTuple):
    """Everything measured on one network.

    Attributes:
        architecture: Name of the family.
        weights: Name of the weights.
        concepts: Names of the measures.
        classes: By class of images.
        selected: For each concept the peak of each estimator over all classes.
        pooling: How maps became features.
        splitting: Kind of the splits that was asked for.
        undefined: Layers left out because the pooling is not defined there, with the smallest size of the image in pixels at
            which it is; None where it is at none.
    """

    architecture: str
    weights: str
    concepts: tuple[str, ...]
    classes: Mapping[str, ClassResult]
    selected: Mapping[str, tuple[Selected, ...]]
    pooling: Pooling
    splitting: str
    undefined: Mapping[str, int | None]

    @property
    def scores(self) -> tuple[Score, ...]:
        """Of all classes."""
        return tuple(score for one in self.classes.values() for score in one.scores)

    @property
    def widths(self) -> dict[str, int]:
        """Features of each layer D, from input to output."""
        return next(iter(self.classes.values())).widths

    @property
    def ranks(self) -> dict[str, int]:
        """Independent features of each layer, the most of any class: where least squares meets the number of training images."""
        return {layer: max(one.ranks[layer] for one in self.classes.values()) for layer in self.widths}

    @property
    def images(self) -> dict[str, int]:
        """Images used of each class."""
        return {name: len(one.indices) for name, one in self.classes.items()}

    @property
    def n_train(self) -> dict[str, int]:
        """Images in one training part of each class."""
        return {name: one.n_train for name, one in self.classes.items()}

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Images left out because they could not be decoded."""
        return tuple(skip for one in self.classes.values() for skip in one.skipped)


def probe(
    network: Network,
    weights: str,
    sources: Mapping[str, Source],
    design: Design,
    *,
    layers: Sequence[str] = (),
    size: int | None = None,
    batch_size: int = 32,
    dtype: Any = jnp.float32,
    pooling: Pooling = "gap",
    cache: Path | None = None,
    store: FeatureStore | None = None,
    progress: bool = False,
) -> ProbeResult:
    """Regress concept measures from every layer of a network, of the same network with random weights, and shuffled.

    Args:
        network: Whose layers are probed.
        weights: Its name in the table of scores.
        sources: Images of each class.
        design: What is regressed and inferred.
        layers: Layers to probe; all at which the pooling is defined when empty.
        size: Height and width to which images are resized, in pixels; the network's own when absent.
        batch_size: Images a forward pass.
        dtype: Of the forward pass.
        pooling: One of `features.POOLINGS`.
        cache: Folder for features and measures of this run; what lies there already is not computed again.
        store: See `features.compute_features`.
        progress: Whether to show progress bars on stderr.

    Raises:
        ValueError: Layers that cannot be probed (see `layers_to_probe`), unknown names in the design, or images on which nothing
            can be regressed.

    Source: Graziani et al. 2021, sections 3.4 and 4.3.
    """
    layers, undefined = layers_to_probe(network, layers, size, pooling)
    check_design(design)
    measured = {name: measure(source, design, cache, progress) for name, source in sources.items()}
    networks: dict[Condition, Network] = {
        "trained": network,
        "random_weights": random_network(network, design.seed),
    }
    pooled = "" if pooling == "gap" else f"-{pooling}"
    classes = {}
    for image_class, source in sources.items():
        features: dict[Condition, Features] = {
            condition: cached_features(
                cache and cache / f"{weights}-{image_class}-{condition}{pooled}.npz",
                lambda one=one, condition=condition, source=source, image_class=image_class: compute_features(
                    one,
                    source,
                    layers,
                    size=size,
                    batch_size=batch_size,
                    dtype=dtype,
                    pooling=pooling,
                    store=store,
                    progress=f"{weights} {image_class} {condition}" if progress else None,
                ),
            )
            for condition, one in networks.items()
        }
        classes[image_class] = probe_class(
            features,
            measured[image_class],
            source,
            design,
            architecture=network.architecture.name,
            weights=weights,
            image_class=image_class,
            progress=progress,
        )
    selected = {
        concept: select_layers(
            [s for one in classes.values() for s in one.scores if s.concept == concept], layers
        )
        for concept in design.concepts
    }
    return ProbeResult(
        network.architecture.name,
        weights,
        design.concepts,
        classes,
        selected,
        pooling,
        design.splitting,
        undefined,
    )


def probe_class(
    features: Mapping[Condition, Features],
    measured: Measured,
    source: Source,
    design: Design,
    *,
    architecture: str,
    weights: str,
    image_class: str,
    progress: bool = False,
) -> ClassResult:
    """Probe the features of the images of one class.

    Args:
        features: With trained and with random weights.
        measured: Concept measures, then nuisance measures.
        source: The images, of which the pixels may be a control.
        design: What is regressed and inferred.
        architecture: For the scores.
        weights: For the scores.
        image_class: For the scores.
        progress: Whether to show progress bars on stderr.

    Raises:
        ValueError: The splits cannot be made, or nothing can be regressed on the images that are left.
    """
    trained, random_weights = features["trained"], features["random_weights"]
    kept, rows, _ = np.intersect1d(measured.indices, trained.indices, return_indices=True)
    _, columns, _ = np.intersect1d(trained.indices, kept, return_indices=True)
    names, groups = (tuple(one[row] for row in rows) for one in (measured.names, measured.groups))
    measures = measured.values[rows, : len(design.concepts)]
    nuisances = measured.values[rows, len(design.concepts) :]
    for values in measures.T:
        check_measures(values, names)
    of_trained, of_random = (
        {layer: values[columns] for layer, values in one.values.items()} for one in (trained, random_weights)
    )
    splits = make_splits(
        design.splitting, len(kept), design.splits, design.seed, groups=groups, values=measures[:, 0]
    )
    label = f"{weights} {image_class}"
    real = np.tile(measures, (len(splits), 1, 1))
    logging.info(
        "Solving %d layers x %d splits x %d penalties x %d measures for %s.",
        len(of_trained), len(splits), len(design.alphas), measures.shape[1], image_class,
    )  # fmt: skip
    evidence = weigh(
        of_trained,
        measures,
        design.concepts,
        splits,
        shuffled=shuffled(measures, len(splits), design.seed, groups),
        groups=groups,
        random_weights=of_random,
        pixels=pixel_features(source, kept, seed=design.seed) if design.pixels else None,
        nuisances=nuisances if design.nuisances else None,
        permutations=design.permutations,
        alphas=design.alphas,
        seed=design.seed,
        progress=label if progress else None,
    )
    further = {
        name: cross_validate(
            PROBES[name], of_trained, real, splits, progress=f"{label} {name}" if progress else None
        )
        for name in design.probes
    }
    scores = _scores(evidence, further, (architecture, weights, image_class))
    assert evidence.dual is not None
    fits = {
        layer: evaluate.weights_of(values, dual, measures)
        for (layer, values), dual in zip(of_trained.items(), evidence.dual, strict=True)
    }
    rcvs = make_rcvs(
        dict(zip(design.concepts, measures.T, strict=True)),
        of_trained,
        {layer: (weights[0], intercept[0], scale) for layer, (weights, intercept, scale) in fits.items()},
        evidence.alpha,
        evidence.r2.value,
        networks=trained.origins,
        weights_name=weights,
        image_class=image_class,
        pooling=trained.pooling,
    )
    swept = (
        sample_size.sweep(
            of_trained,
            measures[:, 0],
            design.sizes,
            weights=weights,
            image_class=image_class,
            seed=design.seed,
            alphas=design.alphas,
            progress=f"{label} by n_train" if progress else None,
        )
        if design.sizes
        else []
    )
    return ClassResult(
        tuple(scores),
        evidence,
        kept,
        names,
        groups,
        int(splits[0].sum()),
        {layer: values.shape[1] for layer, values in of_trained.items()},
        _independent(of_trained),
        trained.skipped,
        tuple(swept),
        tuple(rcvs),
        {layer: found[1:] for layer, (found, _, _) in fits.items()},
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


def _independent(features: Mapping[str, Float[np.ndarray, "N _"]]) -> dict[str, int]:
    """Rank of each layer; its width where more images would be needed to tell."""
    found = evaluate.ranks(features)
    return {
        layer: found[layer] if found[layer] < len(values) - 1 else values.shape[1]
        for layer, values in features.items()
    }


def _scores(
    evidence: Evidence, further: Mapping[str, Float[np.ndarray, "L S M"]], names: tuple[str, str, str]
) -> list[Score]:
    """Both estimators under three conditions, and the further probes on the trained network; see `probe`."""
    solved: list[tuple[Condition, str, np.ndarray, np.ndarray | None]] = []
    for condition in CONDITIONS:
        ols, ridge, alpha = evidence.by_split[condition]
        solved.append((condition, "ols", ols, None))
        solved.append((condition, "ridge", ridge, alpha))
    for name, r2 in further.items():
        solved.append(("trained", name, r2, None))
    architecture, weights, image_class = names
    return [
        Score(
            architecture,
            weights,
            condition,
            concept,
            image_class,
            layer,
            split,
            estimator,
            None if alpha is None else float(alpha[row, split, column]),
            float(r2[row, split, column]),
        )
        for condition, estimator, r2, alpha in solved
        for column, concept in enumerate(evidence.concepts)
        for row, layer in enumerate(evidence.layers)
        for split in range(r2.shape[1])
    ]
