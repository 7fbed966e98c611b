"""Figures of the report, drawn on `matplotlib.figure.Figure` objects without pyplot's global state."""

import functools
import io
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scalecov_jax.report.scores import Condition, Estimator, Score

_Parameters = ParamSpec("_Parameters")

# Okabe-Ito colours; markers and dashes differ too, so that the curves can be told apart in grey.
_BLUE, _ORANGE, _RED, _DARK = "#0072B2", "#E69F00", "#D55E00", "#3c3c3c"
_SHADE = "#f8e7d7"
_STYLE: dict[Any, Any] = {
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"},
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "scalecov_jax",
}
_WIDTH = 5.0  # inches; with the fonts above, text keeps about 10 px when shown 400 px wide


class _Look(NamedTuple):
    label: str
    color: str
    marker: str
    dashes: str


_LOOKS: dict[Condition, _Look] = {
    "trained": _Look("trained", _BLUE, "o", "-"),
    "random_weights": _Look("random weights", _ORANGE, "s", "--"),
    "shuffled_measure": _Look("shuffled measure", _DARK, "^", ":"),
}


def _styled(draw: Callable[_Parameters, Figure]) -> Callable[_Parameters, Figure]:
    """Draw with matplotlib's own defaults, whatever the user's matplotlibrc says."""

    @functools.wraps(draw)
    def wrapped(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapped


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


def interpolates(ratio: float) -> bool:
    """Whether 0.5 < D / n_train < 2, where least squares fits the training part exactly and fails."""
    return 0.5 < ratio < 2


@_styled
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

    The ordinate is exp(R2 - 1) for ols, averaged after the transformation as published, and R2 for ridge.

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
        if estimator == "ols":
            values = {layer: [float(np.exp(r2 - 1)) for r2 in r2s] for layer, r2s in values.items()}
        if values:
            nothing = (np.nan, np.nan)
            points = [mean_and_sd(values[layer]) if layer in values else nothing for layer in layers]
            curves[condition] = np.array(points)

    figure = Figure(figsize=(_WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    top = 1.16  # leaves room to name a peak near 1
    peak_index = list(layers).index(peak) if peak else int(np.nanargmax(curves["trained"][:, 0]))
    if estimator == "ols":
        _shade_interpolation(axes, layers, widths, n_train)
        low, zero = -0.02, float(np.exp(-1))
        axes.set_ylabel("exp(R² − 1)")
        r2_axis = axes.twinx()
        r2_axis.set_ylim(low, top)
        r2_ticks = np.array([-2, -1, -0.5, 0, 0.25, 0.5, 0.75, 1])
        r2_axis.set_yticks(np.exp(r2_ticks - 1), [f"{tick:g}".replace("-", "−") for tick in r2_ticks])
        r2_axis.set_ylabel("R²")
        r2_axis.spines["right"].set_visible(True)
        axes.set_zorder(r2_axis.get_zorder() + 1)
        axes.patch.set_visible(False)
    else:
        lowest = min(float(np.nanmin(curve[:, 0])) for curve in curves.values())
        low, zero = max(-0.6, min(-0.15, lowest - 0.1)), 0.0
        axes.set_ylabel("R²")
    axes.set_ylim(low, top)
    axes.set_yticks([tick for tick in np.linspace(-0.6, 1, 9) if tick >= low])
    axes.axhline(zero, color="#707070", linewidth=1, label="R² = 0: no better than the mean")
    for place, (condition, curve) in enumerate(curves.items()):
        look, (mean, sd) = _LOOKS[condition], curve.T
        axes.fill_between(x, mean - sd, mean + sd, color=look.color, alpha=0.2, linewidth=0)
        style = {"color": look.color, "marker": look.marker, "markersize": 5, "label": look.label}
        axes.plot(x, mean, look.dashes, zorder=3, **style)
        for index in np.flatnonzero(mean < low):
            axes.plot(index, low, "v", color=look.color, clip_on=False, zorder=4)
            text = f"{look.label} {mean[index]:.1f}".replace("-", "−")
            box = {"boxstyle": "square,pad=0.05", "facecolor": "white", "linewidth": 0}
            offset = {"xytext": (-8, 4 + 11 * place), "textcoords": "offset points", "fontsize": 9}
            axes.annotate(text, (index, low), ha="right", bbox=box, zorder=6, **offset)
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
    axes.set_xticks(x, layers, rotation=90)
    axes.get_xticklabels()[peak_index].set_fontweight("bold")
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
            axes.axvspan(index - 0.5, index + 0.5, color=_SHADE, linewidth=0, label=label, zorder=0)
            label = "_nolegend_"


@_styled
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
    series: tuple[tuple[Condition, Estimator, str, str, str], ...] = (
        ("trained", "ridge", "ridge", "o", _BLUE),
        ("trained", "ols", "least squares", "D", _RED),
        ("shuffled_measure", "ols", "least squares, shuffled", "^", _DARK),
    )
    figure = Figure(figsize=(_WIDTH, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1, linscale=1.2)
    ratios = np.array(sorted({width / n_train for width in widths.values()}))
    axes.set_xlim(min(ratios[0], 0.8) / 1.2, max(ratios[-1], 1.25) * 1.2)
    axes.set_ylim(floor * 1.2, 1.2)
    axes.axvspan(0.5, 2, color=_SHADE, linewidth=0, zorder=0)
    axes.axhline(0, color="#707070", linewidth=1)
    grid = np.geomspace(*axes.get_xlim(), 400) * n_train
    with np.errstate(divide="ignore"):
        noise = np.where(grid < n_train, -(grid + 1) / (n_train - grid - 2), -n_train / (grid - n_train - 1))
    noise[np.abs(grid - n_train) < 3] = -np.inf
    axes.plot(
        grid / n_train,
        np.maximum(noise, 10 * floor),
        color=_DARK,
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


@_styled
def network_sketch(cumulative: Mapping[str, int], cut: str, *, title: str = "") -> Figure:
    """The network as one bar of parameters, the part behind the cut greyed.

    Args:
        cumulative: Parameters up to and including each layer, in depth order; the last is the whole network.
        cut: The last layer kept.
        title: Drawn above the bar.

    Raises:
        ValueError: `cut` is no layer of `cumulative`.
    """
    if cut not in cumulative:
        raise ValueError(f"No layer {cut!r}; the layers are {', '.join(cumulative)}.")
    total, kept = list(cumulative.values())[-1], cumulative[cut]
    figure = Figure(figsize=(_WIDTH, 2.5), layout="constrained")
    axes = figure.subplots()
    start, narrow = 0, []
    for index, (layer, end) in enumerate(cumulative.items()):
        color = "#d9d9d9" if end > kept else ("#8cc4e6", "#bfe0f2")[index % 2]
        axes.add_patch(Rectangle((start, 0), end - start, 1, facecolor=color, edgecolor="white", linewidth=1))
        if end - start > 0.035 * total:
            axes.text(
                (start + end) / 2,
                0.5,
                layer,
                rotation=90 if end - start < 0.15 * total else 0,
                ha="center",
                va="center",
                fontsize=9.5,
                color="#555555" if end > kept else "black",
            )
        else:
            narrow.append((layer, start, end))
        start = end
    if narrow and narrow[-1][2] - narrow[0][1] > 0.035 * total and len(narrow) < len(cumulative):
        names = narrow[0][0] if len(narrow) == 1 else f"{narrow[0][0]}–{narrow[-1][0]}"
        axes.text(
            (narrow[0][1] + narrow[-1][2]) / 2,
            0.5,
            names,
            rotation=90,
            ha="center",
            va="center",
            fontsize=8.5,
        )
    axes.plot([kept, kept], [-0.08, 1.1], color="#b03000", linewidth=2.5, clip_on=False)
    axes.text(0, 1.42, f"cut after {cut}", va="bottom", color="#b03000", weight="bold")
    axes.text(0, 1.14, f"{kept:,} parameters kept, {100 * (total - kept) / total:.2f} % removed", va="bottom")
    axes.set_xlim(0, total)
    axes.set_ylim(0, 1.72)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    unit, size = ("millions", 1e6) if total > 2e6 else ("thousands", 1e3)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / size:g}")
    axes.set_xlabel(f"parameters up to here, {unit} ({total:,} in all)")
    if title:
        axes.set_title(title)
    return figure


@_styled
def training_curve(
    images_seen: Sequence[float],
    loss: Sequence[float],
    top1: Sequence[float],
    *,
    held_out_images_seen: Sequence[float] = (),
    held_out_top1: Sequence[float] = (),
    title: str = "",
) -> Figure:
    """Training loss and top-1 accuracy (0 to 1) against the images seen, for a model card."""
    figure = Figure(figsize=(_WIDTH, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    upper.plot(images_seen, loss, color=_BLUE)
    upper.set_ylabel("training loss")
    upper.set_ylim(bottom=0)
    lower.plot(images_seen, top1, color=_BLUE, label="training batches")
    if held_out_top1:
        lower.plot(held_out_images_seen, held_out_top1, "s--", color=_ORANGE, label="held out")
        last = f"{held_out_top1[-1]:.1%}"
        at = (held_out_images_seen[-1], held_out_top1[-1])
        lower.annotate(last, at, (0, -9), textcoords="offset points", ha="right", va="top", weight="bold")
    lower.set_ylim(0, 1.02)
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    lower.xaxis.set_major_formatter(
        lambda value, _: f"{value / 1000:g}k" if value < 1e6 else f"{value / 1e6:g}M"
    )
    lower.set_ylabel("top-1")
    lower.set_xlabel("images seen")
    lower.legend(loc="lower right")
    for axes in (upper, lower):
        axes.grid(color="#e4e4e4")
    if title:
        upper.set_title(title)
    return figure


def render(figure: Figure, image_format: Literal["png", "svg"]) -> bytes:
    """The figure as bytes of a PNG (150 dpi) or SVG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    metadata = {"Software": None} if image_format == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format=image_format, dpi=150, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def save(figure: Figure, path_stem: Path) -> tuple[Path, Path]:
    """Write `<path_stem>.png` and `<path_stem>.svg` and return both paths."""
    paths = (Path(f"{path_stem}.png"), Path(f"{path_stem}.svg"))
    for path, image_format in zip(paths, ("png", "svg"), strict=True):
        path.write_bytes(render(figure, image_format))
    return paths
