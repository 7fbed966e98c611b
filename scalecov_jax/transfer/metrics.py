"""Errors of predicted nucleus areas as tables: MAE in pixels, kappa over magnifications, tests of the pruned network.

Predictions are a table with a row per model, way of training, seed and held-out patch, see `held_out`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.metrics import cohen_kappa_score

from scalecov_jax.concepts.nuclei import class_means, nearest_class
from scalecov_jax.imaging.image_set import ImageSet
from scalecov_jax.probes.statistics import clustered_bootstrap
from scalecov_jax.tables import labelled
from scalecov_jax.transfer import significance

KEYS = ("architecture", "weights", "model", "layer", "trainable", "seed")
BASES = ("whole", "scratch")
KAPPAS = {"kappa": None, "kappa_quadratic": "quadratic"}
COMPARED = (
    *("weights", "trainable", "metric", "base", "base_mean", "base_sd", "pruned_mean", "pruned_sd"),
    *("difference", "low", "high", "wins", "seeds", "p", "p_holm", "smallest_p"),
)


def held_out(
    patches: ImageSet, train: Bool[np.ndarray, " N"], predicted: Float[np.ndarray, " n"], **columns: Any
) -> pd.DataFrame:
    """What a model says of the patches outside a training part; `predicted` are their mean nucleus areas in pixels, in order.

    Returns:
        Columns `KEYS`, patch (its index), group (source image or patient), magnification, area (px, true), predicted (px) and
        nearest, the magnification whose mean area in the training part is nearest to the prediction.

    Raises:
        ValueError: Predictions that are not finite.
    """
    patch = np.flatnonzero(~train)
    means = class_means(patches.column("area")[train], patches.column("magnification")[train])
    of_patches = {name: patches.column(name)[patch] for name in ("group", "magnification", "area")}
    areas = predicted.astype(np.float64)
    said = {"predicted": areas, "nearest": nearest_class(areas, means)}
    return labelled(pd.DataFrame({"patch": patch, **of_patches, **said}), **columns)


def scores(predictions: pd.DataFrame, classes: Sequence[float] | np.ndarray) -> pd.DataFrame:
    """MAE = mean |true - predicted|, and kappa between true and nearest magnification, of every model and seed.

    Returns:
        Columns `KEYS`, magnification (first "all", then each that is present), n (patches), mae (px), kappa and kappa_quadratic
        (weighted quadratically), which are missing within a magnification.

    Raises:
        ValueError: No patches, or magnifications that are not in `classes`.

    Source: Graziani et al. 2021, Table 2 (MAE and unweighted kappa over 7 magnifications).
    """
    if predictions.empty:
        raise ValueError("There are no patches to evaluate.")
    true, nearest = (
        pd.Index(classes).get_indexer(pd.Index(predictions[name])) for name in ("magnification", "nearest")
    )
    if (unknown := (true < 0) | (nearest < 0)).any():
        given = np.unique(predictions.loc[unknown, ["magnification", "nearest"]])
        raise ValueError(
            f"Magnifications {', '.join(f'{m:g}' for m in given if m not in classes)} are none of the classes "
            f"{', '.join(f'{m:g}' for m in classes) or 'given'}. Training and test need the same magnifications."
        )
    error = (predictions["area"] - predictions["predicted"]).abs()
    frames = []
    for key, part in predictions.assign(error=error, true=true, said=nearest).groupby([*KEYS], sort=False):
        total = {"magnification": "all", "n": len(part), "mae": part["error"].mean()}
        for name, weights in KAPPAS.items():
            agreement = {"labels": range(len(classes)), "weights": weights}
            several = part["true"].nunique() > 1
            total[name] = cohen_kappa_score(part["true"], part["said"], **agreement) if several else np.nan
        each = part.groupby("magnification")["error"].agg(n="size", mae="mean").reset_index()
        each["magnification"] = each["magnification"].map("{:g}".format)
        named: dict[str, Any] = dict(zip(KEYS, key, strict=True))
        frames.append(pd.concat([pd.DataFrame([total]), each]).assign(**named))
    return pd.concat(frames, ignore_index=True)[[*KEYS, "magnification", "n", "mae", *KAPPAS]]


def totals(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores over all patches, with macro_mae: the mean over magnifications of their MAE.

    In the MAE over all patches high magnifications, whose nuclei are large, dominate.
    """
    total = scores["magnification"] == "all"
    macro = scores[~total].groupby([*KEYS], sort=False)["mae"].mean().rename("macro_mae")
    return scores[total].drop(columns="magnification").merge(macro, on=[*KEYS], how="left")


