"""Where least squares collapses: the same layers probed with more and more training images."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from scalecov_jax.probes.evaluate import ALPHAS, ranks, score_layers
from scalecov_jax.scores import ESTIMATORS

MIN_HELD_OUT = 10  # images; R2 on fewer says nothing


def usable_sizes(sizes: Sequence[int], count: int) -> list[int]:
    """The sizes of a training part that leave at least `MIN_HELD_OUT` of `count` images, in ascending order.

    Raises:
        ValueError: No size is left, or one is below 2.
    """
    kept = [size for size in sorted(set(sizes)) if size <= count - MIN_HELD_OUT]
    if not kept or kept[0] < 2:
        raise ValueError(
            f"Training parts of {', '.join(map(str, sizes)) or 'no'} images cannot be cut from {count} images; expected 2 to "
            f"{count - MIN_HELD_OUT}, so that {MIN_HELD_OUT} are held out."
        )
    return kept


def sweep(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    measures: Float[np.ndarray, " N"],
    sizes: Sequence[int],
    *,
    splits: int = 10,
    seed: int = 0,
    alphas: Float[np.ndarray, " A"] = ALPHAS,
    progress: str | None = None,
) -> pd.DataFrame:
    """Probe every layer with training parts of several sizes; whatever is not trained on is held out.

    Least squares fits n_train targets exactly once a layer has n_train linearly independent features, and its error is largest
    where their number meets n_train, on any layer and even on noise. If the dip is an artefact of the estimator, it moves with
    n_train; if it belonged to the layer it would stay.

    Sizes that leave fewer than `MIN_HELD_OUT` images are passed over. The images of a small part, the first in one of `splits`
    random orders, are among those of every larger one.

    Returns:
        Columns layer, width (features D), rank (how many of them are linearly independent over all images, see
        `evaluate.ranks`), n_train, split, estimator, r2 (held out).

    Raises:
        ValueError: See `usable_sizes`.
    """
    count, kept, found = len(measures), usable_sizes(sizes, len(measures)), []
    orders = [np.random.default_rng((seed, split, 2)).permutation(count) for split in range(splits)]
    # One call a size: padded to the largest, the small ones would cost as much.
    for size in tqdm(kept, desc=progress, unit="size", disable=progress is None):
        masks = np.zeros((splits, count), bool)
        for mask, order in zip(masks, orders, strict=True):
            mask[order[:size]] = True
        scores = score_layers(features, measures[:, None], masks, alphas)
        found.append(np.stack([getattr(scores, estimator)[..., 0] for estimator in ESTIMATORS]))
    axes = {"n_train": kept, "estimator": ESTIMATORS, "layer": [*features], "split": range(splits)}
    table = pd.DataFrame({"r2": np.ravel(found)}, pd.MultiIndex.from_product([*axes.values()], names=[*axes]))
    widths, independent = {layer: values.shape[1] for layer, values in features.items()}, ranks(features)
    table = table.reset_index().assign(
        width=lambda rows: rows["layer"].map(widths), rank=lambda rows: rows["layer"].map(independent)
    )
    return table[["layer", "width", "rank", "n_train", "split", "estimator", "r2"]]


def dips(table: pd.DataFrame) -> pd.DataFrame:
    """Where the median R2 of least squares over splits is lowest along n_train, at each layer of one class and network.

    Only layers whose rank lies inside the range of sizes are listed: elsewhere the dip cannot be seen.

    Returns:
        Columns layer, width, rank, n_train (at the lowest median), ols (the median there) and ridge (its median there).
    """
    keys = ["layer", "width", "rank"]
    medians = (
        table.groupby([*keys, "n_train", "estimator"], sort=False)["r2"].median().unstack().reset_index()
    )
    sizes = medians["n_train"]
    seen = medians[(sizes.min() < medians["rank"]) & (medians["rank"] < sizes.max())]
    lowest = seen.loc[seen.groupby("layer", sort=False)["ols"].idxmin()]
    return lowest[[*keys, "n_train", *ESTIMATORS]].rename_axis(columns=None).reset_index(drop=True)
