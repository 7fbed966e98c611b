"""Pictures of explanations for the texture report: maps over images, bars of relevance."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from scalecov_jax.report.style import BLUE, DARK, GREEN, ORANGE, RED, styled

_COLOURS = (BLUE, RED, GREEN, ORANGE, DARK)


@styled
def overlays(
    images: UInt8[np.ndarray, "N H W 3"],
    maps: Mapping[str, Float[np.ndarray, "N H W"]],
    names: Sequence[str],
) -> Figure:
    """Each image, and over it the map of each network, with one colour bar for all.

    Args:
        images: RGB.
        maps: By network; between 0 and 1, or -1 and 1 if any value is negative.
        names: Of the images.
    """
    signed = any((one < 0).any() for one in maps.values())
    scale = ScalarMappable(Normalize(-1 if signed else 0, 1), "RdBu_r" if signed else "inferno")
    rows, columns = len(images), 1 + len(maps)
    figure = Figure(figsize=(1.9 * columns + 0.9, 1.95 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, (image, name) in enumerate(zip(images, names, strict=True)):
        axes[row, 0].imshow(image)
        axes[row, 0].set_ylabel(name[:22], fontsize=8)
        for column, (network, one) in enumerate(maps.items(), start=1):
            shown = axes[row, column]
            shown.imshow(np.repeat(image.mean(2, keepdims=True) / 255, 3, 2))
            shown.imshow(one[row], cmap=scale.cmap, norm=scale.norm, alpha=0.55, interpolation="bilinear")
            if not row:
                shown.set_title(network, fontsize=9)
    for one in axes.flat:
        one.set_xticks([])
        one.set_yticks([])
        one.spines[:].set_visible(False)
    bar = figure.colorbar(scale, ax=axes, shrink=0.6, aspect=30)
    bar.set_label("share of the largest value of the image's map")
    return figure


@styled
def relevance_bars(
    rows: Mapping[str, Sequence[tuple[float, float, float] | None]], concepts: Sequence[str]
) -> Figure:
    """Br of each concept with its 95 % interval, one colour a network; nothing where it is undefined."""
    figure = Figure(
        figsize=(6.2, 0.9 + 0.42 * len(concepts) * max(1, len(rows)) ** 0.6), layout="constrained"
    )
    axes = figure.subplots()
    height = 0.8 / len(rows)
    for number, (network, values) in enumerate(rows.items()):
        at = np.arange(len(concepts)) + (number - (len(rows) - 1) / 2) * height
        br, low, high = np.array([value or (0.0, 0.0, 0.0) for value in values]).reshape(-1, 3).T
        axes.barh(at, br, 0.85 * height, color=_COLOURS[number % len(_COLOURS)], label=network)
        axes.errorbar(
            br, at, xerr=np.maximum([br - low, high - br], 0), fmt="none", ecolor="#202020", capsize=2
        )
    axes.axvline(0, color="#707070", linewidth=0.8)
    axes.set_yticks(range(len(concepts)), concepts)
    axes.invert_yaxis()
    axes.set_xlabel("bidirectional relevance Br")
    figure.legend(loc="outside upper left", ncols=3, fontsize=9)
    return figure
