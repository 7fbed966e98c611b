"""What a classifier makes of the same images at many sizes: rows of images, curves over the size, where these are flat.

Source: Graziani et al. 2021, section 4.1.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from tqdm import tqdm

from scalecov_jax.checkpoints import Network
from scalecov_jax.concepts.scale import scale_ratio
from scalecov_jax.extraction import Features, cached_features, compute_features
from scalecov_jax.imaging.decoding import FILTERS, Filter, resize_image
from scalecov_jax.imaging.image_set import Example, ImageSet, Skipped, boxes_of
from scalecov_jax.models.folding import fold
from scalecov_jax.models.pruning import abstract_variables
from scalecov_jax.models.receptive_field import check_size, check_variables
from scalecov_jax.probes.statistics import draw_groups

OUTPUT = "softmax"
ALL, FILLED = "all", "filled"
OBJECTS = ("small objects", "medium objects", "large objects")
SIDES = ("smaller images", "larger images")
ORDER = (ALL, "images", *SIDES, *OBJECTS, FILLED)
RESAMPLES = 9999
REFERENCE: Filter = "lanczos"  # as published
STRIDE = 32  # pixels between the last maps' positions, in both architectures
MEASURES = ("probability", "top1", "top5")


# Images


def true_class(
    outputs: Float[np.ndarray, "N C"], class_indices: Int[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Probability and rank of the true class t.

    rank = 1 + number of classes c != t with p_c >= p_t: ties count against the network, so that equal outputs are no success.

    Raises:
        FloatingPointError: An output is not finite.
    """
    if not np.isfinite(outputs).all():
        raise FloatingPointError(
            f"{(~np.isfinite(outputs)).any(axis=1).sum()} of {len(outputs)} images have outputs that are not finite."
        )
    probability = outputs[np.arange(len(outputs)), class_indices]
    return probability, (outputs >= probability[:, None]).sum(axis=1)


def classes_of(network: Network, name: str) -> int:
    """Number of outputs of a network that goes on to its softmax.

    Raises:
        ValueError: The network stops before; begins with its name.
    """
    module: Any = network.module
    if module.last != OUTPUT:
        raise ValueError(
            f"{name}: This {network.architecture.name} stops at {module.last}, before {OUTPUT}, so it names no class; give the "
            "weights of the whole network."
        )
    size = network.card.input_size
    variables = abstract_variables(module, network.architecture, size)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(module.apply, variables, images).shape[-1]


def check_sizes(network: Network, name: str, sizes: Sequence[int]) -> None:
    """Refuse sizes (pixels) that a network cannot take.

    Raises:
        ValueError: Names the network and the smallest size that it takes, or what in it takes a single size.
    """
    try:
        check_size(network.module, min(sizes), [OUTPUT], name)
    except ValueError as error:
        raise ValueError(f"{error} Leave out the sizes below.") from None
    for size in (min(sizes), max(sizes)):
        check_variables(network.module, network.variables["params"], size, name)


def object_ratios(images: ImageSet) -> Float[np.ndarray, " N"]:
    """Area of the object's box / area of the image; NaN where no box is known."""
    known = zip(boxes_of(images), images.column("height"), images.column("width"), strict=True)
    return np.array(
        [scale_ratio(box, int(height), int(width)) if box else np.nan for box, height, width in known], float
    )


def group_images(images: ImageSet, filled: float) -> list[str]:
    """The group of each image, named with its bounds.

    Where boxes are known: `filled` where the box covers at least that part of the image, and thirds of the object's size among
    the rest. Without boxes: halves by the shorter side of the image. Equal values never part, so groups may be uneven or fewer.

    `labels` are those after squaring; `filled` is r = box area / image area.

    Source: Graziani et al. 2021, section 4.1 (69 filled images of 500 x 500 pixels and 69 smaller ones).
    """
    ratios = object_ratios(images)
    if np.isnan(ratios).any():
        sides = np.minimum(images.column("width"), images.column("height")).astype(float)
        names = SIDES if (sides != sides[0]).any() else ("images",)
        return _parts(sides, names, "shorter side {:.0f} to {:.0f} px")
    rest = ratios < filled
    thirds = iter(_parts(100 * ratios[rest], OBJECTS, "{:.1f} to {:.1f} % of the image"))
    full = f"{FILLED} (at least {100 * filled:g} % of the image)"
    return [next(thirds) if below else full for below in rest]


