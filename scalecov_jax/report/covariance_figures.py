"""Figures of covariance as an operation: shares of the change, steps, readings, linearity, angles and transfer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalecov_jax.paper.covariance import MEASURES
from scalecov_jax.paper.covariance_rows import Angle, Change, Linearity, Reading, Transfer
from scalecov_jax.report.style import BLUE, DARK, GREEN, ORANGE, RED, WIDTH, name_layers, styled

MEASURE_NAMES = {"r": "r", "sqrt_r": "√r", "log_r": "log r"}
_FLOOR = 2e-4  # of shares: below the chance of the widest layers


class _Look(NamedTuple):
    label: str
    color: str
    marker: str
    dashes: str


_SHARES = {
    "best": _Look("best direction", GREEN, "D", "-"),
    "pattern": _Look("pattern of the probe", BLUE, "o", "-"),
    "rcv": _Look("RCV", RED, "s", "-"),
    "random_weights": _Look("RCV, random weights", ORANGE, "^", "--"),
    "chance": _Look("chance, 1 / D", DARK, "", ":"),
}
_STEPS = {
    "own_step": _Look("best for each object", DARK, "^", ":"),
    "best_step": _Look("best for all", GREEN, "D", "-"),
    "pattern_step": _Look("along the pattern", BLUE, "o", "-"),
    "smallest_step": _Look("σ v / |v|²", ORANGE, "s", "--"),
    "published_step": _Look("published: σ v", RED, "x", "-."),
}
_MEASURES = {
    "r": _Look("r (published)", BLUE, "o", "-"),
    "sqrt_r": _Look("√r", GREEN, "D", "--"),
    "log_r": _Look("log r", RED, "s", "-."),
}
_ANGLES = {
    ("trained", "splits"): _Look("two halves of a class", BLUE, "o", "-"),
    ("trained", "classes"): _Look("two classes", RED, "s", "--"),
    ("random_weights", "classes"): _Look("two classes, random weights", ORANGE, "^", "-."),
}
_UNEXPLAINED = (0.005, 1.0)
_CLASS_COLORS = (BLUE, ORANGE, GREEN, RED, DARK)

Curve = Mapping[str, Sequence[float]]


def by_layer(
    rows: Iterable[Change] | Iterable[Linearity], field: str, **wanted: str
) -> dict[str, list[float]]:
    """Values of all classes at each layer, of the rows whose fields are as wanted."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if all(getattr(row, name) == value for name, value in wanted.items()):
            values.setdefault(row.layer, []).append(getattr(row, field))
    return values


