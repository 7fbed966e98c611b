"""Is a network indifferent to the size of its images? Section 4.1 of the scale paper: settings, tables and report.

Labelled images are resized to many sizes and classified. What is measured is defined in `resize_maths.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pandas as pd
from absl import logging
from jaxtyping import Int

from scalecov_jax.checkpoints import Network, load_networks
from scalecov_jax.experiments import resize_maths as maths
from scalecov_jax.experiments.resize_maths import ALL, FILLED, MEASURES, REFERENCE, STRIDE, kind_of
from scalecov_jax.imaging import labelled
from scalecov_jax.imaging.decoding import FILTERS, Filter
from scalecov_jax.imaging.folder import enough
from scalecov_jax.imaging.image_set import MIN_IMAGES, ImageSet, count_reasons
from scalecov_jax.imaging.labelled import Square
from scalecov_jax.imaging.scenes import CLASSES
from scalecov_jax.imaging.sources import SCENES
from scalecov_jax.report import plots
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.numbers import interval, number
from scalecov_jax.report.page import Image, Page, Section, Table, render_text
from scalecov_jax.settings import Base, setting, together
from scalecov_jax.tables import network_names, rows_of

# Graziani et al. 2021, section 4.1 and Figure 6: the mean probability of the true class is flat between these sizes, top-5 from
# above the other. The networks of the paper were trained at 224 (ResNet50) and 299 px (InceptionV3).
FLAT = (175, 300)
TOP5 = 200
INPUTS = (224, 299)
FEW = 30  # images, under which an interval is too wide to tell much
MEAN = "the mean probability"


@dataclass(frozen=True)
class Settings(Base):
    """What determines the results."""

    title: str = setting("Is the network indifferent to the size of its images?", help="Of the report.")
    weights: tuple[str, ...] = setting(
        ("checkpoints/resnet50", "checkpoints/inception_v3"), least=1, help="Folders of whole networks."
    )
    images: str = setting(
        SCENES,
        least=1,
        help="scenes, or a folder: with index.csv (columns file and class_index) and the images beside it or in images/, or, as "
        "VOC, with Annotations and JPEGImages, for which class_indices are needed.",
    )
    class_indices: str = setting("", help="Annotated:network class, as in n02058221:146,n04037443:751.")
    scenes: int = setting(20, low=1, help="Scenes of each of the 16 classes.")
    scene_size: int = setting(256, low=8, help="Pixels at which scenes are rendered, before resizing.")
    sizes: tuple[int, ...] = setting(
        (75, 96, 112, 128, 129, 144, 160, 192, 224, 256),
        low=1,
        least=2,
        distinct=True,
        help="Heights and widths in pixels; the embedded networks were trained at 128.",
    )
    filters: tuple[Filter, ...] = setting(FILTERS, least=1, help="Pillow's filters of resizing.")
    square: Square = setting("crop", help="The central square, or the whole image, distorted by stretching.")
    filled: float = setting(
        0.6,
        low=0,
        high=1,
        help="Part of the image that the box of a filled image covers; few scenes have more.",
    )
    limit: int = setting(0, low=0, help="Images, evenly spread over the list; all when 0.")
    seed: int = setting(2026, low=0, help="Of the scenes (not the training's) and of the bootstrap.")
    batch_size: int = setting(16, low=1, help="Images per forward pass.")
    dtype: Literal["float32", "bfloat16"] = setting("float32", help="Of the forward pass alone.")

    def problems(self) -> list[str]:
        """A box that covers nothing, and a limit below the images that are needed."""
        filled = f"filled is {self.filled}; expected a part of the image such as 0.8"
        limit = f"limit is {self.limit}; expected 0 or at least {MIN_IMAGES}"
        return [filled] * (self.filled == 0) + [limit] * (0 < self.limit < MIN_IMAGES)


def check(settings: Settings) -> dict[str, Network]:
    """The networks by the names of their folders; renders and decodes no image.

    Raises:
        ValueError: Folders that hold no network, or no whole one, two of one name, sizes that a network cannot take; images that
            cannot be read, too few of them, labels that are no class of a network. Says all.
    """
    labels = pd.DataFrame(columns=["name", "label"])

    def open_labels() -> None:
        nonlocal labels
        scenes = pd.DataFrame({"name": CLASSES, "label": CLASSES})
        labels = scenes if settings.images == SCENES else _open(settings).table

    def fits(name: str, network: Network) -> None:
        _truth(network, name, labels, settings)
        maths.check_sizes(network, name, settings.sizes)

    return together(open_labels, lambda: load_networks(settings.weights, check=fits))[1]


def run(settings: Settings, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Classify the same images at many sizes.

    classified/ in the folder keeps two numbers per image, network, size and filter.

    Returns:
        resize, curves, plateaus, filters and grid, see `resize_maths`; networks: weights, architecture, input_size (pixels);
        images: image, width and height (pixels, after squaring), left_out (why, else empty), detail.

    Raises:
        ValueError: See `check`; no image can be decoded.
    """
    networks, images = check(settings), _open(settings)
    for reason, count in count_reasons(images.skipped).items():
        logging.info("Left out: %d x %s.", count, reason)
    groups = maths.group_images(images, settings.filled)
    parts, skipped = [], dict.fromkeys(images.skipped)
    for name, network in networks.items():
        truth, options = _truth(network, name, images.table, settings), {}
        options["sizes"] = sorted(settings.sizes)
        options["filters"] = [name for name in FILTERS if name in settings.filters]
        options |= {"batch_size": settings.batch_size, "dtype": getattr(jnp, settings.dtype)}
        options |= {"cache": folder and folder / "classified"}
        part, unread = maths.classify(network, name, images, truth, groups, **options)
        parts.append(part)
        skipped |= dict.fromkeys(unread)
    rows = pd.concat(parts, ignore_index=True)
    trained_at = {name: network.card.input_size for name, network in networks.items()}
    cards = [(name, network.architecture.name, trained_at[name]) for name, network in networks.items()]
    classified = {*rows["image"]}
    used = images.table.loc[images.table["name"].isin(classified), ["name", "width", "height"]]
    listed = [(*row, "", "") for row in used.itertuples(index=False)]
    listed += [(skip.name, np.nan, np.nan, skip.reason, skip.detail) for skip in skipped]
    return {
        "resize": rows,
        "curves": maths.curves(rows, settings.seed),
        "plateaus": maths.plateaus(rows, trained_at, settings.seed),
        "filters": maths.filter_differences(rows, settings.seed),
        "grid": maths.grid_losses(rows, trained_at, settings.seed),
        "networks": pd.DataFrame(cards, columns=["weights", "architecture", "input_size"]),
        "images": pd.DataFrame(listed, columns=["image", "width", "height", "left_out", "detail"]),
    }


