"""Figures of the transfer: error by depth of the cut and by magnification, predictions against the truth, learning curves."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from scalecov_jax.report.style import BLUE, DARK, ORANGE, RED, SHADE, WIDTH, name_layers, styled


class _Look(NamedTuple):
    label: str
    color: str
    marker: str
    dashes: str


MODEL_NAMES = {"whole": "whole", "pruned": "pruned", "scratch": "from scratch"}
_MODELS: dict[str, _Look] = {
    "whole": _Look(MODEL_NAMES["whole"], BLUE, "o", "-"),
    "pruned": _Look(MODEL_NAMES["pruned"], RED, "D", "--"),
    "scratch": _Look(MODEL_NAMES["scratch"], DARK, "^", ":"),
}
_HEADS: dict[tuple[str, str], _Look] = {
    ("trained", "ridge"): _Look("trained, ridge", BLUE, "o", "-"),
    ("trained", "head"): _Look("trained, head", RED, "D", "--"),
    ("random_weights", "ridge"): _Look("random weights, ridge", DARK, "^", ":"),
    ("random_weights", "head"): _Look("random weights, head", ORANGE, "s", "-."),
}


def _curve(axes: Axes, x: np.ndarray, values: Float[np.ndarray, "P S"], look: _Look) -> None:
    mean = values.mean(axis=1)
    if values.shape[1] > 1:
        sd = values.std(axis=1, ddof=1)
        # On a logarithmic axis a band that reaches 0 has no lower edge.
        axes.fill_between(
            x, np.maximum(mean - sd, 0.02 * mean), mean + sd, color=look.color, alpha=0.18, linewidth=0
        )
    axes.plot(
        x, mean, look.dashes, color=look.color, marker=look.marker, markersize=5, label=look.label, zorder=3
    )


def _log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """A logarithmic axis from low to high with ticks written out."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    steps = (1, 2, 5) if high > 12 * low else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = [step * 10.0**power for power in range(-3, 7) for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(ticks, [f"{tick:.10g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def _error_axis(axes: Axes, means: Sequence[float]) -> None:
    """Errors from 0, or logarithmic where they span more than a factor of 5."""
    low, high = min(means), max(means)
    if low > 0 and high > 5 * low:
        _log_axis(axes, "y", low / 2.2, high * 1.8)
        axes.set_ylabel("MAE, px (log scale)")
    else:
        axes.set_ylim(0, 1.3 * high or 1)
        axes.set_ylabel("MAE, px")


def _legend(figure: Figure, axes: Axes, columns: int = 2) -> Figure:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns, fontsize=9.5)
    return figure


@styled
def cut_curves(
    layers: Sequence[str],
    errors: Mapping[tuple[str, str], Float[np.ndarray, "L S"]],
    chosen: Mapping[str, int],
    best: str,
) -> Figure:
    """MAE of a head on each layer against depth, mean and +-1 sd over seeds.

    Args:
        layers: From input to output; the last is the whole network.
        errors: MAE in px by condition (trained, random_weights) and head (ridge, head).
        chosen: Number of seeds that cut at each layer.
        best: The layer to mark, of least mean MAE by ridge on trained weights.
    """
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes, x = figure.subplots(), np.arange(len(layers))
    label = "cut here (seeds)"
    shown = {key: errors[key] for key in _HEADS if key in errors}
    _error_axis(axes, [float(value) for values in shown.values() for value in values.mean(axis=1)])
    for layer, count in chosen.items():
        at = list(layers).index(layer)
        axes.axvspan(at - 0.5, at + 0.5, color=SHADE, linewidth=0, zorder=0, label=label)
        axes.text(at, 0.99, str(count), transform=axes.get_xaxis_transform(), ha="center", va="top")
        label = "_nolegend_"
    for key, values in shown.items():
        _curve(axes, x, values, _HEADS[key])
    at = list(layers).index(best)
    height = next(iter(shown.values()))[at].mean()
    axes.plot(at, height, "o", markersize=13, markerfacecolor="none", markeredgecolor="black", zorder=5)
    side = "left" if at < 0.3 * len(layers) else "right" if at > 0.7 * len(layers) else "center"
    axes.annotate(
        f"{best}: {height:.3g} px",
        (at, height),
        (0, -11),
        textcoords="offset points",
        ha=side,
        va="top",
        weight="bold",
        zorder=6,
    )
    name_layers(axes, [*layers[:-1], f"{layers[-1]} (whole)"])
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("layer, from input to output")
    return _legend(figure, axes)


