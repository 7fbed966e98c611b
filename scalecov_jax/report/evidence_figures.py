"""Figures of the evidence: R2 by layer with intervals and controls, differences between layers, and single images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from scalecov_jax.evidence_table import ContrastRow, LayerRow
from scalecov_jax.images.example import encode_jpeg
from scalecov_jax.probes.statistics import Estimate
from scalecov_jax.report.numbers import number
from scalecov_jax.report.style import BLUE, DARK, GREEN, ORANGE, RED, SHADE, WIDTH, styled

NAMES = {
    "random_weights": "random weights",
    "shuffled_measure": "shuffled measure",
    "pixels": "pixels",
    "nuisances": "nuisances",
}
"""Of the controls, for people."""
CASE_BYTES = 120_000  # of one panel of images
_LIMITS = (-1.0, 1.5)  # of what is drawn; arrows mark what lies beyond
_LOOKS: dict[str, tuple[str, str, Any]] = {  # colour, marker and dashes
    "random_weights": (ORANGE, "s", "--"),
    "pixels": (GREEN, "D", "-."),
    "nuisances": (RED, "^", (0, (4, 1, 1, 1, 1, 1))),
}
_GREY = "#707070"


class Shuffled(NamedTuple):
    """R2 of permuted measures at each layer: its mean and 95 % quantile over the permutations, and their number."""

    mean: Float[np.ndarray, " L"]
    high: Float[np.ndarray, " L"]
    permutations: int


@styled
def evidence_curve(
    rows: Sequence[LayerRow],
    controls: Mapping[str, Sequence[Estimate]],
    shuffled: Shuffled | None = None,
    title: str = "",
) -> Figure:
    """Held-out R2 of ridge by layer with its 95 % interval, among its controls.

    Filled points on shaded ground are layers that may be the best; diamonds at the foot mark those with a family-wise p of 5 % at
    most. What lies below -1 is an arrow there.

    Args:
        rows: Of one concept, from input to output.
        controls: By name: random_weights at each layer; a single estimate of any other, drawn in a column of its own.
        shuffled: The measure permuted.
        title: Drawn above the axes.
    """
    single = {name: some[0] for name, some in controls.items() if name != "random_weights"}
    intervals = [(row.low, row.high) for row in rows]
    intervals += [one.interval for some in controls.values() for one in some]
    intervals += [] if shuffled is None else [*zip(shuffled.mean, shuffled.high, strict=True)]
    limits = low, high = _limits(intervals)
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=_GREY, linewidth=1, zorder=1)
    _draw_trained(axes, rows, limits)
    if random_weights := controls.get("random_weights"):
        _draw_band(axes, "random_weights", random_weights, limits)
    for k, (name, one) in enumerate(single.items(), start=len(rows)):
        color, marker, dashes = _LOOKS[name]
        axes.axhline(one.value, color=color, linewidth=1, linestyle=dashes, zorder=2)
        _point(axes, k, one.value, one.interval, limits, (color, marker, color), NAMES[name])
    foot = (0.14 if shuffled else 0.04) * (high - low)
    if shuffled is not None:
        _draw_shuffled(axes, shuffled, limits)
        read = [k for k, row in enumerate(rows) if row.p_family is not None and row.p_family <= 0.05]
        label = f"family-wise p ≤ 0.05\n(smallest possible {1 / (shuffled.permutations + 1):.1g})"
        axes.plot(read, [low - foot / 2] * len(read), "d", color=DARK, markersize=5, label=label)
    axes.set_ylim(low - foot, high + 0.13 * (high - low))
    best = max(range(len(rows)), key=lambda k: rows[k].r2)
    columns = [*(row.layer for row in rows), *(NAMES[name] for name in single)]
    _name_peak(axes, rows[best], best, len(columns))
    _name_columns(axes, columns, best)
    if single:
        axes.axvline(len(rows) - 0.5, color=_GREY, linewidth=0.8)
    axes.set_ylabel("R² on held-out images")
    axes.set_xlabel("layer, from input to output" + ("; controls without layers" if single else ""))
    axes.set_title(title, parse_math=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=9)
    return figure


@styled
def contrast_bars(contrasts: Sequence[ContrastRow], title: str = "") -> Figure:
    """R2 minus that of the peak, then minus that of each control and beyond the nuisances, a panel each.

    Bars are filled where the 95 % interval leaves out 0. Arrows mark what lies below -1 or above 1.5.

    Args:
        contrasts: Of one concept, by comparison, layers from input to output.
        title: Drawn above the first panel.
    """
    panels: dict[str, list[ContrastRow]] = {}
    for row in contrasts:
        panels.setdefault(row.against, []).append(row)
    figure = Figure(figsize=(WIDTH, 1.6 + len(panels)), layout="constrained")
    drawn = [*np.atleast_1d(figure.subplots(len(panels), 1, sharex=True))]
    peak = max(panels["peak"], key=lambda row: row.difference).layer
    layers = [row.layer for row in panels["peak"]]
    titles = {"peak": f"minus {peak}, the peak", "beyond_nuisances": "beyond the nuisances (partial R²)"}
    for axes, (name, rows) in zip(drawn, panels.items(), strict=True):
        alike = rows if name == "peak" else [row for row in contrasts if row.against != "peak"]
        limits = low, high = _limits([(row.low, row.high) for row in alike])
        axes.axhline(0, color=_GREY, linewidth=1, zorder=3)
        heights = np.clip([row.difference for row in rows], *limits)
        fill = [BLUE if row.low > 0 or row.high < 0 else "white" for row in rows]
        axes.bar(range(len(rows)), heights, 0.62, color=fill, edgecolor=BLUE, linewidth=1.2, zorder=2)
        for k, row in enumerate(rows):
            _interval(axes, k, (row.low, row.high), limits, DARK)
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_title(titles.get(name) or f"minus {NAMES[name]}", fontsize=10, loc="left")
    _name_columns(drawn[-1], layers, layers.index(peak))
    drawn[-1].set_xlabel("layer, from input to output")
    figure.supylabel("difference of R²", fontsize=10.5)
    figure.suptitle(title, fontsize=11.5, parse_math=False)
    return figure


def case_panel(images: Sequence[UInt8[np.ndarray, "_ _ 3"]], titles: Sequence[str]) -> bytes:
    """Small copies of images with titles, three a row, as a JPEG of `CASE_BYTES` at most.

    Raises:
        ValueError: Not one title an image.
    """
    if len(images) != len(titles) or not images:
        raise ValueError(
            f"{len(titles)} titles for {len(images)} images; expected one each, and at least one."
        )
    canvas = FigureCanvasAgg(_draw_cases(images, titles))
    canvas.figure.set_dpi(150)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    files = (encode_jpeg(pixels, quality) for quality in (85, 70, 50, 30, 15))
    return next(file for file in files if len(file) <= CASE_BYTES)


@styled
def _draw_cases(images: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    rows = -(-len(images) // 3)
    figure = Figure(figsize=(WIDTH, 1.75 * rows), layout="constrained", facecolor="white")
    for axes in (drawn := figure.subplots(rows, 3, squeeze=False).ravel()):
        axes.axis("off")
    for axes, image, title in zip(drawn, images, titles, strict=False):
        small = Image.fromarray(image)
        small.thumbnail((240, 240))
        axes.imshow(np.asarray(small))
        axes.set_title(title, fontsize=10, parse_math=False)
    return figure


def _limits(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """From the lowest to the highest of what is drawn, with 0 and some room about it."""
    low, high = np.array([*intervals, (-0.05, 0.05)]).T
    return max(_LIMITS[0], float(low.min())), min(_LIMITS[1], float(high.max()))


def _arrows(
    axes: Axes, x: int, interval: tuple[float, float], limits: tuple[float, float], color: str
) -> None:
    for edge, beyond, marker in zip(
        limits, (interval[0] < limits[0], interval[1] > limits[1]), "v^", strict=True
    ):
        if beyond:
            axes.plot(x, edge, marker, color=color, markersize=7, zorder=6, clip_on=False)


def _interval(
    axes: Axes, x: int, interval: tuple[float, float], limits: tuple[float, float], color: str
) -> None:
    axes.vlines(x, *np.clip(interval, *limits), color=color, linewidth=1.7, zorder=4)
    _arrows(axes, x, interval, limits, color)


def _point(
    axes: Axes,
    x: int,
    value: float,
    interval: tuple[float, float],
    limits: tuple[float, float],
    look: tuple[str, str, str],
    label: str = "_nolegend_",
) -> None:
    """A value, for which an arrow stands if it is beyond the limits, with its interval; look: colour, marker, fill."""
    color, marker, fill = look
    _interval(axes, x, interval, limits, color)
    style = {"markersize": 6.5, "markeredgewidth": 1.5, "zorder": 5, "linestyle": "", "label": label}
    y = value if limits[0] <= value <= limits[1] else np.nan
    axes.plot(x, y, marker, color=color, markerfacecolor=fill, **style)


def _draw_trained(axes: Axes, rows: Sequence[LayerRow], limits: tuple[float, float]) -> None:
    label = "may be the best layer (95 %)"
    for k, row in enumerate(rows):
        if row.may_be_best:
            axes.axvspan(k - 0.5, k + 0.5, color=SHADE, linewidth=0, zorder=0, label=label)
            label = "_nolegend_"
        fill = BLUE if row.may_be_best else "white"
        _point(axes, k, row.r2, (row.low, row.high), limits, (BLUE, "o", fill))
    values = np.clip([row.r2 for row in rows], *limits)
    style = {"color": BLUE, "linewidth": 1, "marker": "o", "markevery": [], "zorder": 3}
    axes.plot(np.arange(len(rows)), values, label="trained, 95 % interval", **style)


def _draw_band(axes: Axes, name: str, some: Sequence[Estimate], limits: tuple[float, float]) -> None:
    (color, marker, dashes), x = _LOOKS[name], np.arange(len(some))
    values = np.array([one.value for one in some])
    axes.fill_between(
        x, *np.clip([one.interval for one in some], *limits).T, color=color, alpha=0.25, linewidth=0
    )
    within = np.flatnonzero((values >= limits[0]) & (values <= limits[1]))
    style = {"color": color, "marker": marker, "markersize": 4, "markevery": [*within], "zorder": 3}
    axes.plot(x, np.clip(values, *limits), linestyle=dashes, label=NAMES[name], **style)
    for k, one in enumerate(some):
        _arrows(axes, k, one.interval, limits, color)


def _draw_shuffled(axes: Axes, shuffled: Shuffled, limits: tuple[float, float]) -> None:
    x, style = np.arange(len(shuffled.mean)), {"color": DARK, "zorder": 2}
    axes.plot(x, np.clip(shuffled.mean, *limits), ":", linewidth=1.8, label="shuffled measure, mean", **style)
    label = "shuffled measure, 95 % quantile"
    axes.plot(x, np.clip(shuffled.high, *limits), "-", linewidth=0.9, label=label, **style)
    for k, interval in enumerate(zip(shuffled.mean, shuffled.high, strict=True)):
        _arrows(axes, k, interval, limits, DARK)


def _name_peak(axes: Axes, row: LayerRow, at: int, columns: int) -> None:
    depth = (at + 0.5) / columns
    side = "left" if depth < 0.35 else "right" if depth > 0.65 else "center"
    text = f"{row.layer}: R² {number(row.r2)} ({number(row.low)} to {number(row.high)})"
    style = {"xytext": (0, 4), "textcoords": "offset points", "weight": "bold", "zorder": 8}
    axes.annotate(text, (at, np.clip(row.high, *_LIMITS)), ha=side, va="bottom", **style)


def _name_columns(axes: Axes, names: Sequence[str], best: int) -> None:
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.get_xticklabels()[best].set_fontweight("bold")
    axes.set_xlim(-0.6, len(names) - 0.4)
