"""Whether maps find what the masks mark: table, figure and sentence."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from scalecov_jax.explain.localisation import Compared, compare_methods
from scalecov_jax.report import page
from scalecov_jax.report.explain import Result
from scalecov_jax.report.style import BLUE, ORANGE, styled

REFERENCE = "score_propagation"
MEASURES = {
    "hit": "highest pixel hits",
    "recall": "lesions marked",
    "precision": "area under precision-recall",
}


class Localised(NamedTuple):
    """A map beside the mask of its image (a row of localisation.csv); see `explain.localisation.Located` for the measures.

    Attributes:
        weights: Name of the network.
        image: Name of the image.
        patient: Whose it is.
        label: Of the image, such as the grade; empty if it has none.
        method: Of the map.
        target: As asked for: predicted, severity, or a class.
        explained: What that is for this image.
        smoothing: Sd in pixels of the Gaussian that went over the map.
        marked: Share of the pixels in the binary map.
        hit: 1 if the highest pixel lies in a lesion.
        recall: Share of lesions with a marked pixel.
        precision: Area under precision and recall of the pixels.
        hit_chance: Of pixels drawn at random, as many as are marked; likewise the next.
        recall_chance: See `hit_chance`.
        precision_chance: Share of the pixels that lie in lesions.
        hit_other: Of the method's map of an image of another patient, on this mask; None with one patient, likewise the next two.
        recall_other: See `hit_other`.
        precision_other: See `hit_other`.
    """

    weights: str
    image: str
    patient: str
    label: str
    method: str
    target: str
    explained: str
    smoothing: float
    marked: float
    hit: float
    recall: float
    precision: float
    hit_chance: float
    recall_chance: float
    precision_chance: float
    hit_other: float | None = None
    recall_other: float | None = None
    precision_other: float | None = None


class Setting(NamedTuple):
    """What maps of all methods have in common; see `Localised`."""

    weights: str
    target: str
    smoothing: float


class Summary(NamedTuple):
    """A measure of a method over images.

    Attributes:
        own: Mean, and difference to score propagation.
        chance: Mean of what random pixels reach.
        other: Mean of what maps of another patient's image reach; None with one patient.
    """

    own: Compared
    chance: float
    other: float | None


_READING = {
    "Localisation": "asks whether a map marks what the mask holds. A lesion is a connected part of the mask. Hit: the "
    "highest pixel lies in one. Marked: share of lesions with a pixel above the mean of the map by "
    "config.deviations standard deviations. Precision: area under "
    "precision and recall of all pixels, ranked by the map.",
    "Smoothing": "by a Gaussian before the measures are taken shows how far methods differ only in how fine their maps are.",
    "Chance": "is what pixels drawn at random reach, as many as are marked. Other: the method's map of another patient's image "
    "on this mask. It has the same patches in the usual places, so what a map has beyond it, it owes to the image.",
    "Difference": "is to score propagation on the same images, with a 95 % interval over patients; p is of the exact Wilcoxon "
    "test of the patients' means, adjusted for the number of methods (Holm).",
    "What localisation does not show": "A network may rightly look at other things than the mask. A map that finds lesions need "
    "not tell what the network does; see the randomised weights.",
}


def summarise(rows: Sequence[Localised], seed: int = 0) -> dict[Setting, dict[str, dict[str, Summary]]]:
    """By network, target and smoothing, by measure, by method."""
    found: dict[Setting, dict[str, dict[str, Summary]]] = {}
    for key in dict.fromkeys(Setting(row.weights, row.target, row.smoothing) for row in rows):
        own = [row for row in rows if (row.weights, row.target, row.smoothing) == key]
        methods = list(dict.fromkeys(row.method for row in own))
        by_method = {method: [row for row in own if row.method == method] for method in methods}
        patients = [row.patient for row in by_method[methods[0]]]
        found[key] = {}
        for measure in MEASURES:
            values = {m: _column(by_method[m], measure) for m in methods}
            compared = compare_methods(values, REFERENCE, patients, seed)
            found[key][measure] = {
                method: Summary(
                    compared[method],
                    float(_column(by_method[method], f"{measure}_chance").mean()),
                    _mean([getattr(row, f"{measure}_other") for row in by_method[method]]),
                )
                for method in methods
            }
    return found


def add_localisation(result: Result, rows: Sequence[Localised], images: int, seed: int = 0) -> Result:
    """Add figure, tables and sentences to the result of score propagation.

    Args:
        result: To be added to.
        rows: Of localisation.csv.
        images: All images, those without a mask among them.
        seed: Of the bootstrap.
    """
    found = summarise(rows, seed)
    tables, told, figures = [], [], {}
    used = len({row.image for row in rows})
    left = (
        f"{images - used} of {images} images have nothing in their mask, or nothing left of it at this size, and are left out. "
        * (images > used)
    )
    for number, (setting, measures) in enumerate(found.items(), start=1):
        cells = [
            (f"{method}, {measure}", *_cells(one))
            for measure, methods in measures.items()
            for method, one in methods.items()
        ]
        columns = ("method, measure", "mean", "95 %", "chance", "other", "difference", "95 %", "p (Holm)")
        smoothed = f", smoothed by {setting.smoothing:g} pixels" * (setting.smoothing > 0)
        described = f"{setting.weights}, {setting.target}{smoothed}, {_count(rows, setting.weights)}"
        caption = f"Maps beside masks: {described}."
        tables.append(page.Table(caption, columns, cells))
        precision = measures["precision"]
        best = max(precision, key=lambda one: precision[one].own.mean)
        own = precision[REFERENCE]
        sentence = (
            f"{described}: score propagation has an area under precision-recall of "
            f"{own.own.mean:.3f} (chance {own.chance:.3f}{_other(own)}), its highest pixel hits in "
            f"{100 * measures['hit'][REFERENCE].own.mean:.0f} % and it marks "
            f"{100 * measures['recall'][REFERENCE].own.mean:.0f} % of the lesions. "
        )
        if best == REFERENCE:
            sentence += "No method has a larger area."
        else:
            one = precision[best].own
            p = "" if one.holm is None else f", Holm's p = {one.holm:.2g}"
            sentence += f"The largest has {best}, {one.mean:.3f}{p}."
        told.append(sentence)
        name = f"localisation_{number:02}"
        figures[name] = draw(measures), f"{caption} {sentence}"
    text = left + "\n".join(told)
    summary = [
        {
            **setting._asdict(),
            "measure": measure,
            "method": method,
            **one.own._asdict(),
            "chance": one.chance,
            "other": one.other,
        }
        for setting, measures in found.items()
        for measure, methods in measures.items()
        for method, one in methods.items()
    ]
    return result._replace(
        figures={**figures, **result.figures},
        tables=[*tables, *result.tables],
        answer=f"{text}\n{result.answer}",
        text=f"{result.text}\n{text}",
        reading={**result.reading, **_READING},
        summary={
            **result.summary,
            "localisation": {"images": used, "left_out": images - used, "methods": summary},
        },
    )


@styled
def draw(measures: Mapping[str, Mapping[str, Summary]]) -> Figure:
    """A panel a measure, a line a method: mean with its 95 % interval, beside chance and maps of other patients."""
    figure = Figure(figsize=(9.6, 0.34 * len(measures["hit"]) + 1.5), layout="constrained")
    panels: Any = figure.subplots(1, len(measures), sharey=True)
    for axes, (measure, methods) in zip(panels, measures.items(), strict=True):
        at = np.arange(len(methods))[::-1]
        for place, one in zip(at, methods.values(), strict=True):
            if one.own.interval:
                axes.plot(one.own.interval, (place, place), color=BLUE, linewidth=1.6)
        axes.plot([one.own.mean for one in methods.values()], at, "o", color=BLUE, label="map")
        axes.plot([one.chance for one in methods.values()], at, "|", color="#707070", label="chance", ms=11)
        if all(one.other is not None for one in methods.values()):
            axes.plot([one.other for one in methods.values()], at, "x", color=ORANGE, label="other patient")
        axes.set_yticks(at, list(methods))
        axes.set_xlim(left=0)
        axes.set_title(MEASURES[measure], fontsize=9.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _count(rows: Sequence[Localised], weights: str) -> str:
    own = [row for row in rows if row.weights == weights]
    images, patients = len({row.image for row in own}), len({row.patient for row in own})
    return f"{images} image{'s' * (images != 1)} of {patients} patient{'s' * (patients != 1)}"


def _cells(one: Summary) -> tuple[str, ...]:
    own = one.own
    return (
        f"{own.mean:.3f}",
        _range(own.interval),
        f"{one.chance:.3f}",
        page.number(one.other, 3),
        page.number(own.difference, 3),
        _range(own.difference_interval),
        "–" if own.holm is None else f"{own.holm:.2g}",
    )


def _range(interval: Any) -> str:
    return "–" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def _other(one: Summary) -> str:
    return "" if one.other is None else f", maps of other patients {one.other:.3f}"


def _column(rows: Sequence[Localised], name: str) -> np.ndarray:
    return np.array([getattr(row, name) for row in rows], np.float64)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
