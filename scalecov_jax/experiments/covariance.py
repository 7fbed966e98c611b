"""Is a network covariant to scale as an operation? Section 3.4 of the scale paper: settings, tables and report.

Probes of size are fitted to independent rendered scenes and read on objects that grow while nothing else changes. What is
measured is defined in `covariance_maths.py`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from scalecov_jax.atomic import write_bytes
from scalecov_jax.checkpoints import Network, load_networks, random_network
from scalecov_jax.concepts.compute import measure_all
from scalecov_jax.concepts.measure import get_measures
from scalecov_jax.experiments import covariance_maths as maths
from scalecov_jax.experiments.covariance_maths import MEASURES, METRICS, Seen
from scalecov_jax.extraction import cached_features, compute_features
from scalecov_jax.imaging import scenes
from scalecov_jax.imaging.decoding import encode_jpeg, resize_image
from scalecov_jax.imaging.image_set import MIN_IMAGES, Example
from scalecov_jax.models.architecture import available_layers, check_layer
from scalecov_jax.models.receptive_field import check_size
from scalecov_jax.report import plots
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.numbers import number
from scalecov_jax.report.page import Image, Page, Section, Table, render_text
from scalecov_jax.scores import Condition, Estimator
from scalecov_jax.selection import interpolates
from scalecov_jax.settings import Base, setting
from scalecov_jax.tables import labelled, network_names, rows_of, stacked

PICTURE = Path("figures", "growing.jpg")  # in the folder of a run
SIDE = 128  # pixels of a picture in it
CLASSES = ("striped_disc", "ringed_star", "checkered_triangle")


@dataclass(frozen=True)
class Settings(Base):
    """What determines the results."""

    title: str = setting(
        "Does a growing object move features along its regression concept vector?", help="Of the report."
    )
    weights: tuple[str, ...] = setting(
        ("checkpoints/inception_v3", "checkpoints/resnet50"), least=1, help="Folders of checkpoints."
    )
    classes: tuple[str, ...] = setting(CLASSES, least=2, distinct=True, help="Of scenes, at least two.")
    scenes: int = setting(200, low=2 * MIN_IMAGES, help="Of each class, independent, to fit probes to.")
    objects: int = setting(12, low=2, help="Growing objects of each class.")
    ratios: int = setting(8, low=2, help="Sizes at which each object is seen, equally spaced in logarithms.")
    smallest: float = setting(0.02, help="Of these sizes, as a share of the image.")
    largest: float = setting(0.9, help="Of these sizes, as a share of the image.")
    size: int = setting(0, low=0, help="Pixels of a scene; the network's own when 0 (224 for ImageNet).")
    layers: tuple[str, ...] = setting((), distinct=True, help="Layers to probe; all when empty.")
    estimators: tuple[Estimator, ...] = setting(
        ("ridge", "ols"), least=1, distinct=True, help="Probes, ridge or ols; figures show the first."
    )
    splits: int = setting(10, low=1, help="Random halves of the scenes of a class.")
    seed: int = setting(2026, low=0, help="Of scenes, halves, bootstrap and random weights.")
    batch_size: int = setting(32, low=1, help="Images per forward pass.")
    dtype: Literal["float32", "bfloat16"] = setting("float32", help="Of the forward pass alone.")

    def problems(self) -> list[str]:
        """Sizes that are no shares of an image, and classes that no renderer knows."""
        problems = []
        if not 0 < self.smallest < self.largest <= 1:
            shares = "expected shares of the image, 0 < smallest < largest <= 1"
            problems.append(f"smallest is {self.smallest} and largest {self.largest}; {shares}")
        for image_class in self.classes:
            try:
                scenes.check_class(image_class)
            except ValueError as error:
                problems.append(f"classes: {error}".removesuffix("."))
        return problems

    @property
    def sizes(self) -> Float[np.ndarray, " R"]:
        """Shares of the image at which objects are seen."""
        return np.geomspace(self.smallest, self.largest, self.ratios)


def check(settings: Settings) -> dict[str, Network]:
    """The networks by the names of their folders.

    Raises:
        ValueError: Folders that hold no network, two of one name, layers that a network has not, images below its smallest.
    """

    def fits(name: str, network: Network) -> None:
        last = available_layers(network.architecture, network.module)[-1]
        for layer in settings.layers:
            check_layer(network.architecture, layer, last)
        check_size(network.module, _size(network, settings), _layers(network, settings), name)

    return load_networks(settings.weights, check=fits)


def run(settings: Settings, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Features of scenes and of growing objects, and what probes of size make of them.

    features/ in the folder keeps the features of each network, figures/growing.jpg shows the objects.

    Returns:
        change, linearity, angles, transfer and readings (of `peaks` alone): columns architecture, weights and those of
        `covariance_maths.measure`.
    """
    # The same scenes for every network of the same input size.
    render = lru_cache(maxsize=1)(lambda size: _render(settings, size))
    parts = maths.halves(settings.scenes, settings.splits, settings.seed)
    tables: list[tuple[str, pd.DataFrame]] = []
    for name, network in check(settings).items():
        source = render(_size(network, settings))
        shares, sizes = _by_class(measure_all(get_measures(("scale",)), source).values[:, 0], settings)
        true = np.stack([transform(shares) for transform in MEASURES.values()], axis=-1)
        shuffled = [np.random.default_rng((settings.seed, i, 2)).permutation(x) for i, x in enumerate(true)]
        variants: tuple[tuple[Network, dict[Condition, np.ndarray]], ...] = (
            (network, {"trained": true, "shuffled_measure": np.stack(shuffled)}),
            (random_network(network, settings.seed), {"random_weights": true}),
        )
        for variant, targets in variants:
            seen = _seen(variant, f"{name}-{next(iter(targets))}", source, folder, settings)
            design: Any = {"parts": parts, "estimators": settings.estimators, "seed": settings.seed}
            frames = maths.measure(seen, settings.classes, targets, sizes, **design, name=name)
            named = {"architecture": network.architecture.name, "weights": name}
            tables += [(table, labelled(frame, **named)) for table, frame in frames.items()]
        if folder:
            (folder / PICTURE).parent.mkdir(exist_ok=True)
            write_bytes(folder / PICTURE, encode_jpeg(_sheet(source, settings)))
    joined = stacked(tables)
    return joined | {"readings": joined["readings"].merge(peaks(joined["linearity"]))}


