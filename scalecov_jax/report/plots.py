"""Figures drawn from tables, each with the alt text that says what the table holds."""

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter

from scalecov_jax.report import style
from scalecov_jax.report.numbers import interval, number
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
MOST_MARKED = 60  # points of a line that have marks


@styled
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

    The columns are series, layer and r2, a row per split; layers that a series has not are left out of its line.
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
    return Image(figure, alt, caption, name=name)


@styled
def predicted_against_true(
    frame: pd.DataFrame,
    panels: Mapping[str, str],
    *,
    unit: str,
    name: str,
    caption: str,
    empty: str = "",
    log: bool = False,
) -> Image:
    """Predicted against true values of held-out images, a panel per kind of features.

    Large marks are the split of median R2, whose R2 stands above; small marks all splits. What lies outside the axes is drawn at
    their edge.

    The columns are panel, split, true and predicted; titles are by panel, from left to right, and `empty` stands in one without
    rows. True values on logarithmic axes are positive.

    Source: Graziani et al. 2021, Figure 7.
    """
    parts = {panel: frame[frame["panel"] == panel] for panel in panels}
    splits = {panel: median_split(part) for panel, part in parts.items() if len(part)}
    shown = (
        f"{title} {number(splits[panel][1]) if panel in splits else 'no value'}"
        for panel, title in panels.items()
    )
    alt = f"Predicted against true {unit} of held-out images. R² of the median split: {', '.join(shown)}."
    figure = Figure(figsize=(WIDTH, 2.95), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    true = pd.concat([part["true"] for part in parts.values()])
    low, high = true.min(), true.max()
    reach = high - low
    limits, ends = (low - 0.25 * reach, high + 0.25 * reach), (low - 0.08 * reach, high + 0.08 * reach)
    inside = (low - 0.205 * reach, high + 0.205 * reach)
    if log:
        limits, ends, inside = (low / 3, high * 3), (low / 1.2, high * 1.2), (low / 2.8, high * 2.8)
    for axes, (panel, title), (color, marker, _) in zip(grid, panels.items(), cycle(LOOKS), strict=False):
        axes.set_title(title, fontsize=10)
        axes.set_xlim(*ends)
        axes.set_ylim(*limits)
        if log:
            axes.set(xscale="log", yscale="log")
            every = [factor * 10.0**power for power in range(-3, 7) for factor in (1.0, 3.0)]
            for axis, (first, final) in ((axes.xaxis, ends), (axes.yaxis, limits)):
                ticks = [tick for tick in every if first <= tick <= final]
                axis.set_ticks(ticks, [f"{tick:.10g}" for tick in ticks])
                axis.set_ticks([], minor=True)
        axes.set_xlabel(f"true {unit}")
        if panel not in splits:
            axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", va="center", fontsize=10)
            continue
        axes.plot([low, high], [low, high], color="#707070", linewidth=1)
        chosen, r2 = splits[panel]
        for large, rows in parts[panel].groupby(parts[panel]["split"] == chosen):
            size, alpha, order = (5.5, 1.0, 3) if large else (2.5, 0.25, 2)
            look = {"color": color, "markersize": size, "alpha": alpha, "zorder": order}
            look |= {"linestyle": "", "markeredgewidth": 0}
            axes.plot(rows["true"], rows["predicted"].clip(*inside), marker, **look)
        axes.set_title(f"{title}: R² = {number(r2)}", fontsize=10)
    grid[0].set_ylabel(f"predicted {unit}")
    return Image(figure, alt, caption, name=name)


def curves(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str,
    name: str,
    caption: str,
    order: Sequence[str] = (),
    log: str = "",
    limits: tuple[float | None, float | None] = (None, None),
    lines: Mapping[str, float] | None = None,
    shaded: Mapping[str, tuple[float, float]] | None = None,
    marks: Mapping[str, float] | None = None,
    places: Mapping[str, Collection[str]] | None = None,
    digits: int = 2,
) -> Image:
    """Lines with bands: a panel per kind of value, one above the other, a line per series.

    Args:
        frame: Columns series, x, value; low and high where there are bands; panel where there are several. An x of text is a
            layer or another name, in `order`. Missing values break a line; values beyond `limits` are drawn at them. Where there
            is a column hollow, markers are hollow where it is true.
        x: Label of the abscissa, with its unit.
        y: Label of the ordinates, with its unit; panels have their names as titles.
        name: Of the files.
        caption: Under the figure.
        order: Names along the abscissa; by default as they come.
        log: Which axes are logarithmic: "", "x", "y" or "xy".
        limits: Of the ordinate.
        lines: Horizontal lines by their names in the legend, such as chance.
        shaded: Ranges of the abscissa (numbers, or places in `order`) by their names in the legend.
        marks: Vertical lines at values of the abscissa, by their names in the legend.
        places: Names in `order` to shade, by what the legend calls them.
        digits: Of the numbers in the alt text.
    """
    frame = frame if "panel" in frame else frame.assign(panel="")
    order = list(order) or (list(frame["x"].unique()) if frame["x"].dtype == object else [])
    said = [f"{y} by {x}."]
    for (panel, series), rows in frame.dropna(subset=["value"]).groupby(["panel", "series"], sort=False):
        values, at = rows["value"].tolist(), rows["x"].tolist()
        peak = int(np.argmax(values))
        said.append(
            f"{f'{panel}, ' if panel else ''}{series}: {number(values[0], digits)} at {at[0]} to "
            f"{number(values[-1], digits)} at {at[-1]}; largest {number(values[peak], digits)} at {at[peak]}."
        )
    figure = _panels(frame, x, y, order, log, limits, lines or {}, shaded or {}, marks or {}, places or {})
    return Image(figure, " ".join(said), caption, name=name)


@styled
def bars(frame: pd.DataFrame, *, x: str, name: str, caption: str, digits: int = 2) -> Image:
    """Horizontal bars with intervals: a group per label, a colour per series.

    The columns are label, value, low and high, and series where there are several. A missing value leaves its place empty.
    """
    frame = frame if "series" in frame else frame.assign(series="")
    cells = frame[["label", "series", "value", "low", "high"]].to_numpy().tolist()
    said = (
        f"{label}{', ' + series if series else ''} {interval(value, low, high, digits)}"
        for label, series, value, low, high in cells
    )
    alt = f"{x}: {'; '.join(said)}."
    labels, series = list(frame["label"].unique()), list(frame["series"].unique())
    height = 0.8 / len(series)
    size = 0.9 + 0.34 * len(labels) * max(1.0, len(series) ** 0.6)
    figure = Figure(figsize=(WIDTH, size), layout="constrained")
    axes = figure.subplots()
    for count, (label, (color, *_)) in enumerate(zip(series, cycle(LOOKS), strict=False)):
        rows = frame[frame["series"] == label].set_index("label").reindex(labels)
        at = np.arange(len(labels)) + (count - (len(series) - 1) / 2) * height
        axes.barh(at, rows["value"], 0.85 * height, color=color, label=label or "_nolegend_")
        ends = np.abs(np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]], dtype=float))
        axes.errorbar(rows["value"], at, xerr=ends, fmt="none", ecolor="#202020", capsize=2)
    axes.axvline(0, color="#707070", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(x)
    if len(series) > 1:
        figure.legend(loc="outside upper left", ncols=2, fontsize=9.5)
    return Image(figure, alt, caption, name=name)


@styled
def matrix(
    tables: Mapping[str, pd.DataFrame],
    *,
    rows: str,
    columns: str,
    name: str,
    caption: str,
    limits: tuple[float, float],
    digits: int = 2,
    texts: Mapping[str, pd.DataFrame] | None = None,
) -> Image:
    """Matrices of numbers in colour, one above the other; up to ten columns each cell holds its number.

    `texts` stand in the cells instead of the numbers; `limits` are those of the colours.
    """
    said = [
        f"{title + ', ' if title else ''}{row}: "
        + ", ".join(f"{column} {number(value, digits)}" for column, value in values.items())
        for title, table in tables.items()
        for row, values in table.iterrows()
    ]
    cells = texts or {
        title: table.map(lambda value: number(value, digits)) for title, table in tables.items()
    }
    few = max(table.shape[1] for table in tables.values()) <= 10
    height = sum(0.9 + (0.38 if few else 0.22) * len(table) for table in tables.values())
    figure = Figure(figsize=(WIDTH, 0.5 + height), layout="constrained")
    grid = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
    look = {"cmap": "Blues", "vmin": limits[0], "vmax": limits[1], "aspect": "auto"}
    shown = None
    for axes, (title, table) in zip(grid, tables.items(), strict=True):
        values = table.to_numpy(float)
        shown = axes.imshow(np.clip(values, *limits), **look)
        for row, column in np.ndindex(values.shape) if few else ():
            share = (values[row, column] - limits[0]) / (limits[1] - limits[0])
            text, color = str(cells[title].iat[row, column]), "white" if share > 0.55 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
        axes.set_title(title, fontsize=10.5)
        axes.set_yticks(range(len(table)), table.index.map(str), fontsize=9)
        ticks = range(table.shape[1]), table.columns.map(str)
        axes.set_xticks(*ticks, fontsize=9, rotation=0 if few else 90)
        axes.set_ylabel(rows)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    grid[-1].set_xlabel(columns)
    if not few and shown is not None:
        figure.colorbar(shown, ax=list(grid))
    return Image(figure, f"{rows} by {columns}. {'; '.join(said)}.", caption, name=name)


@styled
def image_grid(
    rows: Mapping[str, Sequence[tuple[str, np.ndarray]]],
    *,
    alt: str,
    name: str,
    caption: str,
    width: float = 1.6,
    scale: tuple[float, float, str] | None = None,
    label: str = "",
) -> Image:
    """Pictures in rows, each with a title.

    A picture is RGB in uint8 [H, W, 3], or a map of floats [H, W], drawn in the colours of `scale` (smallest and largest value,
    and matplotlib's name); without a `label` no colour bar is drawn. `width` is that of a picture, in inches.
    """
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(width * columns + 0.5, 1.1 * width * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    look = {"vmin": scale[0], "vmax": scale[1], "cmap": scale[2]} if scale else {}
    for places, (row, pictures) in zip(grid, rows.items(), strict=True):
        for axes in places:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for axes, (title, picture) in zip(places, pictures, strict=False):
            axes.imshow(picture, **(look if picture.ndim == 2 else {}))
            axes.set_title(title, fontsize=8, pad=2, parse_math=False)
        places[0].set_ylabel(row[:24], fontsize=8.5)
    if scale and label:
        colours = ScalarMappable(Normalize(*scale[:2]), scale[2])
        figure.colorbar(colours, ax=grid, shrink=0.6, aspect=30, label=label)
    return Image(figure, alt, caption, name=name)


def median_split(frame: pd.DataFrame) -> tuple[int, float]:
    """The split whose R2 is the median (the lower of the middle two), and that R2.

    The columns are split, true and predicted.

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


@styled
def _panels(
    frame: pd.DataFrame,
    x: str,
    y: str,
    order: Sequence[str],
    log: str,
    limits: tuple[float | None, float | None],
    lines: Mapping[str, float],
    shaded: Mapping[str, tuple[float, float]],
    marks: Mapping[str, float],
    places: Mapping[str, Collection[str]],
) -> Figure:
    names, series = list(frame["panel"].unique()), list(frame["series"].unique())
    legend = [*series, *lines, *shaded, *marks, *places]
    entries, columns = len(legend), 1 if max(map(len, legend)) > 24 else 2
    height = (4.0 if len(names) == 1 else 2.8 * len(names)) + 0.2 * -(-entries // columns)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    place = {label: at for at, label in enumerate(order)}
    for axes, panel in zip(grid, names, strict=True):
        axes.set_title(panel, fontsize=10.5)
        axes.set_ylabel(y)
        if "y" in log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        for label, (left, right) in shaded.items():
            axes.axvspan(left, right, color=SHADE, linewidth=0, label=label, zorder=0)
        for label, marked in places.items():
            for count, at in enumerate(place[name] for name in marked):
                said = "_nolegend_" if count else label
                axes.axvspan(at - 0.5, at + 0.5, color=SHADE, linewidth=0, label=said, zorder=0)
        for (label, at), color in zip(lines.items(), cycle(("#707070", DARK)), strict=False):
            axes.axhline(at, color=color, linewidth=1, linestyle=":", label=label, zorder=1)
        for label, at in marks.items():
            axes.axvline(at, color="#707070", linewidth=1, label=label, zorder=1)
        for (color, marker, dashes), label in zip(cycle(LOOKS), series, strict=False):
            rows = frame[(frame["panel"] == panel) & (frame["series"] == label)]
            at = rows["x"].map(place) if order else rows["x"]
            if {"low", "high"} <= {*rows}:
                ends = (rows[end].clip(*limits) for end in ("low", "high"))
                axes.fill_between(at, *ends, color=color, alpha=0.18, linewidth=0)
            filled = "white" if dashes == "--" and "hollow" not in rows else color
            size = 4.5 if len(rows) <= MOST_MARKED else 0
            look = {"color": color, "marker": marker, "markersize": size, "label": label}
            values = rows["value"].clip(*limits)
            axes.plot(at, values, dashes, zorder=3, markerfacecolor=filled, **look)
            if "hollow" in rows:
                off = rows["hollow"].to_numpy()
                look |= {"label": "_nolegend_", "linestyle": "", "markerfacecolor": "white"}
                axes.plot(at[off], values[off], zorder=4, **look)
        if limits != (None, None):
            low, high = limits
            margin = 0.03 * (high - low) if low is not None and high is not None and "y" not in log else 0
            axes.set_ylim(
                low if low is None else low - margin, high if high is None else high + margin, auto=True
            )
    if order:
        style.name_layers(grid[-1], order)
        grid[-1].set_xlim(-0.5, len(order) - 0.5)
    elif "x" in log:
        grid[-1].set_xscale("log")
        grid[-1].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        grid[-1].xaxis.set_major_formatter("{x:g}")
        grid[-1].xaxis.set_minor_formatter(NullFormatter())
    grid[-1].set_xlabel(x)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=columns, fontsize=9.5)
    return figure
