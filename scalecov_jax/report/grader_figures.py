"""Pictures of graded eyes: the confusion matrix, and the ROC curve of referable retinopathy."""

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from scalecov_jax.report.style import BLUE, DARK, ORANGE, RED, WIDTH, styled
from scalecov_jax.transfer.grades import REFERABLE, Evaluation


@styled
def confusion(counts: Int[np.ndarray, "5 5"]) -> Figure:
    """Numbers of eyes by true and predicted grade, shaded by their share of the eyes of the true grade."""
    figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (true, said), count in np.ndenumerate(counts):
        colour = "white" if share[true, said] > 0.6 else "black"
        axes.text(said, true, f"{count:,}", ha="center", va="center", color=colour)
    for at in (axes.axhline, axes.axvline):
        at(REFERABLE - 0.5, color=RED, linewidth=1.2, linestyle="--")
    axes.set_xticks(range(len(counts)))
    axes.set_yticks(range(len(counts)))
    axes.set_xlabel("predicted grade")
    axes.set_ylabel("true grade")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="share of the true grade", shrink=0.8)
    return figure


@styled
def roc(
    referable: Float[np.ndarray, " N"],
    grades: Int[np.ndarray, " N"],
    evaluation: Evaluation,
    published: tuple[float, float] | None,
) -> Figure:
    """Sensitivity against 1 - specificity over all thresholds of P(grade >= 2), and that of the likeliest grade and as published.

    Args:
        referable: p2 + p3 + p4.
        grades: True ones, some below 2 and some not.
        evaluation: Of the same eyes.
        published: Sensitivity and specificity; None where they cannot be compared.
    """
    figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
    axes = figure.subplots()
    fall_out, found, _ = roc_curve(grades >= REFERABLE, np.round(referable, 9))
    axes.plot(fall_out, found, color=BLUE, label=f"AUC {evaluation.auc:.3f}")
    assert evaluation.sensitivity is not None
    assert evaluation.specificity is not None
    axes.plot(
        1 - evaluation.specificity, evaluation.sensitivity, "o", color=ORANGE, label="the likeliest grade"
    )
    if published is not None:
        axes.plot(
            1 - published[1], published[0], "x", color=DARK, markersize=8, label="published, on EyePACS"
        )
    axes.plot([0, 1], [0, 1], ":", color="#999999")
    axes.set_xlabel("1 − specificity")
    axes.set_ylabel("sensitivity")
    axes.set_aspect("equal")
    axes.grid(color="#e4e4e4")
    axes.legend(loc="lower right")
    return figure