def peaks(linearity: pd.DataFrame) -> pd.DataFrame:
    """The layer of the largest mean R2 of the ratio over classes, on held-out scenes: columns weights, estimator, layer."""
    rows = rows_of(linearity, condition="trained", measure="r")
    means = rows.groupby(["weights", "estimator", "layer"], sort=False)["r2"].mean()
    best = means.groupby(["weights", "estimator"], sort=False).idxmax()
    return pd.DataFrame(best.tolist(), columns=["weights", "estimator", "layer"])


def _size(network: Network, settings: Settings) -> int:
    return settings.size or network.card.input_size


def _layers(network: Network, settings: Settings) -> tuple[str, ...]:
    return settings.layers or available_layers(network.architecture, network.module)


def _render(settings: Settings, size: int) -> list[Example]:
    """Of each class the independent scenes, then the growing objects."""
    source: list[Example] = []
    for image_class in settings.classes:
        source += scenes.examples(image_class, settings.scenes, settings.seed, size)
        source += scenes.growing(image_class, settings.objects, settings.sizes, settings.seed, size)
    return source


def _sheet(source: Sequence[Example], settings: Settings) -> np.ndarray:
    """The first object of each class at every size, or at some ten of them [H, W, 3]."""
    each, step = len(source) // len(settings.classes), -(-settings.ratios // 10)
    rows = []
    for first in range(settings.scenes, len(source), each):
        views = source[first : first + settings.ratios : step]
        rows.append(np.hstack([resize_image(view.image, SIDE) for view in views]))
    return np.vstack(rows)


