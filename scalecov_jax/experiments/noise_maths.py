"""Section 4.2 of the scale paper in numbers: features of white noise of many widths, and linear probes that read the width.

What is measured stands here, arrays to tables; what is asked for and reported, in `noise.py`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8
from tqdm import tqdm

from scalecov_jax.checkpoints import Network
from scalecov_jax.compilation import jit
from scalecov_jax.features import Features, cached_features, pooled_features, shortened
from scalecov_jax.images import noise
from scalecov_jax.images.batching import batches
from scalecov_jax.images.example import Skipped
from scalecov_jax.models.architecture import available_layers, check_layer
from scalecov_jax.models.folding import fold
from scalecov_jax.models.preprocessing import Preprocessing
from scalecov_jax.models.receptive_field import check_size, clean_regions, smallest_clean_size
from scalecov_jax.probes import evaluate
from scalecov_jax.probes.ridge import Scaling
from scalecov_jax.probes.splits import grouped_splits, random_splits

Pooled = Literal["gap", "corrected_gap"]
Readout = Literal["gap", "corrected_gap", "corrected_gap_distance"]
Setting = Literal["published", "larger", "unseen_sizes"]

POOLED: tuple[Pooled, ...] = ("gap", "corrected_gap")
SETTINGS: tuple[Setting, ...] = ("published", "larger", "unseen_sizes")
TARGETS = ("width", "inverse_width", "log_width")
ESTIMATORS = ("ols", "ridge")
MIN_SIZES = 3  # widths to probe a layer on
FEWEST_UNSEEN = 5  # widths: with fewer, 30 % of them are a single width, on which R2 is undefined


class Clean(NamedTuple):
    """Where a layer has positions that no padding reaches."""

    # width of the smallest image with such a position, in pixels; None where every position sees the whole image
    needed: int | None
    # how many there are, by the width of the image, for each of the widths from `needed` on
    positions: dict[int, int]

    @property
    def start(self) -> int | None:
        """Width from which on corrected GAP is probed; None where it is defined at too few widths."""
        return min(self.positions) if len(self.positions) >= MIN_SIZES else None


class NoiseFeatures(NamedTuple):
    """Pooled features of noise images, ordered by width."""

    widths: Int[np.ndarray, " N"]  # of each image, in pixels
    gap: dict[str, Float[np.ndarray, "N _"]]  # mean over all positions, by layer
    # mean over the positions that no padding reaches; only layers and only rows at which there is one
    corrected_gap: dict[str, Float[np.ndarray, "_ _"]]

    def rows(self, pooling: Pooled, layer: str, smallest: int, largest: int) -> Float[np.ndarray, "M D"]:
        """Features of the images from `smallest` to `largest` pixels, float64."""
        features = (self.gap if pooling == "gap" else self.corrected_gap)[layer]
        widths = self.widths[len(self.widths) - len(features) :]
        return features[(widths >= smallest) & (widths <= largest)].astype(np.float64)


class Window(NamedTuple):
    """Images from `smallest` to `largest` pixels, and what is probed on them."""

    smallest: int
    largest: int
    settings: tuple[Setting, ...]
    layers: dict[Pooled, tuple[str, ...]]


class Design(NamedTuple):
    """How images become training and held-out parts."""

    train: int = 5  # training images of the published setting
    test: int = 20  # Held-out images of the published setting
    splits: int = 25  # draws of the published setting, and splits of the others
    seed: int = 0  # of the draws and splits
    # further ranges of widths for the published setting, smallest and largest in pixels
    ranges: tuple[tuple[int, int], ...] = ()
    scaling: Scaling = "common"  # see `ridge.standardisation`
    alphas: Float[np.ndarray, " A"] = evaluate.ALPHAS  # penalties of ridge


# Features


def map_layers(network: Network, layers: Sequence[str] = ()) -> tuple[str, ...]:
    """The given layers, or all that a network has, in depth order; each must have a map.

    Raises:
        ValueError: A layer that the network has not, or one without a map.
    """
    family = network.architecture
    known = available_layers(family, network.module)
    maps = tuple(layer for layer in known if layer not in family.head)
    for layer in layers:
        check_layer(family, layer, known[-1])
        if layer not in maps:
            raise ValueError(f"{layer} of {family.name} has no map to pool; choose among {', '.join(maps)}.")
    return tuple(layer for layer in maps if layer in layers or not layers)


def clean_layers(network: Network, layers: Sequence[str], sizes: Sequence[int]) -> dict[str, Clean]:
    """Which layers have positions free of padding, from which width (ascending, in pixels) on, and how many.

    Raises:
        ValueError: A width at which a map would have no pixel.
    """
    for size in sizes:
        check_size(network.module, size, layers, network.architecture.name)
    regions = {size: clean_regions(network.module, size, size, layers) for size in sizes}
    clean = {}
    for layer in layers:
        needed = smallest_clean_size(network.architecture, layer, **network.card.options)
        positions = {}
        for size in sizes:
            if needed is not None and size >= needed and (region := regions[size][layer]):
                (top, bottom), (left, right) = region
                positions[size] = (bottom - top + 1) * (right - left + 1)
        clean[layer] = Clean(needed, positions)
    return clean


def layer_table(clean: Mapping[str, Clean]) -> pd.DataFrame:
    """Columns layer, needed and start (see `Clean`); empty where there is no such width."""
    rows = [(layer, place.needed, place.start) for layer, place in clean.items()]
    return pd.DataFrame(rows, columns=["layer", "needed", "start"]).astype(
        {"needed": "Int64", "start": "Int64"}
    )


def reference_layer(starts: Mapping[str, int | None]) -> str | None:
    """The deepest layer probed with corrected GAP over the most widths (`Clean.start` by layer); None if there is none."""
    probed = {layer: start for layer, start in starts.items() if start is not None}
    return max(
        reversed(probed), key=lambda layer: -probed[layer], default=None
    )  # max takes the first of equals


def noise_features(
    network: Network,
    clean: Mapping[str, Clean],
    sizes: Sequence[int],
    per_size: int,
    seed: int,
    *,
    batch_size: int = 16,
    dtype: Any = jnp.float32,
    cache: Path | None = None,
    name: str = "noise",
    progress: bool = False,
) -> NoiseFeatures:
    """Both poolings of noise images of every width, in one forward pass per image and one compilation per width.

    The network is cut after the last of the layers, and its batch normalisation folded, first. Images are made at each width,
    never resized. `cache` keeps the features of each width in files called `name`.

    Source: Graziani et al. 2021, section 4.2.
    """
    layers = tuple(clean)
    forward = _Forward(shortened(network, layers), dtype)
    rows = -(-min(batch_size, per_size) // jax.device_count()) * jax.device_count()
    parts: list[dict[str, np.ndarray]] = []
    with tqdm(total=len(sizes) * per_size, desc=name, unit="img", disable=not progress) as bar:
        for size in sizes:
            corrected = tuple(layer for layer in layers if size in clean[layer].positions)
            compute = partial(forward.features, size, per_size, seed, layers, corrected, rows)
            parts.append(cached_features(cache and cache / f"{name}-{size}.npz", compute).values)
            bar.update(per_size)

    def joined(pooling: Pooled, layer: str) -> np.ndarray:
        return np.concatenate([part[key] for part in parts if (key := f"{pooling}-{layer}") in part])

    return NoiseFeatures(
        np.repeat(np.asarray(sizes), per_size),
        {layer: joined("gap", layer) for layer in layers},
        {layer: joined("corrected_gap", layer) for layer in layers if {*sizes} & {*clean[layer].positions}},
    )


class _Forward:
    """A folded network on all devices; the weights are arguments, so that trained and random ones share a compilation."""

    def __init__(self, network: Network, dtype: Any):
        module, variables = fold(network.module, network.variables, network.architecture.epsilon)
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        self.module = module
        self.variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        self.sharding = NamedSharding(mesh, PartitionSpec("data"))
        self.preprocessing: Preprocessing = network.card.preprocessing
        self.dtype = dtype

    def features(
        self, size: int, count: int, seed: int, layers: tuple[str, ...], corrected: tuple[str, ...], rows: int
    ) -> Features:
        """Features of the noise images of one size, by pooling-layer."""
        parts: list[dict[str, np.ndarray]] = []
        skipped: list[Skipped] = []
        for batch in batches(noise.examples(count, size, seed), size, rows, skipped):
            images = jax.device_put(batch.images, self.sharding)
            pooled = _both_poolings(
                self.module, self.variables, images, layers, corrected, self.preprocessing, self.dtype
            )
            parts.append({key: np.asarray(values)[batch.valid] for key, values in pooled.items()})
        values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return Features(values, np.arange(count), tuple(skipped))


@partial(jit, static_argnames=("module", "layers", "corrected", "preprocessing", "dtype"))
def _both_poolings(
    module: nn.Module,
    variables: Any,
    images: UInt8[Array, "N H W 3"],
    layers: tuple[str, ...],
    corrected: tuple[str, ...],
    preprocessing: Preprocessing,
    dtype: Any,
) -> dict[str, Float[Array, "N _"]]:
    """Written as two forward passes; the compiler merges them into one."""
    pooled: dict[str, Float[Array, "N _"]] = {}
    for pooling, wanted in zip(POOLED, (layers, corrected), strict=True):
        if wanted:
            values = pooled_features(module, variables, images, wanted, preprocessing, dtype, pooling)
            pooled |= {f"{pooling}-{layer}": rows for layer, rows in values.items()}
    return pooled


# What is probed


def targets_of(widths: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N M"]:
    """Width s in pixels, 1000 / s and log s, in the order of `TARGETS`.

    The share of positions that padding reaches is about proportional to 1 / s, so that GAP is about linear in it.
    """
    widths = widths.astype(np.float64)
    return np.stack([widths, 1000 / widths, np.log(widths)], axis=1)


def draws(
    widths: Int[np.ndarray, " N"], train: int, test: int, splits: int, seed: int
) -> Int[np.ndarray, "S K"]:
    """Random images of the published setting: in each row `train` to train, then `test` held out, without repetition.

    A draw whose training or held-out images all have one width is drawn again.

    Raises:
        ValueError: Too few images, parts of fewer than two, or images of one width.
    """
    different = len({*widths.tolist()})
    if len(widths) < train + test or min(train, test) < 2 or different < 2:
        raise ValueError(
            f"{train} training and {test} held-out images cannot be drawn from {len(widths)} images of {different} widths; "
            "both parts need at least 2 images and there must be 2 widths."
        )
    rows = []
    for split in range(splits):
        rng = np.random.default_rng((seed, split))
        while True:
            row = rng.permutation(len(widths))[: train + test]
            if np.ptp(widths[row[:train]]) and np.ptp(widths[row[train:]]):
                break
        rows.append(row)
    return np.stack(rows)


def windows(clean: Mapping[str, Clean], sizes: Sequence[int], design: Design, per_size: int) -> list[Window]:
    """The ranges of widths to probe.

    All widths; for each layer whose corrected GAP begins later, the widths from there on, for both poolings, so that they are
    compared on the same images; and the ranges of the design. Settings for which a range has too few images are left out.
    """

    def window(smallest: int, largest: int, gap: tuple[str, ...], settings: tuple[Setting, ...]) -> Window:
        count = sum(smallest <= size <= largest for size in sizes)
        enough: dict[Setting, bool] = {
            "published": count * per_size >= design.train + design.test,
            "larger": True,
            "unseen_sizes": count >= FEWEST_UNSEEN,
        }
        corrected = tuple(x for x in gap if (start := clean[x].start) is not None and start <= smallest)
        layers: dict[Pooled, tuple[str, ...]] = {"gap": gap, "corrected_gap": corrected}
        return Window(smallest, largest, tuple(x for x in settings if enough[x]), layers)

    first, last = min(sizes), max(sizes)
    ranges = [window(first, last, tuple(clean), SETTINGS)]
    starts = {start for place in clean.values() if (start := place.start) is not None}
    for start in sorted(starts - {first}):
        layers = tuple(layer for layer in clean if clean[layer].start == start)
        ranges.append(window(start, last, layers, SETTINGS))
    for limits in design.ranges:
        there = {layer for window in ranges if window[:2] == limits for layer in window.layers["gap"]}
        if more := tuple(layer for layer in clean if layer not in there):
            ranges.append(window(*limits, more, ("published",)))
    return ranges


def main_window(ranges: Sequence[Window], layer: str) -> Window:
    """The window over which a layer is probed with both poolings; that of all widths where corrected GAP is not defined."""
    both = (x for x in ranges if "larger" in x.settings and layer in x.layers["corrected_gap"])
    return next(both, ranges[0])


def log_distance(features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N 1"]:
    """Log |phi - mean phi|^2 of each row: one number that grows with the variance, whatever the mean.

    The mean of K positions of a stationary field has a variance of about 1 / K. So the distance tells K, and with it the width,
    where no linear function of phi can. Features that are all equal have distance 0; it is set to the smallest float.
    """
    squared = np.square(features - features.mean(0)).sum(1, keepdims=True)
    return np.log(np.maximum(squared, np.finfo(np.float64).tiny))


def between_widths(
    features: Float[np.ndarray, "N D"], widths: Int[np.ndarray, " N"]
) -> tuple[float, dict[int, float]]:
    """Omega squared of the width, and the variance (summed over features) within each width.

    With g widths of n images each, sums of squares B between and W within: (B - (g - 1) W / (N - g)) / (B + W + W / (N - g)). As
    all widths have equally many images, its numerator is 0 in expectation if they have one mean, even with unequal variances.

    Each width occurs equally often and at least twice.
    """
    groups = {int(width): features[widths == width] for width in np.unique(widths)}
    within = {width: float(rows.var(0, ddof=1).sum()) for width, rows in groups.items()}
    count = len(widths) // len(groups)
    means = np.stack([rows.mean(0) for rows in groups.values()])
    between = count * float(np.square(means - means.mean(0)).sum())
    mean_square = float(np.mean([*within.values()]))
    total = between + (count - 1) * sum(within.values()) + mean_square
    share = (between - (len(groups) - 1) * mean_square) / total if total else 0.0
    return share, within


# Tables


def score_noise(features: NoiseFeatures, ranges: Iterable[Window], design: Design) -> pd.DataFrame:
    """Held-out R2 of both estimators for every window, setting, pooling, layer and target.

    Returns:
        Columns setting (published: few images; larger: 70 % of all to train; unseen_sizes: held-out widths do not occur in
        training), pooling (corrected_gap_distance: one feature, `log_distance` of the corrected ones), layer, smallest and
        largest (widths used, in pixels), target, split, estimator, alpha (penalty chosen on the training part; NaN for ols), r2.

    Source: Graziani et al. 2021, section 4.2 and Figure 7 (5 training and 20 test images, the layer mixed0).
    """
    frames = []
    for window in ranges:
        inside = (features.widths >= window.smallest) & (features.widths <= window.largest)
        values: dict[tuple[Readout, str], Float[np.ndarray, "N _"]] = {}
        for pooling in POOLED:
            for layer in window.layers[pooling]:
                rows = features.rows(pooling, layer, window.smallest, window.largest)
                values[pooling, layer] = rows
                if pooling == "corrected_gap":
                    values["corrected_gap_distance", layer] = log_distance(rows)
        for setting, first, solved in _solve(window.settings, features.widths[inside], values, design):
            splits = range(first, first + solved.ols.shape[1])
            index = pd.MultiIndex.from_product([values, splits, TARGETS, ESTIMATORS])
            places, split, target, estimator = (index.get_level_values(level) for level in range(4))
            frames.append(
                pd.DataFrame(
                    {
                        "setting": setting,
                        "pooling": [place[0] for place in places],
                        "layer": [place[1] for place in places],
                        "smallest": window.smallest,
                        "largest": window.largest,
                        "target": target,
                        "split": split,
                        "estimator": estimator,
                        "alpha": np.stack([np.full_like(solved.alpha, np.nan), solved.alpha], -1).ravel(),
                        "r2": np.stack([solved.ols, solved.ridge], -1).ravel(),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def predict_noise(features: NoiseFeatures, window: Window, design: Design, layer: str) -> pd.DataFrame:
    """Predicted widths of the held-out images of the published setting by least squares, and of the larger by ridge.

    For the target inverse_width the inverse of the prediction is given, where it is positive; rows without one are left out.

    Returns:
        Columns setting, pooling, layer, target, split, estimator, width and predicted (in pixels).
    """
    inside = (features.widths >= window.smallest) & (features.widths <= window.largest)
    widths, frames = features.widths[inside], []
    targets = targets_of(widths)
    masks = random_splits(len(widths), design.splits, design.seed)
    parts = {("larger", "ridge"): [(np.flatnonzero(mask), np.flatnonzero(~mask)) for mask in masks]}
    if "published" in window.settings:
        drawn = draws(widths, design.train, design.test, design.splits, design.seed)
        few = [(row[: design.train], row[design.train :]) for row in drawn]
        parts = {("published", "ols"): few, **parts}
    for pooling in POOLED:
        if layer not in window.layers[pooling]:
            continue
        rows = features.rows(pooling, layer, window.smallest, window.largest)
        for (setting, estimator), splits in parts.items():
            for split, (train, test) in enumerate(splits):
                alphas = None if estimator == "ols" else design.alphas
                guesses = _predicted(rows, targets, train, test, alphas, design.scaling)
                with np.errstate(divide="ignore"):
                    predicted = np.stack([guesses[:, 0], 1000 / guesses[:, 1]], 1)
                frame = pd.DataFrame(
                    {
                        "setting": setting,
                        "pooling": pooling,
                        "layer": layer,
                        "target": np.tile(TARGETS[:2], len(test)),
                        "split": split,
                        "estimator": estimator,
                        "width": np.repeat(widths[test], 2),
                        "predicted": predicted.ravel(),
                    }
                )
                frames.append(frame[np.stack([np.full(len(test), True), guesses[:, 1] > 0], 1).ravel()])
    return pd.concat(frames, ignore_index=True)


def measure_effects(
    features: NoiseFeatures, clean: Mapping[str, Clean], ranges: Iterable[Window]
) -> pd.DataFrame:
    """How the mean and the variance of the features of each layer depend on the width, for every window with all settings.

    Returns:
        Columns pooling, layer, smallest, largest (widths used, in pixels), between_widths (share of the variance that lies
        between the means of the widths, see `between_widths`), and slope (of the logarithm of the variance within a width against
        the logarithm of the number of positions averaged; NaN for gap).
    """
    effects = []
    for window in ranges:
        if "larger" not in window.settings:
            continue
        limits = window.smallest, window.largest
        widths = features.widths[(features.widths >= limits[0]) & (features.widths <= limits[1])]
        for pooling in POOLED:
            for layer in window.layers[pooling]:
                share, within = between_widths(features.rows(pooling, layer, *limits), widths)
                slope = np.nan
                if pooling == "corrected_gap" and all(value > 0 for value in within.values()):
                    positions = [clean[layer].positions[size] for size in within]
                    slope = float(np.polyfit(np.log(positions), np.log([*within.values()]), 1)[0])
                effects.append((pooling, layer, *limits, share, slope))
    columns = ["pooling", "layer", "smallest", "largest", "between_widths", "slope"]
    return pd.DataFrame(effects, columns=columns)


def _solve(
    settings: Sequence[Setting],
    widths: Int[np.ndarray, " N"],
    values: Mapping[tuple[Readout, str], Float[np.ndarray, "N _"]],
    design: Design,
) -> Iterator[tuple[Setting, int, evaluate.ProbeScores]]:
    """Scores of each setting, with the index of their first split."""
    target = targets_of(widths)

    def solve(rows: np.ndarray, masks: Bool[np.ndarray, "S N"]) -> evaluate.ProbeScores:
        chosen = {"-".join(key): features[rows] for key, features in values.items()}
        return evaluate.score_layers(chosen, target[rows], masks, design.alphas, design.scaling)

    if "published" in settings:
        mask = np.arange(design.train + design.test)[None] < design.train
        for split, rows in enumerate(draws(widths, design.train, design.test, design.splits, design.seed)):
            yield "published", split, solve(rows, mask)
    masks: dict[Setting, Bool[np.ndarray, "S N"]] = {}
    if "larger" in settings:
        masks["larger"] = random_splits(len(widths), design.splits, design.seed)
    if "unseen_sizes" in settings:
        masks["unseen_sizes"] = grouped_splits(widths, design.splits, design.seed)
    if masks:  # one compilation for both
        together = solve(np.arange(len(widths)), np.concatenate([*masks.values()]))
        for number, setting in enumerate(masks):
            part = slice(number * design.splits, (number + 1) * design.splits)
            yield setting, 0, evaluate.ProbeScores(*(scores[:, part] for scores in together))


def _predicted(
    features: Float[np.ndarray, "N D"],
    targets: Float[np.ndarray, "N M"],
    train: Int[np.ndarray, " n"],
    test: Int[np.ndarray, " m"],
    alphas: Float[np.ndarray, " A"] | None,
    scaling: Scaling,
) -> Float[np.ndarray, "m M"]:
    """Targets of held-out rows by ridge, or by least squares where there are no penalties."""
    rows = np.concatenate([train, test])
    part = (np.arange(len(rows)) < len(train))[None]
    fit = evaluate.fit(features[rows], targets[rows], part, alphas, scaling)
    return features[test] @ fit.weights[0] + fit.intercept[0]
