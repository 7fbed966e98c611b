"""From the results of the transfer to its files: tables as CSV, summary.json, figures and report.html."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scalecov_jax.images.example import Skipped, count_reasons
from scalecov_jax.images.patches import Patches
from scalecov_jax.report import page
from scalecov_jax.report.transfer_answer import LEVEL, answer_sentences, warnings
from scalecov_jax.report.transfer_result import (
    NetworkResult,
    by_magnification,
    by_model,
    named,
    p_value,
    spread,
    trainables,
    values,
)
from scalecov_jax.report.transfer_sections import (
    cut_section,
    learning_section,
    magnification_section,
    patch_section,
    prediction_section,
)
from scalecov_jax.report.transfer_table import METRIC_NAMES, difference, interval, score_rows, table_section
from scalecov_jax.tables import write_table
from scalecov_jax.transfer.metrics import Outcome
from scalecov_jax.transfer.results import Comparison, SweepScore, outcomes

_READING = {
    "MAE": "is the mean absolute error of the predicted mean nucleus area over held-out patches, in pixels of the "
    "patch. Large nuclei, that is high magnifications, dominate it; the macro MAE gives every magnification the same weight.",
    "κ": "is Cohen's agreement beyond chance between the magnification of a patch and the one whose mean nucleus "
    "area, in the training part, is nearest to the prediction: 1 is perfect, 0 is chance. The quadratic κ forgives near "
    "misses.",
    "Three models.": "Whole: the pretrained network as it is. Pruned: the same, cut after a layer. From scratch: the "
    "whole network with random weights, which stay as they are where only a head is trained; it shows what pretraining gives.",
    "Three trainings.": "all: every weight is fine-tuned. head: a linear head by gradient descent on frozen features. "
    "ridge: such a head in closed form, with its penalty chosen on the training part.",
    "± is one standard deviation over seeds": "(n − 1), not a confidence interval. A seed draws the split by source "
    "image, the head and the order of the patches; the seeds share source images and are not independent.",
    "The interval": "draws source images anew (10,000 times, all patches of an image together) with the seeds as they "
    "are: it answers whether other images would have told the same.",
    "p": "is that of the exact two-sided Wilcoxon signed-rank test, paired by seed. With n seeds it cannot fall below "
    "2 / 2ⁿ. Holm's adjustment covers all networks and both MAE and κ; the quadratic κ is not tested against a level. A "
    f"difference counts as shown if the interval leaves out 0 and Holm's p is below {LEVEL}.",
}


def write_results(
    workdir: Path,
    title: str,
    results: Sequence[NetworkResult],
    patches: Patches,
    skipped: Sequence[Skipped],
    provenance: Mapping[str, str],
    settings: Mapping[str, Any],
    sections: Sequence[page.Section] = (),
) -> None:
    """Write all files of a run.

    Args:
        workdir: Where to.
        title: Of the page.
        results: One a network.
        patches: All patches.
        skipped: All images and patches that were left out.
        provenance: From `provenance.provenance`.
        settings: Of the run; fixed_split and batch_norm are looked at.
        sections: Extra parts of the page.
    """
    evaluated = [one for result in results for one in result.evaluated]
    write_table(workdir / "transfer.csv", Outcome, outcomes(evaluated))
    write_table(workdir / "comparisons.csv", Comparison, [c for one in results for c in one.comparisons])
    if sweep := [score for one in results for score in one.sweep]:
        write_table(workdir / "sweep.csv", SweepScore, sweep)
    noticed = warnings(results, patches, fixed_split=bool(settings.get("fixed_split", False)))
    magnifications, counts = np.unique(patches.magnification, return_counts=True)
    answers = "\n\n".join(answer_sentences(one, name) for name, one in named(results).items())
    summary = {
        "answer": answers,
        "networks": {one.weights: summarise(one) for one in results},
        "patches": {
            "count": len(patches),
            "groups": len(np.unique(patches.group)),
            "by_magnification": {f"{m:g}": int(n) for m, n in zip(magnifications, counts, strict=True)},
        },
        "skipped": count_reasons(skipped),
        "warnings": noticed,
        "provenance": dict(provenance),
    }
    folder = workdir / "figures"
    folder.mkdir(exist_ok=True)
    networks = named(results)
    parts = [
        table_section(networks),
        cut_section(networks, folder),
        magnification_section(networks, patches, folder),
        prediction_section(networks, patches, folder),
        learning_section(networks, folder, recomputed=settings.get("batch_norm") == "recomputed"),
        patch_section(patches, skipped),
        *sections,
    ]
    report = page.Report(
        title,
        answers,
        results=(),
        warnings=noticed,
        sections=[part for part in parts if part],
        provenance=provenance,
        reading=_READING,
    )
    page.write_report(workdir / "report.html", report)
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")  # last: the run is finished


def summarise(result: NetworkResult) -> dict[str, Any]:
    """What summary.json says of one network; means and sample sds are over seeds, null where they are undefined."""
    models: dict[str, dict[str, Any]] = {}
    for trainable in trainables(result):
        for model, seeds in by_model(result, trainable).items():
            models.setdefault(model, {})[trainable] = {
                "seeds": len(seeds),
                **{
                    metric: spread(values(seeds, metric))._asdict()
                    for metric in ("mae", "macro_mae", "kappa", "kappa_quadratic")
                },
                "mae_by_magnification": {
                    f"{m:g}": spread(errors)._asdict() for m, errors in by_magnification(seeds).items()
                },
            }
    return {
        "architecture": result.architecture,
        "weights": result.weights,
        "models": models,
        "layers": {str(seed): layer for seed, layer in result.layers.items()},
        "chosen_by": result.chosen_by,
        "costs": {
            model: {"parameters": parameters, "flops": flops}
            for model, (parameters, flops) in result.costs.items()
        },
        "comparisons": [one._asdict() for one in result.comparisons],
    }


def table(results: Sequence[NetworkResult]) -> str:
    """Table 2 and the tests of pruned against whole, as plain text."""
    networks = named(results)
    rows = [("", "model", "layer", "trained", "MAE px", "macro MAE px", "kappa", "quadratic kappa")]
    for name, one in networks.items():
        for trainable in trainables(one):
            rows += score_rows(one, name, trainable)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    for name, one in networks.items():
        for c in one.comparisons:
            if c.base == "whole":
                lines.append(
                    f"{name}, {c.trainable}, {METRIC_NAMES[c.metric]}: pruned − whole: {difference(c.difference, c.metric)}"
                    + (f", 95 % interval {interval(c)}" if c.low is not None else "")
                    + f", better in {c.wins} of {c.seeds} seeds, p {p_value(c.p)}, Holm {p_value(c.p_holm)}"
                )
    return "\n".join(lines)
