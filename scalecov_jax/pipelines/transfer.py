"""The transfer to histopathology from names to files: annotated images and weights in, predictions, tests and a report out."""

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool

from scalecov_jax import checkpoints
from scalecov_jax.checkpoints import load_networks
from scalecov_jax.cutting import selected_layer
from scalecov_jax.features import cached_features, compute_features
from scalecov_jax.images import tissue
from scalecov_jax.images.annotated import read_annotated
from scalecov_jax.images.example import Skipped, count_reasons, encode_jpeg
from scalecov_jax.images.patches import AnnotatedSource, Patches, open_patches, prepare_patches
from scalecov_jax.models.architecture import check_layer, get_architecture
from scalecov_jax.models.cost import measure_cost
from scalecov_jax.pipelines.settings import DTYPES, names
from scalecov_jax.probes.splits import grouped_splits
from scalecov_jax.report import page
from scalecov_jax.report import transfer as report
from scalecov_jax.report.provenance import provenance
from scalecov_jax.transfer import comparison, results
from scalecov_jax.transfer.fine_tuning import Recipe
from scalecov_jax.workdir import open_workdir

TISSUE = "tissue"
_CHOICES = {
    "auto": ("target", "scale"),
    "labels": ("mask", "instances"),
    "trainable": ("head", "all"),
    "inputs": ("weights", "raw"),
    "targets": ("pixels", "standardised"),
    "batch_norm": ("running", "recomputed", "frozen"),
    "dtype": tuple(DTYPES),
}
_POSITIVE = (
    *("inner_splits", "regions", "region_size", "size", "stride", "seeds", "head_epochs", "head_batch_size"),
    *("head_learning_rate", "epochs", "batch_size", "learning_rate"),
)


def run(
    settings: Mapping[str, Any],
    workdir: str,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
) -> str:
    """Compare the whole network, the pruned one and the one from scratch on patches of tissue, and report.

    Args:
        settings: See configs/nuclei.py.
        workdir: Folder of the run.
        command: As typed, for the provenance.
        resume: Go on in an existing folder; patches, features and trainings that lie there are not made again.
        overwrite: Delete an existing folder first.

    Returns:
        A table for people.

    Raises:
        ValueError: Settings, weights or images that cannot be used; says what was given and what to do.
        FloatingPointError: A training diverged; names the step.
    """
    started = time.monotonic()
    networks = _load(settings)
    chosen = {name: _given_layer(network, name, settings) for name, network in networks.items()}
    source, skipped = _open(settings)
    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    patches = _patches(source, folder / "patches", settings)
    train = _splits(patches, settings)
    compared: list[report.NetworkResult] = []
    for name, network in networks.items():
        compared.append(_compare(network, name, chosen[name], patches, train, folder, settings))
    adjusted = iter(results.adjust([one for result in compared for one in result.comparisons]))
    compared = [one._replace(comparisons=[next(adjusted) for _ in one.comparisons]) for one in compared]
    facts = provenance(command, settings, networks, started)
    report.write_results(
        folder,
        settings["title"],
        compared,
        patches,
        [*skipped, *patches.skipped],
        facts,
        settings,
        [_example_section(patches, settings)],
    )
    return f"{report.table(compared)}\n\nReport: {folder / 'report.html'}"


def check(settings: Mapping[str, Any]) -> None:
    """Refuse what `run` would refuse before it computes anything, the folder of the run and the layer to cut at aside.

    Raises:
        ValueError: See `run`.
    """
    _load(settings)
    _open(settings)


