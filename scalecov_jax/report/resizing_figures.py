"""The figure of section 4.1: mean probability and top-5 share against the size of the images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalecov_jax.paper.resizing_curves import STRIDE, Point
from scalecov_jax.report.style import BLUE, DARK, ORANGE, RED, SHADE, WIDTH, styled


class _Look(NamedTuple):
    color: str
    marker: str
    dashes: str


_LOOKS = (
    _Look(BLUE, "o", "-"),
    _Look(RED, "D", "--"),
    _Look(ORANGE, "s", "-."),
    _Look(DARK, "^", ":"),
    _Look("#009E73", "v", (0, (6, 1.5, 1, 1.5, 1, 1.5))),  # pyright: ignore[reportArgumentType]
)


@styled
def size_curves(
    curves: Mapping[str, Sequence[Point]], input_size: int, published: tuple[int, int] | None = None
) -> Figure:
    """Mean probability of the true class above, share of images with it among the first five below, against the size.

    Args:
        curves: Points of each curve, at most five, by its name in the legend; bands are 95 % intervals over images. Markers are
            hollow at sizes off the training's grid, see `resizing_curves.GridLoss`.
        input_size: Of the images that the network was trained on, in pixels.
        published: Sizes between which the paper found the probability flat; not shaded when absent.

    Source: Graziani et al. 2021, Figure 6.
    """
    columns = 1 if max(map(len, curves)) > 20 else 2
    entries = len(curves) + 1 + (published is not None)
    figure = Figure(figsize=(WIDTH, 5.6 + 0.21 * -(-entries // columns)), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for (name, points), look in zip(curves.items(), _LOOKS, strict=False):
        for axes, measure in ((above, "probability"), (below, "top5")):
            _curve(axes, points, measure, look, name, input_size)
    sizes = sorted({point.size for points in curves.values() for point in points})
    for axes in (above, below):
        axes.axvline(input_size, color="#707070", linewidth=1, zorder=1, label=f"trained at {input_size} px")
    if published:
        above.axvspan(
            *published, color=SHADE, linewidth=0, zorder=0, label=f"published flat, {published[0]}–{published[1]} px"
        )  # fmt: skip
    above.set_ylabel("mean probability\nof the true class")
    below.set_ylabel("true class among\nthe first five")
    for axes in (above, below):
        low = min(axes.get_ylim()[0], 0.9)
        axes.set_ylim(max(low, -0.02), 1.02)
    margin = 0.03 * (sizes[-1] - sizes[0])
    below.set_xlim(sizes[0] - margin, sizes[-1] + margin)
    gap = 0.055 * (sizes[-1] - sizes[0])
    shown = sizes[:1]
    for size in sizes[1:]:
        if size - shown[-1] >= gap:
            shown.append(size)
    below.set_xticks(shown, [str(size) for size in shown], rotation=90)
    below.set_xlabel("height and width of the image, px")
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper left", ncols=columns, fontsize=9.5)
    return figure


def _curve(
    axes: Axes, points: Sequence[Point], measure: str, look: _Look, name: str, input_size: int
) -> None:
    columns = (measure, f"{measure}_low", f"{measure}_high")
    mean, low, high = np.array([[getattr(point, column) for column in columns] for point in points]).T
    x = [point.size for point in points]
    axes.fill_between(x, low, high, color=look.color, alpha=0.13, linewidth=0)
    style = {"color": look.color, "marker": look.marker, "markersize": 4.5, "label": name}
    axes.plot(x, mean, linestyle=look.dashes, zorder=3, **style)
    off = [i for i, size in enumerate(x) if (size - input_size) % STRIDE]
    hollow: dict[str, Any] = style | {"label": "_", "linestyle": "", "markerfacecolor": "white"}
    axes.plot(np.array(x)[off], mean[off], zorder=4, **hollow)
