"""Section 4.3 of the paper's report: R2 by layer, published and ours, by least squares and by ridge."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scalecov_jax.models.architecture import plain_name
from scalecov_jax.paper import published
from scalecov_jax.paper.compared import Compared
from scalecov_jax.paper.quantification import (
    LayerComparison,
    compare_classes,
    compare_runs,
    mean_over_classes,
)
from scalecov_jax.report import figures, page, sample_size
from scalecov_jax.report.style import BLUE, DARK, GREEN, ORANGE, RED, WIDTH, save, styled
from scalecov_jax.scores import CONDITIONS, ESTIMATORS, Condition, Score
from scalecov_jax.tables import read_table

_CONDITIONS: dict[Condition, str] = {
    "trained": "trained weights",
    "random_weights": "random weights",
    "shuffled_measure": "shuffled measure",
}
_CLASS_LOOKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "D"), (RED, "^"), (DARK, "v"))


@styled
def published_curves(architecture: str, rows: Sequence[LayerComparison]) -> Figure:
    """Published and our exp(R2 - 1) by layer: trained above, random weights and shuffled measure below.

    Args:
        architecture: inception_v3 or resnet50.
        rows: From `quantification.compare_classes`.

    Source: Graziani et al. 2021, Figure A2.
    """
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    layers = list(dict.fromkeys(row.layer for row in rows))
    looks: dict[Condition, tuple[int, str, str]] = {
        "trained": (0, BLUE, "o"),
        "random_weights": (1, ORANGE, "s"),
        "shuffled_measure": (1, DARK, "^"),
    }
    for condition, (panel, color, marker) in looks.items():
        some = {row.layer: row for row in rows if row.condition == condition}
        read = [published.CURVES[architecture][layer][condition] for layer in layers]
        axes, x, name = panels[panel], np.arange(len(layers)), _CONDITIONS[condition]
        hollow = {"markerfacecolor": "none", "markersize": 5, "color": color, "marker": marker}
        axes.plot(x, read, "--", label=f"published, {name}", **hollow)
        for kind, style in (("ours", "-"), ("ridge", ":")):
            r2 = [getattr(some[layer], kind) for layer in layers]
            y = np.array([np.nan if value is None else np.exp(value - 1) for value in r2])
            label = f"{'ours' if kind == 'ours' else 'ours, ridge'}, {name}"
            line = GREEN if (kind, condition) == ("ridge", "trained") else color
            axes.plot(x, y, style, color=line, marker=marker, markersize=4, label=label)
    for axes in panels:
        axes.axhline(np.exp(-1), color="#707070", linewidth=1)
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("exp(R² − 1)")
        axes.legend(fontsize=8, loc="best")
    panels[1].set_xticks(np.arange(len(layers)), layers, rotation=90)
    return figure


@styled
def class_curves(scores: Sequence[Score], layers: Sequence[str]) -> Figure:
    """Our exp(R2 - 1) by layer of each class, trained weights: least squares solid, ridge dotted (published as Figure A1).

    Args:
        scores: Of one network.
        layers: From input to output.
    """
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    x = np.arange(len(layers))
    classes = dict.fromkeys(score.image_class for score in scores)
    for image_class, (color, marker) in zip(classes, _CLASS_LOOKS, strict=False):
        some = [score for score in scores if score.image_class == image_class]
        for estimator, style in zip(ESTIMATORS, ("-", ":"), strict=True):
            means = mean_over_classes(some, "trained", estimator, repetitions=published.RUNS)
            y = [np.exp(means[layer][0] - 1) for layer in layers]
            label = image_class if estimator == "ols" else None
            axes.plot(x, y, style, color=color, marker=marker, markersize=4, label=label)
    axes.axhline(np.exp(-1), color="#707070", linewidth=1)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("exp(R² − 1)")
    axes.set_xticks(x, layers, rotation=90)
    axes.legend(fontsize=9)
    return figure


def headlines(folder: Path) -> list[Compared]:
    """Where scale is best readable and how well, from a finished run of probe.py in `folder`."""
    rows = []
    for _, network, scores in _networks(folder):
        plain, architecture = plain_name(network["architecture"]), network["architecture"]
        layer, r2 = published.PEAK[architecture]
        ols = mean_over_classes(scores, "trained", "ols")
        ridge = mean_over_classes(scores, "trained", "ridge")
        ours, best = max(ols, key=lambda one: ols[one][0]), max(ridge, key=lambda one: ridge[one][0])
        ends = list(network["widths"])[-1]
        seen = "" if layer != ends else f"; these weights end at {ends}, so a peak beyond could not be seen"
        rows.append(
            Compared(
                "4.3",
                f"{plain}: layer where scale is best readable, least squares",
                layer,
                ours,
                "same" if ours == layer else "another",
                f"ridge: {best}{seen}",
            )
        )
        if layer in ols:
            rows.append(
                Compared(
                    "4.3",
                    f"{plain}: R² at {layer}, least squares",
                    page.number(r2),
                    page.number(ols[layer][0]),
                    page.number(ols[layer][0] - r2),
                    f"ridge {page.number(ridge[layer][0])}; {_images(network)}",
                )
            )
    return rows


def compare(folder: Path) -> list[Compared]:
    """All rows of section 4.3 from a finished run of probe.py in `folder`: the headlines and every layer."""
    rows = headlines(folder)
    for _, network, scores in _networks(folder):
        plain = plain_name(network["architecture"])
        for source, some in _comparisons(network, scores).items():
            rows += [
                Compared(
                    "4.3",
                    f"{plain}, {source}, {_CONDITIONS[one.condition]}: R² at {one.layer}",
                    _published(one),
                    _ours(one),
                    _difference(one),
                    one.explanation,
                )
                for one in some
            ]
    return rows


def sections(folder: Path) -> list[page.Section]:
    """Figures and tables from scores.csv and summary.json of a run of probe.py, one section a network."""
    found = []
    (folder / "figures").mkdir(exist_ok=True)
    for name, network, scores in _networks(folder):
        architecture, plain = network["architecture"], plain_name(network["architecture"])
        layers, compared = list(network["widths"]), _comparisons(network, scores)
        reference = _reference(network)
        curves = published_curves(architecture, compared["Figure A2"])
        by_class = class_curves(scores, layers)
        save(curves, folder / "figures" / f"{name}-published")
        save(by_class, folder / "figures" / f"{name}-classes")
        images = [
            page.embed(
                curves,
                f"Published and measured exp(R² − 1) by layer of {plain}.",
                "Mean over classes and ten repetitions, as in Figure A2. Dashed: published. Solid: ours, least squares. "
                "Dotted: ours, ridge. Grey: R² = 0.",
            ),
            page.embed(
                by_class,
                f"Measured exp(R² − 1) by layer of {plain} for each class.",
                "Each class, as in Figure A1. Solid: least squares. Dotted: ridge.",
            ),
        ]
        for estimator in ("ols", "ridge"):
            figure = figures.score_curves(
                scores, architecture, estimator, layers, widths=network["widths"],
                n_train=network["n_train"][reference], image_class=reference,
                title=f"{reference}, {'least squares' if estimator == 'ols' else 'ridge'}",
            )  # fmt: skip
            images.append(
                page.embed(
                    figure,
                    f"R² by layer of {plain}, {reference}, {estimator}.",
                    f"{reference}: all runs, as in Figures 8 and 9. Bands are ±1 sd over splits.",
                )
            )
        tables = [
            page.Table(
                f"{plain}, {source}, {_CONDITIONS[condition]}: R² published and ours; "
                + _how(source, network, scores, reference),
                ("layer", "published", "ours, least squares", "difference", "ours, ridge", "explanation"),
                [
                    (one.layer, _published(one), _ours(one), _difference(one), page.number(one.ridge), one.explanation)
                    for one in some
                    if one.condition == condition
                ],
            )
            for source, some in compared.items()
            for condition in CONDITIONS
        ]  # fmt: skip
        text = f"{plain} ({name}): {_images(network)}. " + _agreement(compared["Figure A2"])
        found.append(page.Section(f"4.3 Layer-wise quantification: {plain}", text, images, tables))
    return found + sample_size.sections(folder)


def _networks(folder: Path) -> list[tuple[str, Mapping[str, Any], list[Score]]]:
    summary = json.loads((folder / "summary.json").read_text())
    scores = read_table(folder / "scores.csv", Score)
    networks = summary.get("networks", {summary.get("weights"): summary})
    return [
        (name, network, [s for s in scores if s.weights == name])
        for name, network in networks.items()
        if network["architecture"] in published.PEAK
    ]


def _comparisons(network: Mapping[str, Any], scores: Sequence[Score]) -> dict[str, list[LayerComparison]]:
    widths, n_train = network["widths"], network["n_train"]
    compared = {"Figure A2": compare_classes(network["architecture"], scores, widths, n_train)}
    if network["architecture"] == "inception_v3":
        reference = _reference(network)
        compared["Table A1"] = compare_runs(scores, reference, widths, n_train[reference])
    return compared


def _reference(network: Mapping[str, Any]) -> str:
    """The class that stands for the published albatross: itself where it was probed, else the largest class."""
    images = network["images"]
    return "n02058221" if "n02058221" in images else max(images, key=images.__getitem__)


def _how(source: str, network: Mapping[str, Any], scores: Sequence[Score], reference: str) -> str:
    if source == "Table A1":
        runs = len({s.split for s in scores})
        ours = f"{runs} runs on {reference} ({network['images'][reference]} images)"
        return f"mean ± sd over {ours}; published: 25 runs on albatross (441)."
    return (
        f"ln(mean of exp(R² − 1)) + 1 over {len(network['images'])} classes x {published.REPETITIONS} "
        "repetitions. A dash: below what the published figure can show."
    )


def _images(network: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{count} images of {name} ({network['n_train'][name]} to train)"
        for name, count in network["images"].items()
    )


def _agreement(rows: Sequence[LayerComparison]) -> str:
    away = [
        (row.ours, row.published)
        for row in rows
        if row.condition == "trained" and row.ours is not None and row.published is not None
        if not row.interpolates
    ]
    if len(away) < 2:
        return ""
    ours, read = np.array(away).T
    apart, r = float(np.median(np.abs(ours - read))), float(np.corrcoef(ours, read)[0, 1])
    return (
        f"At the {len(away)} layers away from D = n_train our R² by least squares lies "
        f"{page.number(apart)} from the published curve (median), and follows it with a correlation of {page.number(r)}."
    )


def _published(one: LayerComparison) -> str:
    if one.published is None:
        return "–"
    spread = "" if one.published_sd is None else f" ± {page.number(one.published_sd)}"
    return page.number(one.published) + spread


def _ours(one: LayerComparison) -> str:
    if one.ours is None:
        return "–"
    return page.number(one.ours) + ("" if one.ours_sd is None else f" ± {page.number(one.ours_sd)}")


def _difference(one: LayerComparison) -> str:
    if one.ours is None or one.published is None:
        return "–"
    return page.number(one.ours - one.published)
