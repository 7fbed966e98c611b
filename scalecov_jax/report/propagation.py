"""Scores divided among pixels and layers: table, figures and sentence."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image

from scalecov_jax.explain.score_maps import binary_map
from scalecov_jax.report import page
from scalecov_jax.report.explain import Result
from scalecov_jax.report.style import styled

_COLUMNS = 6  # of a walk


class Divided(NamedTuple):
    """A score of an image and what its parts add up to (a row of scores.csv).

    Attributes:
        weights: Name of the network.
        image: Name of the image.
        target: The class, by name where the network knows it; or the RCV.
        logit: The score.
        sum_of_parts: Of the input and of the constants of all layers.
        relative_error: |sum_of_parts - logit| / |logit|.
        input: Sum of the input part alone.
    """

    weights: str
    image: str
    target: str
    logit: float
    sum_of_parts: float
    relative_error: float
    input: float


class Drawn(NamedTuple):
    """What is drawn of a score.

    Attributes:
        row: In the table.
        number: Of the image, from 1.
        column: Of the target, from 1.
        image: RGB.
        total: All parts on the image.
        walk: Constants of each layer on the image, after the input, in the order of the layers.
    """

    row: Divided
    number: int
    column: int
    image: UInt8[np.ndarray, "H W 3"]
    total: Float[np.ndarray, "H W"]
    walk: Mapping[str, Float[np.ndarray, "H W"]]


_READING = {
    "The score": "is divided without a rest: every pixel of the input, and every constant (bias) of a layer, has its part, and "
    "the parts add up to the score. The sum is printed over each map beside the score.",
    "The total map": "has all of it: the input part as it is, the constants of a layer spread over what each position sees, by a "
    "Gaussian of a quarter of the receptive field. Red speaks for the target, blue against it.",
    "> n sd": "marks the pixels whose part lies so many standard deviations above the mean of the map.",
    "The walk": "goes from the last layer to the input, each map on a scale of its own; its number is what the layer adds to the "
    "score. Layers that add nothing anywhere, such as maximum pooling, are left out.",
    "What this does not show": "A map that adds up shows how this network came to its score. It does not show that the marked "
    "places are the right ones.",
}
_PUBLISHED = (
    "has the input part as it is, and the constants of a layer spread over what each position sees, by a Gaussian of half the "
    "receptive field, cut off at its ends; what of it lies outside the image is lost. Red speaks for the target, blue against it."
)


def divided(
    rows: Sequence[Divided], drawn: Sequence[Drawn], prior: str = "true", deviations: float = 2.0
) -> Result:
    """The result of score propagation.

    Args:
        rows: Of scores.csv.
        drawn: What is drawn.
        prior: See `score_maps.PRIORS`.
        deviations: See `score_maps.binary_map`.
    """
    figures: dict[str, tuple[Figure, str]] = {}
    groups: dict[tuple[str, int], list[Drawn]] = {}
    for one in drawn:
        groups.setdefault((one.row.weights, one.number), []).append(one)
    for (weights, number), own in groups.items():
        told = "; ".join(f"{one.row.target}: {_conservation(one.row)}" for one in own)
        name = f"{weights}_{number:03}"
        figures[f"maps_{name}"] = maps(own, deviations), f"Maps of {own[0].row.image} by {weights}. {told}."
        for one in own:
            alt = f"From the last layer to the input: {one.row.target} of {one.row.image} by {weights}."
            figures[f"walk_{name}_{one.column:02}"] = walk(one), alt
    told, cells = [], []
    for weights in dict.fromkeys(row.weights for row in rows):
        own = [row for row in rows if row.weights == weights]
        worst, median = (
            max(row.relative_error for row in own),
            np.median([row.input / (row.logit or 1.0) for row in own]),
        )
        images = len({row.image for row in own})
        told.append(
            f"{weights}: {len(own)} score{'s' * (len(own) != 1)} of {images} image{'s' * (images != 1)}; the parts add up to "
            f"each within {worst:.1e} of it; the input has "
            f"{median:.2f} of the score (median)."
        )
    for row in rows:
        cells.append(
            (
                f"{row.weights}, {row.image}, {row.target}",
                f"{row.logit:.6g}",
                f"{row.sum_of_parts:.6g}",
                f"{row.relative_error:.1e}",
                f"{row.input:.4g}",
            )
        )
    reading = dict(_READING)
    if prior != "true":
        kept = np.median([one.total.sum(dtype=np.float64) / (one.row.logit or 1.0) for one in drawn])
        told.append(
            f"The {prior} prior loses what lies outside the image: the total maps that are drawn hold {kept:.2f} of their score "
            "(median)."
        )
        reading["The total map"] = _PUBLISHED
    answer = "\n".join(told)
    columns = ("score", "logit", "sum of parts", "relative error", "input part")
    return Result(
        "scores.csv",
        Divided,
        rows,
        figures,
        [page.Table("Conservation: the parts add up to the score.", columns, cells)],
        answer,
        reading,
        answer,
        {"scores": [row._asdict() for row in rows]},
        page.DE_LA_TORRE,
    )


def blink(drawn: Drawn, deviations: float = 2.0) -> bytes:
    """A GIF that changes between the image and the image with the marked pixels, every 0.7 seconds."""
    marked = _marked(drawn.image, binary_map(drawn.total, deviations))
    frames = [Image.fromarray(one) for one in (drawn.image, np.round(255 * marked).astype(np.uint8))]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=700, loop=0)
    return buffer.getvalue()


@styled
def maps(drawn: Sequence[Drawn], deviations: float = 2.0) -> Figure:
    """A row for each class of one image: image, total map, its binary map, and that over the image."""
    figure = Figure(figsize=(8.6, 2.45 * len(drawn) + 0.2), layout="constrained")
    axes: Any = figure.subplots(len(drawn), 4, squeeze=False)
    for row, one in zip(axes, drawn, strict=True):
        high = binary_map(one.total, deviations)
        row[0].imshow(one.image)
        _signed(row[1], one.total)
        row[2].imshow(high, cmap="gray", vmin=0, vmax=1)
        row[3].imshow(_marked(one.image, high))
        row[0].set_ylabel(one.row.target[:24], fontsize=9)
        row[0].set_title(one.row.image[-28:], fontsize=8)
        row[1].set_title(_conservation(one.row), fontsize=8)
        row[2].set_title(f"> {deviations:g} sd", fontsize=8)
        row[3].set_title("over the image", fontsize=8)
    _bare(axes)
    return figure


@styled
def walk(drawn: Drawn) -> Figure:
    """The maps of all layers that add something, from the last to the input, after the image and the total."""
    least = 1e-6 * np.abs(drawn.total).sum()  # less is rounding
    steps = [(name, one) for name, one in drawn.walk.items() if np.abs(one).sum() > least or name == "input"]
    steps.reverse()
    rows = -(-(len(steps) + 2) // _COLUMNS)
    figure = Figure(figsize=(1.75 * _COLUMNS, 2.0 * rows + 0.4), layout="constrained")
    axes: Any = figure.subplots(rows, _COLUMNS, squeeze=False)
    axes.flat[0].imshow(drawn.image)
    axes.flat[0].set_title(drawn.row.image[-24:], fontsize=7.5)
    for at, (name, one) in zip(axes.flat[1:], [("total", drawn.total), *steps], strict=False):
        _signed(at, one)
        at.set_title(f"{name[-24:]}\n{one.sum(dtype=np.float64):.4g}", fontsize=7.5)
    for at in axes.flat[len(steps) + 2 :]:
        at.set_visible(False)
    _bare(axes)
    figure.suptitle(f"{drawn.row.target}: {_conservation(drawn.row)}", fontsize=9)
    return figure


def _conservation(row: Divided) -> str:
    return f"logit {row.logit:.6g}, sum {row.sum_of_parts:.6g}"


def _signed(axes: Any, one: Float[np.ndarray, "H W"]) -> None:
    """A map on its own scale; 1 % of the pixels may lie beyond it."""
    most = float(np.quantile(np.abs(one), 0.99)) or float(np.abs(one).max()) or 1.0
    axes.imshow(one, cmap="RdBu_r", vmin=-most, vmax=most)


def _marked(image: UInt8[np.ndarray, "H W 3"], high: np.ndarray) -> np.ndarray:
    """The image in grey, marked pixels red."""
    grey = np.repeat(image.mean(2, keepdims=True) / 255, 3, 2)
    return np.where(high[..., None], 0.3 * grey + 0.7 * np.array([0.85, 0.1, 0.1]), grey)


def _bare(axes: Any) -> None:
    for one in axes.flat:
        one.set_xticks([])
        one.set_yticks([])
        one.spines[:].set_visible(False)
