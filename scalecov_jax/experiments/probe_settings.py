"""What is probed, on which images, and how: the settings of the main experiment, and what they name."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Bool, Float

from scalecov_jax.cache import FeatureStore
from scalecov_jax.checkpoints import Network
from scalecov_jax.concepts.compute import Measured, check_measures, measure_all
from scalecov_jax.concepts.measure import csv_parts, get_measures
from scalecov_jax.extraction import POOLINGS, Pooling, check_request
from scalecov_jax.imaging import sources
from scalecov_jax.imaging.copies import with_copies_together
from scalecov_jax.imaging.folder import enough
from scalecov_jax.imaging.image_set import ImageError, ImageSet, Skipped, Source
from scalecov_jax.imaging.scenes import check_class
from scalecov_jax.imaging.sources import RETINA, SCENES
from scalecov_jax.models.architecture import ARCHITECTURES, available_layers, check_layer, get_architecture
from scalecov_jax.models.folding import folded
from scalecov_jax.models.receptive_field import undefined_layers
from scalecov_jax.probes import sample_size
from scalecov_jax.probes.permutation import Permuted
from scalecov_jax.probes.probe import PROBES
from scalecov_jax.probes.route import Asked
from scalecov_jax.probes.splits import Kind, make_splits
from scalecov_jax.settings import Base, setting

NO_CLASS = "images"  # the name of the images where they have no classes


@dataclass(frozen=True)
class Settings(Base):
    """What determines the results."""

    title: str = setting("", help="Heading of the report; of the concept when empty.")
    architecture: str = setting("", help="What all weights must hold, such as resnet50; anything when empty.")
    weights: tuple[str, ...] = setting(
        ("checkpoints/inception_v3", "checkpoints/resnet50"),
        help="Checkpoint folders, made by scripts/port_weights.py, pretrain.py or prune.py.",
    )
    features: str = setting(
        "",
        help="In place of weights and images a file of features, .h5, .h5ad, .parquet, .npz or .npy, or a folder with one file "
        "per layer (docs/bring_your_own.md).",
    )
    images: str = setting(
        "scenes",
        help="A folder of images, plain or in VOC layout, tfds:DATA_DIR, annotated:FOLDER (its images with "
        "annotated nuclei, docs/bring_your_own.md), slides:FOLDER (tiles of whole slides), or scenes.",
    )
    image_class: tuple[str, ...] = setting(
        ("striped_disc", "ringed_star", "checkered_triangle"),
        least=1,
        distinct=True,
        help="Names such as car.",
    )
    concept: tuple[str, ...] = setting(
        ("scale",),
        least=1,
        distinct=True,
        help="What is read: names of docs/measures.md or csv:PATH:COLUMN; the first decides where to cut.",
    )
    mpp: tuple[float, ...] = setting(
        (),
        low=1e-3,
        high=10,
        distinct=True,
        help="Microns per pixel to which images are brought, each image to every one of several; as they are when empty.",
    )
    patch: int = setting(
        0,
        low=0,
        help="Height and width of squares to cut of images, in pixels; whole when 0 (of slides 256).",
    )
    scenes: int = setting(447, low=1, help="Images of each class where they are rendered.")
    layers: tuple[str, ...] = setting((), help="Layers to probe; all with a defined pooling when empty.")
    pooling: Pooling = setting(
        "gap",
        help="Of maps to features: gap, max, corrected_gap (the mean over the pixels that no padding reaches), or your own; of "
        "tokens: gap, max, cls, mean_patch or cls_mean.",
    )
    input_size: int = setting(299, low=1, help="Width of images in pixels; published: 299 for both networks.")
    splitting: Kind = setting("auto", help="Of splits; auto: random, or grouped where images share a group.")
    groups: str = setting(
        "",
        help="Patients or slides, csv:PATH:COLUMN, kept together in splits, intervals and tests; those of the images when empty.",
    )
    splits: int = setting(25, low=1, help="Splits or folds.")
    seed: int = setting(
        0, low=0, help="Of splits, permutations, random weights, scenes and projected pixels."
    )
    n_train: tuple[int, ...] = setting((), low=2, help="Training parts, such as 64,128,256, to show the dip.")
    alpha_min: float = setting(0.1, help="Smallest penalty of ridge.")
    alpha_max: float = setting(1e6, help="Largest penalty of ridge.")
    alphas: int = setting(15, low=1, help="Penalties to choose from, equally spaced in logarithm.")
    probes: tuple[str, ...] = setting(
        (),
        help="Beside ols and ridge: kernel_ridge, local_ridge, logistic (of measures that are 0 or 1), or your own.",
    )
    permutations: int = setting(1000, low=0, help="Of the measures, for p values: 0, or at least 19.")
    nuisances: tuple[str, ...] = setting(
        ("mean_red", "mean_green", "mean_blue", "box_centre_x", "box_centre_y"),
        help="Measures that should not matter.",
    )
    pixels: bool = setting(True, help="Whether to compare with what a probe reads from the pixels.")
    route: Asked = setting(
        "auto",
        help="Features in memory, or many images streamed in folds (docs/streaming.md); auto chooses and says why.",
    )
    flush: int = setting(500, low=1, help="Batches after which a streamed run saves what it has summed.")
    workers: int = setting(0, low=0, help="Processes that decode images of a streamed run; 0 for threads.")
    batch_size: int = setting(32, low=1, help="Images per forward pass.")
    dtype: Literal["float32", "bfloat16"] = setting("float32", help="Of the forward pass alone.")
    cache: str = setting(
        "",
        help="Folder that keeps features of single images for other runs, such as ~/.cache/scalecov_jax; none when empty.",
    )
    cache_gb: float = setting(10.0, help="Its size; what was not used for longest goes first.")

    def problems(self) -> list[str]:
        """Penalties, permutations, groups and a cache that cannot be; measures, probes and families that are not known."""
        problems = self._of_features() if self.features else []
        for field, given in (("weights", self.weights), ("images", self.images)):
            if not given and not self.features:
                problems.append(f"{field} is ''; expected at least 1 value")
        if not 0 < self.alpha_min <= self.alpha_max:
            problems.append(
                f"alpha_min is {self.alpha_min} and alpha_max {self.alpha_max}; expected 0 < alpha_min <= alpha_max"
            )
        if 0 < self.permutations < 19:
            problems.append(
                f"permutations is {self.permutations}; expected 0 for none, or at least 19, such as 1000"
            )
        if self.cache and self.cache_gb <= 0:
            problems.append(f"cache_gb is {self.cache_gb}; expected more than 0")
        if self.groups and not all(self.group_column):
            problems.append(
                f"groups is {self.groups!r}; expected csv:PATH:COLUMN, as in csv:patients.csv:patient"
            )
        if self.pooling not in POOLINGS:
            problems.append(f"pooling is {self.pooling!r}; expected one of {', '.join(POOLINGS)}")
        if unknown := [name for name in self.probes if name not in PROBES]:
            problems.append(f"probes: There is no probe {', '.join(unknown)}; there are {', '.join(PROBES)}")
        for field, names in (("concept", self.concept), ("nuisances", self.nuisances)):
            try:
                get_measures(names)
            except ValueError as error:
                problems.append(f"{field}: {str(error).rstrip('.')}")
        if twice := {*self.concept} & {*self.nuisances}:
            problems.append(f"nuisances: {', '.join(sorted(twice))} is a concept as well")
        if self.architecture and self.architecture not in ARCHITECTURES:
            try:
                get_architecture(self.architecture)
            except ValueError as error:
                problems.append(f"architecture: {str(error).rstrip('.')}")
        return problems

    def _of_features(self) -> list[str]:
        """What asks for networks or images where there are features alone."""
        problems = [
            f"{field} is {given!r} beside features; leave it empty"
            for field, given in (("weights", ",".join(self.weights)), ("images", self.images))
            if given
        ]
        if measured := [name for name in self.concept if not all(csv_parts(name))]:
            problems.append(f"concept: {', '.join(measured)} of features; expected csv:PATH:COLUMN")
        if self.route == "streamed":
            problems.append("route is 'streamed'; features that are there already stay in memory")
        return problems

    @property
    def csv_nuisances(self) -> tuple[str, ...]:
        """The nuisances that a table holds; others are measured in images."""
        return tuple(name for name in self.nuisances if all(csv_parts(name)))

    @property
    def penalties(self) -> Float[np.ndarray, " A"]:
        """Of ridge."""
        return np.geomspace(self.alpha_min, self.alpha_max, self.alphas)

    def split(self, values: Float[np.ndarray, " N"], groups: Sequence[str]) -> Bool[np.ndarray, "S N"]:
        """Splits of images with these values of the first concept and these groups; see `splits.make_splits`."""
        return make_splits(self.splitting, len(values), self.splits, self.seed, groups=groups, values=values)

    @property
    def group_column(self) -> tuple[str, str]:
        """File and column of the groups; empty where they are not given, or not as csv:PATH:COLUMN."""
        return csv_parts(self.groups)

    @property
    def store(self) -> FeatureStore | None:
        """The cache."""
        return FeatureStore(Path(self.cache).expanduser(), int(self.cache_gb * 1e9)) if self.cache else None

    @property
    def forward(self) -> dict[str, Any]:
        """What the forward passes need beside images and layers."""
        return {
            "size": self.input_size,
            "batch_size": self.batch_size,
            "dtype": getattr(jnp, self.dtype),
            "pooling": self.pooling,
        }


def open_images(settings: Settings) -> tuple[dict[str, ImageSet], list[Skipped]]:
    """The images of each class, in the groups asked for, and those left out.

    Raises:
        ValueError: See `sources.open_images`, `sources.regroup` and `sources.with_values`; what is wrong with all classes.
    """
    opened, skipped, problems = {}, [], []
    rendered = {"count": settings.scenes, "seed": settings.seed, "size": settings.input_size}
    cut: dict[str, Any] = {"mpp": settings.mpp, "patch": settings.patch}
    without = settings.images not in (SCENES, RETINA) and not sources.has_classes(settings.images)
    for image_class in (NO_CLASS,) if without else settings.image_class:
        try:
            images = enough(
                sources.open_images(settings.images, image_class, **rendered, **cut), settings.images
            )
            for path, column in dict.fromkeys(map(csv_parts, (*settings.concept, *settings.nuisances))):
                images = sources.with_values(images, path, column) if path else images
            opened[image_class] = with_copies_together(sources.regroup(images, settings.groups))
        except ValueError as error:
            problems.append(str(error))
            continue
        skipped += images.skipped
    if problems:
        raise ValueError(" ".join(dict.fromkeys(problems)))
    return opened, skipped


def count_images(settings: Settings) -> dict[str, int]:
    """Images of each class; what is rendered is not rendered for it.

    Raises:
        ValueError: See `open_images`.
    """
    if settings.images in (SCENES, RETINA):
        for image_class in settings.image_class if settings.images == SCENES else ():
            check_class(image_class)
        return dict.fromkeys(settings.image_class, settings.scenes)
    return {image_class: len(source) for image_class, source in open_images(settings)[0].items()}


def measure(source: Source, settings: Settings, cache: Path | None) -> Measured:
    """Concept and nuisance measures of a source, before any forward pass.

    Raises:
        ValueError: See `compute.measure_all` and `compute.check_measures`; splits, permutations or training parts that cannot be
            had of these images and groups.
    """
    measured = measure_all(
        get_measures((*settings.concept, *_possible(source, settings.nuisances))),
        source,
        cache=cache and cache / "measures.csv",
        progress="measures",
    )
    measures = measured.values[:, : len(settings.concept)]
    for values in measures.T:
        check_measures(values, measured.names)
    # Refused here and not after the forward passes.
    settings.split(measures[:, 0], measured.groups)
    if settings.permutations:
        Permuted.draw(measures, 1, settings.seed, measured.groups)
    if settings.n_train:
        sample_size.usable_sizes(settings.n_train, len(measured.values))
    return measured


def _possible(source: Source, nuisances: Sequence[str]) -> tuple[str, ...]:
    """The nuisances that images have: of photographs without boxes, not where the box lies."""
    example, missing = None, {}
    for index in range(len(source)):
        with suppress(ImageError):
            example = source[index]
            break
    for one in get_measures([name for name in nuisances if not name.startswith("csv:")]):
        try:
            one.measure(example) if example else None
        except ValueError as error:
            missing.setdefault(str(error).partition(": ")[2].rstrip("."), []).append(one.name)
    for reason, names in missing.items():
        logging.warning("Left out of the nuisances: %s (%s).", ", ".join(names), reason)
    left = {name for names in missing.values() for name in names}
    return tuple(name for name in nuisances if name not in left)


def layers_to_probe(network: Network, settings: Settings) -> tuple[tuple[str, ...], Mapping[str, int | None]]:
    """The layers to probe, and those at which the pooling is not defined.

    Returns:
        The layers; and those left out, with the smallest width of an image at which the pooling is defined there, None where
        it is at none.

    Raises:
        ValueError: A layer that the network has not, images too small for the network, or a pooling that is not defined at a
            layer asked for, or at none.
    """
    known, size = available_layers(network.architecture, network.module), settings.input_size
    pooling = settings.pooling
    if settings.layers or not POOLINGS[pooling].clean:
        layers = tuple(check_layer(network.architecture, layer, known[-1]) for layer in settings.layers)
        check_request(network, layers or known, size, pooling)
        return layers or known, {}
    check_request(network, known, size, "gap")
    undefined = undefined_layers(folded(network.module), size, known)
    defined = tuple(layer for layer in known if layer not in undefined)
    check_request(network, defined or known, size, pooling)
    return defined, undefined
