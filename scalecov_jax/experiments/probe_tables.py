"""The tables of the main experiment: each number is made here, once, of what the probes return.

Columns that several tables share: weights (name of the checkpoint), concept (what is read), image_class (whose images; `ALL`
where classes are pooled), layer.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from scalecov_jax.evidence import Evidence, Known, pool
from scalecov_jax.imaging.image_set import Skipped
from scalecov_jax.probes.evaluate import ProbeScores
from scalecov_jax.probes.permutation import compare_orders
from scalecov_jax.probes.statistics import bootstrap, corrected_resampled_t, jackknife, peak_set
from scalecov_jax.tables import labelled, stacked
from scalecov_jax.vectors import Rcv

ALL = "all"  # the name of pooled classes
SHOWN = 6  # images that raise the lead, and as many that lower it
_SCORES = (
    *("architecture", "weights", "condition", "concept", "image_class"),
    *("layer", "split", "estimator", "alpha", "r2"),
)
_IMAGES = (
    *("weights", "concept", "image_class", "image", "group"),
    *("layer", "measure", "prediction", "leverage", "influence"),
)


class ClassResult(NamedTuple):
    """What one network gave on the images of one class, in memory or streamed."""

    scores: pd.DataFrame  # see `score_table`
    indices: np.ndarray  # which examples of the source were used
    names: Sequence[str]  # of these images
    groups: Sequence[str]  # of these images
    n_train: int  # images in one training part (the first, where they differ)
    widths: Mapping[str, int]  # features of each layer D
    # how many of them are linearly independent, as far as the images can tell: D where more would need more images
    ranks: Mapping[str, int]
    skipped: Sequence[Skipped]  # images left out because they could not be decoded
    rcvs: Sequence[Rcv]  # of every concept and layer, fitted to all images
    # of every layer the filters [S, D, M] fitted to the training parts
    split_rcvs: Mapping[str, Float[np.ndarray, "S D M"]]
    evidence: Evidence | None = None  # see `evidence.weigh`; None where images were streamed
    folds: pd.DataFrame | None = None  # see `fold_table`; None where they were not
    sizes: pd.DataFrame | None = None  # see `sample_size.sweep`, if that was asked for


def score_table(
    r2: Float[np.ndarray, "L S M"],
    alpha: Float[np.ndarray, "L S M"] | None,
    *,
    layers: Sequence[str],
    concepts: Sequence[str],
    **names: str,
) -> pd.DataFrame:
    """Rows of scores.csv, one for each concept, layer and split.

    `names` are architecture, weights, condition (trained, random_weights or shuffled_measure), image_class and estimator (ols of
    minimum norm, ridge, or another probe); `alpha` is the penalty of ridge, None for other estimators.
    """
    axes = {"concept": concepts, "layer": layers, "split": range(r2.shape[1])}
    values = {"alpha": np.full(r2.shape, math.nan) if alpha is None else alpha, "r2": r2}
    table = _tidy({name: np.moveaxis(array, -1, 0) for name, array in values.items()}, axes)
    return table.assign(**names)[[*_SCORES]]


def both_estimators(scores: ProbeScores, condition: str, **names: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`score_table` of least squares and of ridge."""
    ols = score_table(scores.ols, None, condition=condition, estimator="ols", **names)
    return ols, score_table(scores.ridge, scores.alpha, condition=condition, estimator="ridge", **names)


