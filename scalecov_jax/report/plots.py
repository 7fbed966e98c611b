"""Figures drawn from tables, each with the alt text that says what the table holds. Experiments that have moved draw with these.

`figures.py` and the files called *_figures draw for the experiments that have not (docs/architecture.md).
"""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scalecov_jax.report import style
from scalecov_jax.report.numbers import number
from scalecov_jax.report.page import Image
from scalecov_jax.report.style import BLUE, DARK, GREEN, ORANGE, RED, SHADE, WIDTH, name_layers, styled

LOOKS = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "-"),
    (DARK, "^", ":"),
    (BLUE, "D", "--"),
    (GREEN, "v", "-."),
    (RED, "P", "-"),
)
"""Colour, marker and dashes of the series of a figure, in their order; they can be told apart in grey."""


def r2_by_layer(
    frame: pd.DataFrame,
    layers: Sequence[str],
    *,
    name: str,
    caption: str,
    blank: Sequence[str] = (),
    blank_label: str = "",
) -> Image:
    """R2 by layer: a line through the medians, a band from the lower to the upper quartile.

    The ordinate is exp(R2 - 1), so that no far negative R2 hides the others; R2 itself stands on the right.

    Args:
        frame: Columns series, layer and r2, a row per split; layers that a series has not are left out of its line.
        layers: From input to output.
        name: Of the files.
        caption: Under the figure.
        blank: Layers to shade.
        blank_label: Why, for the legend.
    """
    quartiles = (
        frame.groupby(["series", "layer"], sort=False)["r2"].quantile(np.array([0.25, 0.5, 0.75])).unstack()
    )
    curves = {
        label: (rows := quartiles.loc[label]).reindex([layer for layer in layers if layer in rows.index])
        for label in frame["series"].unique()
    }
    alt = "R² by layer, medians. " + " ".join(
        f"{label}: {', '.join(f'{layer} {number(r2)}' for layer, r2 in rows[0.5].items())}."
        for label, rows in curves.items()
    )
    return _image(_curves(curves, layers, blank, blank_label), alt, caption, name)


def predicted_against_true(
    frame: pd.DataFrame, panels: Mapping[str, str], *, unit: str, name: str, caption: str, empty: str = ""
) -> Image:
    """Predicted against true values of held-out images, a panel per kind of features.

    Large marks are the split of median R2, whose R2 stands above; small marks all splits. What lies outside the axes is drawn at
    their edge.

    Args:
        frame: Columns panel, split, true and predicted.
        panels: Titles by the values of the column panel, from left to right.
        unit: What is predicted, and its unit, such as "width (px)".
        name: Of the files.
        caption: Under the figure.
        empty: Stands in a panel that has no rows.

    Source: Graziani et al. 2021, Figure 7.
    """
    parts = {panel: frame[frame["panel"] == panel] for panel in panels}
    splits = {panel: median_split(part) for panel, part in parts.items() if len(part)}
    shown = (
        f"{title} {number(splits[panel][1]) if panel in splits else 'no value'}"
        for panel, title in panels.items()
    )
    alt = f"Predicted against true {unit} of held-out images. R² of the median split: {', '.join(shown)}."
    return _image(_scatter(parts, splits, panels, unit, empty), alt, caption, name)


def median_split(frame: pd.DataFrame) -> tuple[int, float]:
    """The split whose R2 is the median (the lower of the middle two), and that R2.

    Args:
        frame: Columns split, true and predicted.

    Raises:
        ValueError: No rows.
    """
    if frame.empty:
        raise ValueError("There are no predictions to choose a split from.")
    mean = frame.groupby("split")["true"].transform("mean")
    squares = pd.DataFrame(
        {"error": (frame["true"] - frame["predicted"]) ** 2, "spread": (frame["true"] - mean) ** 2}
    )
    sums = squares.groupby(frame["split"]).sum()
    order = (1 - sums["error"] / sums["spread"]).sort_values(kind="stable")
    at = (len(order) - 1) // 2
    return int(order.index[at]), float(order.iloc[at])


def _image(figure: Figure, alt: str, caption: str, name: str) -> Image:
    return Image(style.render(figure, "svg"), alt, caption, name=name, png=style.render(figure, "png"))


@styled
def _curves(
    curves: Mapping[str, pd.DataFrame], layers: Sequence[str], blank: Sequence[str], blank_label: str
) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    place = {layer: at for at, layer in enumerate(layers)}
    for count, layer in enumerate(blank):
        label = "_nolegend_" if count else blank_label
        axes.axvspan(place[layer] - 0.5, place[layer] + 0.5, color=SHADE, linewidth=0, label=label, zorder=0)
    style.r2_axis(axes, top=1.05)
    for (label, rows), (color, marker, dashes) in zip(curves.items(), cycle(LOOKS), strict=False):
        x = [place[layer] for layer in rows.index]
        low, middle, high = np.exp(rows.to_numpy() - 1).T
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        look = {"color": color, "marker": marker, "markersize": 5, "label": label}
        axes.plot(x, middle, dashes, zorder=3, markerfacecolor="white" if dashes == "--" else color, **look)
    name_layers(axes, layers)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("layer, from input to output")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=9.5)
    return figure


@styled
def _scatter(
    parts: Mapping[str, pd.DataFrame],
    splits: Mapping[str, tuple[int, float]],
    panels: Mapping[str, str],
    unit: str,
    empty: str,
) -> Figure:
    figure = Figure(figsize=(WIDTH, 2.95), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    true = pd.concat([part["true"] for part in parts.values()])
    low, high = true.min(), true.max()
    limits = (low - 0.25 * (high - low), high + 0.25 * (high - low))
    edge = 0.03 * (limits[1] - limits[0])
    for axes, (panel, title), (color, marker, _) in zip(grid, panels.items(), cycle(LOOKS), strict=False):
        axes.set_title(title, fontsize=10)
        axes.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low))
        axes.set_ylim(*limits)
        axes.set_xlabel(f"true {unit}")
        if panel not in splits:
            axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", va="center", fontsize=10)
            continue
        axes.plot([low, high], [low, high], color="#707070", linewidth=1)
        chosen, r2 = splits[panel]
        for large, rows in parts[panel].groupby(parts[panel]["split"] == chosen):
            y = rows["predicted"].clip(limits[0] + edge, limits[1] - edge)
            look = {"color": color, "markersize": 5.5 if large else 2.5, "alpha": 1.0 if large else 0.25}
            axes.plot(
                rows["true"], y, marker, linestyle="", markeredgewidth=0, zorder=3 if large else 2, **look
            )
        axes.set_title(f"{title}: R² = {number(r2)}", fontsize=10)
    grid[0].set_ylabel(f"predicted {unit}")
    return figure
