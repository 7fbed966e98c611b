"""The tables of the evidence: a row a layer, a row a comparison, a row a choice, a row an image."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scalecov_jax.evidence import Evidence, Known
from scalecov_jax.probes.statistics import bootstrap, corrected_resampled_t, jackknife, peak_set

ALL = "all"  # the name of pooled classes


class LayerRow(NamedTuple):
    """Ridge at one layer (a row of layers.csv); intervals are two-sided, 95 %, and end at 1, the largest R2 there is.

    `low` to `high` is the jackknife over groups, beside it the bootstrap and the corrected resampled t over splits; `p` and
    `p_family` of the permutation tests; `p_peak` of the hypothesis that no layer is better. A layer may be the best one unless
    `p_peak` is at most 5 % and the interval of its difference from the peak (contrasts.csv) lies below 0: the set of these layers
    is a little larger than the test alone would make it, and no statement contradicts another. A single split has no resampled
    interval.
    """

    weights: str
    concept: str
    image_class: str
    layer: str
    images: int
    groups: int
    r2: float
    error: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    resampled_low: float | None
    resampled_high: float | None
    r2_left_out: float
    dof: float
    alpha: float
    p: float | None
    p_family: float | None
    p_peak: float
    may_be_best: bool


class ContrastRow(NamedTuple):
    """R2 of one layer minus that of something else (a row of contrasts.csv).

    Against the peak (the layer of the largest R2), random_weights (the same layer), shuffled_measure, pixels or nuisances; beyond
    nuisances is the partial R2. Of shuffled measures the mean over permutations is taken as known.
    """

    weights: str
    concept: str
    image_class: str
    layer: str
    against: str
    difference: float
    low: float
    high: float


class ChoiceRow(NamedTuple):
    """What choosing the layer costs (a row of choices.csv).

    `best_r2` is the R2 of the best layer, chosen by the very images that it is reported on; `r2` that of the layer which each
    training part chose by itself, on images that had no say. `chosen` counts the splits of each layer.
    """

    weights: str
    concept: str
    image_class: str
    best: str
    best_r2: float
    r2: float
    low: float
    high: float
    chosen: str


class CaseRow(NamedTuple):
    """What one image does at one layer (a row of images.csv); see `evidence.Cases`."""

    weights: str
    concept: str
    image_class: str
    image: str
    group: str
    layer: str
    measure: float
    prediction: float
    leverage: float
    influence: float


def layer_rows(weights: str, image_class: str, evidence: Evidence) -> list[LayerRow]:
    """One row for each measure and layer."""
    rows = []
    for m, concept in enumerate(evidence.concepts):
        r2, tests = _measure(evidence.r2, m), evidence.permutation
        peak = peak_set(r2.value, r2.deviation)
        behind = [jackknife(*one).interval.high for one in zip(*_behind_peak(r2)[:2], strict=True)]
        for k, layer in enumerate(evidence.layers):
            one = jackknife(float(r2.value[k]), r2.deviation[k], most=1.0)
            low, high = bootstrap(float(r2.value[k]), r2.deviation[k])
            over_splits = _resampled(evidence.splits[k, :, m], evidence)
            rows.append(
                LayerRow(
                    weights,
                    concept,
                    image_class,
                    layer,
                    evidence.images,
                    evidence.groups,
                    one.value,
                    one.error,
                    *one.interval,
                    low,
                    min(high, 1.0),
                    *over_splits,
                    float(evidence.r2_left_out[k, m]),
                    float(evidence.dof[k, m]),
                    float(evidence.alpha[k, m]),
                    None if tests is None else float(tests.p[k, m]),
                    None if tests is None else float(tests.p_family[k, m]),
                    float(peak.p[k]),
                    bool(peak.members[k] or behind[k] >= 0),
                )
            )
    return rows


def contrast_rows(weights: str, image_class: str, evidence: Evidence) -> list[ContrastRow]:
    """One row for each measure, layer and comparison."""
    rows = []
    for m, concept in enumerate(evidence.concepts):
        r2 = _measure(evidence.r2, m)
        others = {name: _measure(control, m) for name, control in evidence.controls.items()}
        if evidence.permutation is not None:
            control = evidence.permutation.control[:, m]
            others["shuffled_measure"] = Known(control, np.zeros_like(r2.deviation), r2.sample)
        differences = {"peak": _behind_peak(r2)} | {name: r2 - other for name, other in others.items()}
        if evidence.partial is not None:
            differences["beyond_nuisances"] = _measure(evidence.partial, m)
        for name, difference in differences.items():
            for k, layer in enumerate(evidence.layers):
                most = 1.0 if name == "beyond_nuisances" else math.inf
                one = jackknife(float(difference.value[k]), difference.deviation[k], most=most)
                rows.append(ContrastRow(weights, concept, image_class, layer, name, one.value, *one.interval))
    return rows


def choice_rows(weights: str, image_class: str, evidence: Evidence) -> list[ChoiceRow]:
    """One row a measure."""
    rows = []
    for m, concept in enumerate(evidence.concepts):
        best = int(evidence.r2.value[:, m].argmax())
        one = jackknife(float(evidence.nested.value[0, m]), evidence.nested.deviation[0, m], most=1.0)
        counts = np.bincount(evidence.chosen[:, m], minlength=len(evidence.layers))
        order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
        rows.append(
            ChoiceRow(
                weights,
                concept,
                image_class,
                evidence.layers[best],
                float(evidence.r2.value[best, m]),
                one.value,
                *one.interval,
                ", ".join(f"{evidence.layers[k]} {counts[k]}" for k in order),
            )
        )
    return rows


def case_rows(
    weights: str, image_class: str, evidence: Evidence, names: Sequence[str], groups: Sequence[str]
) -> list[CaseRow]:
    """One row for each measure, layer and image; none of pooled classes."""
    cases = evidence.cases
    if cases is None:
        return []
    return [
        CaseRow(
            weights,
            concept,
            image_class,
            name,
            group,
            layer,
            float(cases.measure[i, m]),
            float(cases.prediction[k, i, m]),
            float(cases.leverage[k, i, m]),
            float(cases.influence[k, i, m]),
        )
        for m, concept in enumerate(evidence.concepts)
        for k, layer in enumerate(evidence.layers)
        for i, (name, group) in enumerate(zip(names, groups, strict=True))
    ]


def _measure(known: Known, m: int) -> Known:
    return Known(known.value[:, m], known.deviation[:, m], known.sample)


def _behind_peak(r2: Known) -> Known:
    """R2 of each layer minus that of the layer where it is largest."""
    peak = int(r2.value.argmax())
    return r2 - Known(r2.value[[peak]], r2.deviation[[peak]], r2.sample)


def _resampled(scores: np.ndarray, evidence: Evidence) -> tuple[float | None, float | None]:
    if len(scores) < 2:
        return None, None
    low, high = corrected_resampled_t(scores, evidence.n_train, evidence.n_test).interval
    return low, min(high, 1.0)
