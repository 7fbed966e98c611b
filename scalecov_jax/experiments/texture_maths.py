"""Texture in the layers of a network: R2 as published, on the images of the fit, and R2 on images held out."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from scalecov_jax.probes.evaluate import fit, score_layers
from scalecov_jax.probes.permutation import shuffled
from scalecov_jax.probes.splits import grouped_splits

PUBLISHED = pd.DataFrame(
    {
        ("glcm_asm", "random"): (0.867, 0.925, 0.947, 0.987, 0.987, 0.989),
        ("glcm_asm", "pretrained"): (0.890, 0.890, 0.931, 0.992, 0.991, 0.992),
        ("glcm_asm", "fine_tuned"): (0.845, 0.927, 0.970, 0.997, 0.996, 0.994),
        ("glcm_energy", "random"): (0.904, 0.949, 0.959, 0.991, 0.990, 0.991),
        ("glcm_energy", "pretrained"): (0.928, 0.929, 0.958, 0.994, 0.991, 0.992),
        ("glcm_energy", "fine_tuned"): (0.899, 0.953, 0.981, 0.998, 0.996, 0.994),
        ("glcm_contrast", "random"): (0.984, 0.991, 0.987, 0.996, 0.994, 0.993),
        ("glcm_contrast", "pretrained"): (0.990, 0.994, 0.992, 0.997, 0.990, 0.988),
        ("glcm_contrast", "fine_tuned"): (0.987, 0.992, 0.991, 0.998, 0.992, 0.986),
        ("glcm_correlation", "random"): (0.875, 0.923, 0.932, 0.985, 0.984, 0.982),
        ("glcm_correlation", "pretrained"): (0.878, 0.919, 0.939, 0.987, 0.978, 0.974),
        ("glcm_correlation", "fine_tuned"): (0.869, 0.917, 0.954, 0.995, 0.992, 0.987),
        ("glcm_dissimilarity", "random"): (0.985, 0.994, 0.989, 0.997, 0.995, 0.994),
        ("glcm_dissimilarity", "pretrained"): (0.996, 0.996, 0.995, 0.998, 0.992, 0.991),
        ("glcm_dissimilarity", "fine_tuned"): (0.995, 0.997, 0.996, 0.999, 0.995, 0.989),
    },
    index=["conv2d_3", "conv2d_5", "mixed0", "mixed3", "mixed7", "mixed8"],
)
"""In-sample R2 on Camelyon17: a column per concept and weights, a row per layer of InceptionV3 (the last are printed as 5b,
6a, 6e, 7a); 10 repetitions. Source: Graziani et al. 2019, the authors' notebook."""


def in_sample_r2(
    features: Mapping[str, Float[np.ndarray, "N _"]], targets: Float[np.ndarray, "R N M"]
) -> Float[np.ndarray, "L R M"]:
    """R2 of least squares on the images that it was fitted to, as published.

    With D >= N - 1 independent features it is 1 whatever the targets are; for targets that features know nothing of it is
    D / (N - 1) on average.

    Source: Graziani et al. 2019.
    """
    repeats, count, measures = targets.shape
    columns = targets.transpose(1, 0, 2).reshape(count, -1)
    spread = np.square(columns - columns.mean(0)).sum(0)
    scores = []
    for values in features.values():
        weights, intercept, _ = fit(values, columns, alphas=None)
        missed = columns - values.astype(np.float64) @ weights[0] - intercept[0]
        scores.append(1 - np.square(missed).sum(0) / spread)
    return np.reshape(scores, (len(features), repeats, measures))


def score_texture(
    weights: str,
    features: Mapping[str, Float[np.ndarray, "N _"]],
    measures: Mapping[str, Float[np.ndarray, " N"]],
    groups: Sequence[str] | np.ndarray,
    *,
    splits: int,
    seed: int,
) -> pd.DataFrame:
    """Both R2 of all measures at all layers, of the measures and of shuffled ones.

    Held-out images are of other patients; in-sample fits need no splits.

    Returns:
        A row per probe: weights, layer, width (features D), concept, shuffled (the concept over the images), images (n), n_fit
        (images of the fit), part (scored on these, in_sample, or on the others, held_out), estimator (ols or ridge), split, r2.

    Raises:
        ValueError: See `score_layers` and `grouped_splits`.
    """
    real = np.stack(list(measures.values()), 1).astype(np.float64)
    masks = grouped_splits(groups, splits, seed)
    control = shuffled(real, splits, seed, groups)
    inside = in_sample_r2(features, np.concatenate([real[None], control]))
    targets = np.concatenate([np.tile(real[None], (splits, 1, 1)), control], axis=-1)
    outside = score_layers(features, targets, masks)
    count, kinds = real.shape
    rows = []
    for at, (layer, values) in enumerate(features.items()):
        for column, concept in enumerate(measures):
            found = [(False, count, "in_sample", "ols", 0, inside[at, 0, column])]
            for split, mask in enumerate(masks):
                found.append((True, count, "in_sample", "ols", split, inside[at, 1 + split, column]))
                for name, r2 in (("ols", outside.ols), ("ridge", outside.ridge)):
                    for is_shuffled in (False, True):
                        score = r2[at, split, column + kinds * is_shuffled]
                        found.append((is_shuffled, int(mask.sum()), "held_out", name, split, score))
            head = (weights, layer, values.shape[1], concept)
            rows += [(*head, is_shuffled, count, *rest) for is_shuffled, *rest in found]
    columns = "weights layer width concept shuffled images n_fit part estimator split r2"
    return pd.DataFrame(rows, columns=columns.split())


def score_sizes(
    weights: str,
    features: Mapping[str, Float[np.ndarray, "N _"]],
    measures: Mapping[str, Float[np.ndarray, " N"]],
    groups: Sequence[str],
    sizes: Sequence[int],
    *,
    splits: int,
    seed: int,
) -> pd.DataFrame:
    """`score_texture` of the images of the first patients, for each number of images in `sizes`, and of all images."""
    order = np.argsort(np.unique(groups, return_inverse=True)[1], kind="stable")
    frames = []
    for size in (*sorted({size for size in sizes if size < len(order)}), len(order)):
        kept = order[:size]
        x, y = ({name: values[kept] for name, values in arrays.items()} for arrays in (features, measures))
        frames.append(score_texture(weights, x, y, np.array(groups)[kept], splits=splits, seed=seed))
    return pd.concat(frames, ignore_index=True)


def summarise(scores: pd.DataFrame, architecture: str) -> pd.DataFrame:
    """R2 on all images, by concept, layer and weights.

    Returns:
        Columns held and spread (median and range between quartiles of held-out R2 of ridge), control (median, of shuffled
        measures), inside (R2 in sample) and published (R2 in sample; NaN where nothing was published).
    """
    by, whole = ["concept", "layer", "weights"], scores[scores["images"] == scores["images"].max()]
    ridge = whole[whole["estimator"] == "ridge"].groupby([*by, "shuffled"], sort=False)["r2"]
    held = ridge.median().xs(False, level="shuffled")
    found = {
        "held": held,
        "spread": (ridge.quantile(0.75) - ridge.quantile(0.25)).xs(False, level="shuffled"),
        "control": ridge.median().xs(True, level="shuffled"),
        "inside": whole.query("part == 'in_sample' and not shuffled").set_index(by)["r2"],
    }
    published = PUBLISHED.unstack().reorder_levels([0, 2, 1])
    found["published"] = published if architecture == "inception_v3" else np.nan
    return pd.DataFrame(found, index=held.index)