def layer_table(evidence: Evidence, weights: str, image_class: str) -> pd.DataFrame:
    """Ridge at each layer (layers.csv); intervals are two-sided, 95 %, and end at 1, the largest R2 there is.

    `low` to `high` is the jackknife over groups, beside it the bootstrap and the corrected resampled t over splits (missing of a
    single split); `p` and `p_family` of the permutation tests; `p_peak` of the hypothesis that no layer is better. A layer may be
    the best one unless `p_peak` is at most 5 % and the interval of its difference from the peak (contrasts.csv) lies below 0: the
    set of these layers is a little larger than the test alone would make it, and no statement contradicts another.
    """
    frames, tests = [], evidence.permutation
    nothing = np.full(len(evidence.layers), math.nan)
    for m, concept in enumerate(evidence.concepts):
        r2 = _measure(evidence.r2, m)
        behind, peak = _behind_peak(r2), peak_set(r2.value, r2.deviation)
        every = [*zip(map(float, r2.value), r2.deviation, strict=True)]
        own = [jackknife(*one, most=1.0) for one in every]
        gaps = zip(map(float, behind.value), behind.deviation, strict=True)
        lead = [jackknife(*one).interval.high for one in gaps]
        intervals = {
            "": [one.interval for one in own],
            "bootstrap_": [bootstrap(*one) for one in every],
            "resampled_": [_resampled(splits, evidence) for splits in evidence.splits[..., m]],
        }
        frame = pd.DataFrame({"concept": concept, "layer": evidence.layers, "r2": r2.value})
        frame["error"] = [one.error for one in own]
        for name, ends in intervals.items():
            frame[[f"{name}low", f"{name}high"]] = np.minimum(np.array(ends), 1.0)
        frame["r2_left_out"] = evidence.r2_left_out[:, m]
        frame["dof"], frame["alpha"] = evidence.dof[:, m], evidence.alpha[:, m]
        frame["p"] = nothing if tests is None else tests.p[:, m]
        frame["p_family"] = nothing if tests is None else tests.p_family[:, m]
        frame["p_peak"], frame["may_be_best"] = peak.p, peak.members | (np.array(lead) >= 0)
        frames.append(frame)
    names = {"weights": weights, "image_class": image_class}
    names |= {"images": evidence.images, "groups": evidence.groups}
    table = pd.concat(frames, ignore_index=True).assign(**names)
    first = ["weights", "concept", "image_class", "layer", "images", "groups"]
    return table[[*first, *table.columns.drop(first)]]