def kind_of(group: str) -> str:
    """The name of a group without its bounds, in `ORDER`."""
    return group.partition(" (")[0]


def _parts(values: Float[np.ndarray, " N"], names: Sequence[str], text: str) -> list[str]:
    """The name and bounds of each value's part, cut between different values as near to equal parts as can be."""
    ordered = np.sort(values)
    steps = np.flatnonzero(np.diff(ordered)) + 1
    wanted = [len(values) * part / len(names) for part in range(1, len(names))]
    cuts = {int(steps[np.abs(steps - place).argmin()]) for place in wanted} if len(steps) else set()
    parts = np.searchsorted(ordered[sorted(cuts)], values, side="right")
    bounds = pd.Series(values).groupby(parts).agg(["min", "max"])
    full = {part: f"{names[part]} ({text.format(low, high)})" for part, low, high in bounds.itertuples()}
    return [full[part] for part in parts]


def classify(
    network: Network,
    weights: str,
    images: ImageSet,
    class_indices: Int[np.ndarray, " N"],
    groups: Sequence[str],
    *,
    sizes: Sequence[int],
    filters: Sequence[Filter],
    batch_size: int = 16,
    dtype: Any = jnp.float32,
    cache: Path | None = None,
) -> tuple[pd.DataFrame, tuple[Skipped, ...]]:
    """Probability and rank of the true class of every image at every size with every filter.

    Sizes are gone through in turn, with one compilation each that all filters share, so that memory is that of a single size.

    The softmax ends the network; its batch normalisation is folded first. Images are square (see `labelled.squared`), or
    distorted by resizing; in bfloat16 outputs tie more often. `cache` keeps two numbers per image, size and filter.

    Returns:
        A row per size, filter and image: weights, image, group, object_ratio (see `object_ratios`), filter, size (pixels),
        probability, rank (see `true_class`). And the images that could not be decoded.

    Raises:
        ValueError: No image can be decoded.
        FloatingPointError: The network's outputs are not finite.
    """
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    network = network._replace(module=module, variables=variables)

    def compute(size: int, resize_filter: Filter) -> Features:
        def resized(example: Example) -> Example:  # in the threads that decode
            return example._replace(image=resize_image(example.image, size, resize_filter))

        source = images.map(resized)
        computed = compute_features(network, source, (OUTPUT,), size=size, batch_size=batch_size, dtype=dtype)
        if not len(computed.indices):
            raise ValueError(f"None of the {len(images)} images can be decoded.")
        probability, rank = true_class(computed.values[OUTPUT], class_indices[computed.indices])
        two = {"probability": probability[:, None], "rank": rank[:, None].astype(np.float32)}
        return computed._replace(values=two)

    names = [*images.table["name"]]
    known = pd.DataFrame(
        {"weights": weights, "image": names, "group": groups, "object_ratio": object_ratios(images)}
    )
    parts, skipped = [], {}
    with tqdm(total=len(images) * len(sizes) * len(filters), desc=weights, unit="img") as bar:
        for size, resize_filter in itertools.product(sizes, filters):
            path = cache and cache / f"{weights}-{size}-{resize_filter}.npz"
            features = cached_features(path, functools.partial(compute, size, resize_filter))
            skipped |= dict.fromkeys(features.skipped)
            probability, rank = (features.values[name][:, 0] for name in ("probability", "rank"))
            measured = {"probability": probability.astype(float), "rank": rank.astype(int)}
            parts.append(known.iloc[features.indices].assign(filter=resize_filter, size=size, **measured))
            bar.update(len(images))
    return pd.concat(parts, ignore_index=True), tuple(skipped)


# Curves: of rows from `classify`, with the seed of the bootstrap


def resampled_means(
    values: Float[np.ndarray, "N K"], seed: int, resamples: int = RESAMPLES
) -> Float[np.ndarray, "B K"]:
    """Means of K columns over N images drawn with replacement, the same draws for every column, so that columns are paired."""
    return _draws(len(values), seed, resamples) @ values / len(values)


