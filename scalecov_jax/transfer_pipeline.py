"""The transfer to histopathology from names to files: annotated images and weights in, predictions, tests and a report out."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from scalecov_jax import checkpoints
from scalecov_jax.images import tissue
from scalecov_jax.images.annotated import read_annotated
from scalecov_jax.images.example import Skipped, count_reasons
from scalecov_jax.images.patches import AnnotatedSource, Patches, open_patches, prepare_patches
from scalecov_jax.models.architecture import check_layer, get_architecture
from scalecov_jax.pipeline import names, selected_layer
from scalecov_jax.probes.splits import grouped_splits
from scalecov_jax.transfer.comparison import Prediction, cut_layers, fine_tuned
from scalecov_jax.transfer.fine_tuning import Recipe
from scalecov_jax.workdir import open_workdir

TISSUE = "tissue"


def run(
    settings: Mapping[str, Any],
    workdir: str,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
) -> str:
    started = time.monotonic()
    networks = _load(settings)
    source, skipped = _open(settings)
    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    patches = _patches(source, folder / "patches", settings)
    seeds = range(settings["seed"], settings["seed"] + settings["seeds"])
    train = np.concatenate(
        [
            grouped_splits(
                patches.group,
                patches.magnification,
                1,
                settings["seed"] if settings["fixed_split"] else seed,
                settings["held_out"],
            )
            for seed in seeds
        ]
    )
    predictions: list[Prediction] = []
    for name, network in networks.items():
        if settings["layer"] != "auto":
            layers = [settings["layer"]] * len(seeds)
        elif settings["auto"] == "scale":
            layer = selected_layer(Path(settings["scores"]) / "summary.json", network.architecture.name, name)
            layers = [layer] * len(seeds)
        predictions += fine_tuned(
            network,
            name,
            patches,
            train,
            layers,
            seeds,
            folder / "training",
            size=settings["size"],
            recipe=Recipe(
                settings["epochs"],
                settings["batch_size"],
                settings["learning_rate"],
                settings["targets"],
                settings["batch_norm"],
            ),
            preprocessing=None if settings["inputs"] == "weights" else "raw",
        )
    return "done"


def _load(settings: Mapping[str, Any]) -> dict[str, checkpoints.Network]:
    return {Path(path).name: checkpoints.load(Path(path)) for path in names(settings["weights"])}


def _open(settings: Mapping[str, Any]) -> tuple[AnnotatedSource, tuple[Skipped, ...]]:
    if settings["data"] == TISSUE:
        return tissue.regions(settings["regions"], settings["seed"], size=settings["region_size"]), ()
    folder = read_annotated(settings["data"], settings["magnification"])
    for reason, count in count_reasons(folder.skipped).items():
        logging.info("Left out: %d x %s.", count, reason)
    return folder, folder.skipped


def _patches(source: AnnotatedSource, folder: Path, settings: Mapping[str, Any]) -> Patches:
    if not folder.exists():
        prepare_patches(
            source,
            folder,
            size=settings["size"],
            magnifications=tuple(map(float, names(settings["magnifications"]))),
            labels=settings["labels"],
            stride=settings["stride"],
            limit=settings["limit"],
        )
    return open_patches(folder)
