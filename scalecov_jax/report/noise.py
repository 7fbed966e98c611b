"""From the noise experiment to its files: tables, summary.json, figures and report.html; and its part of the paper's report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from scalecov_jax.paper.compared import Compared
from scalecov_jax.paper.noise import Clean
from scalecov_jax.paper.noise_probes import NoiseEffect, NoisePrediction, NoiseScore, Setting, Target
from scalecov_jax.report import noise_figures, page, style
from scalecov_jax.report.noise_answer import (
    Finished,
    answer,
    below,
    compare_run,
    gather,
    layers_of,
    limits_of,
    median,
    read_run,
    undefined_of,
    warnings,
)
from scalecov_jax.report.noise_tables import TARGET_NAMES, describe, layer_table, target_table, terminal_table
from scalecov_jax.tables import read_table, write_table

_READING = {
    "R²": "says how well a linear probe on pooled features predicts the width of noise images it was not fitted to. 1 is "
    "perfect, 0 no better than always answering the mean, below 0 worse: the probe over-fitted. Medians over splits; in "
    "brackets the quartiles.",
    "GAP and corrected GAP.": "GAP is the mean of a map over all positions; corrected GAP over the positions whose receptive "
    "field lies inside the image. Noise has no objects: what tells its width comes from the padding around it, or from how "
    "much is averaged.",
    "Settings.": "Published: few training images, drawn again and again. Larger: 70 % of all images to train. Unseen widths: "
    "the held-out widths do not occur in training, so that no probe can remember single widths.",
    "Scaling.": "Common: all features are divided by one number, as in least squares without standardising; each: every "
    "feature by its own sd in the training part.",
}


class NoiseResult(NamedTuple):
    """Everything measured on one network; the lists are filled by the pipeline."""

    architecture: str
    clean: Mapping[str, Clean]
    scores: list[NoiseScore]
    predictions: list[NoisePrediction]
    effects: list[NoiseEffect]


def write_results(
    folder: Path,
    settings: Mapping[str, Any],
    sizes: Sequence[int],
    results: Mapping[str, NoiseResult],
    provenance: Mapping[str, str],
) -> str:
    """Write all files of a run, summary.json last.

    Args:
        folder: Where to.
        settings: See configs/noise.py.
        sizes: Widths in pixels, ascending.
        results: By the name of the weights.
        provenance: From `provenance.provenance`.

    Returns:
        A table for people.
    """
    scores = [row for one in results.values() for row in one.scores]
    predictions = [row for one in results.values() for row in one.predictions]
    effects = [row for one in results.values() for row in one.effects]
    write_table(folder / "noise.csv", NoiseScore, scores)
    write_table(folder / "predictions.csv", NoisePrediction, predictions)
    write_table(folder / "effects.csv", NoiseEffect, effects)
    networks = {name: layers_of(one.architecture, name, one.clean) for name, one in results.items()}
    run = gather(networks, settings, sizes, scores, effects)
    sentence, cautions = answer(run), warnings(run)
    report = page.Report(
        settings["title"],
        sentence,
        results=(),
        warnings=cautions,
        sections=_sections(run, predictions, folder / "figures"),
        provenance=provenance,
        reading=_READING,
    )
    page.write_report(folder / "report.html", report)
    summary = {
        "answer": sentence,
        "warnings": cautions,
        "undefined": {name: undefined_of(one) for name, one in networks.items()},
        "compared": [row._asdict() for row in compare_run(run)],
        "layers": {name: one._asdict() for name, one in networks.items()},
        "sizes": list(sizes),
        "settings": dict(settings),
        "provenance": dict(provenance),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return f"{terminal_table(run)}\n\n{sentence}"


def sections(folder: Path) -> list[page.Section]:
    """The parts of the page from the files of a finished run in `folder`."""
    predictions = read_table(folder / "predictions.csv", NoisePrediction)
    return _sections(read_run(folder), predictions, folder / "figures")


def compare(folder: Path) -> list[Compared]:
    """The published figures beside those of a finished run in `folder`."""
    return compare_run(read_run(folder))


def _sections(run: Finished, predictions: Sequence[NoisePrediction], figures: Path) -> list[page.Section]:
    figures.mkdir(exist_ok=True)
    return [
        page.Section(
            f"Noise inputs: {one.name} ({weights})",
            describe(run, weights),
            [*_scatters(run, weights, predictions, figures), _curves(run, weights, figures)],
            [layer_table(run, weights), target_table(run, weights)],
        )
        for weights, one in run.networks.items()
    ]


def _scatters(
    run: Finished, weights: str, predictions: Sequence[NoisePrediction], figures: Path
) -> list[page.Image]:
    """Predicted against true widths, as published, with the target that suits GAP, and at the last layer."""
    one, images = run.networks[weights], []
    kinds: tuple[tuple[str | None, Setting, Target], ...] = (
        (one.reference, "published", "width"),
        (one.reference, "published", "inverse_width"),
        (one.last, "larger", "width"),
    )
    for layer, setting, target in kinds:
        wanted = (weights, layer, setting, target)
        some = [row for row in predictions if (row.weights, row.layer, row.setting, row.target) == wanted]
        if layer is None or not some:
            continue
        how = "least squares" if some[0].estimator == "ols" else "ridge"
        few = f"{run.settings['train']} training images" if setting == "published" else "70 % to train"
        fitted = "" if target == "width" else f", fitted to {TARGET_NAMES[target]} and inverted"
        images.append(
            _picture(
                noise_figures.predicted_against_true(some, "undefined\n" + below(one.needed[layer])),
                figures / f"noise-{weights}-{layer}-{setting}-{target}",
                f"Predicted against true width of held-out noise at {layer} of {one.name}, GAP left, corrected GAP right.",
                f"{layer}, {few}, {how}{fitted}. Large marks: the split of median R², which stands above; small: all "
                f"{run.settings['splits']} splits.",
            )
        )
    return images


def _curves(run: Finished, weights: str, figures: Path) -> page.Image:
    one = run.networks[weights]
    later = [layer for layer, start in one.starts.items() if start > run.sizes[0]]

    def ridge(layer: str, pooling: Any, **options: Any) -> list[float]:
        return run.of(weights, layer, pooling, "larger", "ridge", **options)

    def same(layer: str, pooling: Any) -> list[float]:
        return ridge(layer, pooling, limits=limits_of(run, one, layer))

    values = {
        "gap": ("GAP", {x: ridge(x, "gap") for x in one.needed}),
        "gap_same": ("GAP, widths of corrected", {x: same(x, "gap") for x in later}),
        "corrected_gap": ("corrected GAP", {x: same(x, "corrected_gap") for x in one.starts}),
        "random_weights": (
            "GAP, random weights",
            {x: ridge(x, "gap", condition="random_weights") for x in one.needed},
        ),
    }
    curves = [
        noise_figures.Curve(
            label, {x: r2 for x, r2 in found.items() if r2}, *noise_figures.CURVE_STYLES[name]
        )
        for name, (label, found) in values.items()
        if any(found.values())
    ]
    told = ", ".join(f"{layer} {median(r2)}" for layer, r2 in curves[0].values.items())
    return _picture(
        noise_figures.width_curves(curves, list(one.needed), list(undefined_of(one))),
        figures / f"noise-{weights}-layers",
        f"R² of the width of noise by layer of {one.name} under GAP: {told}.",
        "Ridge, 70 % of the images to train; medians, bands from the lower to the upper quartile of the splits.",
    )


def _picture(figure: Figure, stem: Path, alt: str, caption: str) -> page.Image:
    style.save(figure, stem)
    return page.embed(figure, alt, caption)
