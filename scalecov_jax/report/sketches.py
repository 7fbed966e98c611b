"""Drawings of a training."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from scalecov_jax.report.style import BLUE, ORANGE, WIDTH, styled


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