def contrast_table(evidence: Evidence, weights: str, image_class: str) -> pd.DataFrame:
    """R2 of each layer minus that of something else, with its 95 % interval (contrasts.csv).

    Against the peak (the layer of the largest R2), random_weights (the same layer), shuffled_measure, pixels or nuisances; beyond
    nuisances is the partial R2. Of shuffled measures the mean over permutations is taken as known.
    """
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
            most = 1.0 if name == "beyond_nuisances" else math.inf
            each = zip(evidence.layers, difference.value, difference.deviation, strict=True)
            for layer, value, deviation in each:
                one = jackknife(float(value), deviation, most=most)
                rows.append((weights, concept, image_class, layer, name, one.value, *one.interval))
    columns = ["weights", "concept", "image_class", "layer", "against", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def choice_table(evidence: Evidence, weights: str, image_class: str) -> pd.DataFrame:
    """What choosing the layer costs (choices.csv), a row for each concept.

    `best_r2` is the R2 of the best layer, chosen by the very images that it is reported on; `r2` that of the layer which each
    training part chose by itself, on images that had no say. `chosen` counts the splits of each layer.
    """
    rows = []
    for m, concept in enumerate(evidence.concepts):
        best = int(evidence.r2.value[:, m].argmax())
        one = jackknife(float(evidence.nested.value[0, m]), evidence.nested.deviation[0, m], most=1.0)
        counts = np.bincount(evidence.chosen[:, m], minlength=len(evidence.layers))
        order = (k for k in np.argsort(-counts, kind="stable") if counts[k])
        chosen = [f"{evidence.layers[k]} {counts[k]}" for k in order]
        reached = evidence.layers[best], float(evidence.r2.value[best, m])
        rows.append((weights, concept, image_class, *reached, one.value, *one.interval, ", ".join(chosen)))
    columns = ["weights", "concept", "image_class", "best", "best_r2", "r2", "low", "high", "chosen"]
    return pd.DataFrame(rows, columns=columns)


def network_table(
    found: Mapping[str, Mapping[str, tuple[Sequence[str], Sequence[str], Known]]],
) -> pd.DataFrame:
    """Nested R2 of each network less that of each later one, on the same images (networks.csv).

    Nested: of the layer that each training part chose by itself, so that neither network gains from having more layers to choose
    from. Nothing of networks that left out different images.

    Args:
        found: By network and class the names of the images, the concepts, and `Evidence.nested`.
    """
    rows = []
    for (weights, classes), (other, others) in combinations(found.items(), 2):
        for image_class in [name for name in classes if name in others]:
            (images, concepts, first), (its_images, _, second) = classes[image_class], others[image_class]
            if [*images] != [*its_images]:
                continue
            difference = first - second
            for m, concept in enumerate(concepts):
                reached = [float(nested.value[0, m]) for nested in (first, second)]
                apart = jackknife(float(difference.value[0, m]), difference.deviation[0, m])
                rows.append((weights, other, concept, image_class, *reached, apart.value, *apart.interval))
    columns = [
        "weights",
        "against",
        "concept",
        "image_class",
        "r2",
        "r2_against",
        "difference",
        "low",
        "high",
    ]
    return pd.DataFrame(rows, columns=columns)


def image_table(
    evidence: Evidence, weights: str, image_class: str, names: Sequence[str], groups: Sequence[str]
) -> pd.DataFrame:
    """What each image does at each layer (images.csv); see `evidence.Cases`.

    Raises:
        ValueError: The classes are pooled.
    """
    if evidence.cases is None:
        raise ValueError("Of pooled classes there are no single images.")
    measure, prediction, leverage, influence = (np.moveaxis(array, -1, 0) for array in evidence.cases)
    values = {
        "measure": np.broadcast_to(measure[:, None], prediction.shape),
        "prediction": prediction,
        "leverage": leverage,
        "influence": influence,
    }
    axes = {"concept": evidence.concepts, "layer": evidence.layers, "at": range(len(names))}
    table = _tidy(values, axes)
    table["image"] = [names[at] for at in table["at"]]
    table["group"] = [groups[at] for at in table["at"]]
    return table.assign(weights=weights, image_class=image_class)[[*_IMAGES]]


def case_table(images: pd.DataFrame, layers: pd.DataFrame) -> pd.DataFrame:
    """Images that raise and lower the lead of the peak over the next best layer most (cases.csv), at most `SHOWN` of each.

    The lead of an image is its influence on R2 of the peak less that on R2 of the next best; of a group, whose images share it,
    the image of the highest leverage stands here. `at` is the place of the image among those of its class.

    Of one class, and of two layers at least.
    """
    rows = []
    for concept, some in layers.groupby("concept", sort=False):
        peak, second = some.sort_values("r2", ascending=False, kind="stable")["layer"].iloc[:2]
        own = images[images["concept"] == concept]
        best, other = (own[own["layer"] == layer].reset_index(drop=True) for layer in (peak, second))
        read = {"read_at_peak": best["prediction"], "read_at_second": other["prediction"]}
        lead = best["influence"] - other["influence"]
        cases = best.drop(columns=["layer", "prediction", "influence"])
        cases = cases.assign(peak=peak, second=second, **read, lead=lead, at=range(len(best)))
        cases = cases.sort_values("leverage", ascending=False, kind="stable").drop_duplicates("group")
        cases = cases.sort_values("lead", ascending=False, kind="stable")
        rows += [cases[cases["lead"] > 0].head(SHOWN), cases[cases["lead"] < 0].tail(SHOWN)[::-1]]
    return pd.concat(rows, ignore_index=True)


def fold_table(
    ridge: ProbeScores,
    inner: Float[np.ndarray, "L S M"],
    permuted: Float[np.ndarray, "L P M"] | None,
    *,
    images: int,
    layers: Sequence[str],
    concepts: Sequence[str],
    **names: str,
) -> pd.DataFrame:
    """Ridge at each layer over the folds (layers.csv of a streamed run).

    `r2` is the mean over folds, `r2_sd` their sd (ddof 1), `lowest` and `highest` the extremes; `inner` is read by the training
    folds of each other; `alpha` is a geometric mean; `p` and `p_family` as in `permutation.Permutation`.
    """
    r2 = ridge.ridge
    missing = np.full((len(layers), len(concepts)), math.nan)
    p = p_family = missing
    if permuted is not None:
        tests = compare_orders(np.moveaxis(np.concatenate([r2.mean(1)[:, None], permuted], axis=1), 1, 2))
        p, p_family = tests.p, tests.p_family
    values = {
        "images": np.full(missing.shape, images),
        "folds": np.full(missing.shape, r2.shape[1]),
        "r2": r2.mean(1),
        "r2_sd": r2.std(1, ddof=1),
        "lowest": r2.min(1),
        "highest": r2.max(1),
        "inner": inner.mean(1),
        "alpha": np.exp(np.log(ridge.alpha).mean(1)),
        "ols": ridge.ols.mean(1),
        "p": p,
        "p_family": p_family,
    }
    table = _tidy({name: array.T for name, array in values.items()}, {"concept": concepts, "layer": layers})
    return table.assign(**names)[["weights", "concept", "image_class", "layer", *values]]


def class_tables(weights: str, classes: Mapping[str, ClassResult]) -> dict[str, pd.DataFrame]:
    """Tables of one network: scores, classes, sizes, and of the evidence or of the folds."""
    tables = [("scores", one.scores) for one in classes.values()]
    evidence = {name: one.evidence for name, one in classes.items() if one.evidence is not None}
    if len(evidence) > 1:
        evidence[ALL] = pool([*evidence.values()])
    kinds = {"layers": layer_table, "contrasts": contrast_table, "choices": choice_table}
    for table, make in kinds.items() if evidence else ():
        tables += [(table, make(one, weights, name)) for name, one in evidence.items()]
    for name, one in classes.items():
        if one.folds is not None:
            tables.append(("layers", one.folds))
        if one.sizes is not None:
            tables.append(("sample_size", labelled(one.sizes, weights=weights, image_class=name)))
        if one.evidence is not None:
            tables.append(("images", image_table(one.evidence, weights, name, one.names, one.groups)))
        tests = one.evidence and one.evidence.permutation
        row = {"weights": weights, "image_class": name, "images": len(one.indices)}
        row |= {"groups": len({*one.groups}), "n_train": one.n_train}
        row["permuted"] = tests.permuted if tests else ""
        tables.append(("classes", pd.DataFrame([row])))
    return stacked(tables)


def scopes(classes: pd.DataFrame) -> list[str]:
    """What is reported of one network: its only class; else all classes pooled, and each where their sizes differ."""
    names = classes["image_class"].tolist()
    if len(names) == 1:
        return names
    return [ALL] if classes["n_train"].nunique() == 1 else [ALL, *names]


def _tidy(values: Mapping[str, np.ndarray], axes: Mapping[str, Sequence]) -> pd.DataFrame:
    """Arrays over the same axes as columns, the last axis quickest."""
    index = pd.MultiIndex.from_product([[*axis] for axis in axes.values()], names=[*axes])
    return pd.DataFrame({name: array.ravel() for name, array in values.items()}, index=index).reset_index()


def _measure(known: Known, m: int) -> Known:
    return Known(known.value[:, m], known.deviation[:, m], known.sample)


def _behind_peak(r2: Known) -> Known:
    """R2 of each layer minus that of the layer where it is largest."""
    peak = int(r2.value.argmax())
    return r2 - Known(r2.value[[peak]], r2.deviation[[peak]], r2.sample)


def _resampled(scores: np.ndarray, evidence: Evidence) -> tuple[float, float]:
    if len(scores) < 2:
        return math.nan, math.nan
    low, high = corrected_resampled_t(scores, evidence.n_train, evidence.n_test).interval
    return low, min(high, 1.0)
