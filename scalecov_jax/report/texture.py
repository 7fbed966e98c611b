"""Files and page of the reuse of texture: published beside ours, in sample beside held out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scalecov_jax.images.example import Skipped, count_reasons
from scalecov_jax.paper.texture import PUBLISHED, PUBLISHED_LAYERS, TextureScore
from scalecov_jax.pipelines.explained_images import Concept
from scalecov_jax.report import explain_figures, page, style, texture_figures
from scalecov_jax.report.texture_figures import COLOURS, select
from scalecov_jax.tables import write_table
from scalecov_jax.transfer.classification import Detected

NEAR_ONE = 1 - 1e-6

_READING = {
    "In sample": "is R² of least squares on the images that it was fitted to, as published. With D features and n images it is "
    "D / (n − 1) on average where there is nothing to find, and 1 where D ≥ n − 1.",
    "Held out": "is R² of ridge regression on the patches of patients that neither the probe nor the fine-tuning saw; the median "
    "over splits of the same patients, and in brackets the range between quartiles: a mean would hang on single splits.",
    "Shuffled": "is the same with the measure permuted over the images: about 0 or below where nothing is to be found.",
    "Br": "is max(R², 0) mean(S) / sd(S), where S is the derivative of the logit of the fine-tuned network along the concept's "
    "unit direction; the interval is over patients. Above 0: more of it speaks for the second class.",
    "Maps": "are Grad-CAM, each on a scale of its own. The fine-tuned network is explained by its logit; the two others, which "
    "were not trained on these classes, by a linear head on their pooled features at the same layer.",
}


class Found(NamedTuple):
    """All that was measured."""

    scores: Sequence[TextureScore]
    concepts: Sequence[Concept]
    maps: Mapping[str, np.ndarray]
    pictures: Sequence[tuple[str, np.ndarray]]
    detected: Detected
    trained_on: int
    tested_on: int
    patients: int
    missing: tuple[str, ...]
    architecture: str


def artefact_text(scores: Sequence[TextureScore]) -> str:
    """What the random network shows of R2 in sample, in words and numbers."""
    own = [s for s in scores if s.weights == "random"]
    inside, control = select(own, "in_sample", "ols"), select(own, "in_sample", "ols", shuffled=True)
    wide = [s for s in inside if s.width >= s.images - 1]
    if not wide:
        largest = max(inside, key=lambda s: s.width / s.images)
        same = [s.r2 for s in control if (s.layer, s.images) == (largest.layer, largest.images)]
        return (
            f"No layer has as many features as there are images. Nearest is {largest.layer} (D = {largest.width}, n = "
            f"{largest.images}), where shuffled measures give R² {page.number(float(np.mean(same)))} in sample "
            f"(D / (n − 1) = {page.number(largest.width / (largest.images - 1))})."
        )
    places = {(s.layer, s.images) for s in wide}
    exact = [s for s in wide if s.r2 >= NEAR_ONE]
    of_control = [s for s in control if (s.layer, s.images) in places]
    exact_control = [s for s in of_control if s.r2 >= NEAR_ONE]
    held = [s.r2 for s in select(own, "held_out", "ridge") if (s.layer, s.images) in places]
    shuffled = [s.r2 for s in select(own, "held_out", "ridge", shuffled=True) if (s.layer, s.images) in places]  # fmt: skip
    layers = ", ".join(
        f"{layer} with {count} images"
        for layer, count in sorted(places, key=lambda one: (one[1], one[0]))[:3]
    )
    return (
        f"The network with random weights reaches R² = 1 in sample in {len(exact)} of {len(wide)} regressions where D ≥ n − 1 "
        f"(such as {layers}), and so do {len(exact_control)} of {len(of_control)} with the measure shuffled over the images: as "
        "many free weights as images fit any numbers. "
        + "In the others some features depend on each other, so that fewer than n − 1 are left. "
        * (len(exact) < len(wide))
        + "That R² says nothing of what the layer knows. On patches of other patients "
        f"ridge gives R² {page.number(float(np.median(held)))} there (median), and {page.number(float(np.median(shuffled)))} "
        "with the measure shuffled."
    )


def _held_out(
    scores: Sequence[TextureScore], concept: str, layer: str, weights: str, shuffled: bool = False
) -> tuple[float, float]:
    most = max(s.images for s in scores)
    values = [
        s.r2
        for s in select(scores, "held_out", "ridge", shuffled=shuffled)
        if (s.concept, s.layer, s.weights, s.images) == (concept, layer, weights, most)
    ]
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(middle), float(high - low)


def _inside(scores: Sequence[TextureScore], concept: str, layer: str, weights: str) -> float | None:
    most = max(s.images for s in scores)
    found = [
        s.r2
        for s in select(scores, "in_sample", "ols")
        if (s.concept, s.layer, s.weights, s.images) == (concept, layer, weights, most)
    ]
    return found[0] if found else None


def _tables(found: Found, concepts: Sequence[str], layers: Sequence[str]) -> list[page.Table]:
    scores = found.scores
    held = [
        (
            f"{concept.removeprefix('glcm_')}, {layer}",
            *("{} ({})".format(*map(page.number, _held_out(scores, concept, layer, w))) for w in COLOURS),
            page.number(_held_out(scores, concept, layer, "fine_tuned", True)[0]),
            *(page.number(_inside(scores, concept, layer, weights), 3) for weights in COLOURS),
        )
        for concept in concepts
        for layer in layers
    ]
    columns = (
        "concept, layer", "random", "pretrained", "fine-tuned", "fine-tuned, shuffled", "random in sample",
        "pretrained in sample", "fine-tuned in sample",
    )  # fmt: skip
    tables = [page.Table("R² held out by patient (ridge), and in sample (least squares).", columns, held)]
    if found.architecture == "inception_v3":
        beside = [
            (
                f"{concept.removeprefix('glcm_')}, {layer}",
                *(page.number(row[at], 3) for row in PUBLISHED[concept]),
                *(page.number(_inside(scores, concept, layer, weights), 3) for weights in COLOURS),
            )
            for concept in concepts
            if concept in PUBLISHED
            for at, layer in enumerate(PUBLISHED_LAYERS)
        ]
        columns = (
            "concept, layer", "published random", "pretrained", "fine-tuned", "ours random", "pretrained", "fine-tuned"
        )  # fmt: skip
        caption = (
            "In-sample R² as published (Camelyon17, 10 repetitions) beside ours; a dash: not measured here."
        )
        tables.append(page.Table(caption, columns, beside))
    rows = [
        (row.concept.removeprefix("glcm_"), page.number(row.r2), f"{row.mean:.3g}", page.number(row.dimension_free),
         page.number(row.tcav),
         f"{page.number(row.random_low)} to {page.number(row.random_high)}", f"{row.p:.2g}", page.number(row.br),
         f"{page.number(row.br_low)} to {page.number(row.br_high)}")
        for row in found.concepts
    ]  # fmt: skip
    columns = ("concept", "R² held out", "mean S", "mean z", "TCAV", "random directions", "p", "Br", "95 % interval")  # fmt: skip
    caption = f"What concepts do to the logit of the fine-tuned network at {found.concepts[0].layer}."
    return [*tables, page.Table(caption, columns, rows)]


def _answer(found: Found, concepts: Sequence[str], layers: Sequence[str]) -> str:
    one = found.detected
    gains = {
        weights: np.mean(
            [_held_out(found.scores, concept, layer, weights)[0] for concept in concepts for layer in layers]
        )
        for weights in COLOURS
    }
    strongest = max(found.concepts, key=lambda row: abs(row.br or 0))
    push = "for" if (strongest.br or 0) > 0 else "against"
    lines = [
        f"Fine-tuned on {found.trained_on} patches; on {found.tested_on} of {found.patients} other patients accuracy is "
        f"{100 * one.accuracy:.1f} % ({100 * one.accuracy_low:.1f} to {100 * one.accuracy_high:.1f}) and AUC "
        f"{one.auc:.3f} ({one.auc_low:.3f} to {one.auc_high:.3f}).",
        f"Texture, median held-out R² averaged over {len(concepts)} concepts and {len(layers)} layers: random "
        f"{page.number(float(gains['random']))}, pretrained {page.number(float(gains['pretrained']))}, fine-tuned "
        f"{page.number(float(gains['fine_tuned']))}.",
        f"At {strongest.layer} {strongest.concept} counts most for the decision: more of it speaks {push} the second class (Br "
        f"{page.number(strongest.br)}, {page.number(strongest.br_low)} to {page.number(strongest.br_high)}; p = "
        f"{strongest.p:.2g} against random directions).",
    ]
    return "\n".join(lines)


def write(
    folder: Path,
    settings: Mapping[str, Any],
    found: Found,
    skipped: Sequence[Skipped],
    provenance: Mapping[str, str],
) -> str:
    """Write scores.csv, sensitivity.csv, figures, summary.json and report.html to `folder`; returns a text for people."""
    scores = found.scores
    concepts = list(dict.fromkeys(s.concept for s in scores))
    layers = list(dict.fromkeys(s.layer for s in scores))
    write_table(folder / "scores.csv", TextureScore, scores)
    write_table(folder / "sensitivity.csv", Concept, found.concepts)
    answer, explained = _answer(found, concepts, layers), artefact_text(scores)
    bars = [
        None
        if row.br is None or row.br_low is None or row.br_high is None
        else (row.br, row.br_low, row.br_high)
        for row in found.concepts
    ]
    images = np.stack([image for _, image in found.pictures])
    titles = [name for name, _ in found.pictures]
    drawn = {
        "rcv": (
            texture_figures.by_layer(scores, concepts, layers),
            f"R² of {len(concepts)} texture concepts at {', '.join(layers)} for three networks, held out and in sample. {answer}",
        ),
        "artefact": (texture_figures.artefact(scores), explained),
        "relevance": (
            explain_figures.relevance_bars({"fine_tuned": bars}, [row.concept for row in found.concepts]),
            f"Bidirectional relevance with 95 % intervals at {found.concepts[0].layer}.",
        ),
        "maps": (
            explain_figures.overlays(images, found.maps, titles),
            f"Grad-CAM at {settings['layer']} of {', '.join(found.maps)} on {len(titles)} patches.",
        ),
    }
    (folder / "figures").mkdir(exist_ok=True)
    embedded = {}
    for name, (figure, alt) in drawn.items():
        content = style.render(figure, "png")
        (folder / "figures" / f"{name}.png").write_bytes(content)
        embedded[name] = page.Image(content, alt, wide=name != "artefact")
    summary = {
        "answer": answer,
        "artefact": explained,
        "detected": found.detected._asdict(),
        "missing_layers": list(found.missing),
        "skipped": count_reasons(skipped),
        "provenance": dict(provenance),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    tables = _tables(found, concepts, layers)
    sections = [
        page.Section("Texture by layer", "", [embedded["rcv"]], tables[:-1]),
        page.Section("As many features as images", explained, [embedded["artefact"]]),
        page.Section("What concepts do to the decision", "", [embedded["relevance"]], tables[-1:]),
        page.Section("Where the networks look", "", [embedded["maps"]]),
    ]
    warnings = [f"The weights have no {', '.join(found.missing)}: left out."] if found.missing else []
    named: dict[str, list[str]] = {}
    for skip in skipped:
        named.setdefault(skip.reason, []).append(skip.name)
    page.write_report(
        folder / "report.html",
        page.Report(settings["title"], answer, (), warnings, named, sections, provenance, _READING),
    )
    head = f"{'layer':<12}" + "".join(f"{weights:>12}" for weights in COLOURS)
    lines = [
        f"{layer:<12}"
        + "".join(
            f"{np.mean([_held_out(scores, c, layer, weights)[0] for c in concepts]):>12.3f}"
            for weights in COLOURS
        )
        for layer in layers
    ]
    return "\n".join(
        [
            "Held-out R2 of texture (median over splits, mean over concepts):",
            head,
            *lines,
            "",
            answer,
            explained,
        ]
    )
