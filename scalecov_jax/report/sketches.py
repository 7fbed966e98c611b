"""Drawings of a network."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scalecov_jax.report.style import WIDTH, styled


@styled
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
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    axes = figure.subplots()
    start, narrow = 0, [[]]  # runs of layers too narrow to be named one by one
    for index, (layer, end) in enumerate(cumulative.items()):
        color = "#d9d9d9" if end > kept else ("#8cc4e6", "#bfe0f2")[index % 2]
        axes.add_patch(Rectangle((start, 0), end - start, 1, facecolor=color, edgecolor="white", linewidth=1))
        if end - start > 0.035 * total:
            _name(axes, layer, start, end, total, "#555555" if end > kept else "black", 9.5)
            narrow.append([])
        else:
            narrow[-1].append((layer, start, end))
        start = end
    for run in narrow:
        if run and run[-1][2] - run[0][1] > 0.035 * total and len(run) < len(cumulative):
            names = run[0][0] if len(run) == 1 else f"{run[0][0]}–{run[-1][0]}"
            _name(axes, names, run[0][1], run[-1][2], total, "black", 8.5)
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


def _name(axes: Axes, text: str, start: int, end: int, total: int, color: str, size: float) -> None:
    """Write a name into its part of the bar, upright where it is narrow; leave it out where it does not fit."""
    wide = (end - start) * WIDTH > max(0.15 * WIDTH, 0.0085 * size * len(text)) * total
    if wide or len(text) <= 16:
        place = {"ha": "center", "va": "center", "rotation": 0 if wide else 90}
        axes.text((start + end) / 2, 0.5, text, color=color, fontsize=size, **place)
