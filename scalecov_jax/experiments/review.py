"""Does a vector mean its concept, and what does a layer add? Alignment, robustness, steering, controls and shares of variance.

docs/review.md has the definitions, and what was expected of the numbers before they were computed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from scalecov_jax.checkpoints import Network, load_networks, random_network
from scalecov_jax.concepts.compute import check_measures, measure_all
from scalecov_jax.concepts.measure import get_measures
from scalecov_jax.evidence import weigh
from scalecov_jax.experiments import review_maths as maths
from scalecov_jax.extraction import cached_features, compute_features
from scalecov_jax.imaging import scenes
from scalecov_jax.imaging.copies import with_copies_together
from scalecov_jax.imaging.image_set import Example, ImageSet, image_set
from scalecov_jax.imaging.sources import SCENES, open_images
from scalecov_jax.models.architecture import available_layers, check_layer
from scalecov_jax.probes import review
from scalecov_jax.probes.splits import grouped_splits
from scalecov_jax.report import plots
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.numbers import interval
from scalecov_jax.report.page import Page, Section, Table, render_text
from scalecov_jax.settings import Base, setting, together
from scalecov_jax.tables import labelled, rows_of

BRIGHTER = 1.2
SHIFT = 0.04  # of height and width


@dataclass(frozen=True)
class Settings(Base):
    """What determines the results."""

    title: str = setting("What a reviewer would ask of a concept vector", help="Heading of the report.")
    weights: str = setting("checkpoints/resnet50", least=1, help="Folder of the checkpoint.")
    images: str = setting(SCENES, least=1, help="scenes, or images with boxes or masks by name or folder.")
    image_class: str = setting("", help="Their class; of scenes all when empty.")
    count: int = setting(20, low=1, help="Scenes of each class.")
    limit: int = setting(0, low=0, help="Images, evenly spread over the list; all when 0.")
    layers: tuple[str, ...] = setting((), help="Layers to review; all when empty.")
    concept: str = setting("scale", least=1, help="Concept measure whose vectors are reviewed.")
    beside: tuple[str, ...] = setting(
        ("colourfulness", "mean_luminance", "box_centre_x", "box_centre_y"),
        help="Concept measures with which it may be entangled.",
    )
    splits: int = setting(25, low=2, help="Random splits for R2.")
    halvings: int = setting(10, low=1, help="Random halves for gains.")
    orders: int = setting(8, low=1, help="Random orders for code lengths.")
    growing: int = setting(3, low=2, help="Objects of each class of scenes that are rendered larger.")
    seed: int = setting(0, low=0, help="Of scenes, splits, orders, projections and random weights.")
    batch_size: int = setting(16, low=1, help="Images per forward pass.")

    def problems(self) -> list[str]:
        """One concept twice, or a single layer."""
        found = []
        if self.concept in self.beside or len({*self.beside}) < len(self.beside):
            found.append(
                f"beside is {', '.join(self.beside)}; expected different concepts, and not {self.concept}"
            )
        if len(self.layers) == 1:
            found.append(
                f"layers has {self.layers[0]} alone; expected at least two, to say what one adds to others"
            )
        return found


def check(settings: Settings) -> dict[str, Network]:
    """The network, by the name of its folder.

    Raises:
        ValueError: No network, layers that it has not, unknown concepts, images that cannot be opened; says all.
    """

    def fits(_: str, network: Network) -> None:
        together(*(partial(check_layer, network.architecture, layer) for layer in settings.layers))

    networks, *_ = together(
        lambda: load_networks([settings.weights], check=fits),
        lambda: get_measures((settings.concept, *settings.beside)),
        lambda: _open(settings),
    )
    return networks


def _open(settings: Settings) -> ImageSet:
    found = open_images(settings.images, settings.image_class, count=settings.count, seed=settings.seed)
    return with_copies_together(found.spread(settings.limit))


def run(settings: Settings, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Review every layer; features/ in the folder keeps features.

    Returns:
        review: a row per layer and quantity, see docs/review.md: columns architecture, weights, layer, concept, quantity, value,
        low, high (95 %). entanglement: a row per layer and ordered pair of concepts.

    Raises:
        ValueError: See `check`; concepts that cannot be measured; images without box or mask.
    """
    ((name, network),) = check(settings).items()
    layers, source = (
        [*settings.layers] or [*available_layers(network.architecture, network.module)],
        _open(settings),
    )
    concepts = (settings.concept, *settings.beside)
    measured = measure_all(get_measures(concepts), source, progress="measures")
    source, groups, measures = source.take(measured.indices), [*measured.groups], measured.values
    for column in measures.T:
        check_measures(column, measured.names)
    objects = np.stack([maths.object_on_grid(source[index]) for index in range(len(source))])

    def features(what: str, one: Network, images: ImageSet) -> dict[str, np.ndarray]:
        path = folder and folder / "features" / f"{what}.npz"
        options = {"batch_size": settings.batch_size, "progress": what}
        return dict(cached_features(path, lambda: compute_features(one, images, layers, **options)).values)

    phi = features("trained", network, source)
    untrained = features("untrained", random_network(network, settings.seed), source)
    changed = {kind: features(kind, network, source.map(change)) for kind, change in CHANGES.items()}
    grown = None
    if settings.images == SCENES:
        growing = _growing(settings)
        grown = maths.Grown(
            features("growing", network, growing),
            measure_all(get_measures(concepts[:1]), growing).values[:, 0],
        )
    splits = grouped_splits(groups, settings.splits, settings.seed)
    known = weigh(phi, measures, concepts, splits, groups=groups, random_weights=untrained)
    y = measures[:, 0]
    halves = grouped_splits(groups, settings.halvings, settings.seed + 1, 0.5)
    fits = {layer: review.fit_halves(values, y, halves) for layer, values in phi.items()}
    sample = maths.Sample(groups, y, phi, fits)
    tables = [
        *maths.readings(
            sample, known, splits, maths.pixels_of(source, phi, settings.seed), settings.orders, settings.seed
        ),
        *maths.robustness(sample, changed),
        *maths.steering(sample, grown),
        *maths.layers(sample, known, settings.seed),
        *maths.alignment(sample, network, source, objects, settings.batch_size),
    ]
    columns = {"architecture": network.architecture.name, "weights": name}
    reviewed = pd.DataFrame(tables, columns=["layer", "quantity", "value", "low", "high"])
    reviewed.insert(1, "concept", settings.concept)
    return {
        "review": labelled(reviewed, **columns),
        "entanglement": labelled(
            maths.entanglement(phi, measures, concepts, splits, groups, known), **columns
        ),
    }