def _open(settings: Settings) -> ImageSet:
    rendered = {"count": settings.scenes, "seed": settings.seed, "size": settings.scene_size}
    images = labelled.open_labelled(settings.images, settings.class_indices, **rendered)
    return enough(labelled.squared(images, settings.square).spread(settings.limit), settings.images)


def _truth(network: Network, name: str, labels: pd.DataFrame, settings: Settings) -> Int[np.ndarray, " N"]:
    """The class of each image, as an output of the network."""
    classes, class_names = maths.classes_of(network, name), network.card.class_names
    if settings.images == SCENES and not class_names and classes == len(CLASSES):
        class_names = CLASSES  # trained on scenes without saying so: their order is the only one there is
    return labelled.class_indices(labels, classes, class_names, name)


# Report


class _Report:
    """The tables of one network, and what is reported of it.

    Attributes:
        filter: Of the curves that are compared with the published ones.
        groups: Of images, all first.
        scaled: Whether the network was trained at another size than those of the paper.
        published: Ends of the published plateau and start of top-5's (pixels); in proportion where scaled.
    """

    def __init__(self, weights: str, tables: Mapping[str, pd.DataFrame]):
        self.weights, self.name = weights, network_names(tables["networks"])[weights]
        self.input_size: int = _row(rows_of(tables["networks"], weights=weights))["input_size"]
        self.curves, self.plateaus, self.differences, self.losses = (
            rows_of(tables[name], weights=weights) for name in ("curves", "plateaus", "filters", "grid")
        )
        self.filter, self.groups = maths.reference_filter(self.curves), [*self.curves["group"].unique()]
        self.scaled = self.input_size not in INPUTS
        scale = self.input_size / INPUTS[0] if self.scaled else 1.0
        self.published = tuple(round(size * scale) for size in (*FLAT, TOP5))

    def points(self, group: str, *, every: bool = False) -> pd.DataFrame:
        """A curve at the sizes in which plateaus are sought, or at every size."""
        points = rows_of(self.curves, group=group, filter=self.filter)
        counted = maths.counted(points["size"].tolist(), self.input_size)
        return points if every else points[points["size"].isin(counted)]

    def plateau(self, group: str, measure: str) -> dict[Any, Any]:
        return _row(rows_of(self.plateaus, group=group, filter=self.filter, measure=measure))

    def findings(self) -> Iterator[Finding]:
        """The claims of section 4.1 for all images and for the filled ones; the cost of the grid and of the filters."""
        for group in self.groups:
            if kind_of(group) in (ALL, FILLED):
                yield from self.claims(group, f"{self.name}, {kind_of(group)} images")
        losses, differences = self.losses, self.differences
        at = f"{self.name}, all images"
        for worst in losses.sort_values("loss").tail(1).to_dict("records"):
            quantity = f"largest loss of {MEAN} off the training's grid"
            shown, mean = (losses["low"] > 0).sum(), number(losses["loss"].mean(), 3)
            note = f"At {worst['size']} px; shown at {shown} of {len(losses)} such sizes, mean {mean}."
            yield _estimate(quantity, at, worst, ("loss", "low", "high"), note=note, digits=3)
        for most in differences.sort_values("difference", key=np.abs).tail(1).to_dict("records"):
            quantity = f"largest difference of a filter to {REFERENCE} in {MEAN}"
            shown = ((differences["low"] > 0) | (differences["high"] < 0)).sum()
            note = f"With {most['filter']} at {most['size']} px; shown at {shown} of {len(differences)} filters and sizes."
            yield _estimate(quantity, at, most, ("difference", "low", "high"), note=note, digits=3)

    def claims(self, group: str, at: str) -> Iterator[Finding]:
        """Where the curves of a group are flat, published and ours, and how right the network is at the size of its training."""
        flat, _, top5 = (self.plateau(group, measure) for measure in MEASURES)
        first, last, top5_first = self.published
        source = "section 4.1, Figure 6" + self.scaled * f", in proportion to {self.input_size} px"
        main = "headline" if group == ALL else "result"
        for quantity, plateau, end, limit, published in (
            (f"smallest size at which {MEAN} is flat", flat, "first", "smallest", first),
            (f"largest size at which {MEAN} is flat", flat, "last", "largest", last),
            ("smallest size at which top-5 is flat", top5, "first", "smallest", top5_first),
        ):
            notes = [f"This is the {limit} size counted."] if plateau[end] == plateau[limit] else []
            if not plateau["smallest"] <= published <= plateau["largest"]:
                notes.append("The published size lies outside the sizes counted.")
            known: dict[str, Any] = {"published": float(published), "source": source, "note": " ".join(notes)}
            known |= {"unit": "px", "digits": 0, "level": main if plateau is flat else "result"}
            yield Finding(quantity, at, float(plateau[end]), **known)
        inside = self.points(group).query("@first <= size <= @last").sort_values("probability", kind="stable")
        for worst in inside.head(1).to_dict("records"):
            quantity = f"largest loss of {MEAN} between {first} and {last} px"
            note = f"At {worst['size']} px, against {flat['best']} px."
            value = flat["value"] - worst["probability"]
            yield Finding(quantity, at, value, published="none visible", source=source, note=note)
        every = self.points(group, every=True)
        trained = _row(every.iloc[(every["size"] - self.input_size).abs().argsort(kind="stable")])
        size = f"at {trained['size']} px"
        yield _estimate(f"{MEAN} {size}", at, trained, _ends("probability"), level=main)
        for measure, name in (("top1", "top-1"), ("top5", "top-5")):
            yield _estimate(f"{name} {size}", at, trained, _ends(measure), 100, unit="%", digits=1)

    def section(self, settings: Settings) -> Section:
        points = self.points(ALL, every=True)
        text = render_text(
            "resize.html",
            "description",
            settings=settings,
            network=self,
            images=int(points["images"].iloc[0]),
            sizes=points["size"].tolist(),
            counted=self.points(ALL)["size"].tolist(),
            stride=STRIDE,
        )
        figures = [self.figure("filter", rows_of(self.curves, group=ALL), "with each filter, all images")]
        if len(self.groups) > 1:
            grouped = rows_of(self.curves, filter=self.filter)
            figures.append(self.figure("group", grouped, f"of each group of images, {self.filter}"))
        return Section(f"Resizing: {self.name}", "", figures, [self.by_size(), self.by_group()], text)

    def figure(self, series: str, curves: pd.DataFrame, what: str) -> Image:
        """Mean probability above, top-5 below, against the size.

        Source: Graziani et al. 2021, Figure 6.
        """
        parts = []
        for measure, panel in (
            ("probability", "mean probability of the true class"),
            ("top5", "share of images with it among the first five"),
        ):
            part = curves[[series, "size", *_ends(measure)]]
            parts.append(part.set_axis(["series", "x", "value", "low", "high"], axis=1).assign(panel=panel))
        frame = pd.concat(parts, ignore_index=True)
        flat = f"mean probability flat as published, {FLAT[0]}–{FLAT[1]} px"
        return plots.curves(
            frame.assign(hollow=(frame["x"] - self.input_size) % STRIDE != 0),
            x="height and width of the image, px",
            y="probability or share",
            name=f"{self.weights}-{series}s",
            caption=f"Against the size, {what}. Bands: 95 % intervals over images. Filled markers: on the training's grid.",
            limits=(0.0, 1.0),
            shaded={} if self.scaled else {flat: (float(FLAT[0]), float(FLAT[1]))},
            marks={f"trained at {self.input_size} px": float(self.input_size)},
        )

    def by_size(self) -> Table:
        """The curves of all images, and the filters."""
        points, flat = self.points(ALL, every=True), self.plateau(ALL, "probability")
        columns = {"size, px": points["size"].astype(str).tolist()}
        for name, measure, factor, digits in (
            ("mean probability", "probability", 1, 3),
            ("top-1, %", "top1", 100, 1),
            ("top-5, %", "top5", 100, 1),
        ):
            values = (factor * points[_ends(measure)]).to_numpy().tolist()
            columns[name] = [interval(*row, digits=digits) for row in values]
        for name, rows in self.differences.groupby("filter", sort=False):
            values = rows[["difference", "low", "high"]].to_numpy(float).tolist()
            columns[f"{name} − {REFERENCE}"] = [interval(*row, digits=3) for row in values]
        counted = points["size"].isin(self.points(ALL)["size"])
        strong = np.flatnonzero(counted & points["size"].between(flat["first"], flat["last"])).tolist()
        caption = (
            f"All images, {self.filter}; and what other filters add to the mean probability of the same images. 95 % intervals. "
            "Emphasised: where the mean probability is flat."
        )
        return Table(caption, (*columns,), [*zip(*columns.values(), strict=True)], strong)

    def by_group(self) -> Table:
        """Where the curves of each group are flat."""
        rows = []
        for group in self.groups:
            points = self.points(group)
            flat, top1, top5 = (self.plateau(group, measure) for measure in MEASURES)
            at = int(points["probability"].to_numpy().argmax())
            overlapping = (points["probability_high"] >= points["probability_low"].iloc[at]).to_numpy()
            first, last = points["size"].iloc[[*maths.run_around(overlapping, at)]]
            best, count = f"{number(flat['value'])} at {flat['best']} px", str(points["images"].iloc[0])
            rows.append((group, count, best, _span(flat), f"{first} to {last} px", _span(top1), _span(top5)))
        columns = ("images", "count", "best mean", "mean flat", "by overlap", "top-1 flat", "top-5 flat")
        caption = (
            f"Sizes at which mean probability and shares are flat, {self.filter}. By overlap: those whose interval of the "
            "mean overlaps with that of the best, as it would be read off a figure."
        )
        return Table(caption, columns, rows)