def _compare(
    network: checkpoints.Network,
    name: str,
    layer: str | None,
    patches: Patches,
    train: Mapping[int, Bool[np.ndarray, " N"]],
    folder: Path,
    settings: Mapping[str, Any],
) -> report.NetworkResult:
    masks, seeds, head = np.stack([*train.values()]), list(train), settings["trainable"] == "head"
    features: dict[str, dict[str, np.ndarray]] = {}
    for condition in ("trained", "random_weights") if head else ("trained",) if layer is None else ():
        features[condition] = _features(network, name, condition, patches, folder, settings)
    if layer is None:
        logging.info("Choosing where to cut %s, inside the training part of each seed.", name)
        layers = comparison.select_cuts(
            features["trained"], patches, masks, seeds, splits=settings["inner_splits"]
        )
    else:
        layers = (layer,) * len(seeds)
    sweep: list[results.SweepScore] = []
    if head:
        solved = comparison.heads_compared(
            network.architecture.name,
            name,
            features,
            patches,
            masks,
            layers,
            seeds,
            epochs=settings["head_epochs"],
            batch_size=settings["head_batch_size"],
            learning_rate=settings["head_learning_rate"],
            progress=True,
        )
        predictions = solved.predictions
        for (condition, kind), values in solved.sweep.items():
            sweep += results.sweep_scores(name, condition, kind, values, patches, train)
    else:
        predictions = comparison.fine_tuned(
            network,
            name,
            patches,
            masks,
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
    evaluated = results.evaluate_predictions(predictions, patches, train)
    usual = Counter(layers).most_common(1)[0][0]
    costs = {}
    for model in comparison.MODELS:
        start = comparison.starting_point(network, model, usual, seeds[0])
        costs[model] = tuple(measure_cost(start.module, start.variables, settings["size"]))
    return report.NetworkResult(
        network.architecture.name,
        name,
        evaluated,
        results.compare_models(evaluated, patches, name),
        sweep,
        dict(zip(seeds, layers, strict=True)),
        "given" if settings["layer"] != "auto" else settings["auto"],
        costs,
    )


def _features(
    network: checkpoints.Network,
    name: str,
    condition: str,
    patches: Patches,
    folder: Path,
    settings: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Features of every layer at which the network can be cut, the whole one last."""
    one = checkpoints.random_network(network, settings["seed"]) if condition != "trained" else network
    if settings["inputs"] == "raw":
        one = one._replace(card=dataclasses.replace(one.card, preprocessing="raw"))
    features = cached_features(
        folder / "features" / f"{name}-{condition}.npz",
        lambda: compute_features(
            one,
            patches,
            comparison.cut_layers(network),
            size=settings["size"],
            batch_size=settings["batch_size"],
            dtype=DTYPES[settings["dtype"]],
            progress=f"{name} {condition}",
        ),
    )
    if features.skipped:
        raise ValueError(
            f"{len(features.skipped)} patches cannot be read, such as {features.skipped[0].name}: {features.skipped[0].detail}; "
            f"delete {folder / 'patches'} to cut them anew."
        )
    return features.values


def _splits(patches: Patches, settings: Mapping[str, Any]) -> dict[int, Bool[np.ndarray, " N"]]:
    """The training part of each seed."""
    return {
        seed: grouped_splits(
            patches.group,
            1,
            settings["seed"] if settings["fixed_split"] else seed,
            settings["held_out"],
            classes=patches.magnification,
        )[0]
        for seed in range(settings["seed"], settings["seed"] + settings["seeds"])
    }


def _load(settings: Mapping[str, Any]) -> dict[str, checkpoints.Network]:
    problems = [
        f"config.{name} is {settings[name]!r}; expected one of {', '.join(choices)}."
        for name, choices in _CHOICES.items()
        if settings[name] not in choices
    ]
    problems += [
        f"config.{name} is {settings[name]}; expected more than 0."
        for name in _POSITIVE
        if not settings[name] > 0
    ]
    problems += [
        f"config.{name} is {settings[name]}; expected at least 0."
        for name in ("seed", "limit", "magnification")
        if settings[name] < 0
    ]
    if not 0 < settings["held_out"] < 1:
        problems.append(f"config.held_out is {settings['held_out']}; expected a share between 0 and 1.")
    for name, missing in (
        ("weights", "a checkpoint folder"),
        ("data", f"a folder of annotated images, or {TISSUE}"),
        ("magnifications", "numbers separated by commas"),
    ):
        if not names(settings[name]):
            problems.append(f"config.{name} is empty; expected {missing}, as in --config.{name}=...")
    try:
        wrong = [m for m in map(float, names(settings["magnifications"])) if not 0 < m < np.inf]
    except ValueError:
        wrong = [settings["magnifications"]]
    if wrong:
        problems.append(f"config.magnifications holds {wrong[0]!r}; expected numbers such as 5,10,40.")
    if settings["layer"] == "auto" and settings["auto"] == "scale" and not settings["scores"]:
        problems.append(
            "config.auto is scale, but config.scores is empty; expected the --workdir of a run of probe.py or reproduce.py."
        )
    if problems:
        raise ValueError(" ".join(problems))
    if settings["architecture"]:
        get_architecture(settings["architecture"])
    return load_networks(names(settings["weights"]), settings["architecture"])


def _given_layer(network: checkpoints.Network, name: str, settings: Mapping[str, Any]) -> str | None:
    """The layer to cut at; None if it is to be chosen on the training part."""
    if settings["layer"] != "auto":
        layer = settings["layer"]
    elif settings["auto"] == "scale":
        layer = selected_layer(
            Path(settings["scores"]) / "summary.json", network.architecture.name, name, "ridge"
        )
    else:
        return None
    layers = comparison.cut_layers(network)
    check_layer(network.architecture, layer, layers[-1])
    if layer not in layers:
        raise ValueError(f"A regression head cannot follow {layer}; choose one of {', '.join(layers)}.")
    return layer


def _open(settings: Mapping[str, Any]) -> tuple[AnnotatedSource, tuple[Skipped, ...]]:
    if settings["data"] == TISSUE:
        return tissue.regions(settings["regions"], settings["seed"], size=settings["region_size"]), ()
    folder = read_annotated(settings["data"], settings["magnification"])
    for reason, count in count_reasons(folder.skipped).items():
        logging.info("Left out: %d images x %s.", count, reason)
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
    patches = open_patches(folder)
    for reason, count in count_reasons(patches.skipped).items():
        logging.info("Left out: %d x %s.", count, reason)
    groups = len(np.unique(patches.group))
    logging.info("%d patches of %d source images or patients.", len(patches), groups)
    return patches


def _example_section(patches: Patches, settings: Mapping[str, Any]) -> page.Section:
    """A row of patches for each magnification."""
    classes = np.unique(patches.magnification)
    columns = min(8, min(int((patches.magnification == one).sum()) for one in classes))
    rows = []
    for one in classes:
        members = np.flatnonzero(patches.magnification == one)
        picked = members[np.linspace(0, len(members) - 1, columns).round().astype(int)]
        rows.append(np.concatenate([patches[int(index)].image for index in picked], axis=1))
    sheet = page.Image(
        encode_jpeg(np.concatenate(rows)),
        "Patches, one row a magnification, from the lowest to the highest.",
        f"Rows: {', '.join(f'{one:g}X' for one in classes)}.",
        wide=True,
    )
    text = f"Patches of {settings['size']} x {settings['size']} pixels, as the networks see them."
    return page.Section("The patches", text, [sheet])
