"""From the results of the main job to its files: scores.csv, summary.json, figures and report.html."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scalecov_jax import evidence_table
from scalecov_jax.checkpoints import Network
from scalecov_jax.concepts.measure import get_measure
from scalecov_jax.evidence import Evidence, pool
from scalecov_jax.experiment import ProbeResult
from scalecov_jax.features import Pooling, describe_undefined
from scalecov_jax.images.boxes import OTHER_CLASS
from scalecov_jax.images.example import Skipped, Source, count_reasons
from scalecov_jax.models.pruning import Pruning, cumulative_parameters
from scalecov_jax.probes.sample_size import SizeScore
from scalecov_jax.report import figures, page, sample_size, sketches, style
from scalecov_jax.report.style import PLAIN_NAMES
from scalecov_jax.scores import write_scores
from scalecov_jax.selection import Selected, interpolates, select_layers
from scalecov_jax.tables import write_table

_POOLED: dict[Pooling, str] = {
    "gap": "the mean over all pixels of a map (gap)",
    "max": "the largest pixel of a map (max)",
    "corrected_gap": "the mean over the pixels of a map that no padding reaches (corrected_gap)",
}


def evidence_of(result: ProbeResult) -> dict[str, Evidence]:
    """The evidence of each class, and of all of them together where there are several."""
    classes = {name: one.evidence for name, one in result.classes.items()}
    return classes if len(classes) == 1 else {**classes, evidence_table.ALL: pool([*classes.values()])}


def summarise(result: ProbeResult, pruning: Pruning, skipped: Sequence[Skipped]) -> dict[str, Any]:
    """What summary.json says of one network; `selected` is of the first concept."""
    selected = {
        concept: {
            one.estimator: {"layer": one.layer, "r2_mean": one.r2_mean, "r2_sd": one.r2_sd} for one in found
        }
        for concept, found in result.selected.items()
    }
    return {
        "architecture": result.architecture,
        "weights": result.weights,
        "selected": selected[result.concepts[0]],
        "concepts": {
            concept: {"selected": selected[concept], "evidence": _evidence_summary(result, concept)}
            for concept in result.concepts
        },
        "images": result.images,
        "n_train": result.n_train,
        "widths": result.widths,
        "ranks": result.ranks,
        "pooling": result.pooling,
        "undefined": dict(result.undefined),
        "pruning": pruning._asdict(),
        "skipped": count_reasons([*skipped, *result.skipped]),
        "warnings": warnings(result),
    }


def _evidence_summary(result: ProbeResult, concept: str) -> dict[str, Any]:
    """By class: the best layer with its interval, what may be the best, and what a choice on the training part alone gives."""
    found = {}
    for name, evidence in evidence_of(result).items():
        rows = [r for r in evidence_table.layer_rows(result.weights, name, evidence) if r.concept == concept]
        choices = evidence_table.choice_rows(result.weights, name, evidence)
        choice = next(row for row in choices if row.concept == concept)
        best = max(rows, key=lambda row: row.r2)
        found[name] = {
            "layer": best.layer,
            "r2": best.r2,
            "interval": [best.low, best.high],
            "may_be_best": [row.layer for row in rows if row.may_be_best],
            "p_family": best.p_family,
            "chosen_inside": {
                "r2": choice.r2,
                "interval": [choice.low, choice.high],
                "layers": choice.chosen,
            },
            "groups": best.groups,
        }
    return found


def warnings(result: ProbeResult) -> list[str]:
    """Sentences on layers left out, where least squares interpolates, and where ridge met values it had never seen."""
    messages, name = [], PLAIN_NAMES.get(result.architecture, result.architecture)
    if result.undefined:
        messages.append(
            f"{name}: {result.pooling} is undefined at {describe_undefined(result.undefined)}. These layers are left out, and "
            "the best layer is the best of the others."
        )
    for n_train in sorted({*result.n_train.values()}):
        classes = ", ".join(one for one, count in result.n_train.items() if count == n_train)
        layers = [layer for layer, rank in result.ranks.items() if interpolates(rank / n_train)]
        if layers:
            messages.append(
                f"{name}, {classes}: at {', '.join(layers)} there are about as many independent features as training images "
                f"({n_train}); the R² of least squares there tells of the sample size, not of the layer. Read ridge."
            )
    ridge = figures.layer_values(result.scores, result.architecture, "trained", "ridge")
    failed = [
        f"{layer} (R² below −1 in {sum(value < -1 for value in r2)} of {len(r2)} splits, down to {page.number(min(r2))}; "
        f"median {page.number(float(np.median(r2)))})"
        for layer, r2 in ridge.items()
        if min(r2) < -1
    ]
    if failed:
        messages.append(
            f"{name}: ridge too fails where a feature that is almost constant in the training part takes a value far outside its "
            f"range in the held-out part: {', '.join(failed)}. Read the median there, not the mean."
        )
    return messages


def write_results(
    workdir: Path,
    title: str,
    results: Mapping[str, tuple[Network, ProbeResult, Pruning]],
    sources: Mapping[str, Source],
    skipped: Sequence[Skipped],
    provenance: Mapping[str, str],
    sections: Sequence[page.Section] = (),
) -> None:
    """Write all files of a run.

    Args:
        workdir: Where to.
        title: Of the page.
        results: Network, its scores and its cut, by the name of the weights.
        sources: The images of each class.
        skipped: Images left out before any network saw them.
        provenance: From `provenance.provenance`.
        sections: Extra parts of the page.
    """
    write_scores(workdir / "scores.csv", (s for _, result, _ in results.values() for s in result.scores))
    every = [result for _, result, _ in results.values()]
    if swept := [score for result in every for one in result.classes.values() for score in one.sizes]:
        write_table(workdir / sample_size.FILE, SizeScore, swept)
    _write_evidence(workdir, every)
    parts, answers = [], []
    (workdir / "figures").mkdir(exist_ok=True)
    for network, result, pruning in results.values():
        answers.append(_answer(result, pruning))
        parts += _architecture_parts(workdir / "figures", network, result, pruning)
    named: dict[str, list[str]] = {}
    for skip in {*skipped, *(skip for _, result, _ in results.values() for skip in result.skipped)}:
        if skip.reason != OTHER_CLASS:  # no loss: not what was asked for
            named.setdefault(skip.reason, []).append(skip.name)
    report = page.Report(
        title,
        " ".join(answers),
        parts,
        [message for _, result, _ in results.values() for message in warnings(result)],
        {reason: sorted(names) for reason, names in sorted(named.items())},
        [*sample_size.sections(workdir), *sections],
        provenance,
    )
    page.write_report(workdir / "report.html", report)
    summaries = [summarise(result, pruning, skipped) for _, result, pruning in results.values()]
    summary = summaries[0] if len(summaries) == 1 else {"networks": {s["weights"]: s for s in summaries}}
    (workdir / "summary.json").write_text(
        json.dumps({**summary, "answer": report.answer, "provenance": dict(provenance)}, indent=2) + "\n"
    )


def _write_evidence(workdir: Path, results: Sequence[ProbeResult]) -> None:
    """layers.csv, contrasts.csv, choices.csv and images.csv."""
    layers, contrasts, choices, cases = [], [], [], []
    for result in results:
        for name, evidence in evidence_of(result).items():
            layers += evidence_table.layer_rows(result.weights, name, evidence)
            contrasts += evidence_table.contrast_rows(result.weights, name, evidence)
            choices += evidence_table.choice_rows(result.weights, name, evidence)
        for name, one in result.classes.items():
            cases += evidence_table.case_rows(result.weights, name, one.evidence, one.names, one.groups)
    write_table(workdir / "layers.csv", evidence_table.LayerRow, layers)
    write_table(workdir / "contrasts.csv", evidence_table.ContrastRow, contrasts)
    write_table(workdir / "choices.csv", evidence_table.ChoiceRow, choices)
    write_table(workdir / "images.csv", evidence_table.CaseRow, cases)


def _answer(result: ProbeResult, pruning: Pruning) -> str:
    """One sentence a concept."""
    total, splits = sum(result.images.values()), len({score.split for score in result.scores})
    images = f"{total} images of {', '.join(result.images)}"
    sentences = []
    for concept in result.concepts:
        ridge = next(one for one in result.selected[concept] if one.estimator == "ridge")
        name, evidence = list(evidence_of(result).items())[-1]
        rows = [r for r in evidence_table.layer_rows(result.weights, name, evidence) if r.concept == concept]
        sentences.append(
            page.answer_sentence(
                get_measure(concept).title or concept,
                ridge,
                splits,
                images,
                pruning if concept == result.concepts[0] else None,
                next((row.low, row.high) for row in rows if row.layer == ridge.layer),
                [row.layer for row in rows if row.may_be_best and row.layer != ridge.layer],
            )
        )
    return f"{PLAIN_NAMES.get(result.architecture, result.architecture)}: {' '.join(sentences)}"


def _architecture_parts(
    folder: Path, network: Network, result: ProbeResult, pruning: Pruning
) -> list[page.ArchitectureResult]:
    """For each concept one part for all classes when they have equally many images, else one a class."""
    sizes = set(result.n_train.values())
    classes: list[str | None] = [None] if len(sizes) == 1 else [*result.n_train]
    trunk = cumulative_parameters(network.module, network.architecture)
    sketch = sketches.network_sketch(
        trunk, pruning.layer if pruning.layer in trunk else network.architecture.trunk
    )
    style.save(sketch, folder / f"{result.weights}-pruning")
    parts, main = [], next(iter(result.concepts))
    for concept, image_class in itertools.product(result.concepts, classes):
        scores = [s for s in result.scores if s.concept == concept and image_class in (None, s.image_class)]
        n_train = sizes.copy().pop() if image_class is None else result.n_train[image_class]
        selected: Sequence[Selected] = (
            result.selected[concept] if image_class is None else select_layers(scores, list(result.widths))
        )
        shown = ", ".join(result.images) if image_class is None else image_class
        count = sum(result.images.values()) if image_class is None else result.images[image_class]
        first = image_class == classes[0] and concept == main
        of_concept = "" if concept == main else f"-{re.sub('[^0-9a-zA-Z_-]', '_', concept)}"
        stem = f"{result.weights}-{image_class or 'all'}{of_concept}"
        for one in selected:
            curve = figures.score_curves(
                scores,
                result.architecture,
                one.estimator,
                list(result.widths),
                widths=result.ranks,
                n_train=n_train,
                peak=one.layer,
            )
            style.save(curve, folder / f"{stem}-{one.estimator}")
        images = page.score_images(scores, result.architecture, result.ranks, n_train, selected)
        if first:
            images.append(
                page.embed(
                    sketch,
                    f"Parameters of {result.architecture} layer by layer, cut after {pruning.layer}.",
                    "The part that the cut keeps, by parameters.",
                )
            )
        parts.append(
            page.ArchitectureResult(
                PLAIN_NAMES.get(result.architecture, result.architecture)
                + (f", {image_class}" if image_class else "")
                + (f": {get_measure(concept).title or concept}" if len(result.concepts) > 1 else ""),
                f"{count} images of {shown}; {n_train} to train"
                + (" for each class" if image_class is None and len(result.images) > 1 else "")
                + f"; features: {_POOLED[result.pooling]}; weights: {network.card.origin}",
                selected,
                page.layer_rows(scores, result.architecture, result.widths, n_train, ranks=result.ranks),
                pruning if first else None,
                images,
            )
        )
    return parts