@functools.lru_cache(maxsize=1)  # drawing takes longer than all else; curves of one group follow each other
def _draws(count: int, seed: int, resamples: int) -> Float[np.ndarray, "B N"]:
    """How often each image is drawn."""
    return draw_groups(count, resamples, seed).astype(float)


def means(values: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Of each column the mean, and low and high of its 95 % percentile bootstrap interval over the rows; a row per column."""
    low, high = np.percentile(resampled_means(values.to_numpy(float), seed), (2.5, 97.5), axis=0)
    return pd.DataFrame({"mean": values.mean(), "low": low, "high": high})


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, after Wilson 1927."""
    interval = binomtest(successes, count).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def by_curve(rows: pd.DataFrame) -> Iterator[tuple[dict[str, str], dict[str, pd.DataFrame]]]:
    """Each weights, group and filter, in order, with a table per measure: a row per image, a column per size (ascending).

    A group that holds all images is left out: it is there as `all`.

    Raises:
        ValueError: An image lacks a size, or has it twice.
    """
    rows = rows.assign(top1=(rows["rank"] <= 1) * 1.0, top5=(rows["rank"] <= 5) * 1.0)
    keys = ["weights", "group", "filter"]
    parts: dict[Any, pd.DataFrame] = dict(
        [*pd.concat([rows.assign(group=ALL), rows]).groupby(keys, sort=False)]
    )
    places = {key: (key[0], ORDER.index(kind_of(key[1])), FILTERS.index(key[2])) for key in parts}
    for weights, group, name in sorted(parts, key=lambda key: places[key]):
        part = parts[weights, group, name]
        counts = part.groupby(["image", "size"], sort=False).size().unstack()
        if uneven := counts.index[(counts != 1).any(axis=1)].tolist():
            raise ValueError(
                f"{weights}, {name}: expected every image once at every size; others have {', '.join(uneven[:10])}."
            )
        if group == ALL or len(part) < len(parts[weights, ALL, name]):
            order = part["image"].unique()  # since the bootstrap draws places
            tables = {x: part.pivot(index="image", columns="size", values=x).loc[order] for x in MEASURES}
            yield dict(zip(keys, (weights, group, name), strict=True)), tables


def curves(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Means over the images of each weights, group, filter and size, with 95 % intervals over images.

    Returns:
        Columns weights, group, filter, size, images (how many), and each with _low and _high: probability (mean softmax output of
        the true class, which the paper calls top-1 accuracy; percentile bootstrap; 0 to 1 for a single image, which tells nothing
        of the spread), top1 and top5 (share of images whose true class is the first, or among the first five; Wilson).

    Raises:
        ValueError: See `by_curve`.
    """
    parts = []
    for keys, images in by_curve(rows):
        count, ends = len(images["probability"]), ["probability_low", "probability_high"]
        part = pd.DataFrame({**keys, "images": count}, index=images["probability"].columns)
        part[["probability", *ends]] = means(images["probability"], seed)
        if count == 1:
            part[ends] = 0.0, 1.0
        for measure in ("top1", "top5"):
            hits = images[measure].sum()
            part[measure] = hits / count
            part[[f"{measure}_low", f"{measure}_high"]] = [wilson_interval(int(x), count) for x in hits]
        parts.append(part.reset_index())
    table = pd.concat(parts, ignore_index=True)
    return table[["weights", "group", "filter", "size", *table.columns[4:]]]


def counted(sizes: Sequence[int], input_size: int) -> list[int]:
    """The sizes in which a plateau is sought: those on the training's grid where there are at least three, else all."""
    on_grid = [size for size in sizes if (size - input_size) % STRIDE == 0]
    return on_grid if len(on_grid) >= 3 else list(sizes)


def run_around(good: Bool[np.ndarray, " K"], best: int) -> tuple[int, int]:
    """Ends of the longest run of true values around `best`."""
    bad = np.flatnonzero(~good).tolist()
    last = min((at for at in bad if at > best), default=len(good)) - 1
    return max((at for at in bad if at < best), default=-1) + 1, last


def plateaus(rows: pd.DataFrame, input_sizes: Mapping[str, int], seed: int = 0) -> pd.DataFrame:
    """The plateau of each curve: the longest run of sizes around the best none of which is shown to be worse.

    A size is shown to be worse where the paired bootstrap interval of (mean at the best size - mean there) lies above 0. The
    best size is chosen on the same images, so that the plateau is rather too short than too long; it grows as images get fewer.

    `input_sizes` are those of the images that each network was trained on, in pixels; see `counted`.

    Returns:
        Columns weights, group, filter, measure, best (the size of the largest mean, the smallest of several), value (the mean
        there), first and last (size of the plateau), smallest and largest (of the sizes counted: a plateau that ends there may go
        on beyond); sizes in pixels.
    """
    table = []
    for keys, images in by_curve(rows):
        sizes = counted(images["probability"].columns.astype(int).tolist(), input_sizes[keys["weights"]])
        for measure in MEASURES:
            values = images[measure][sizes].to_numpy(float)
            mean = values.mean(axis=0)
            best = int(mean.argmax())
            losses = resampled_means(values[:, best, None] - values, seed)
            first, last = run_around(np.percentile(losses, 2.5, axis=0) <= 1e-9, best)
            top = {"measure": measure, "best": sizes[best], "value": float(mean[best])}
            ends = {"first": sizes[first], "last": sizes[last], "smallest": sizes[0], "largest": sizes[-1]}
            table.append({**keys, **top, **ends})
    return pd.DataFrame(table)


def filter_differences(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean probability with each filter minus that with Lanczos at each size, over all images; empty without Lanczos.

    Returns:
        Columns weights, filter, size (pixels), difference, and low and high of its paired 95 % interval.
    """
    tables = {
        (keys["weights"], keys["filter"]): images["probability"]
        for keys, images in by_curve(rows)
        if keys["group"] == ALL
    }
    parts = [
        ({"weights": weights, "filter": name}, values - tables[weights, REFERENCE])
        for (weights, name), values in tables.items()
        if name != REFERENCE and (weights, REFERENCE) in tables
    ]
    return _paired(parts, ("weights", "filter"), "difference", seed)


def reference_filter(rows: pd.DataFrame) -> str:
    """Lanczos, as published, or else the first of the filters that were used."""
    return next(name for name in (REFERENCE, *FILTERS) if name in {*rows["filter"]})


def grid_losses(rows: pd.DataFrame, input_sizes: Mapping[str, int], seed: int = 0) -> pd.DataFrame:
    """How far each size off the training's grid lies below its neighbours on it, over all images, with `reference_filter`.

    A size is on the grid where it differs from the training's by a multiple of the network's stride: there every strided layer
    meets the borders of its maps as in training.

    Returns:
        Columns weights, size (pixels), loss (mean probability on the straight line between the nearest sizes on the grid, minus
        that at this size), and low and high of its paired 95 % interval.
    """
    parts = []
    for keys, images in by_curve(rows[rows["filter"] == reference_filter(rows)]):
        values, losses = images["probability"], {}
        sizes = values.columns.astype(int).tolist()
        on_grid = [size for size in sizes if (size - input_sizes[keys["weights"]]) % STRIDE == 0]
        for first, last in itertools.pairwise(on_grid):
            for size in (size for size in sizes if first < size < last):
                share = (size - first) / (last - first)
                losses[size] = (1 - share) * values[first] + share * values[last] - values[size]
        if losses and keys["group"] == ALL:
            parts.append(({"weights": keys["weights"]}, pd.DataFrame(losses)))
    return _paired(parts, ("weights",), "loss", seed)


def _paired(
    parts: Sequence[tuple[dict[str, str], pd.DataFrame]], keys: Sequence[str], name: str, seed: int
) -> pd.DataFrame:
    """The `means` of several tables of differences below each other; columns are their keys, size, name, low, high."""
    tables = [means(values, seed).reset_index(names="size").assign(**named) for named, values in parts]
    columns = [*keys, "size", "mean", "low", "high"]
    table = pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
    return table.rename(columns={"mean": name})
