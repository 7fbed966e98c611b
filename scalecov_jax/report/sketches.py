"""Drawings of a network and of its training."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scalecov_jax.report.style import BLUE, ORANGE, WIDTH, styled


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


@styled
def training_curve(
    images_seen: Sequence[float],
    loss: Sequence[float],
    score: Sequence[float],
    *,
    held_out_images_seen: Sequence[float] = (),
    held_out_score: Sequence[float] = (),
    name: str = "top-1",
    title: str = "",
) -> Figure:
    """Training loss and a score of at most 1, such as top-1 accuracy, against the images seen, for a model card.

    Args:
        images_seen: At each point.
        loss: There.
        score: Of the training batches there.
        held_out_images_seen: Where held-out images were scored.
        held_out_score: Their score.
        name: Of the score; top-1 is shown in per cent.
        title: Above the figure.
    """
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    upper.plot(images_seen, loss, color=BLUE)
    upper.set_ylabel("training loss")
    if min(loss) >= 0:
        upper.set_ylim(bottom=0)
    lower.plot(images_seen, score, color=BLUE, label="training batches")
    per_cent = name == "top-1"
    if held_out_score:
        lower.plot(held_out_images_seen, held_out_score, "s--", color=ORANGE, label="held out")
        last = f"{held_out_score[-1]:.1%}" if per_cent else f"{held_out_score[-1]:.3f}"
        at = (held_out_images_seen[-1], held_out_score[-1])
        behind = None if per_cent else {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
        place = {"textcoords": "offset points", "ha": "right", "va": "top", "weight": "bold", "bbox": behind}
        lower.annotate(last, at, (0, -9), **place)
    lower.set_ylim(min(0, *score, *held_out_score), 1.02)
    if per_cent:
        lower.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    lower.xaxis.set_major_formatter(
        lambda value, _: f"{value / 1000:g}k" if value < 1e6 else f"{value / 1e6:g}M"
    )
    lower.set_ylabel(name)
    lower.set_xlabel("images seen")
    lower.legend(loc="lower right")
    for axes in (upper, lower):
        axes.grid(color="#e4e4e4")
    if title:
        upper.set_title(title)
    return figure