@styled
def magnification_curves(
    magnifications: Sequence[float], errors: Mapping[str, Float[np.ndarray, "M S"]]
) -> Figure:
    """MAE of each model against magnification, mean and +-1 sd over seeds, both axes logarithmic."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    means = [float(value) for values in errors.values() for value in values.mean(axis=1)]
    for model, values in errors.items():
        _curve(axes, np.asarray(magnifications), values, _MODELS[model])
    _error_axis(axes, means)
    axes.set_xscale("log")
    axes.set_xticks(magnifications, [f"{one:g}" for one in magnifications])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("magnification (log scale)")
    return _legend(figure, axes)


def area_limits(true: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """Range of the axes of `predicted_against_true` for these areas in px."""
    return max(1.0, float(true.min()) / 2), float(true.max()) * 2


@styled
def predicted_against_true(
    true: Float[np.ndarray, " N"],
    predicted: Float[np.ndarray, " N"],
    magnification: Float[np.ndarray, " N"],
    limits: tuple[float, float],
) -> Figure:
    """A point a patch, both axes logarithmic; predictions outside `limits` (px) lie on the border."""
    figure = Figure(figsize=(WIDTH, 4.7), layout="constrained")
    axes = figure.subplots()
    classes = np.unique(magnification)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(classes)))
    markers = ("o", "^", "s", "D", "v", "P", "X")
    # Interleaved, so that no magnification hides the others; drawn as pixels, as an SVG of each point is large.
    inside = np.clip(predicted, *limits)
    for index, one in enumerate(classes):
        part = magnification == one
        axes.plot(
            true[part],
            inside[part],
            markers[index % len(markers)],
            color=tuple(colors[index]),
            markersize=4,
            alpha=0.6,
            markeredgewidth=0,
            label=f"{one:g}X",
            rasterized=True,
            clip_on=False,
        )
    axes.plot(limits, limits, color="black", linewidth=1, label="perfect", zorder=4)
    for which in ("x", "y"):
        _log_axis(axes, which, *limits)
    axes.set_xlabel("true mean nucleus area, px (log scale)")
    axes.set_ylabel("predicted, px (log scale)")
    return _legend(figure, axes, 4)


@styled
def confusion(shares: Float[np.ndarray, "M M"], magnifications: Sequence[float]) -> Figure:
    """Per cent of the patches of each magnification (row) whose predicted area is nearest to that of another (column)."""
    figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.7, 0, 100))
    for (row, column), share in np.ndenumerate(shares):
        if np.isfinite(share):
            color = "white" if share > 55 else "black"
            weight = "bold" if row == column else "normal"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=color, weight=weight)
    names = [f"{one:g}X" for one in magnifications]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("magnification that the predicted area tells")
    axes.set_ylabel("true magnification")
    return figure


@styled
def learning_curves(
    epochs: Int[np.ndarray, " E"],
    training: Mapping[str, Float[np.ndarray, "E S"]],
    held_out: Mapping[str, Float[np.ndarray, "E S"]],
) -> Figure:
    """Training RMSE and held-out MAE (px) against the epoch by model, mean and +-1 sd over seeds; logarithmic."""
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    for axes, curves, name in (
        (upper, training, "training RMSE, px"),
        (lower, held_out, "held-out MAE, px"),
    ):
        means = np.concatenate([values.mean(axis=1) for values in curves.values()])
        for model, values in curves.items():
            _curve(axes, epochs, values, _MODELS[model])
        _log_axis(axes, "y", float(means.min()) / 1.6, float(means.max()) * 1.6)
        axes.set_ylabel(f"{name} (log)")
        axes.grid(color="#e4e4e4", axis="y")
    step = -(-len(epochs) // 10)
    lower.set_xticks(epochs[step - 1 :: step])
    lower.set_xlabel("epoch")
    return _legend(figure, upper)
