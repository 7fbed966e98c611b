"""What becomes of maps while a network forgets its weights: table, figure and sentence."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from scalecov_jax.report import page
from scalecov_jax.report.explain import Result
from scalecov_jax.report.style import BLUE, GREEN, ORANGE, RED, styled


class Forgotten(NamedTuple):
    """Maps of a network that is random from the output down to a layer, beside those of the network (a row of randomised.csv).

    Attributes:
        weights: Name of the network.
        layer: The last part that was made random.
        images: Their number.
        correlation: Mean of Spearman's over images.
        sd: Over images.
    """

    weights: str
    layer: str
    images: int
    correlation: float
    sd: float


def add_randomisation(result: Result, rows: Sequence[Forgotten]) -> Result:
    """Add figure, table and sentence to the result of maps."""
    told = []
    for weights in dict.fromkeys(row.weights for row in rows):
        own = [row for row in rows if row.weights == weights]
        told.append(
            f"{weights}: rank correlation with the trained network {own[0].correlation:.2f} once {own[0].layer} is random, "
            f"{own[-1].correlation:.2f} when all is, on {own[0].images} images."
        )
    sentence = " ".join(told)
    cells = [
        (f"{row.weights}, {row.layer}", str(row.images), f"{row.correlation:.2f}", f"{row.sd:.2f}")
        for row in rows
    ]
    caption = (
        "Rank correlation with the map of the trained network; weights are random from the output down to the layer. "
        "A map whose correlation stays near 1 does not show what was learnt."
    )
    table = page.Table(caption, ("random down to", "images", "correlation", "sd over images"), cells)
    return result._replace(
        figures={**result.figures, "randomised": (curves(rows), f"{caption} {sentence}")},
        tables=[*result.tables, table],
        answer=f"{result.answer}\n{sentence}",
        text=f"{result.text}\n{sentence}",
    )


@styled
def curves(rows: Sequence[Forgotten]) -> Figure:
    """Mean rank correlation against the layer down to which weights are random; the band is one sd over images."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    figure = Figure(figsize=(max(4.0, 1.4 + 0.3 * len(layers)), 3.2), layout="constrained")
    axes: Any = figure.subplots()
    weights = list(dict.fromkeys(row.weights for row in rows))
    for name, colour in zip(weights, (BLUE, RED, GREEN, ORANGE) * len(weights), strict=False):
        own = [row for row in rows if row.weights == name]
        at = [layers.index(row.layer) for row in own]
        axes.plot(at, [row.correlation for row in own], color=colour, marker="o", markersize=3.5, label=name)
        axes.fill_between(
            at,
            [row.correlation - row.sd for row in own],
            [row.correlation + row.sd for row in own],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    axes.axhline(0, color="#707070", linewidth=0.8)
    axes.set_xticks(range(len(layers)), layers, rotation=90)
    axes.set_ylim(-1, 1.02)
    axes.set_xlabel("random from the output down to")
    axes.set_ylabel("rank correlation")
    axes.legend(fontsize=9)
    return figure