def report(settings: Settings, tables: Mapping[str, pd.DataFrame], folder: Path | None = None) -> Page:
    """Findings, cautions, and for each network its figures and tables."""
    networks = [_Report(weights, tables) for weights in tables["networks"]["weights"]]
    findings = [finding for network in networks for finding in network.findings()]
    sections = [network.section(settings) for network in networks]
    left = tables["images"].query("left_out != ''").sort_values(["left_out", "image"])
    if len(left):
        cells = left[["image", "left_out", "detail"]].to_numpy().tolist()
        table = Table("By reason.", ("image", "reason", "detail"), cells)
        sections.append(Section("Images left out", "", tables=[table]))
    reading = render_text("resize.html", "reading")
    return Page(settings.title, [*findings, *_cautions(settings, tables)], sections, reading)


def _cautions(settings: Settings, tables: Mapping[str, pd.DataFrame]) -> list[Finding]:
    """Few images, images enlarged or distorted, and images left out."""
    images, largest = tables["images"], max(settings.sizes)
    left, used = images[images["left_out"] != ""], images[images["left_out"] == ""]
    sides = used[["width", "height"]].min(axis=1)
    counts = tables["curves"].groupby("group", sort=False)["images"].first()
    few = counts[counts < FEW]
    groups = f"Intervals are wide and plateaus long: {', '.join(few.index)}."
    detail = (
        f"Their shorter sides begin at {sides.min():.0f} px; half of all images have at least {sides.median():.0f} px. Beyond "
        "its own size, resizing an image adds pixels and no detail."
    )
    stretched = used[used["width"] != used["height"]]
    rows = (
        (f"number of groups of fewer than {FEW} images", few, groups),
        (f"number of images smaller than the largest size, {largest} px", used[sides < largest], detail),
        ("number of images stretched to a square", stretched, "This distorts them."),
        ("number of images left out", left, "The last table names them."),
    )
    at = f"{len(used)} images classified"
    return [
        Finding(quantity, at, float(len(chosen)), note=note, level="caution", digits=0)
        for quantity, chosen, note in rows
        if len(chosen)
    ]


def _row(frame: pd.DataFrame) -> dict[Any, Any]:
    return frame.head(1).to_dict("records")[0]


def _estimate(
    quantity: str, at: str, row: Mapping[Any, Any], ends: Sequence[str], factor: int = 1, **more: Any
) -> Finding:
    """The number and its interval in these columns of a row, times `factor`."""
    value, low, high = (factor * row[end] for end in ends)
    return Finding(quantity, at, value, low, high, "95 % over images", **more)


def _ends(column: str) -> list[str]:
    return [column, f"{column}_low", f"{column}_high"]


def _span(plateau: Mapping[str, Any]) -> str:
    """The sizes of a plateau; `or less` and `or more` where it reaches the ends of the sizes counted."""
    first, last = plateau["first"], plateau["last"]
    high = f"{last} px{' or more' if last == plateau['largest'] else ''}"
    low = f"{first}{' or less' if first == plateau['smallest'] else ''}"
    return f"{low} to {high}" if first < last else f"{high} only"
