"""RCVs that a run fits on its own images: as targets, and as directions to visualise."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scalecov_jax.checkpoints import Network
from scalecov_jax.concepts.compute import Measured, check_measures, measure_all
from scalecov_jax.concepts.measure import get_measures
from scalecov_jax.explain.feature_visualization import Objective, direction
from scalecov_jax.explain.target import Target, rcv_projection
from scalecov_jax.feature_cache import cached_features
from scalecov_jax.features import compute_features
from scalecov_jax.images.example import Skipped, Source
from scalecov_jax.pipelines.settings import names
from scalecov_jax.probes.splits import grouped_splits, random_splits
from scalecov_jax.rcv import STRIP, Rcv, fit_rcvs, strip


def measure_concepts(path: Path, concepts: Sequence[str], source: Source) -> Measured:
    """Concept measures of the images, kept at `path`.

    Raises:
        ValueError: See `measure_all` and `check_measures`.
    """
    measured = measure_all(get_measures(concepts), source, cache=path, progress="measures")
    for column in range(len(concepts)):
        check_measures(measured.values[:, column], measured.names)
    return measured


def fit(
    network: Network,
    layer: str,
    features: np.ndarray,
    indices: np.ndarray,
    concepts: Sequence[str],
    measured: Measured,
    settings: Mapping[str, Any],
) -> tuple[list[Rcv], np.ndarray, list[str]]:
    """RCVs of the images with features and measures; the rows of `features` that these are, and their groups."""
    _, here, there = np.intersect1d(indices, measured.indices, return_indices=True)
    groups = [measured.groups[one] for one in there]
    splits = (
        random_splits(len(here), settings["splits"], settings["seed"])
        if len({*groups}) == len(groups)
        else grouped_splits(groups, settings["splits"], settings["seed"])
    )
    measures = dict(zip(concepts, measured.values[there].T, strict=True))
    return fit_rcvs(network, layer, features[here], measures, splits), here, groups


def rcv_targets(
    folder: Path, networks: Mapping[str, Network], source: Source, settings: Mapping[str, Any]
) -> tuple[dict[str, Target], str, list[Skipped]]:
    """The projections that config.target asks for, how well each RCV is readable, and images that could not be decoded."""
    concept, _, layer = settings["target"].removeprefix("rcv:").rpartition("@")
    fitted, skipped = _fit_all(folder, networks, layer, [concept], source, settings)
    targets = {name: rcv_projection(networks[name], rcvs[0]) for name, (rcvs, _) in fitted.items()}
    r2 = ", ".join(f"{rcvs[0].r2:.2f} for {name}" for name, (rcvs, _) in fitted.items())
    return (
        targets,
        f"The RCV of {concept} at {layer}, fitted on these images, has a held-out R2 of {r2}.",
        skipped,
    )


def rcv_strips(
    folder: Path,
    networks: Mapping[str, Network],
    source: Source,
    settings: Mapping[str, Any],
) -> tuple[dict[str, list[Objective]], list[tuple[str, str]], str, list[Skipped]]:
    """Objectives from -v to +v of the RCV of each concept, their labels, how well each RCV is readable, and images left out."""
    layer, concepts = settings["layer"], names(settings["concepts"])
    fitted, skipped = _fit_all(folder, networks, layer, concepts, source, settings)
    objectives = {
        name: [direction(layer, np.concatenate([strip(one.direction, mean) for one in rcvs]))]
        for name, (rcvs, mean) in fitted.items()
    }
    labels = [(f"rcv:{concept}", part) for concept in concepts for part in STRIP]
    r2 = "; ".join(
        f"{name}: {', '.join(f'{one.measure} {one.r2:.2f}' for one in rcvs)}"
        for name, (rcvs, _) in fitted.items()
    )
    return objectives, labels, f"Held-out R2 of the RCVs at {layer}: {r2}.", skipped


def _fit_all(
    folder: Path,
    networks: Mapping[str, Network],
    layer: str,
    concepts: Sequence[str],
    source: Source,
    settings: Mapping[str, Any],
) -> tuple[dict[str, tuple[list[Rcv], np.ndarray]], list[Skipped]]:
    """By network: RCVs of all concepts, and the mean features of the images."""
    measured = measure_concepts(folder / "rcvs" / "measures.csv", concepts, source)
    found: dict[str, tuple[list[Rcv], np.ndarray]] = {}
    skipped = [*measured.skipped]
    for name, network in networks.items():
        features = cached_features(
            folder / "rcvs" / f"{name}.npz",
            partial(
                compute_features,
                network,
                source,
                (layer,),
                size=None if settings["method"] == "feature_visualization" else settings["size"] or None,
                batch_size=settings["batch_size"],
                progress=f"{name} {layer}",
            ),
        )
        skipped += features.skipped
        values = features.values[layer]
        rcvs, here, _ = fit(network, layer, values, features.indices, concepts, measured, settings)
        found[name] = rcvs, values[here].mean(0)
    return found, skipped
