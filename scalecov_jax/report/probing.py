"""From the results of the main job to its files: scores.csv, summary.json, figures and report.html."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from scalecov_jax import evidence_table
from scalecov_jax.checkpoints import Network
from scalecov_jax.experiment import ProbeResult
from scalecov_jax.features import POOLINGS
from scalecov_jax.images.boxes import OTHER_CLASS
from scalecov_jax.images.example import Skipped, Source
from scalecov_jax.models.architecture import plain_name
from scalecov_jax.models.pruning import Pruning, cumulative_parameters
from scalecov_jax.probes.sample_size import SizeScore
from scalecov_jax.rcv import RcvRow, rcv_rows, save_rcvs
from scalecov_jax.report import evidence as report_evidence
from scalecov_jax.report import evidence_answer, figures, page, sample_size, sketches, style
from scalecov_jax.report.probing_answer import answer, evidence_of, summarise, warnings
from scalecov_jax.scores import ESTIMATORS, Score
from scalecov_jax.selection import Selected, select_layers
from scalecov_jax.tables import write_table


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
    every = [result for _, result, _ in results.values()]
    write_table(workdir / "scores.csv", Score, (score for result in every for score in result.scores))
    if swept := [score for result in every for one in result.classes.values() for score in one.sizes]:
        write_table(workdir / sample_size.FILE, SizeScore, swept)
    _write_evidence(workdir, every)
    _write_rcvs(workdir, every)
    parts, answers = [], []
    (workdir / "figures").mkdir(exist_ok=True)
    for network, result, pruning in results.values():
        answers.append(answer(result, pruning))
        parts += _architecture_parts(workdir / "figures", network, result, pruning)
    named: dict[str, list[str]] = {}
    for skip in {*skipped, *(skip for _, result, _ in results.values() for skip in result.skipped)}:
        if skip.reason != OTHER_CLASS:  # no loss: not what was asked for
            named.setdefault(skip.reason, []).append(skip.name)
    report = page.Report(
        title,
        " ".join(answers),
        parts,
        [message for _, result, cut in results.values() for message in warnings(result, cut)],
        {reason: sorted(names) for reason, names in sorted(named.items())},
        [*_evidence_sections(every, sources), *sample_size.sections(workdir), *sections],
        provenance,
        {**page.READING, **evidence_answer.READING},
    )
    page.write_report(workdir / "report.html", report)
    summaries = [summarise(result, pruning, skipped) for _, result, pruning in results.values()]
    summary = summaries[0] if len(summaries) == 1 else {"networks": {s["weights"]: s for s in summaries}}
    (workdir / "summary.json").write_text(
        json.dumps({**summary, "answer": report.answer, "provenance": dict(provenance)}, indent=2) + "\n"
    )


def _evidence_sections(results: Sequence[ProbeResult], sources: Mapping[str, Source]) -> list[page.Section]:
    """Of all classes together; of each by itself too where they have not equally many images."""
    sections = []
    for result in results:
        name = plain_name(result.architecture)
        for image_class, evidence in evidence_of(result).items():
            one = result.classes.get(image_class)
            if one is None:
                sections += report_evidence.sections(result.weights, name, image_class, evidence, None, ())
            elif len(result.classes) == 1 or len({*result.n_train.values()}) > 1:
                source, indices = sources[image_class], one.indices
                sections += report_evidence.sections(
                    result.weights,
                    name,
                    image_class,
                    evidence,
                    lambda place, source=source, indices=indices: source[int(indices[place])].image,
                    one.names,
                )
        if table := _probe_table(result, name):
            text = "Held-out R², mean ± sd over splits, of every probe on the trained network; see docs/probes.md."
            sections.append(page.Section(f"Probes on {name}", text, (), [table]))
    return sections


def _probe_table(result: ProbeResult, name: str) -> page.Table | None:
    """R2 of every probe at every layer; none where only the two that are always there were fitted."""
    trained = [score for score in result.scores if score.condition == "trained"]
    estimators = list(dict.fromkeys(score.estimator for score in trained))
    if {*estimators} <= {*ESTIMATORS}:
        return None
    rows = []
    for concept in result.concepts:
        for layer in result.widths:
            cells = []
            for estimator in estimators:
                mean, sd = figures.mean_and_sd(
                    [
                        s.r2
                        for s in trained
                        if (s.concept, s.layer, s.estimator) == (concept, layer, estimator)
                    ]
                )
                cells.append(f"{page.number(mean)} ± {page.number(sd)}")
            rows.append((layer, evidence_answer.concept_title(concept), *cells))
    return page.Table(f"{name}: R² by probe", ("layer", "concept", *estimators), rows)


def _write_evidence(workdir: Path, results: Sequence[ProbeResult]) -> None:
    """layers.csv, contrasts.csv, choices.csv and images.csv."""
    layers, contrasts, choices, cases = [], [], [], []
    for result in results:
        for name, evidence in evidence_of(result).items():
            layers += evidence_table.layer_rows(result.weights, name, evidence)
            contrasts += evidence_table.contrast_rows(result.weights, name, evidence)
            choices += evidence_table.choice_rows(result.weights, name, evidence)
        for name, one in result.classes.items():
            if one.evidence is not None:
                cases += evidence_table.case_rows(result.weights, name, one.evidence, one.names, one.groups)
    if not layers:  # streamed
        return
    write_table(workdir / "layers.csv", evidence_table.LayerRow, layers)
    write_table(workdir / "contrasts.csv", evidence_table.ContrastRow, contrasts)
    write_table(workdir / "choices.csv", evidence_table.ChoiceRow, choices)
    write_table(workdir / "images.csv", evidence_table.CaseRow, cases)


def _write_rcvs(workdir: Path, results: Sequence[ProbeResult]) -> None:
    """rcvs.npz with the vectors, and rcvs.csv with how far each can be relied on."""
    rcvs, rows = [], []
    for result in results:
        own = {name: one.rcvs for name, one in result.classes.items()}
        rcvs += [one for every in own.values() for one in every]
        rows += rcv_rows(own, {name: one.split_rcvs for name, one in result.classes.items()})
    save_rcvs(workdir / "rcvs.npz", rcvs)
    write_table(workdir / "rcvs.csv", RcvRow, rows)


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
                plain_name(result.architecture)
                + (f", {image_class}" if image_class else "")
                + (f": {evidence_answer.concept_title(concept)}" if len(result.concepts) > 1 else ""),
                f"{count} images of {shown}; {n_train} to train"
                + (" for each class" if image_class is None and len(result.images) > 1 else "")
                + f"; features: {POOLINGS[result.pooling].title} ({result.pooling}); weights: {network.card.origin}",
                selected,
                page.layer_rows(scores, result.architecture, result.widths, n_train, ranks=result.ranks),
                pruning if first else None,
                images,
            )
        )
    return parts
