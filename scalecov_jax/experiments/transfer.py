"""Does cutting a network help to read the size of nuclei? Section 4.4 of the scale paper: settings and tables.

The whole pretrained network, the same cut after a layer, and the whole from random weights regress the mean nucleus area of
patches of tissue: all weights are fine-tuned, or heads trained on frozen features. The models are in `transfer/comparison.py`,
errors and tests in `transfer/metrics.py`, the report in `transfer_report.py`.
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pandas as pd
from absl import logging

from scalecov_jax.checkpoints import Network, load_networks, random_network
from scalecov_jax.cutting import selected_layer
from scalecov_jax.extraction import Features, cached_features, compute_features
from scalecov_jax.imaging import tissue
from scalecov_jax.imaging.folder import annotated
from scalecov_jax.imaging.image_set import ImageSet, Skipped, count_reasons
from scalecov_jax.imaging.instances import instances
from scalecov_jax.imaging.patches import MAGNIFICATIONS, Labels, open_patches, prepare_patches
from scalecov_jax.models.architecture import check_layer, get_architecture
from scalecov_jax.models.cost import measure_cost
from scalecov_jax.probes.splits import grouped_splits
from scalecov_jax.settings import Base, setting, together
from scalecov_jax.tables import labelled, stacked
from scalecov_jax.transfer import comparison, metrics
from scalecov_jax.transfer.fine_tuning import Recipe

TISSUE = "tissue"


@dataclass(frozen=True)
class Settings(Base):
    """What determines the results."""

    title: str = setting("Does pruning help to read nucleus size?", help="Heading of the report.")
    architecture: str = setting("", help="Checked against the weights when given.")
    weights: tuple[str, ...] = setting(
        ("checkpoints/inception_v3", "checkpoints/resnet50"), least=1, help="Folders of checkpoints."
    )
    layer: str = setting("auto", help="Where to cut, or auto.")
    auto: Literal["target", "scale"] = setting(
        "target",
        help="What auto cuts by: how well nucleus area is read in the training part, or the layer that probe.py selected.",
    )
    scores: str = setting("", help="For auto=scale: workdir of probe.py or reproduce.py with the weights.")
    inner_splits: int = setting(3, low=1, help="Splits of the training part for auto=target.")
    data: str = setting(TISSUE, help=f"Folder of annotated images, or {TISSUE} (rendered).")
    magnification: float = setting(0.0, low=0, help="Of the images of a folder that does not state it.")
    regions: int = setting(60, low=1, help=f"Rendered images, each of its own patient, when data={TISSUE}.")
    region_size: int = setting(1024, low=1, help="Height and width of rendered images in pixels at 40X.")
    labels: Labels = setting("mask", help="What nucleus area is measured in; the published way is the mask.")
    size: int = setting(224, low=1, help="Height and width of the patches in pixels.")
    magnifications: tuple[float, ...] = setting(
        MAGNIFICATIONS, low=0.01, high=10_000, least=1, distinct=True, help="Of the patches."
    )
    stride: float = setting(1.0, low=1e-4, help="Distance of neighbouring patches as a share of their side.")
    limit: int = setting(0, low=0, help="Most patches of each magnification and image; 0 for all.")
    trainable: Literal["head", "all"] = setting(
        "head", help="Whether heads are trained on features computed once, or all weights fine-tuned."
    )
    seeds: int = setting(10, low=1, help="Each draws a split by image, a head and an order of the patches.")
    seed: int = setting(0, low=0, help="The first of them.")
    held_out: float = setting(0.3, low=0.001, high=0.999, help="Share of the source images.")
    fixed_split: bool = setting(False, help="Whether all seeds share a split, as published.")
    inputs: Literal["weights", "raw"] = setting(
        "weights", help="Preprocessing of the weights, or values from 0 to 255 as published."
    )
    head_epochs: int = setting(100, low=1, help="Passes over the patches in gradient descent of a head.")
    head_batch_size: int = setting(32, low=1, help="Patches per step of such a head.")
    head_learning_rate: float = setting(3e-3, low=1e-12, help="Of the first step of such a head.")
    epochs: int = setting(5, low=1, help="Of fine-tuning.")
    batch_size: int = setting(32, low=1, help="Patches per step of fine-tuning, and per forward pass.")
    learning_rate: float = setting(1e-4, low=1e-12, help="Of fine-tuning.")
    targets: Literal["pixels", "standardised"] = setting(
        "pixels", help="Of fine-tuning; pixels as published, standardised for short trainings."
    )
    batch_norm: Literal["running", "recomputed", "frozen"] = setting(
        "running", help="Statistics used for prediction: running as published, or recomputed after training."
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", help="Of the forward pass if trainable=head.")

    def problems(self) -> list[str]:
        """No data, and scale as the rule of the cut without the run that read it."""
        problems = [] if self.data else [f"data is empty; expected a folder of annotated images, or {TISSUE}"]
        if self.chosen_by == "scale" and not self.scores:
            problems.append(
                "scores is empty, but auto is scale; expected the --workdir of a run of probe.py or reproduce.py"
            )
        return problems

    @property
    def chosen_by(self) -> str:
        """How the layer to cut after is chosen: given, target or scale."""
        return self.auto if self.layer == "auto" else "given"


def check(settings: Settings) -> dict[str, Network]:
    """The networks by the names of their folders.

    Raises:
        ValueError: Folders that hold no network, two of the same name, a layer after which a network cannot be cut or not
            selected before, and images that cannot be used; all at once.
    """

    def fits(name: str, network: Network) -> None:
        _cut(settings, name, network)

    def networks() -> dict[str, Network]:
        if settings.architecture:
            get_architecture(settings.architecture)
        return load_networks(settings.weights, settings.architecture, fits)

    return together(lambda: _source(settings), networks)[1]


def run(settings: Settings, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Patches, the three models of every network on them, their errors and tests.

    patches/, features/ and training/ in the folder are not made again. Every fine-tuned network is in training/ with its head,
    heads on frozen features are in heads/, see `comparison.fine_tuned` and `comparison.heads_compared`.

    Returns:
        transfer (errors by model, seed and magnification; the weights of the network from scratch are called "random (NAME)"),
        comparisons (see `metrics.compare_models`), sweep (heads on every layer, see `metrics.layer_scores`) or learning
        (fine-tuning, see `comparison.fine_tuned`), predictions (see `metrics.held_out`), models (layer, parameters and FLOPs of
        whole and pruned, the latter at the layer chosen most often), magnifications (patches, their sources, mean and sd of their
        area) and left_out (what was not used, by reason).
    """
    if folder is None:
        with TemporaryDirectory() as temporary:
            return run(settings, Path(temporary))
    networks = check(settings)
    source = _source(settings)
    patches = _patches(settings, source, folder / "patches")
    skipped = (*source.skipped, *patches.skipped)
    for reason, count in count_reasons(skipped).items():
        logging.info("Left out: %d x %s.", count, reason)
    logging.info(
        "%d patches of %d source images or patients.", len(patches), patches.table["group"].nunique()
    )
    seeds = range(settings.seed, settings.seed + settings.seeds)
    train = {}
    for seed in seeds:
        drawn = settings.seed if settings.fixed_split else seed
        split = partial(grouped_splits, patches.column("group"), 1, drawn, settings.held_out)
        (train[seed],) = split(classes=patches.column("magnification"))
    parts: list[tuple[str, pd.DataFrame]] = []
    for name, network in networks.items():
        head, layer = settings.trainable == "head", _cut(settings, name, network)
        conditions = ("trained", "random_weights") if head else ("trained",) if layer is None else ()
        features = {kind: _features(settings, name, network, kind, patches, folder) for kind in conditions}
        if layer is None:
            logging.info("Choosing where to cut %s, inside the training part of each seed.", name)
            layers = comparison.select_cuts(
                features["trained"].values, patches, train, splits=settings.inner_splits
            )
        else:
            layers = dict.fromkeys(seeds, layer)
        names = ("epochs", "batch_size", "learning_rate")
        given = {field: getattr(settings, f"head_{field}" if head else field) for field in names}
        if head:
            named: Any = {"architecture": network.architecture.name, "weights": name}
            named |= {"path": folder / "heads" / f"{name}.npz"}
            named["origins"] = {kind: one.origins for kind, one in features.items()}
            values = {kind: one.values for kind, one in features.items()}
            predictions, further = comparison.heads_compared(values, patches, train, layers, **named, **given)
        else:
            recipe = Recipe(**given, targets=settings.targets, batch_norm=settings.batch_norm)
            options: Any = {"size": settings.size, "recipe": recipe}
            options["preprocessing"] = "raw" if settings.inputs == "raw" else None
            predictions, further = comparison.fine_tuned(
                network, name, patches, train, layers, folder / "training", **options
            )
        models = _models(settings, name, network, Counter(layers.values()).most_common(1)[0][0])
        parts += [("predictions", predictions), ("models", models)]
        parts.append(("sweep" if head else "learning", further))
    tables = stacked(parts)
    scores = metrics.scores(tables["predictions"], np.unique(patches.column("magnification")))
    called = scores["weights"].where(scores["model"] != "scratch", "random (" + scores["weights"] + ")")
    return {
        "transfer": scores.assign(weights=called).drop(columns="model"),
        "comparisons": metrics.compare_models(tables["predictions"], scores),
        **tables,
        "magnifications": _magnifications(patches),
        "left_out": pd.DataFrame(skipped, columns=[*Skipped._fields])
        .groupby("reason", as_index=False)
        .agg(number=("name", "size"), example=("name", "first")),
    }


