"""From tables of covariance as an operation to files, and from the files of a run back to its report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scalecov_jax.paper.compared import Compared
from scalecov_jax.paper.covariance_rows import Angle, Change, Linearity, Reading, Tables, Transfer
from scalecov_jax.report import covariance_figures as figures
from scalecov_jax.report import page, style
from scalecov_jax.report.covariance_sections import (
    ESTIMATOR_NAMES,
    answer,
    by_network,
    draw,
    network_sections,
    percent,
    significant,
    warnings,
)
from scalecov_jax.tables import read_table, write_table

_FILES: dict[str, Any] = {
    "change": Change,
    "linearity": Linearity,
    "angles": Angle,
    "transfer": Transfer,
    "readings": Reading,
}
_READING = {
    "RCV": "is the vector v of a linear probe v·φ + b that reads object scale r (the box's share of the image) from the pooled "
    "features φ of a layer. Probes are fitted to independent scenes, one class at a time; the growing objects are none of them.",
    "Share along a direction": "is the part of the squared change of the features of an object between its sizes that lies along "
    "that direction, over all objects and all pairs of sizes. Chance is 1 / D; the best direction is the first singular vector "
    "of these very changes, so that nothing can exceed it.",
    "Pattern": "is the covariance of the features with what the probe reads: where features go when the reading rises. The RCV "
    "is a filter: it also has to cancel what moves features for other reasons, and so points elsewhere (Haufe et al. 2014).",
    "Steps": "predict φ after growth as φ + σ t for a change σ of the measure. Share foretold: 1 is covariance as an operation, "
    "0 is as good as predicting no change, less is worse.",
    "Slope and R² within objects": "compare the change read with the true change, the mean of each object removed. Slope 1: "
    "the reading is covariant; 0: invariant.",
    "Standardised": "features are divided by their sd over all scenes of the layer, so that no loud channel decides.",
    "Angles": "between classes mean nothing without those between two halves of one class: both are fitted to equally many "
    "scenes, and what the halves disagree on is noise of the fit.",
    "Own intercept": "R² in another class after the probe's intercept was fitted anew to it: what is left is the direction.",
    "Bands": "are the range over classes (or pairs of classes), lines their mean.",
}


def peak(rows: Sequence[Linearity], weights: str, estimator: str) -> dict[str, Any]:
    """The layer of the largest mean R2 of the ratio over classes, on held-out scenes, and that R2."""
    wanted = {"weights": weights, "estimator": estimator, "condition": "trained", "measure": "r"}
    means = {layer: float(np.mean(r2)) for layer, r2 in figures.by_layer(rows, "r2", **wanted).items()}
    layer = max(means, key=lambda one: means[one])
    return {"layer": layer, "r2": means[layer]}


def write_results(folder: Path, tables: Tables, facts: Mapping[str, Any]) -> None:
    """Write all files of a run; summary.json last, since a run is finished when it is there.

    Args:
        folder: Of the run.
        tables: Of all networks; of the readings those at the peaks are kept.
        facts: What summary.json says: title, networks, classes, estimators, ratios, provenance and so on.
    """
    peaks = {
        (name, estimator, one["layer"])
        for name, network in facts["networks"].items()
        for estimator, one in network["peak"].items()
    }
    kept = [
        row
        for row in tables.readings
        if row.condition == "trained" and (row.weights, row.estimator, row.layer) in peaks
    ]
    for name, rows in tables._replace(readings=kept)._asdict().items():
        write_table(folder / f"{name}.csv", _FILES[name], rows)
    networks = by_network(facts, tables._replace(readings=kept))
    noticed = warnings(networks, facts)
    (folder / "figures").mkdir(exist_ok=True)
    for one in networks:
        if one.estimator == facts["estimators"][0]:
            for name, (figure, _, _) in draw(one, facts).items():
                style.save(figure, folder / "figures" / f"{one.weights}-{name}")
    sentences = "\n\n".join(answer(one) for one in networks if one.estimator == facts["estimators"][0])
    report = page.Report(
        facts["title"],
        sentences,
        results=(),
        warnings=noticed,
        sections=network_sections(folder, facts, networks),
        provenance=facts["provenance"],
        reading=_READING,
    )
    page.write_report(folder / "report.html", report)
    partial = folder / "summary.json.partial"
    partial.write_text(json.dumps({**facts, "answer": sentences, "warnings": noticed}, indent=2) + "\n")
    partial.replace(folder / "summary.json")


def sections(folder: Path) -> list[page.Section]:
    """Figures, tables and sentences of a finished run, from its files alone."""
    facts, tables = _read(folder)
    return network_sections(folder, facts, by_network(facts, tables))


def text(folder: Path) -> str:
    """The peaks as a table for people."""
    facts, tables = _read(folder)
    lines = [
        f"{'weights':<16}{'estimator':<11}{'layer':<13}{'R2':>6}{'slope':>7}{'within':>8}{'|v|^2':>9}{'RCV':>8}{'pattern':>9}"
        f"{'best':>7}{'chance':>8}{'halves':>8}{'classes':>9}"
    ]
    for one in by_network(facts, tables):
        at, shares = one.peak, {"measure": "r", "metric": "standardised"}
        lines.append(
            f"{one.weights:<16}{one.estimator:<11}{at:<13}{one.mean('linearity', 'r2', at, measure='r'):>6.3f}"
            f"{one.mean('linearity', 'slope', at, measure='r'):>7.3f}{one.mean('linearity', 'r2_within', at, measure='r'):>8.3f}"
            f"{one.mean('linearity', 'factor', at, measure='r'):>9.2g}{100 * one.mean('change', 'rcv', at, **shares):>7.2f}%"
            f"{100 * one.mean('change', 'pattern', at, **shares):>8.1f}%{100 * one.mean('change', 'best', at, **shares):>6.1f}%"
            f"{100 / one.widths[at]:>7.2f}%{one.mean('angles', 'value', at, kind='splits', metric='standardised'):>8.2f}"
            f"{one.mean('angles', 'value', at, kind='classes', metric='standardised'):>9.2f}"
        )
    return "\n".join(lines)


def compare(folder: Path) -> list[Compared]:
    """What the paper says of its operation g' beside what was measured, at the peak of each network."""
    facts, tables = _read(folder)
    rows: list[Compared] = []
    for one in by_network(facts, tables):
        name, at = f"{one.name}, {ESTIMATOR_NAMES[one.estimator]}, {one.peak}", one.peak
        factor = one.mean("linearity", "factor", at, measure="r")
        rows.append(
            Compared(
                "3.4",
                f"change of the reading for the step g′(φ) = φ + σ v, in σ ({name})",
                "1",
                significant(factor),
                significant(factor - 1),
                "v·(φ + σ v) is σ |v|² more than v·φ; the step that changes the reading by σ is φ + σ v / |v|².",
            )
        )
        shares = {"measure": "r", "metric": "standardised"}
        along, best = (one.mean("change", field, at, **shares) for field in ("rcv", "best"))
        rows.append(
            Compared(
                "3.4",
                f"share of the change of features along v when an object grows ({name})",
                "100 % (implied by g′)",
                percent(along),
                f"{page.number(100 * along - 100, 1)} %",
                f"v filters scale out of features that move elsewhere: no one direction holds more than {percent(best)}, the "
                f"probe's pattern {percent(one.mean('change', 'pattern', at, **shares))}, chance {percent(1 / one.widths[at])}.",
            )
        )
        slope = one.mean("linearity", "slope", at, measure="r")
        rows.append(
            Compared(
                "3.4",
                f"change of the reading for a change of r within an object ({name})",
                "1 (implied)",
                page.number(slope),
                page.number(slope - 1),
                f"a probe with R² {page.number(one.mean('linearity', 'r2', at, measure='r'))} on other scenes reads about that "
                f"part of a change; within objects R² is {page.number(one.mean('linearity', 'r2_within', at, measure='r'))}.",
            )
        )
    return rows


def _read(folder: Path) -> tuple[dict[str, Any], Tables]:
    facts = json.loads((folder / "summary.json").read_text())
    return facts, Tables(*(read_table(folder / f"{name}.csv", kind) for name, kind in _FILES.items()))
