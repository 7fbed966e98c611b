"""The parts of the report on what a sample of images says of the layers: findings, figures and tables of each concept."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from scalecov_jax.evidence import Cases, Evidence
from scalecov_jax.probes.statistics import jackknife
from scalecov_jax.report import evidence_figures as figures
from scalecov_jax.report import page
from scalecov_jax.report.evidence_answer import (
    Concept,
    by_concept,
    difference,
    findings,
    listed,
    p_value,
    span,
)

_SHOWN = 6  # images on each side


class _Lead(NamedTuple):
    """What images do to the lead of the peak over the next best layer.

    Attributes:
        peak: Its layer.
        second: The next best.
        influence: On R2 of the peak minus that of the other.
        raising: Images that raise it most, one of each group.
        lowering: Images that lower it most.
    """

    peak: int
    second: int
    influence: Float[np.ndarray, " N"]
    raising: list[int]
    lowering: list[int]


def sections(
    weights: str,
    name: str,
    image_class: str,
    evidence: Evidence,
    image: Callable[[int], UInt8[np.ndarray, "_ _ 3"]] | None,
    names: Sequence[str],
) -> list[page.Section]:
    """One section a concept.

    Args:
        weights: Name of the weights.
        name: Of the network, for people.
        image_class: Of the images; `evidence_table.ALL` if pooled.
        evidence: What was inferred.
        image: The pixels of an image by its place in the evidence; no pictures when absent.
        names: Of the images, in the same order; not used for pooled classes.

    Raises:
        ValueError: Not one name an image.
    """
    if evidence.cases is not None and len(names) != evidence.images:
        raise ValueError(f"{len(names)} names for {evidence.images} images; expected one each.")
    parts = []
    for one in by_concept(weights, name, image_class, evidence):
        pictures, tables = _figures(one), [_layer_table(one)]
        if evidence.cases is not None and len(evidence.layers) > 1:
            lead = _lead(one, evidence.cases)
            pictures += [] if image is None else _pictures(one, lead, image, names)
            tables.append(_case_table(one, lead, evidence.cases, names))
        parts.append(page.Section(one.heading, findings(one), pictures, tables))
    return parts


def _figures(one: Concept) -> list[page.Image]:
    tests, peak, m = one.evidence.permutation, one.rows[one.peak], one.m
    controls = {
        name: [
            jackknife(float(r2), deviation, most=1.0)
            for r2, deviation in zip(known.value[:, m], known.deviation[:, m], strict=True)
        ]
        for name, known in one.evidence.controls.items()
    }
    shuffled = None
    if tests is not None:
        null = tests.null[:, m]
        shuffled = figures.Shuffled(tests.control[:, m], np.quantile(null, 0.95, axis=-1), null.shape[-1])
    best = [row.layer for row in one.rows if row.may_be_best]
    images = [
        page.embed(
            figures.evidence_curve(one.rows, controls, shuffled, one.title),
            f"{one.heading}. R² by layer with 95 % intervals and controls. The peak is {peak.layer}, R² {page.number(peak.r2)} "
            f"({span(peak.low, peak.high)}); may be the best: {listed(best) if len(best) < len(one.rows) else 'any layer'}.",
            "Ridge on held-out images, mean over splits. Bars and bands are 95 % intervals. Filled points on shaded ground may "
            "be the best layer, hollow ones are shown to be worse. An arrow: beyond the axis, see the table.",
        )
    ]
    if len(one.rows) > 1:
        images.append(
            page.embed(
                figures.contrast_bars(one.contrasts),
                f"{one.heading}. R² of each layer minus that of {peak.layer} and of each control, with 95 % intervals.",
                f"Above: each layer against {peak.layer}, the peak. Below: against what it should exceed. Filled where the 95 % "
                "interval leaves out 0, each comparison by itself. An arrow: beyond the axis, see the table.",
            )
        )
    return images


def _lead(one: Concept, cases: Cases) -> _Lead:
    peak = one.peak
    second = next(int(k) for k in np.argsort(-one.evidence.r2.value[:, one.m], kind="stable") if k != peak)
    influence = cases.influence[peak, :, one.m] - cases.influence[second, :, one.m]
    order = np.argsort(-cases.leverage[peak, :, one.m], kind="stable")
    if one.evidence.groups < one.evidence.images:  # the images of a group share its influence
        order = order[np.unique(influence[order], return_index=True)[1]]
    order = order[np.argsort(-influence[order], kind="stable")]
    raising, lowering = order[influence[order] > 0], order[influence[order] < 0][::-1]
    return _Lead(peak, second, influence, raising[:_SHOWN].tolist(), lowering[:_SHOWN].tolist())


def _pictures(
    one: Concept, lead: _Lead, image: Callable[[int], UInt8[np.ndarray, "_ _ 3"]], names: Sequence[str]
) -> list[page.Image]:
    peak, second = (one.evidence.layers[k] for k in (lead.peak, lead.second))
    images = []
    for side, verb in ((lead.raising, "raise"), (lead.lowering, "lower")):
        if side:
            titles = [f"{_short(names[i])}\nlead {_signed(lead.influence[i])}" for i in side]
            what = f"{verb} the lead of {peak} over {second} most"
            images.append(
                page.Image(
                    figures.case_panel([image(i) for i in side], titles),
                    f"{one.heading}. Images that {what}: {', '.join(names[i] for i in side)}.",
                    f"Images that {what}; the number is how much R² of {peak} minus that of {second} changes by them.",
                )
            )
    return images


def _layer_table(one: Concept) -> page.Table:
    to_peak = {row.layer: row for row in one.contrasts if row.against == "peak"}
    rows = [
        [
            row.layer,
            page.number(row.r2),
            span(row.low, row.high),
            span(row.resampled_low, row.resampled_high),
            page.number(row.r2_left_out),
            page.number(row.dof, 1),
            p_value(row.p),
            p_value(row.p_family),
            "the peak" if k == one.peak else difference(to_peak[row.layer]),
            "yes" if row.may_be_best else "no",
        ]
        for k, row in enumerate(one.rows)
    ]
    columns = (
        "layer", "R²", "95 % interval", "resampled t", "left-out R²", "dof", "p", "family-wise p", "minus the peak",
        "may be best",
    )  # fmt: skip
    return page.Table(
        f"{one.heading}. Ridge: held-out R² with its 95 % interval (jackknife) and the corrected resampled t interval over "
        "splits; leave-one-out R² and effective degrees of freedom (dof) of the fit to all images; permutation tests.",
        columns,
        rows,
        strong={one.peak},
    )


def _case_table(one: Concept, lead: _Lead, cases: Cases, names: Sequence[str]) -> page.Table:
    measure, prediction = cases.measure[:, one.m], cases.prediction[..., one.m]
    peak, second = (one.evidence.layers[k] for k in (lead.peak, lead.second))
    digits = int(np.clip(2 - np.floor(np.log10(measure.std())), 0, 9))
    rows = [
        [
            names[i],
            *(
                page.number(float(v), digits)
                for v in (measure[i], prediction[lead.peak, i], prediction[lead.second, i])
            ),
            page.number(float(cases.leverage[lead.peak, i, one.m])),
            _signed(lead.influence[i]),
        ]
        for i in (*lead.raising, *lead.lowering)
    ]
    whose = "its group" if one.evidence.groups < one.evidence.images else "it"
    return page.Table(
        f"{one.heading}. Images that raise and lower the lead of {peak} over {second} most. Read: by the fit to all other "
        f"images. Leverage: at {peak}. Influence on the lead: R² of {peak} minus that of {second}, with {whose} less "
        f"without {whose}.",
        ("image", one.title, f"read at {peak}", f"read at {second}", "leverage", "influence on the lead"),
        rows,
    )


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + page.number(float(value), 4)


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"…{name[-19:]}"