def _cut(settings: Settings, name: str, network: Network) -> str | None:
    """The layer to cut at; None if it is to be chosen on the training part."""
    if settings.chosen_by == "target":
        return None
    layer, layers = settings.layer, comparison.cut_layers(network)
    if settings.chosen_by == "scale":
        layer = selected_layer(
            Path(settings.scores) / "summary.json", network.architecture.name, name, "ridge"
        )
    check_layer(network.architecture, layer, layers[-1])
    if layer not in layers:
        raise ValueError(f"A regression head cannot follow {layer}; choose one of {', '.join(layers)}.")
    return layer


def _source(settings: Settings) -> ImageSet:
    if settings.data == TISSUE:
        return tissue.regions(settings.regions, settings.seed, size=settings.region_size)
    return annotated(instances(settings.data), settings.magnification)


def _patches(settings: Settings, source: ImageSet, folder: Path) -> ImageSet:
    if not folder.exists():
        names = ("size", "magnifications", "labels", "stride", "limit")
        prepare_patches(source, folder, **{name: getattr(settings, name) for name in names})
    return open_patches(folder)


def _features(
    settings: Settings, name: str, network: Network, condition: str, patches: ImageSet, folder: Path
) -> Features:
    """Features of every layer at which the network can be cut, the whole last."""
    layers = comparison.cut_layers(network)
    if condition != "trained":
        network = random_network(network, settings.seed)
    if settings.inputs == "raw":
        network = network._replace(card=dataclasses.replace(network.card, preprocessing="raw"))
    options: Any = {"size": settings.size, "batch_size": settings.batch_size}
    options |= {"dtype": getattr(jnp, settings.dtype), "progress": f"{name} {condition}"}
    features = cached_features(
        folder / "features" / f"{name}-{condition}.npz",
        partial(compute_features, network, patches, layers, **options),
    )
    if features.skipped:
        first = features.skipped[0]
        raise ValueError(
            f"{len(features.skipped)} patches cannot be read, such as {first.name}: {first.detail}; delete {folder / 'patches'} "
            "to cut them again."
        )
    return features


def _models(settings: Settings, name: str, network: Network, layer: str) -> pd.DataFrame:
    rows = []
    for model, last in zip(("whole", "pruned"), (comparison.whole_layer(network), layer), strict=True):
        start = comparison.starting_point(network, model, layer, settings.seed)
        rows.append((model, last, *measure_cost(start.module, start.variables, settings.size)))
    frame = pd.DataFrame(rows, columns=["model", "layer", "parameters", "flops"])
    named = {"architecture": network.architecture.name, "weights": name}
    return labelled(frame, **named)


def _magnifications(patches: ImageSet) -> pd.DataFrame:
    frame = patches.table[["magnification", "group", "area"]].rename(columns={"magnification": "kind"})
    each = frame.sort_values("kind", kind="stable").assign(kind=lambda rows: rows["kind"].map("{:g}".format))
    groups = pd.concat([frame.assign(kind="all"), each]).groupby("kind", sort=False)
    counts = groups.agg(
        patches=("area", "size"), sources=("group", "nunique"), area=("area", "mean"), sd=("area", "std")
    )
    return counts.reset_index(names="magnification")
