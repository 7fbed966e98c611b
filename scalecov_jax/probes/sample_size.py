"""Where least squares collapses: the same layers probed with more and more training images."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from scalecov_jax.probes.evaluate import ALPHAS, ranks, score_layers
from scalecov_jax.scores import ESTIMATORS, Estimator

MIN_HELD_OUT = 10  # images; R2 on fewer says nothing


class SizeScore(NamedTuple):
    """Held-out R2 of one layer with one size of the training part (a row of sample_size.csv).

    `width` is the number of features D, `rank` how many of them are linearly independent over all images (`evaluate.ranks`).
    """

    weights: str
    image_class: str
    layer: str
    width: int
    rank: int
    n_train: int
    split: int
    estimator: Estimator
    r2: float


class Dip(NamedTuple):
    """Where the median R2 of least squares over splits is lowest along n_train, at one layer."""

    layer: str
    width: int  # its features D
    rank: int  # how many of them are linearly independent
    n_train: int  # size of the training part at the lowest median
    ols: float  # the median there
    ridge: float  # the median of ridge at the same size


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
    weights: str,
    image_class: str,
    splits: int = 10,
    seed: int = 0,
    alphas: Float[np.ndarray, " A"] = ALPHAS,
    progress: str | None = None,
) -> list[SizeScore]:
    """Probe every layer with training parts of several sizes; whatever is not trained on is held out.

    Least squares fits n_train targets exactly once a layer has n_train linearly independent features, and its error is largest
    where their number meets n_train, on any layer and even on noise. If the dip is an artefact of the estimator, it moves with
    n_train; if it belonged to the layer it would stay.

    Sizes that leave fewer than `MIN_HELD_OUT` images are passed over. The images of a small part, the first in one of `splits`
    random orders, are among those of every larger one.

    Raises:
        ValueError: See `usable_sizes`.
    """
    count = len(measures)
    kept = usable_sizes(sizes, count)
    orders = [np.random.default_rng((seed, split, 2)).permutation(count) for split in range(splits)]
    independent = ranks(features)
    rows = []
    # One call a size: padded to the largest, the small ones would cost as much.
    for size in tqdm(kept, desc=progress, unit="size", disable=progress is None):
        masks = np.zeros((splits, count), bool)
        for mask, order in zip(masks, orders, strict=True):
            mask[order[:size]] = True
        scores = score_layers(features, measures[:, None], masks, alphas)
        rows += [
            SizeScore(
                weights,
                image_class,
                layer,
                values.shape[1],
                independent[layer],
                size,
                split,
                estimator,
                float(getattr(scores, estimator)[index, split, 0]),
            )
            for estimator in ESTIMATORS
            for index, (layer, values) in enumerate(features.items())
            for split in range(splits)
        ]
    return rows


def medians(
    rows: Sequence[SizeScore], layer: str, estimator: Estimator
) -> tuple[np.ndarray, Float[np.ndarray, " K"]]:
    """Sizes of the training part and the median R2 over splits at each."""
    wanted = [row for row in rows if (row.layer, row.estimator) == (layer, estimator)]
    sizes = np.unique([row.n_train for row in wanted])
    return sizes, np.array([np.median([r.r2 for r in wanted if r.n_train == size]) for size in sizes])


def dips(rows: Sequence[SizeScore]) -> list[Dip]:
    """The dip of each layer of one class and network whose rank lies inside the range of sizes; elsewhere it cannot be seen."""
    layers = {row.layer: (row.width, row.rank) for row in rows}
    found = []
    for layer, (width, rank) in layers.items():
        sizes, ols = medians(rows, layer, "ols")
        if sizes[0] < rank < sizes[-1]:
            lowest = int(np.argmin(ols))
            ridge = medians(rows, layer, "ridge")[1][lowest]
            found.append(Dip(layer, width, rank, int(sizes[lowest]), float(ols[lowest]), float(ridge)))
    return found