def _by_class(values: Float[np.ndarray, "I ..."], settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the source as scenes [C N ...] and growing objects [C K R ...]."""
    grouped = values.reshape(len(settings.classes), -1, *values.shape[1:])
    shape = (len(settings.classes), settings.objects, settings.ratios, *values.shape[1:])
    return grouped[:, : settings.scenes], grouped[:, settings.scenes :].reshape(shape)


def _seen(
    network: Network, name: str, source: Sequence[Example], folder: Path | None, settings: Settings
) -> dict[str, Seen]:
    layers, size, dtype = _layers(network, settings), _size(network, settings), getattr(jnp, settings.dtype)
    options: Any = {"size": size, "batch_size": settings.batch_size, "dtype": dtype, "progress": name}
    path = folder and folder / "features" / f"{name}.npz"
    features = cached_features(path, partial(compute_features, network, source, layers, **options)).values
    return {layer: Seen(*_by_class(features[layer].astype(np.float64), settings)) for layer in layers}


# Report

NAMES = {"ridge": "ridge", "ols": "least squares"}
RATIO, STANDARDISED, OTHER = {"measure": "r"}, {"measure": "r", "metric": "standardised"}, {"own": False}
HALVES, PAIRS = {"kind": "splits", "metric": "standardised"}, {"kind": "classes", "metric": "standardised"}
# Series of figures: what `_Report.by_layer` takes of a table.
SHARES = {
    "best direction": {"column": "best"},
    "pattern of the probe": {"column": "pattern"},
    "RCV": {"column": "rcv"},
    "RCV, random weights": {"column": "rcv", "condition": "random_weights"},
    "chance, 1 / D": {"column": "chance"},
}
STEPS = {
    "best for each object": {"column": "own_step"},
    "best for all": {"column": "best_step"},
    "along the pattern": {"column": "pattern_step"},
    "σ v / |v|²": {"column": "smallest_step"},
    "published: σ v": {"column": "published_step"},
}
LINEAR = {"r": {"measure": "r"}, "√r": {"measure": "sqrt_r"}, "log r": {"measure": "log_r"}}
ANGLES = {
    "two halves of a class": {"kind": "splits"},
    "two classes": {"kind": "classes"},
    "two classes, random weights": {"kind": "classes", "condition": "random_weights"},
    "sd of random directions, 1 / √D": {"kind": "splits", "column": "chance"},
}
# Quantity at the peak and column of the table of layers (where it has one); table, column and rows that they are taken from.
QUANTITIES: tuple[tuple[str, str, str, str, dict[str, Any]], ...] = (
    ("change of the reading for a change of r within an object", "slope", "linearity", "slope", RATIO),
    ("change of the reading for the step φ + σ v, in σ", "|v|²", "linearity", "factor", RATIO),
    ("share of the change of features along the RCV", "RCV", "change", "rcv", STANDARDISED),
    ("share along the RCV, raw features", "RCV, raw", "change", "rcv", RATIO | {"metric": "raw"}),
    ("share along the pattern", "pattern", "change", "pattern", STANDARDISED),
    ("share along the best direction", "best", "change", "best", STANDARDISED),
    ("share along random directions, 1 / D", "chance", "change", "chance", STANDARDISED),
    *(
        (f"share explained by steps: {x}", "", "change", step["column"], STANDARDISED)
        for x, step in STEPS.items()
    ),
    ("held-out R² of r", "R² held out", "linearity", "r2_median", RATIO),
    ("R² of the change of r within objects", "R² within", "linearity", "r2_within", RATIO),
    ("R² of the change of √r within objects", "", "linearity", "r2_within", LINEAR["√r"]),
    ("R² of the change of log r within objects", "", "linearity", "r2_within", LINEAR["log r"]),
    ("cosine of RCVs, two halves of a class", "cos halves", "angles", "value", HALVES),
    ("cosine of RCVs, two classes", "cos classes", "angles", "value", PAIRS),
    ("cosine of patterns, two halves of a class", "", "angles", "value", HALVES | {"metric": "pattern"}),
    ("cosine of patterns, two classes", "", "angles", "value", PAIRS | {"metric": "pattern"}),
    ("sd of the cosine of random directions, 1 / √D", "", "angles", "chance", HALVES),
    ("R² of r in another class", "R² other class", "transfer", "r2", OTHER),
    ("R² of r in another class, own intercept", "own intercept", "transfer", "r2_own_intercept", OTHER),
)
IMPLIED = {"slope": 1.0, "|v|²": 1.0, "RCV": 100.0}  # in section 3.4, by its step phi + sigma v; by column


class _Report:
    """The tables of the probes of a network by one estimator, and what is reported of them."""

    def __init__(self, settings: Settings, tables: Mapping[str, pd.DataFrame], peak: pd.Series):
        self.settings, self.weights, self.peak = settings, peak["weights"], peak["layer"]
        self.main, self.how = peak["estimator"] == settings.estimators[0], NAMES[peak["estimator"]]
        wanted = {"weights": peak["weights"], "estimator": peak["estimator"]}
        self.tables = {name: rows_of(table, **wanted) for name, table in tables.items()}
        change, read, transfer = (self.tables[name] for name in ("change", "linearity", "transfer"))
        self.tables["linearity"] = read.join(1 - read[["r2_median", "r2_within"]].add_suffix("_left"))
        self.tables["transfer"] = transfer.assign(own=transfer["image_class"] == transfer["test_class"])
        self.layers = change["layer"].unique().tolist()
        self.widths = change.groupby("layer", sort=False)["width"].first()
        self.name = network_names(tables["change"])[self.weights]

    def by_layer(self, table: str, column: str = "value", **wanted: Any) -> pd.DataFrame:
        """Mean over classes or pairs of them (value) and range (low, high), of trained networks unless wanted otherwise."""
        rows = rows_of(self.tables[table], **{"condition": "trained", **wanted})
        groups = rows.groupby("layer", sort=False)
        return groups.agg(value=(column, "mean"), low=(column, "min"), high=(column, "max"))

    def findings(self) -> Iterator[Finding]:
        """At the peak: what is read of growth, what moves along the RCV, and whether probes of two classes agree."""
        at, over = f"{self.name} {self.peak}, {self.how}", "range over classes"
        for quantity, heading, table, column, wanted in QUANTITIES:
            unit, factor = ("%", 100) if table == "change" else ("", 1)
            value, low, high = (factor * self.by_layer(table, column, **wanted).loc[self.peak]).tolist()
            ends = (low, high) if low < high else (None, None)
            known = IMPLIED.get(heading), "implied in section 3.4" if heading in IMPLIED else ""
            level = "headline" if self.main and heading in IMPLIED else "result"
            yield Finding(quantity, at, value, *ends, over, unit, *known, level=level, digits=_digits(value))

    def cautions(self) -> Iterator[Finding]:
        """Where probes read nothing, where a few splits fail, and where least squares interpolates."""
        median, mean = (self.by_layer("linearity", x, **RATIO)["low"] for x in ("r2_median", "r2"))
        per_half = self.widths / (self.settings.scenes // 2)
        near = per_half.map(interpolates) & (self.how == NAMES["ols"])
        lowest = "smallest held-out R² of any class ({} over splits)"
        unread = "RCVs read no scale at {}; their shares and angles say nothing about it."
        shaky = "A few splits fail at {}: a feature almost silent in a half is loud in the other. Read the medians."
        few = "About as many features as scenes at {}: least squares tells of the sample size there. Read ridge."
        for values, quantity, note in (
            (median[median < 0], lowest.format("median"), unread),
            (mean[(mean < 0) & (median >= 0)], lowest.format("mean"), shaky),
            (per_half[near], "features for each scene of a half", few),
        ):
            if len(values):
                at, note = f"{self.name} {values.idxmin()}, {self.how}", note.format(", ".join(values.index))
                yield Finding(quantity, at, values.min(), note=note, level="caution")

    def section(self) -> Section:
        """Tables, and figures of the first estimator."""
        images = [*self.figures()] if self.main else []
        neighbours = [self.neighbours()] if self.main and self.layers[1:] else []
        heading = f"Covariance: {self.name}, {self.how}"
        return Section(heading, "", images, [self.layer_table(), *neighbours])

    def figures(self) -> Iterator[Image]:
        """Shares, readings, steps, linearity, angles and transfer."""
        yield self.curves(
            "shares",
            "change",
            {f"{metric} features": RATIO | {"metric": metric} for metric in METRICS},
            SHARES,
            y="share of the change",
            caption="How much of what growth does to the features lies along a direction. Below 0.0002: drawn there.",
            log="y",
            limits=(2e-4, 1.4),
            digits=4,
        )
        yield self.readings()
        yield self.curves(
            "steps",
            "change",
            {f"steps in {label}": STANDARDISED | LINEAR[label] for label in ("r", "log r")},
            STEPS,
            y="share explained",
            caption="1 would be covariance as an operation; 0 is predicting no change. Below −0.5: drawn there.",
            limits=(-0.5, 1.0),
            lines={"no change": 0.0},
        )
        yield self.curves(
            "linearity",
            "linearity",
            {
                "held-out scenes (median over splits)": {"column": "r2_median_left"},
                "within growing objects": {"column": "r2_within_left"},
            },
            LINEAR,
            y="1 − R²",
            caption="What probes of each measure leave unexplained; less is better.",
            log="y",
            limits=(0.005, 1.0),
        )
        yield self.curves(
            "angles",
            "angles",
            {"RCVs, standardised features": {"metric": "standardised"}, "patterns": {"metric": "pattern"}},
            ANGLES,
            y="cosine",
            caption="What halves of a class disagree on is noise of the fit.",
            limits=(-0.6, 1.0),
        )
        yield self.transfer()

    def curves(self, name: str, table: str, panels: Any, series: Any, **options: Any) -> Image:
        """Lines by layer, a panel and a series for each of what `by_layer` takes."""
        frames = {
            (panel, label): self.by_layer(table, **of, **wanted)
            for panel, of in panels.items()
            for label, wanted in series.items()
        }
        frame = pd.concat(frames, names=["panel", "series", "x"]).reset_index()
        options |= {"x": "layer, from input to output", "order": self.layers}
        return plots.curves(frame, name=f"{self.weights}-{name}", **options)

    def readings(self) -> Image:
        """What the probes of r and log r read from growing objects at the peak, by class."""
        rows, places = self.tables["readings"], np.array([f"{size:.3g}" for size in self.settings.sizes])
        rows = rows.assign(x=places[rows.groupby(["measure", "image_class", "object"]).cumcount()])
        frames = {}
        for label in ("r", "log r"):
            measure = LINEAR[label]["measure"]
            true = {"image_class": "true", "x": places, "read": MEASURES[measure](self.settings.sizes)}
            both = pd.concat([pd.DataFrame(true), rows_of(rows, measure=measure)])
            groups = both.groupby(["image_class", "x"], sort=False)["read"]
            frames[f"probe of {label}"] = groups.agg(value="mean", low="min", high="max")
        return plots.curves(
            pd.concat(frames, names=["panel", "series", "x"]).reset_index(),
            x="r, share of the image",
            y="read",
            name=f"{self.weights}-responses",
            caption=f"What probes of {self.peak} read from growing objects; bands: range over the objects of a class.",
            order=places.tolist(),
        )

    def transfer(self) -> Image:
        """R2 of the probe of each class in scenes of the others at the first layer, the peak and the last before softmax."""
        trunk = [layer for layer in self.layers if "softmax" not in layer] or self.layers
        rows, order = rows_of(self.tables["transfer"], condition="trained"), [*self.settings.classes]
        r2 = rows.pivot(index=["layer", "image_class"], columns="test_class", values="r2")[order]
        return plots.matrix(
            {layer: r2.loc[layer].loc[order] for layer in dict.fromkeys((trunk[0], self.peak, trunk[-1]))},
            rows="fitted to",
            columns="R² of r read in scenes of",
            name=f"{self.weights}-transfer",
            caption=f"The diagonal is on held-out scenes. Medians over {self.settings.splits} splits.",
            limits=(-1.0, 1.0),
        )

    def layer_table(self) -> Table:
        """Every layer, the ratio r."""
        columns = {"D": self.widths.map("{:,}".format)}
        for _, heading, table, column, wanted in QUANTITIES:
            values = self.by_layer(table, column, **wanted)["value"]
            values = 100 * values if table == "change" else values
            columns[heading] = values.map(lambda value: number(value, _digits(value)))
        del columns[""]
        caption = f"{self.name}, {self.how}: r. RCV to chance: % of the change of features (standardised unless raw)."
        return Table.by_layer(caption, columns, self.layers, [self.peak])

    def neighbours(self) -> Table:
        """How alike the probes of neighbouring layers are."""
        rows = rows_of(self.tables["angles"], condition="trained", kind="layers")
        means = rows.pivot_table("value", ["layer", "other"], "metric")
        index, columns = [*pairwise(self.layers)], ["raw", "standardised", "readings", "errors"]
        frame = means.reindex(index=index, columns=columns).map(number)
        caption = f"{self.name}, {self.how}: neighbouring layers. Cosines of RCVs; correlations of readings and of their errors."
        cells = [(f"{first}, {second}", *row) for (first, second), *row in frame.itertuples()]
        return Table(caption, ("layers", *map(str, frame)), cells)


def report(settings: Settings, tables: Mapping[str, pd.DataFrame], folder: Path | None = None) -> Page:
    """Findings, cautions, figures and tables of each network and estimator, and the objects."""
    parts = [_Report(settings, tables, peak) for _, peak in peaks(tables["linearity"]).iterrows()]
    findings = [finding for part in parts for finding in (*part.findings(), *part.cautions())]
    images = []
    if folder and (folder / PICTURE).is_file():
        alt = "Rendered objects, a row for each class, growing from left to right."
        images = [Image((folder / PICTURE).read_bytes(), alt, wide=True)]
    text = render_text("covariance.html", "objects", settings=settings)
    sections = [*(part.section() for part in parts), Section("The objects", "", images, html=text)]
    return Page(settings.title, findings, sections, render_text("covariance.html", "reading"))


def _digits(value: float) -> int:
    """Decimals that show two digits of a number that is not 0."""
    return max(0, 1 - math.floor(math.log10(abs(value)))) if value else 2
