"""Figures of the noise experiment: predicted against true widths, and R2 by layer with both poolings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalecov_jax.paper.noise import POOLED, Pooled
from scalecov_jax.paper.noise_probes import NoisePrediction
from scalecov_jax.report.style import BLUE, DARK, ORANGE, SHADE, WIDTH, name_layers, styled

NAMES: dict[Pooled, str] = {"gap": "GAP", "corrected_gap": "corrected GAP"}
_COLORS: dict[Pooled, str] = {"gap": BLUE, "corrected_gap": ORANGE}
_MARKERS: dict[Pooled, str] = {"gap": "o", "corrected_gap": "s"}


class Curve(NamedTuple):
    """R2 of some layers over splits.

    Attributes:
        label: In the legend.
        values: R2 of each split, by layer; layers that are absent are left blank.
        color: Of line and band.
        marker: Of the medians.
        dashes: Of the line.
    """

    label: str
    values: Mapping[str, Sequence[float]]
    color: str
    marker: str
    dashes: str


def median_split(predictions: Iterable[NoisePrediction]) -> tuple[int, float]:
    """The split whose R2 is the median (the lower of the middle two), and that R2.

    Raises:
        ValueError: No predictions.
    """
    splits: dict[int, list[tuple[float, float]]] = {}
    for one in predictions:
        splits.setdefault(one.split, []).append((one.width, one.predicted))
    if not splits:
        raise ValueError("There are no predictions to choose a split from.")
    scores = {}
    for split, pairs in splits.items():
        true, predicted = np.array(pairs).T
        scores[split] = 1 - float(np.square(true - predicted).sum() / np.square(true - true.mean()).sum())
    order = sorted(scores, key=lambda split: scores[split])
    chosen = order[(len(order) - 1) // 2]
    return chosen, scores[chosen]


@styled
def predicted_against_true(predictions: Sequence[NoisePrediction], undefined: str = "") -> Figure:
    """Predicted against true widths of held-out noise images, a panel a pooling.

    Large marks are the split of median R2, whose R2 stands above; small ones all splits. What lies outside the axes is drawn at
    their edge.

    Args:
        predictions: Of one network, setting, layer, target and estimator.
        undefined: Stands in the panel of a pooling that has no predictions.

    Source: Graziani et al. 2021, Figure 7.
    """
    figure = Figure(figsize=(WIDTH, 2.95), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    widths = [one.width for one in predictions]
    low, high = min(widths), max(widths)
    margin = 0.25 * (high - low)
    limits = (low - margin, high + margin)
    for axes, pooling in zip(panels, POOLED, strict=True):
        axes.set_title(NAMES[pooling], fontsize=10)
        axes.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low))
        axes.set_ylim(*limits)
        axes.set_xlabel("true width (px)")
        shown = [one for one in predictions if one.pooling == pooling]
        if not shown:
            axes.text(0.5, 0.5, undefined, transform=axes.transAxes, ha="center", va="center", fontsize=10)
            continue
        axes.plot([low, high], [low, high], color="#707070", linewidth=1)
        chosen, r2 = median_split(shown)
        inner = (limits[0] + 0.03 * (limits[1] - limits[0]), limits[1] - 0.03 * (limits[1] - limits[0]))
        for one_split in (False, True):
            some = [one for one in shown if (one.split == chosen) == one_split]
            if some:
                x = np.array([one.width for one in some])
                y = np.clip([one.predicted for one in some], *inner)
                size, alpha = (5.5, 1.0) if one_split else (2.5, 0.25)
                style = {"color": _COLORS[pooling], "markersize": size, "alpha": alpha, "linestyle": ""}
                axes.plot(x, y, _MARKERS[pooling], markeredgewidth=0, zorder=2 + one_split, **style)
        axes.set_title(f"{NAMES[pooling]}: R² = {r2:.2f}".replace("-", "−"), fontsize=10)
    panels[0].set_ylabel("predicted width (px)")
    return figure


@styled
def width_curves(curves: Sequence[Curve], layers: Sequence[str], blank: Sequence[str] = ()) -> Figure:
    """R2 by layer: medians over splits, bands from the lower to the upper quartile.

    The ordinate is exp(R2 - 1), so that no far negative R2 hides the others; R2 itself stands on the right.

    Args:
        curves: What to draw.
        layers: From input to output.
        blank: Layers to shade, at which corrected GAP is not defined.
    """
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    place = {layer: at for at, layer in enumerate(layers)}
    label = "corrected GAP undefined"
    for layer in blank:
        axes.axvspan(place[layer] - 0.5, place[layer] + 0.5, color=SHADE, linewidth=0, label=label, zorder=0)
        label = "_nolegend_"
    _r2_axis(axes)
    axes.axhline(np.exp(-1), color="#707070", linewidth=1, label="R² = 0: no better than the mean")
    for curve in curves:
        shown = [layer for layer in layers if layer in curve.values]
        x = [place[layer] for layer in shown]
        quartiles = np.array([np.quantile(curve.values[layer], (0.25, 0.5, 0.75)) for layer in shown])
        low, middle, high = np.exp(quartiles - 1).T
        axes.fill_between(x, low, high, color=curve.color, alpha=0.2, linewidth=0)
        style = {"color": curve.color, "marker": curve.marker, "markersize": 5, "label": curve.label}
        fill = "white" if curve.dashes == "--" else curve.color
        axes.plot(x, middle, curve.dashes, zorder=3, markerfacecolor=fill, **style)
    name_layers(axes, layers)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("layer, from input to output")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=9.5)
    return figure


def _r2_axis(axes: Axes) -> None:
    low, high = -0.02, 1.05
    axes.set_ylabel("exp(R² − 1)")
    axes.set_ylim(low, high)
    axes.set_yticks(np.linspace(0, 1, 6))
    right = axes.twinx()
    right.set_ylim(low, high)
    ticks = np.array([-2, -1, -0.5, 0, 0.25, 0.5, 0.75, 1])
    right.set_yticks(np.exp(ticks - 1), [f"{tick:g}".replace("-", "−") for tick in ticks])
    right.set_ylabel("R²")
    right.spines["right"].set_visible(True)
    axes.set_zorder(right.get_zorder() + 1)
    axes.patch.set_visible(False)


CURVE_STYLES = {
    "gap": (BLUE, "o", "-"),
    "gap_same": (BLUE, "D", "--"),
    "corrected_gap": (ORANGE, "s", "-"),
    "random_weights": (DARK, "^", ":"),
}
"""Colour, marker and dashes of the curves of a network."""