def angles_by_layer(rows: Iterable[Angle], **wanted: str) -> dict[str, list[float]]:
    """Values of all classes or pairs of classes at each layer, of the rows whose fields are as wanted."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if all(getattr(row, name) == value for name, value in wanted.items()):
            values.setdefault(row.layer, []).append(row.value)
    return values


def _draw(
    axes: Axes, layers: Sequence[str], curve: Curve, look: _Look, low: float, high: float = np.inf
) -> None:
    """Mean over classes, and the range between them as a band; what lies beyond `low` or `high` is drawn there."""
    if not all(layer in curve for layer in layers):
        return
    values = np.clip([curve[layer] for layer in layers], low, high)
    x = np.arange(len(layers))
    axes.fill_between(x, values.min(1), values.max(1), color=look.color, alpha=0.15, linewidth=0)
    axes.plot(
        x, values.mean(1), look.dashes, color=look.color, marker=look.marker, markersize=4.5, label=look.label
    )


def _panels(rows: int, layers: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = list(np.atleast_1d(figure.subplots(rows, 1, sharex=True)))
    name_layers(panels[-1], layers)
    panels[-1].set_xlim(-0.5, len(layers) - 0.5)
    panels[-1].set_xlabel("layer, from input to output")
    return figure, panels


def _legend(figure: Figure, axes: Axes) -> Figure:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=9.5)
    return figure


@styled
def shares(change: Sequence[Change], layers: Sequence[str]) -> Figure:
    """Share of the change of features along directions, raw and standardised; rows of one network and estimator."""
    figure, panels = _panels(2, layers, 6.2)
    for axes, metric in zip(panels, ("raw", "standardised"), strict=True):
        axes.set_yscale("log")
        for field, look in _SHARES.items():
            condition = "random_weights" if field == "random_weights" else "trained"
            name = "rcv" if field == "random_weights" else field
            curve = by_layer(change, name, condition=condition, metric=metric, measure="r")
            _draw(axes, layers, curve, look, _FLOOR)
        axes.set_ylim(_FLOOR, 1.4)
        ticks = [0.001, 0.01, 0.1, 1]
        axes.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
        axes.set_yticks([], minor=True)
        axes.set_ylabel("share of the change")
        axes.set_title(f"{metric} features")
    return _legend(figure, panels[0])


@styled
def steps(change: Sequence[Change], layers: Sequence[str]) -> Figure:
    """Share of the change of standardised features that each step foretells; rows of one network and estimator."""
    figure, panels = _panels(2, layers, 6.2)
    for axes, measure in zip(panels, ("r", "log_r"), strict=True):
        axes.axhline(0, color="#707070", linewidth=1)
        for field, look in _STEPS.items():
            curve = by_layer(change, field, condition="trained", metric="standardised", measure=measure)
            _draw(axes, layers, curve, look, -0.5)
        axes.set_ylim(-0.55, 1.02)
        axes.set_yticks([-0.5, 0, 0.5, 1], ["≤ −0.5", "0", "0.5", "1"])
        axes.set_ylabel("share foretold")
        axes.set_title(f"steps in {MEASURE_NAMES[measure]}")
    return _legend(figure, panels[0])


@styled
def linearity(rows: Sequence[Linearity], layers: Sequence[str]) -> Figure:
    """1 - R2 of the three measures on held-out scenes and within growing objects; rows of one network and estimator."""
    figure, panels = _panels(2, layers, 6.2)
    for axes, field, title in zip(
        panels,
        ("r2_median", "r2_within"),
        ("held-out scenes (median over splits)", "within growing objects"),
        strict=True,
    ):
        axes.set_yscale("log")
        for measure, look in _MEASURES.items():
            curve = by_layer(rows, field, condition="trained", measure=measure)
            left = {layer: [1 - r2 for r2 in values] for layer, values in curve.items()}
            _draw(axes, layers, left, look, *_UNEXPLAINED)
        axes.set_ylim(_UNEXPLAINED[0], 1.15)
        ticks = [0.01, 0.03, 0.1, 0.3]
        axes.set_yticks([*ticks, 1], [*(f"{tick:g}" for tick in ticks), "≥ 1"])
        axes.set_yticks([], minor=True)
        axes.set_ylabel("1 − R² (log scale)")
        axes.set_title(title)
    return _legend(figure, panels[0])


@styled
def angles(rows: Sequence[Angle], layers: Sequence[str]) -> Figure:
    """Cosines between RCVs and between patterns, of classes and of halves; rows of one network and estimator."""
    figure, panels = _panels(2, layers, 6.2)
    chance = {row.layer: row.chance for row in rows if row.chance is not None and row.kind != "layers"}
    for axes, metric, title in zip(
        panels, ("standardised", "pattern"), ("RCVs, standardised features", "patterns"), strict=True
    ):
        axes.axhline(0, color="#707070", linewidth=1)
        x, spread = np.arange(len(layers)), np.array([chance[layer] for layer in layers])
        axes.fill_between(
            x, -spread, spread, color="#c8c8c8", alpha=0.6, linewidth=0, label="random directions, ± 1 / √D"
        )
        for (condition, kind), look in _ANGLES.items():
            curve = angles_by_layer(rows, condition=condition, kind=kind, metric=metric)
            _draw(axes, layers, curve, look, -1.0)
        axes.set_ylim(-0.6, 1.05)
        axes.set_yticks([-0.5, 0, 0.5, 1], ["−0.5", "0", "0.5", "1"])
        axes.set_ylabel("cosine")
        axes.set_title(title)
    return _legend(figure, panels[0])


@styled
def responses(readings: Sequence[Reading], layer: str) -> Figure:
    """What the probe of a layer reads from each growing object: thin lines objects, bold ones means of classes."""
    figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    classes = list(dict.fromkeys(row.image_class for row in readings))
    ratios = np.unique([row.ratio for row in readings])
    for axes, measure in zip(panels, ("r", "log_r"), strict=True):
        rows = [row for row in readings if row.layer == layer and row.measure == measure]
        axes.plot(
            ratios, MEASURES[measure](ratios), "--", color="black", linewidth=1.6, label="true", zorder=4
        )
        for number, image_class in enumerate(classes):
            objects: dict[int, list[Reading]] = {}
            for row in rows:
                if row.image_class == image_class:
                    objects.setdefault(row.object, []).append(row)
            lines = [sorted(one, key=lambda row: row.ratio) for one in objects.values()]
            color = _CLASS_COLORS[number % len(_CLASS_COLORS)]
            for one in lines:
                axes.plot(
                    [row.ratio for row in one],
                    [row.read for row in one],
                    color=color,
                    linewidth=0.6,
                    alpha=0.5,
                )
            mean = np.mean([[row.read for row in one] for one in lines], axis=0)
            at = [row.ratio for row in lines[0]]
            axes.plot(at, mean, color=color, marker="os^Dv"[number % 5], linewidth=2.2, label=image_class)
        axes.set_xscale("log")
        axes.set_ylabel(f"{MEASURE_NAMES[measure]} read at {layer}")
    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1) if ratios[0] / 1.2 <= tick <= 1.2 * ratios[-1]]
    panels[1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[1].set_xticks([], minor=True)
    panels[1].set_xlabel("r, share of the image (log scale)")
    for axes in panels:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    return _legend(figure, panels[0])


def transfer_matrix(rows: Iterable[Transfer], layer: str, classes: Sequence[str]) -> Float[np.ndarray, "C C"]:
    """Median R2 of each train class (row) in each test class (column)."""
    found = {(row.image_class, row.test_class): row.r2 for row in rows if row.layer == layer}
    return np.array([[found[train, test] for test in classes] for train in classes])


@styled
def transfer(rows: Sequence[Transfer], layers: Sequence[str], classes: Sequence[str]) -> Figure:
    """R2 of the probe of one class (row) in scenes of another (column) at a few layers; numbers for up to five classes."""
    few = len(classes) <= 5
    figure = Figure(
        figsize=(WIDTH, 0.6 + len(layers) * (0.5 + (0.38 if few else 0.22) * len(classes))),
        layout="constrained",
    )
    panels = list(np.atleast_1d(figure.subplots(len(layers), 1, sharex=True)))
    names = [one.replace("_", "\n") if few else one for one in classes]
    for axes, layer in zip(panels, layers, strict=True):
        matrix = transfer_matrix(rows, layer, classes)
        image = axes.imshow(np.clip(matrix, -1, 1), cmap="viridis", vmin=-1, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(matrix):
            if few:
                text = "< −1" if value < -1 else f"{value:.2f}".replace("-", "−")
                color = "white" if value < 0.3 else "black"
                axes.text(column, row, text, ha="center", va="center", color=color)
        axes.set_title(layer)
        axes.set_yticks(range(len(classes)), names, fontsize=9)
        axes.set_ylabel("fitted to")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if not few:
            bar = figure.colorbar(image, ax=axes)
            bar.set_ticks([-1, 0, 1], labels=["≤ −1", "0", "1"])
            bar.set_label("R²")
    panels[-1].set_xticks(range(len(classes)), names, rotation=0 if few else 90, fontsize=9)
    panels[-1].set_xlabel("read from scenes of")
    return figure