def flip(example: Example) -> Example:
    """Mirrored left to right."""
    return example._replace(image=np.ascontiguousarray(example.image[:, ::-1]))


def brighten(example: Example) -> Example:
    """`BRIGHTER` times as bright, cut off at 255."""
    brighter = np.minimum(BRIGHTER * example.image.astype(np.float32), 255).round()
    return example._replace(image=brighter.astype(np.uint8))


def shift(example: Example) -> Example:
    """Moved down and to the right by `SHIFT` of height and width, the edges repeated."""
    height, width = example.image.shape[:2]
    moved = ((round(SHIFT * height), 0), (round(SHIFT * width), 0), (0, 0))
    return example._replace(image=np.pad(example.image, moved, "edge")[:height, :width])


CHANGES: dict[str, Callable[[Example], Example]] = {"flip": flip, "brightness": brighten, "shift": shift}


def _growing(settings: Settings) -> ImageSet:
    names = [settings.image_class] if settings.image_class else scenes.CLASSES
    return image_set(
        one for name in names for one in scenes.growing(name, settings.growing, maths.RATIOS, settings.seed)
    )


# Report

SHOWN = ("r2", "untrained_r2", "random_projection_r2", "code_gain", "ap_filter", "ap_pattern", "ap_other", "shift", "gain_filter",
         "gain_pattern", "true_gain", "unique_r2", "added_r2")  # fmt: skip


def report(settings: Settings, tables: Mapping[str, pd.DataFrame], folder: Path | None = None) -> Page:
    """Findings at the layer of highest R2, one figure and one table."""
    frame = tables["review"]
    layers = list(frame["layer"].unique())
    r2 = rows_of(frame, quantity="r2").set_index("layer")["value"]
    best = str(r2.idxmax())
    findings = []
    for _, row in rows_of(frame, layer=best).iterrows():
        low, high = (None if pd.isna(row[end]) else row[end] for end in ("low", "high"))
        level = "headline" if row["quantity"] in ("r2", "ap_pattern", "gain_pattern") else "result"
        what = f"{row['quantity']} of {settings.concept}"
        findings.append(Finding(what, best, row["value"], low, high, "95 % interval", level=level))
    drawn = frame[frame["quantity"].isin(["ap_filter", "ap_pattern", "ap_other", "ap_chance"])]
    image = plots.curves(
        drawn.rename(columns={"layer": "x", "quantity": "series"}),
        x="layer, from input to output",
        y="average precision",
        name="review",
        caption="How well the maps of both vectors find the object, and the object of another image; bands are 95 % intervals.",
        order=layers,
    )
    columns = {}
    for quantity in SHOWN:
        rows = rows_of(frame, quantity=quantity).set_index("layer")
        if len(rows):
            columns[quantity] = rows.apply(
                lambda row: interval(row["value"], row["low"], row["high"]), axis=1
            )
    table = Table.by_layer(f"{settings.concept}: values with 95 % intervals.", columns, layers, [best])
    reading = render_text("review.html", "reading")
    return Page(settings.title, findings, [Section("Layers", "", [image], [table])], reading)
