"""Figures of the report, drawn on `matplotlib.figure.Figure` objects without pyplot's global state."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalecov_jax.report.style import BLUE, DARK, ORANGE, RED, SHADE, WIDTH, name_layers, r2_axis, styled
from scalecov_jax.scores import Condition, Estimator, Score
from scalecov_jax.selection import interpolates


class _Look(NamedTuple):
    label: str
    color: str
    marker: str
    dashes: str


_LOOKS: dict[Condition, _Look] = {
    "trained": _Look("trained", BLUE, "o", "-"),
    "random_weights": _Look("random weights", ORANGE, "s", "--"),
    "shuffled_measure": _Look("shuffled measure", DARK, "^", ":"),
}


def layer_values(
    scores: Iterable[Score],
    architecture: str,
    condition: Condition,
    estimator: Estimator,
    image_class: str | None = None,
) -> dict[str, list[float]]:
    """R2 of every split (and of every class when `image_class` is None), by layer."""
    values: dict[str, list[float]] = {}
    for score in scores:
        wanted = (score.architecture, score.condition, score.estimator) == (
            architecture,
            condition,
            estimator,
        )
        if wanted and image_class in (None, score.image_class):
            values.setdefault(score.layer, []).append(score.r2)
    return values


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the latter is 0 for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


@styled
def score_curves(
    scores: Iterable[Score],
    architecture: str,
    estimator: Estimator,
    layers: Sequence[str],
    *,
    widths: Mapping[str, int] | None = None,
    n_train: int | None = None,
    image_class: str | None = None,
    peak: str | None = None,
    title: str = "",
) -> Figure:
    """Score of each layer under the three conditions, with bands of +-1 sd over splits.

    The ordinate is exp(R2 - 1), averaged after the transformation as published, so that no single split with a far negative
    R2 hides the others; R2 itself stands on the right.

    Args:
        scores: Scores of one concept; conditions that are absent are left out.
        architecture: The architecture to draw.
        estimator: The estimator to draw.
        layers: Layers in depth order.
        widths: Features per layer; with `n_train`, marks where least squares interpolates.
        n_train: Images in the training part of a split.
        image_class: The class to draw; None pools all classes.
        peak: The selected layer; by default the largest trained score.
        title: Drawn above the axes.

    Raises:
        ValueError: A layer has no trained score.

    Source: Graziani et al. 2021, Figure 8.
    """
    scores = list(scores)
    trained = layer_values(scores, architecture, "trained", estimator, image_class)
    if missing := [layer for layer in layers if layer not in trained]:
        raise ValueError(
            f"No trained {estimator} score of {architecture} at {', '.join(missing)}; "
            f"the scores hold {', '.join(trained) or 'none of its layers'}."
        )
    x = np.arange(len(layers))
    curves: dict[Condition, np.ndarray] = {}
    for condition in _LOOKS:
        values = layer_values(scores, architecture, condition, estimator, image_class)
        values = {layer: [float(np.exp(r2 - 1)) for r2 in r2s] for layer, r2s in values.items()}
        if values:
            nothing = (np.nan, np.nan)
            points = [mean_and_sd(values[layer]) if layer in values else nothing for layer in layers]
            curves[condition] = np.array(points)

    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    top = 1.16  # leaves room to name a peak near 1
    peak_index = list(layers).index(peak) if peak else int(np.nanargmax(curves["trained"][:, 0]))
    if estimator == "ols":
        _shade_interpolation(axes, layers, widths, n_train)
    r2_axis(axes, top)
    for condition, curve in curves.items():
        look, (mean, sd) = _LOOKS[condition], curve.T
        axes.fill_between(x, mean - sd, mean + sd, color=look.color, alpha=0.2, linewidth=0)
        style = {"color": look.color, "marker": look.marker, "markersize": 5, "label": look.label}
        axes.plot(x, mean, look.dashes, zorder=3, **style)
    height = curves["trained"][peak_index, 0]
    r2_mean, _ = mean_and_sd(trained[layers[peak_index]])
    axes.plot(
        peak_index, height, "o", markersize=13, markerfacecolor="none", markeredgecolor="black", zorder=5
    )
    depth = peak_index / len(layers)
    side = "left" if depth < 0.3 else "right" if depth > 0.7 else "center"
    label = f"{layers[peak_index]}: R² = {r2_mean:.2f}".replace("-", "−")
    offset = {"xytext": (0, 10), "textcoords": "offset points"}
    axes.annotate(label, (peak_index, height), ha=side, va="bottom", weight="bold", zorder=6, **offset)
    name_layers(axes, layers, peak_index)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("layer, from input to output")
    return _finished(figure, axes, title)


def _finished(figure: Figure, axes: Axes, title: str) -> Figure:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=9.5)
    axes.set_title(title)
    return figure


def _shade_interpolation(
    axes: Axes, layers: Sequence[str], widths: Mapping[str, int] | None, n_train: int | None
) -> None:
    label = "D ≈ n_train: least squares interpolates"
    for index, layer in enumerate(layers):
        if widths and n_train and interpolates(widths[layer] / n_train):
            axes.axvspan(index - 0.5, index + 0.5, color=SHADE, linewidth=0, label=label, zorder=0)
            label = "_nolegend_"


@styled
def ols_against_width(
    scores: Iterable[Score],
    architecture: str,
    widths: Mapping[str, int],
    n_train: int,
    *,
    image_class: str | None = None,
    title: str = "",
) -> Figure:
    """Mean R2 of both estimators of each layer against D / n_train, to show the dip of least squares at 1.

    The line is least squares on pure noise: -(D + 1) / (n - D - 2) for n > D + 2 and -n / (D - n - 1) for
    D > n + 1. The dip needs no property of the network. Scores below -100 are drawn at -100.

    Args:
        scores: Scores of one concept.
        architecture: The architecture to draw.
        widths: Features per layer; names the layers to draw.
        n_train: Images in the training part of a split.
        image_class: The class to draw; None pools all classes.
        title: Drawn above the axes.
    """
    scores, floor = list(scores), -100.0
    widths = {layer: width for layer, width in widths.items() if width}  # a layer may be constant
    series: tuple[tuple[Condition, Estimator, str, str, str], ...] = (
        ("trained", "ridge", "ridge", "o", BLUE),
        ("trained", "ols", "least squares", "D", RED),
        ("shuffled_measure", "ols", "least squares, shuffled", "^", DARK),
    )
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1, linscale=1.2)
    ratios = np.array(sorted({width / n_train for width in widths.values()}))
    axes.set_xlim(min(ratios[0], 0.8) / 1.2, max(ratios[-1], 1.25) * 1.2)
    axes.set_ylim(floor * 1.2, 1.2)
    axes.axvspan(0.5, 2, color=SHADE, linewidth=0, zorder=0)
    axes.axhline(0, color="#707070", linewidth=1)
    grid = np.geomspace(*axes.get_xlim(), 400) * n_train
    with np.errstate(divide="ignore"):
        noise = np.where(grid < n_train, -(grid + 1) / (n_train - grid - 2), -n_train / (grid - n_train - 1))
    noise[np.abs(grid - n_train) < 3] = -np.inf
    axes.plot(
        grid / n_train,
        np.maximum(noise, 10 * floor),
        color=DARK,
        linewidth=1,
        label="least squares on noise (theory)",
    )
    for condition, estimator, label, marker, color in series:
        values = layer_values(scores, architecture, condition, estimator, image_class)
        shown = [layer for layer in widths if layer in values]
        means = [max(mean_and_sd(values[layer])[0], floor) for layer in shown]
        at = [widths[layer] / n_train for layer in shown]
        if shown:
            fill = "none" if estimator == "ols" and condition == "trained" else color
            style = {"markersize": 6.5, "markeredgewidth": 1.5, "markerfacecolor": fill, "linestyle": ""}
            axes.plot(at, means, marker, color=color, label=label, **style)
    ticks = [
        tick
        for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
        if ratios[0] < 1.2 * tick < 1.5 * ratios[-1]
    ]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks([-100, -10, -1, 0, 0.5, 1], ["≤ −100", "−10", "−1", "0", "0.5", "1"])
    axes.set_yticks([], minor=True)
    axes.set_xlabel(f"D / n_train (log scale; n_train = {n_train:,})")
    axes.set_ylabel("R² (logarithmic below −1)")
    _name_widths(axes, widths, n_train)
    return _finished(figure, axes, title)


def _name_widths(axes: Axes, widths: Mapping[str, int], n_train: int) -> None:
    """Name the layers of each width above the axes, spread so that no two names touch."""
    names: dict[int, list[str]] = {}
    for width, run in itertools.groupby(widths, key=widths.__getitem__):
        first, *rest = run
        names.setdefault(width, []).append(f"{first} … {rest[-1]}" if rest else first)
    order = sorted(names)
    left, right = np.log(axes.get_xlim())
    places = np.array([(np.log(width / n_train) - left) / (right - left) for width in order])
    gap = min(0.04, 1 / max(len(order), 1))
    for index in range(1, len(order)):
        places[index] = max(places[index], places[index - 1] + gap)
    places -= max(places[-1] - 1.0, 0.0)
    for index in range(len(order) - 2, -1, -1):
        places[index] = min(places[index], places[index + 1] - gap)
    for place, width in zip(places, order, strict=True):
        axes.annotate(
            ", ".join(names[width]),
            (width / n_train, 1.0),
            (place, 1.04),
            xycoords=("data", "axes fraction"),
            textcoords="axes fraction",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": "#909090", "linewidth": 0.8},
        )