def layer_scores(
    predicted: Mapping[str, Float[np.ndarray, "R N"]],
    patches: ImageSet,
    train: Mapping[int, Bool[np.ndarray, " N"]],
    **columns: Any,
) -> pd.DataFrame:
    """Held-out errors of heads on every layer, from the areas in pixels of all patches predicted by the head of each seed.

    Returns:
        The given columns, layer, seed, mae and macro_mae (px, see `totals`).
    """
    frames = []
    for layer, values in predicted.items():
        errors = pd.DataFrame(np.abs(values - patches.column("area")).T, columns=pd.Index(train, name="seed"))
        errors = errors.mask(np.stack([*train.values()]).T)
        macro = errors.groupby(patches.column("magnification")).mean().mean()
        frame = pd.DataFrame({"mae": errors.mean(), "macro_mae": macro}).reset_index()
        frames.append(labelled(frame, **columns, layer=layer))
    return pd.concat(frames, ignore_index=True)


def compare_models(predictions: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The pruned network against the whole and that from scratch, paired by seed; for all networks and ways of training.

    Where every seed gives the same predictions for the same patches, as ridge on a single split, there is no comparison: a
    test would count the same result many times as evidence. A single seed and an undefined kappa are not compared either.

    Returns:
        Columns `COMPARED`: metric is mae (px), kappa or kappa_quadratic; means and sample sd are over seeds; difference is the
        mean of pruned - base; low and high are the ends of the 95 % bootstrap interval of the difference in MAE pooled over seeds
        and patches, source images redrawn (missing for kappa, and where fewer than two source images are held out); wins counts
        the seeds in which the pruned network is better; p is that of the exact two-sided Wilcoxon signed-rank test, smallest_p
        the least that so many seeds can reach; p_holm is adjusted for all tests with the same base and way of training (networks
        x MAE and kappa), missing for the quadratic kappa.

    Raises:
        ValueError: Models with other seeds or held-out patches.

    Source: Holm 1979; Davison & Hinkley 1997, section 3.8 (the interval).
    """
    overall = scores[scores["magnification"] == "all"]
    rows = []
    for (weights, trainable), part in predictions.groupby(["weights", "trainable"], sort=False):
        said = part.pivot(index=["seed", "patch", "group", "area"], columns="model", values="predicted")
        if said[["pruned", *BASES]].isna().to_numpy().any():
            raise ValueError("Models can be compared only on the same seeds and held-out patches.")
        own = overall[(overall["weights"] == weights) & (overall["trainable"] == trainable)]
        by_seed = own.pivot(index="seed", columns="model", values=["mae", *KAPPAS])
        for base in BASES:
            if len(by_seed) < 2 or (_repeated(said["pruned"]) and _repeated(said[base])):
                continue
            low, high = _interval(said, base)
            for metric in ("mae", *KAPPAS):
                pruned, other = (by_seed[metric, model].to_numpy(float) for model in ("pruned", base))
                if np.isnan(pruned + other).any():
                    continue
                sign = 1.0 if metric == "mae" else -1.0
                paired = significance.compare(sign * pruned, sign * other)
                errors = (other.mean(), other.std(ddof=1), pruned.mean(), pruned.std(ddof=1))
                ends = (low, high) if metric == "mae" else (np.nan, np.nan)
                tested = (paired.wins, len(pruned), paired.p, np.nan, paired.smallest_p)
                rows.append(
                    (weights, trainable, metric, base, *errors, (pruned - other).mean(), *ends, *tested)
                )
    table = pd.DataFrame(rows, columns=[*COMPARED])
    family = table[table["metric"] != "kappa_quadratic"]
    for _, p in family.groupby(["trainable", "base"])["p"]:
        table.loc[p.index, "p_holm"] = significance.holm(p.tolist())
    return table


def _repeated(predicted: pd.Series) -> bool:
    """Whether all seeds have the same patches and predictions."""
    by_seed = predicted.unstack("seed")  # patches that a seed did not hold out are missing, hence unequal
    return bool(by_seed.eq(by_seed.iloc[:, 0], axis=0).to_numpy().all())


def _interval(said: pd.DataFrame, base: str) -> tuple[float, float]:
    group, area = (said.index.get_level_values(name).to_numpy() for name in ("group", "area"))
    if len(np.unique(group)) < 2:
        return np.nan, np.nan
    first, second = (np.abs(said[model].to_numpy() - area) for model in ("pruned", base))
    return clustered_bootstrap(first, second, group)
