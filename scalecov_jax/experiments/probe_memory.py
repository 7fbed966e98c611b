"""The main experiment with all features in memory: probes under three conditions, and what the images say of each layer."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from absl import logging
from jaxtyping import Float

from scalecov_jax.atomic import file_name
from scalecov_jax.checkpoints import Network, random_network
from scalecov_jax.concepts.compute import Measured, check_measures
from scalecov_jax.evidence import Evidence, weigh
from scalecov_jax.experiments.probe_settings import Settings, layers_to_probe, measure
from scalecov_jax.experiments.probe_tables import ClassResult, both_estimators, score_table
from scalecov_jax.extraction import Features, cached_features, compute_features
from scalecov_jax.imaging.decoding import resize_image
from scalecov_jax.imaging.image_set import Source
from scalecov_jax.probes import evaluate, sample_size
from scalecov_jax.probes.permutation import shuffled
from scalecov_jax.probes.probe import PROBES, cross_validate
from scalecov_jax.scores import CONDITIONS, Condition
from scalecov_jax.vectors import make_rcvs

WIDTH = 1024  # features made of the pixels alone
SIDE = 32  # pixels of the copies that stand for the images themselves; 3072 values each


def probe(
    network: Network,
    weights: str,
    sources: Mapping[str, Source],
    settings: Settings,
    folder: Path | None = None,
) -> dict[str, ClassResult]:
    """Regress concept measures from every layer of a network, of the same network with random weights, and shuffled.

    features/ in the folder keeps features and measures, which are not computed again.

    Raises:
        ValueError: Layers that cannot be probed (see `layers_to_probe`), or images on which nothing can be regressed.

    Source: Graziani et al. 2021, sections 3.4 and 4.3.
    """
    layers, _ = layers_to_probe(network, settings)
    cache = folder and folder / "features"
    measured = {name: measure(source, settings, cache) for name, source in sources.items()}
    networks: dict[Condition, Network] = {
        "trained": network,
        "random_weights": random_network(network, settings.seed),
    }
    pooled = "" if settings.pooling == "gap" else f"-{settings.pooling}"
    classes = {}
    for image_class, source in sources.items():
        features: dict[Condition, Features] = {}
        for condition, variant in networks.items():
            label = f"{weights} {image_class} {condition}"
            features[condition] = cached_features(
                cache and cache / f"{file_name(f'{weights}-{image_class}-{condition}')}{pooled}.npz",
                lambda variant=variant, source=source, label=label: compute_features(
                    variant, source, layers, store=settings.store, progress=label, **settings.forward
                ),
            )
        names = {"architecture": network.architecture.name, "weights": weights, "image_class": image_class}
        classes[image_class] = probe_class(features, measured[image_class], source, settings, names)
    return classes


def probe_class(
    features: Mapping[Condition, Features],
    measured: Measured,
    source: Source | None,
    settings: Settings,
    names: Mapping[str, str],
) -> ClassResult:
    """Probe the features of the images of one class; measures are of concepts, then of nuisances.

    Without a source pixels are no control; nor are random weights without their features.

    Raises:
        ValueError: The splits cannot be made, or nothing can be regressed on the images that are left.
    """
    trained = features["trained"]
    kept, rows, _ = np.intersect1d(measured.indices, trained.indices, return_indices=True)
    _, columns, _ = np.intersect1d(trained.indices, kept, return_indices=True)
    images, groups = (tuple(texts[row] for row in rows) for texts in (measured.names, measured.groups))
    concepts, alphas, seed = settings.concept, settings.penalties, settings.seed
    measures, nuisances = np.split(measured.values[rows], [len(concepts)], axis=1)
    for values in measures.T:
        check_measures(values, images)
    rows_of = {
        kind: {layer: values[columns] for layer, values in some.values.items()}
        for kind, some in features.items()
    }
    of_trained = rows_of["trained"]
    splits = settings.split(measures[:, 0], groups)
    label = f"{names['weights']} {names['image_class']}"
    logging.info(
        "Solving %d layers x %d splits x %d penalties x %d measures for %s.",
        len(of_trained), len(splits), len(alphas), measures.shape[1], names["image_class"],
    )  # fmt: skip
    evidence = weigh(
        of_trained,
        measures,
        concepts,
        splits,
        shuffled=shuffled(measures, len(splits), seed, groups),
        groups=groups,
        random_weights=rows_of.get("random_weights"),
        pixels=pixel_features(source, kept, seed) if settings.pixels and source is not None else None,
        nuisances=nuisances,
        permutations=settings.permutations,
        alphas=alphas,
        seed=seed,
        progress=label,
    )
    assert evidence.dual is not None
    real = np.tile(measures, (len(splits), 1, 1))
    further = {
        name: cross_validate(PROBES[name], of_trained, real, splits, progress=f"{label} {name}")
        for name in settings.probes
    }
    fits = {
        layer: evaluate.weights_of(values, dual, measures)
        for (layer, values), dual in zip(of_trained.items(), evidence.dual, strict=True)
    }
    rcvs = make_rcvs(
        dict(zip(concepts, measures.T, strict=True)),
        of_trained,
        {layer: (filters[0], intercept[0], scale) for layer, (filters, intercept, scale) in fits.items()},
        evidence.alpha,
        evidence.r2.value,
        networks=trained.origins,
        weights_name=names["weights"],
        image_class=names["image_class"],
        pooling=trained.pooling,
    )
    swept = None
    if settings.n_train:
        one = {"seed": seed, "alphas": alphas, "progress": f"{label} by n_train"}
        swept = sample_size.sweep(of_trained, measures[:, 0], settings.n_train, **one)
    widths, ranks = {name: values.shape[1] for name, values in of_trained.items()}, evaluate.ranks(of_trained)
    return ClassResult(
        scores=_scores(evidence, further, names),
        indices=kept,
        names=images,
        groups=groups,
        n_train=int(splits[0].sum()),
        widths=widths,
        # the width where more images would be needed to tell
        ranks={layer: rank if rank < len(kept) - 1 else widths[layer] for layer, rank in ranks.items()},
        skipped=trained.skipped,
        rcvs=rcvs,
        split_rcvs={layer: filters[1:] for layer, (filters, _, _) in fits.items()},
        evidence=evidence,
        sizes=swept,
    )


def pixel_features(
    source: Source, indices: np.ndarray, seed: int, width: int = WIDTH
) -> Float[np.ndarray, "N width"]:
    """A random projection of the pixels of small copies of the images, x W / sqrt(3072) with standard normal W.

    Source: Hewitt & Liang 2019, Designing and Interpreting Probes with Control Tasks (a probe is worth what it reads beyond a
        control); random projection: Johnson & Lindenstrauss 1984.
    """
    pixels = np.stack([resize_image(source[int(index)].image, SIDE).ravel() / 255.0 for index in indices])
    projection = np.random.default_rng((seed, 4)).normal(size=(pixels.shape[1], width))
    return (pixels @ projection / np.sqrt(pixels.shape[1])).astype(np.float32)


def _scores(
    evidence: Evidence, further: Mapping[str, Float[np.ndarray, "L S M"]], names: Mapping[str, str]
) -> pd.DataFrame:
    """Both estimators under three conditions, and the further probes on the trained network."""
    common = {"layers": evidence.layers, "concepts": evidence.concepts, **names}
    known = [
        x for x in CONDITIONS if len(evidence.by_split[x].ridge)
    ]  # features alone have no random weights
    tables = [table for x in known for table in both_estimators(evidence.by_split[x], x, **common)]
    for name, r2 in further.items():
        tables.append(score_table(r2, None, condition="trained", estimator=name, **common))
    return pd.concat(tables, ignore_index=True)
