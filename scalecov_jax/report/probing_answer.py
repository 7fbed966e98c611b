"""What a run of probes found, in words and for summary.json."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scalecov_jax import evidence_table
from scalecov_jax.evidence import Evidence, pool
from scalecov_jax.experiment import ProbeResult
from scalecov_jax.features import describe_undefined
from scalecov_jax.images.example import Skipped, count_reasons
from scalecov_jax.models.architecture import plain_name
from scalecov_jax.models.pruning import Pruning
from scalecov_jax.probes.splits import UNGROUPED, share_groups
from scalecov_jax.report import evidence_answer, figures, page
from scalecov_jax.selection import interpolates

SAME = 1e-3  # of the largest feature: a pruned network differs by rounding alone


def evidence_of(result: ProbeResult) -> dict[str, Evidence]:
    """The evidence of each class, and of all of them together where there are several; none where images were streamed."""
    classes = {name: one.evidence for name, one in result.classes.items() if one.evidence is not None}
    return classes if len(classes) < 2 else {**classes, evidence_table.ALL: pool([*classes.values()])}


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
        "warnings": warnings(result, pruning),
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


def warnings(result: ProbeResult, pruning: Pruning) -> list[str]:
    """Sentences on a cut that changes the features, layers left out, groups that were split, least squares that interpolates,
    and ridge that met values it had never seen.
    """
    messages, name = [], plain_name(result.architecture)
    if pruning.relative_difference > SAME:
        messages.append(
            f"{name}: the network cut after {pruning.layer} returns something else than the output of that layer (largest "
            f"difference {pruning.max_difference:.2g}, largest feature {pruning.largest:.2g}). Something follows the layer "
            "before the cut, such as an activation; put it inside the layer."
        )
    if result.undefined:
        messages.append(
            f"{name}: {result.pooling} is undefined at {describe_undefined(result.undefined)}. These layers are left out, and "
            "the best layer is the best of the others."
        )
    if result.splitting in UNGROUPED:
        for image_class, one in result.classes.items():
            if share_groups(one.groups):
                messages.append(
                    f"{name}, {image_class}: splits of kind {result.splitting} put images of one group (patient, slide or "
                    "source) into both the training and the held-out part, so R² is too high for new groups. Take "
                    f"config.splitting={UNGROUPED[result.splitting]}."
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
    for image_class, evidence in list(evidence_of(result).items())[-1:]:
        messages += [f"{name}, {image_class}: {one}" for one in evidence_answer.warnings(evidence)]
    if not evidence_of(result):
        messages.append(
            f"{name}: the images were streamed, so that there is what the sums of folds give, R² with its spread over folds and "
            "the permutation test (layers.csv), and no evidence that needs all features at once: intervals from leaving out "
            "images or groups, single images, nuisances, pixels."
        )
    return messages


def answer(result: ProbeResult, pruning: Pruning) -> str:
    """One sentence a concept."""
    total, splits = sum(result.images.values()), len({score.split for score in result.scores})
    images = f"{total} images of {', '.join(result.images)}"
    sentences = []
    for concept in result.concepts:
        ridge = next(one for one in result.selected[concept] if one.estimator == "ridge")
        last = list(evidence_of(result).items())[-1:]
        every = [row for name, one in last for row in evidence_table.layer_rows(result.weights, name, one)]
        rows = [row for row in every if row.concept == concept]
        sentences.append(
            page.answer_sentence(
                evidence_answer.concept_title(concept),
                ridge,
                splits,
                images,
                pruning if concept == result.concepts[0] else None,
                next(((row.low, row.high) for row in rows if row.layer == ridge.layer), None),
                [row.layer for row in rows if row.may_be_best and row.layer != ridge.layer],
            )
        )
    return f"{plain_name(result.architecture)}: {' '.join(sentences)}"
