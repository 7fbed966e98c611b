"""Files and page of a run of explanations."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scalecov_jax.explain.faithfulness import Exchanged, Pointing, pointing_strata
from scalecov_jax.images.example import Skipped, count_reasons
from scalecov_jax.report import explain_figures, page, style
from scalecov_jax.tables import write_table


class Mapped(NamedTuple):
    """The map of one image (a row of maps.csv).

    Attributes:
        weights: Name of the network.
        image: Name of the image.
        score: The target.
        largest: Absolute value of the map before it is scaled; 0 where nothing supports the target.
        box_share: Area of the box as a share of the image; None where no box is known, as the next two.
        hit: Whether its largest value lies in the box.
        centre_hit: Whether the centre of the image does.
        insertion: Area under the curve while pixels come.
        deletion: Area under the curve while they go.
    """

    weights: str
    image: str
    score: float
    largest: float
    box_share: float | None
    hit: bool | None
    centre_hit: bool | None
    insertion: float | None
    deletion: float | None


class Concept(NamedTuple):
    """A concept at a layer (a row of sensitivity.csv); see `explain.sensitivity` for the columns."""

    weights: str
    layer: str
    concept: str
    r2: float
    mean: float
    sd: float
    dimension_free: float
    tcav: float
    random_low: float
    random_high: float
    p: float
    br: float | None
    br_low: float | None
    br_high: float | None


class Optimised(NamedTuple):
    """An optimised image (a row of visualisations.csv); the part is a channel, a number, or one of the names of a strip."""

    weights: str
    layer: str
    objective: str
    part: str
    steps: int
    value: float


class Result(NamedTuple):
    """What there is to write: rows, figures and what they show, tables, answer, reading, more for summary.json, paper."""

    file: str
    kind: type
    rows: Sequence[Any]
    figures: Mapping[str, tuple[style.Figure, str]]
    tables: Sequence[page.Table]
    answer: str
    reading: Mapping[str, str]
    text: str
    summary: Mapping[str, Any] = {}
    method: page.Method = page.GRAZIANI


_MAPS_READING = {
    "A map": "shows which parts of the image speak for the target at this layer, on a scale of its own largest value: "
    "maps of two images or networks cannot be compared by colour. An all-dark map means that nothing speaks for it.",
    "Insertion and deletion": "are areas under the target while the pixels come into, or go from, a blurred image in "
    "the order of the map. A faithful map has a high insertion and a low deletion; compare methods on the same images.",
    "The pointing game": "counts images where the largest value of the map lies in the box of the object, beside the centre of "
    "the image, which needs no network; a box that is large is hard to miss, so images with a small one (under a quarter of the "
    "image) are counted by themselves too. p is of the exact McNemar test on the images where only one of both hits. Maps of "
    "other images hit where objects usually are; what the own maps hit beyond them they owe to the image.",
}
_SENSITIVITY_READING = {
    "S": "is the derivative of the target along the concept's unit direction: what the target gains as the concept grows. "
    "z counts it in standard deviations of a random direction.",
    "TCAV": "is the share of images with S > 0. The range is that of 1000 random directions on the same images, and p the share "
    "of them that lies as far from a half.",
    "Br": "is max(R², 0) mean(S) / sd(S), with a 95 % interval over images. A dash: S is the same for all images.",
    "R²": "says how well the concept is readable at the layer from images the probe was not fitted to. Where it is near 0 the "
    "direction means nothing, whatever its sensitivity.",
}
_VISUALISATION_READING = {
    "An image": "is one of many that excite the channel; it shows what suffices, not what the channel sees in photographs.",
    "Directions": "of a concept: v is the RCV, of unit length, and u the part of the images' mean features that is orthogonal to "
    "it. -v shows what the layer has where the concept is small, +v where it is large, u what the images have in common; u-v and "
    "u+v lie half-way between. A strip means nothing where R² is near 0.",
}


def maps(
    rows: Sequence[Mapped],
    shown: Mapping[str, np.ndarray],
    images: Sequence[tuple[str, np.ndarray]],
    exchanged: Mapping[str, Exchanged],
    settings: Mapping[str, Any],
) -> Result:
    """The result of Grad-CAM and its relatives."""
    names = [name for name, _ in images]
    figure = explain_figures.overlays(np.stack([image for _, image in images]), shown, names)
    method, layer = settings["method"], settings["layer"]
    table, pointing, answers, text = [], [], [], []
    pointing_game = {}
    for weights in shown:
        own = [row for row in rows if row.weights == weights]
        means = [
            None if values[0] is None else float(np.mean(values))  # pyright: ignore[reportArgumentType,reportCallIssue]
            for values in ([row.insertion for row in own], [row.deletion for row in own])
        ]
        games = games_of(own)
        pointing_game[weights] = {stratum: game._asdict() for stratum, game in games.items()}
        table.append((weights, str(len(own)), *(page.number(value, 3) for value in means)))
        if weights in exchanged:
            pointing_game[weights]["exchanged"] = exchanged[weights]._asdict()
        pointing += [
            (f"{weights}, {stratum}", *map(str, game[:-1]), f"{game.p:.2g}")
            for stratum, game in games.items()
        ]
        empty = sum(row.largest == 0 for row in own)
        told = (
            f"{weights}: {len(own)} maps of {settings['target']} at {layer} by {method}"
            + f", {empty} empty" * bool(empty)
        )
        for stratum, game in games.items():
            told += "; of those with a small box " if stratum == "small" else "; "
            told += f"{game.hits} of {game.images} point into the box, the centre in {game.centre_hits} (exact p = {game.p:.2g})"
        if weights in exchanged:
            others = exchanged[weights]
            told += f"; maps of other images in {others.expected:.1f} (permutation p = {others.p:.2g})"
        answers.append(f"{told}.")
        text.append(told)
    tables = [page.Table("Means over images.", ("weights", "images", "insertion", "deletion"), table)]
    if pointing:
        columns = ("images", "all images", "hits", "centre hits", "only map", "only centre", "p")
        caption = f"Pointing game, within {settings['tolerance']} pixels. Small: boxes under a quarter of the image."
        tables.append(page.Table(caption, columns, pointing))
    described = f"Images and their maps by {method} at {layer}. {' '.join(answers)}"
    return Result(
        "maps.csv",
        Mapped,
        rows,
        {"overlays": (figure, described)},
        tables,
        "\n".join(answers),
        _MAPS_READING,
        "\n".join(text),
        {"pointing_game": pointing_game},
    )


def games_of(rows: Sequence[Mapped]) -> dict[str, Pointing]:
    """The pointing game over the images whose box is known, and over those with a small one."""
    known = [(row.hit, row.centre_hit, row.box_share) for row in rows if row.hit is not None]
    hit, centre, share = np.array(known, float).reshape(-1, 3).T
    return pointing_strata(hit > 0, centre > 0, share)


def sensitivity(rows: Sequence[Concept], settings: Mapping[str, Any]) -> Result:
    """The result of concept sensitivities."""
    concepts = list(dict.fromkeys(row.concept for row in rows))
    bars = {
        weights: [
            None
            if row.br is None or row.br_low is None or row.br_high is None
            else (row.br, row.br_low, row.br_high)
            for row in rows
            if row.weights == weights
        ]
        for weights in dict.fromkeys(row.weights for row in rows)
    }
    table = [
        (
            f"{row.weights}, {row.concept}",
            page.number(row.r2),
            f"{row.mean:.3g}",
            page.number(row.dimension_free),
            page.number(row.tcav),
            f"{page.number(row.random_low)} to {page.number(row.random_high)}",
            f"{row.p:.2g}",
            "–"
            if row.br is None
            else f"{page.number(row.br)} ({page.number(row.br_low)} to {page.number(row.br_high)})",
        )
        for row in rows
    ]
    first = [row for row in rows if row.weights == rows[0].weights]
    strongest = max(first, key=lambda row: abs(row.br or 0.0) if row.r2 > 0 else 0.0)
    sense = "raises" if strongest.mean > 0 else "lowers"
    answer = (
        f"{first[0].weights} at {first[0].layer}: of {len(first)} concepts {strongest.concept} counts most; it {sense} "
        f"{settings['target']} (Br {page.number(strongest.br)}, held-out R² {page.number(strongest.r2)}, TCAV "
        f"{page.number(strongest.tcav)}, p = {strongest.p:.2g})."
    )  # fmt: skip
    columns = ("concept", "R² held out", "mean S", "mean z", "TCAV", "random", "p", "Br")
    lines = [f"{'concept':<34}{'R2':>7}{'mean S':>11}{'z':>7}{'TCAV':>7}{'p':>8}{'Br':>8}"] + [
        f"{f'{row.weights}, {row.concept}':<34}{row.r2:>7.2f}{row.mean:>11.3g}{row.dimension_free:>7.2f}{row.tcav:>7.2f}"
        f"{row.p:>8.2g}{'-' if row.br is None else f'{row.br:.2f}':>8}"
        for row in rows
    ]
    figure = explain_figures.relevance_bars(bars, concepts)
    return Result(
        "sensitivity.csv",
        Concept,
        rows,
        {"relevance": (figure, f"Bidirectional relevance of {', '.join(concepts)}. {answer}")},
        [page.Table("Random: 95 % of the TCAV scores of random directions.", columns, table)],
        answer,
        _SENSITIVITY_READING,
        "\n".join([*lines, "", answer]),
    )


def visualisation(
    rows: Sequence[Optimised], pictures: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> Result:
    """The result of feature visualisation."""
    titles: dict[str, list[str]] = {}
    sheets: dict[str, np.ndarray] = {}
    for weights, images in pictures.items():
        own = [row for row in rows if row.weights == weights]
        for objective in dict.fromkeys(row.objective for row in own):
            at = [number for number, row in enumerate(own) if row.objective == objective]
            line = weights if len(at) == len(own) else f"{weights}\n{objective.removeprefix('rcv:')}"
            sheets[line] = images[at]
            titles[line] = [f"{own[number].part}: {own[number].value:.3g}" for number in at]
    figure = explain_figures.contact_sheet(sheets, titles)
    count = len(next(iter(pictures.values())))
    answer = (
        f"{count} images for the {settings['objective']} objective at {settings['layer']}, {rows[0].steps} steps each, for "
        f"{', '.join(pictures)}."
    )
    table = [
        (f"{row.weights}, {row.objective} {row.part}", str(row.steps), f"{row.value:.4g}") for row in rows
    ]
    return Result(
        "visualisations.csv",
        Optimised,
        rows,
        {"sheet": (figure, f"Optimised images with what they are for and its activation. {answer}")},
        [page.Table("Activation at the last step.", ("image", "steps", "value"), table)],
        answer,
        _VISUALISATION_READING,
        "\n".join([*(" ".join(one) for one in table), "", answer]),
    )


def write(
    folder: Path, title: str, result: Result, skipped: Sequence[Skipped], provenance: Mapping[str, str]
) -> str:
    """Write the table, figures (PNG), summary.json and report.html to `folder`; returns a text for people."""
    write_table(folder / result.file, result.kind, result.rows)
    (folder / "figures").mkdir(exist_ok=True)
    images = []
    for name, (figure, alt) in result.figures.items():
        content = style.render(figure, "png")
        (folder / "figures" / f"{name}.png").write_bytes(content)
        images.append(page.Image(content, alt, wide=True))
    reasons = count_reasons(skipped)
    summary = {"answer": result.answer, "skipped": reasons, "provenance": dict(provenance), **result.summary}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    named: dict[str, list[str]] = {}
    for skip in skipped:
        named.setdefault(skip.reason, []).append(skip.name)
    section = page.Section("Result", "", images, result.tables)
    page.write_report(
        folder / "report.html",
        page.Report(
            title, result.answer, (), (), named, [section], provenance, result.reading, result.method
        ),
    )
    return result.text
