"""From the results of the main job to its files: scores.csv, summary.json, figures and report.html."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scalecov_jax.checkpoints import Network
from scalecov_jax.experiment import ProbeResult
from scalecov_jax.features import Pooling, describe_undefined
from scalecov_jax.images.boxes import OTHER_CLASS
from scalecov_jax.images.example import Skipped, count_reasons
from scalecov_jax.models.architecture import plain_name
from scalecov_jax.models.pruning import Pruning, cumulative_parameters
from scalecov_jax.probes.sample_size import SizeScore
from scalecov_jax.report import figures, page, sample_size, sketches, style
from scalecov_jax.scores import write_scores
from scalecov_jax.selection import Selected, interpolates, select_layers
from scalecov_jax.tables import write_table

_POOLED: dict[Pooling, str] = {
    "gap": "the mean over all pixels of a map (gap)",
    "max": "the largest pixel of a map (max)",
    "corrected_gap": "the mean over the pixels of a map that no padding reaches (corrected_gap)",
}


def summarise(result: ProbeResult, pruning: Pruning, skipped: Sequence[Skipped]) -> dict[str, Any]:
    """What summary.json says of one network."""
    return {
        "architecture": result.architecture,
        "weights": result.weights,
        "selected": {
            one.estimator: {"layer": one.layer, "r2_mean": one.r2_mean, "r2_sd": one.r2_sd}
            for one in result.selected
        },
        "images": result.images,
        "n_train": result.n_train,
        "widths": result.widths,
        "pooling": result.pooling,
        "undefined": dict(result.undefined),
        "pruning": pruning._asdict(),
        "skipped": count_reasons([*skipped, *result.skipped]),
        "warnings": warnings(result),
    }


def warnings(result: ProbeResult) -> list[str]:
    """Sentences on layers left out, where least squares interpolates, and where ridge met values it had never seen."""
    messages, name = [], plain_name(result.architecture)
    if result.undefined:
        messages.append(
            f"{name}: {result.pooling} is undefined at {describe_undefined(result.undefined)}. These layers are left out, and "
            "the best layer is the best of the others."
        )
    for n_train in sorted({*result.n_train.values()}):
        classes = ", ".join(one for one, count in result.n_train.items() if count == n_train)
        layers = [layer for layer, width in result.widths.items() if interpolates(width / n_train)]
        if layers:
            messages.append(
                f"{name}, {classes}: at {', '.join(layers)} the number of features D is near the number of training images "
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
    skipped: Sequence[Skipped],
    provenance: Mapping[str, str],
    sections: Sequence[page.Section] = (),
) -> None:
    """Write all files of a run.

    Args:
        workdir: Where to.
        title: Of the page.
        results: Network, its scores and its cut, by the name of the weights.
        skipped: Images left out before any network saw them.
        provenance: From `provenance.provenance`.
        sections: Extra parts of the page.
    """
    write_scores(workdir / "scores.csv", (s for _, result, _ in results.values() for s in result.scores))
    if swept := [score for _, result, _ in results.values() for score in result.sizes]:
        write_table(workdir / sample_size.FILE, SizeScore, swept)
    parts, answers = [], []
    (workdir / "figures").mkdir(exist_ok=True)
    for network, result, pruning in results.values():
        ridge = next(one for one in result.selected if one.estimator == "ridge")
        total = sum(result.images.values())
        images = f"{total} images of {', '.join(result.images)}"
        answers.append(
            f"{plain_name(result.architecture)}: "
            + page.answer_sentence(
                "object scale", ridge, len({s.split for s in result.scores}), images, pruning
            )
        )
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


def _architecture_parts(
    folder: Path, network: Network, result: ProbeResult, pruning: Pruning
) -> list[page.ArchitectureResult]:
    """One part for all classes when they have equally many images, else one a class."""
    sizes = set(result.n_train.values())
    classes: list[str | None] = [None] if len(sizes) == 1 else [*result.n_train]
    trunk = cumulative_parameters(network.module, network.architecture)
    sketch = sketches.network_sketch(
        trunk, pruning.layer if pruning.layer in trunk else network.architecture.trunk
    )
    style.save(sketch, folder / f"{result.weights}-pruning")
    parts = []
    for image_class in classes:
        scores = [s for s in result.scores if image_class in (None, s.image_class)]
        n_train = sizes.copy().pop() if image_class is None else result.n_train[image_class]
        selected: Sequence[Selected] = (
            result.selected if image_class is None else select_layers(scores, list(result.widths))
        )
        shown = ", ".join(result.images) if image_class is None else image_class
        count = sum(result.images.values()) if image_class is None else result.images[image_class]
        stem = f"{result.weights}-{image_class or 'all'}"
        for one in selected:
            curve = figures.score_curves(
                scores,
                result.architecture,
                one.estimator,
                list(result.widths),
                widths=result.widths,
                n_train=n_train,
                peak=one.layer,
            )
            style.save(curve, folder / f"{stem}-{one.estimator}")
        images = page.score_images(scores, result.architecture, result.widths, n_train, selected)
        if image_class == classes[0]:
            images.append(
                page.embed(
                    sketch,
                    f"Parameters of {result.architecture} layer by layer, cut after {pruning.layer}.",
                    "The part that the cut keeps, by parameters.",
                )
            )
        parts.append(
            page.ArchitectureResult(
                plain_name(result.architecture) + (f", {image_class}" if image_class else ""),
                f"{count} images of {shown}; {n_train} to train"
                + (" for each class" if image_class is None and len(result.images) > 1 else "")
                + f"; features: {_POOLED[result.pooling]}; weights: {network.card.origin}",
                selected,
                page.layer_rows(scores, result.architecture, result.widths, n_train),
                pruning if image_class == classes[0] else None,
                images,
            )
        )
    return parts
