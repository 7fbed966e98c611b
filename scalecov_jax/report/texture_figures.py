"""Pictures of texture in layers: R2 by layer, and how R2 on the images of the fit comes from their number."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from scalecov_jax.paper.texture import TextureScore
from scalecov_jax.report.style import BLUE, DARK, GREEN, ORANGE, RED, styled

COLOURS = {"random": RED, "pretrained": BLUE, "fine_tuned": GREEN}
LOWEST = -0.25  # of the ordinate: least squares falls without bound


def select(
    scores: Sequence[TextureScore], part: str, estimator: str, *, shuffled: bool = False
) -> list[TextureScore]:
    """The rows of one kind."""
    return [s for s in scores if (s.part, s.estimator, s.shuffled) == (part, estimator, shuffled)]


@styled
def by_layer(scores: Sequence[TextureScore], concepts: Sequence[str], layers: Sequence[str]) -> Figure:
    """A panel a concept: held-out R2 of ridge (median and quartiles over splits) and, dotted, R2 in sample, of all images."""
    most = max(s.images for s in scores)
    columns = min(3, len(concepts))
    rows = -(-len(concepts) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.3 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, concept in zip(panels.flat, concepts, strict=False):
        own = [s for s in scores if s.concept == concept and s.images == most]
        for weights, colour in COLOURS.items():
            held = [
                [s.r2 for s in select(own, "held_out", "ridge") if (s.weights, s.layer) == (weights, layer)]
                for layer in layers
            ]
            inside = [
                next(
                    s.r2 for s in select(own, "in_sample", "ols") if (s.weights, s.layer) == (weights, layer)
                )
                for layer in layers
            ]
            low, middle, high = np.maximum(np.percentile(held, (25, 50, 75), axis=1), LOWEST)
            at = np.arange(len(layers))
            axes.plot(at, middle, "o-", color=colour, markersize=3, label=f"{weights}, held out")
            axes.fill_between(at, low, high, color=colour, alpha=0.15)
            axes.plot(at, inside, ":", color=colour, label=f"{weights}, in sample")
        axes.set_title(concept.removeprefix("glcm_"))
        axes.set_ylim(LOWEST, 1.05)
        axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=8)
    for axes in panels.flat[len(concepts) :]:
        axes.set_visible(False)
    for row in panels:
        row[0].set_ylabel("R²")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8)
    return figure


@styled
def artefact(scores: Sequence[TextureScore]) -> Figure:
    """R2 of the random network against D / n: of least squares in sample, of shuffled measures too, and of ridge held out."""
    figure = Figure(figsize=(5.4, 3.9), layout="constrained")
    axes = figure.subplots()
    kinds = (
        ("in_sample", "ols", False, "o", RED, "least squares, in sample"),
        ("in_sample", "ols", True, "x", DARK, "the same, shuffled measure"),
        ("held_out", "ridge", False, "s", BLUE, "ridge, held out"),
        ("held_out", "ols", False, "v", ORANGE, "least squares, held out"),
    )
    own = [s for s in scores if s.weights == "random"]
    for part, estimator, is_shuffled, marker, colour, label in kinds:
        found: dict[float, list[float]] = {}
        for s in select(own, part, estimator, shuffled=is_shuffled):
            found.setdefault(s.width / s.n_fit, []).append(s.r2)
        ratios = sorted(found)
        values = np.maximum([np.median(found[one]) for one in ratios], LOWEST)
        axes.plot(ratios, values, marker, color=colour, markersize=4, label=label)
    low, high = min(s.width / s.n_fit for s in own), max(s.width / s.n_fit for s in own)
    line = np.geomspace(low, high, 200)
    axes.plot(line, np.minimum(line, 1), color=DARK, linewidth=0.8, label="chance in sample, D / (n − 1)")
    axes.set_xscale("log")
    axes.set_ylim(LOWEST - 0.03, 1.05)
    axes.set_xlabel("features D / images of the fit n")
    axes.set_ylabel("R² of the random network")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    return figure
