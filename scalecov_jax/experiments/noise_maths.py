"""Section 4.2 of the scale paper in numbers: linear probes that read the width of white noise from its features.

What is measured stands here, arrays to tables; what is asked for and reported, in `noise.py`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from scalecov_jax.experiments.noise_features import POOLED, Clean, NoiseFeatures, Pooled
from scalecov_jax.probes import evaluate
from scalecov_jax.probes.ridge import Scaling
from scalecov_jax.probes.splits import grouped_splits, random_splits

Readout = Literal["gap", "corrected_gap", "corrected_gap_distance"]
Setting = Literal["published", "larger", "unseen_sizes"]

SETTINGS: tuple[Setting, ...] = ("published", "larger", "unseen_sizes")
TARGETS = ("width", "inverse_width", "log_width")
ESTIMATORS = ("ols", "ridge")
_SCORES = (
    *("setting", "pooling", "layer", "smallest", "largest"),
    *("target", "split", "estimator", "alpha", "r2"),
)
FEWEST_UNSEEN = 5  # widths: with fewer, 30 % of them are a single width, on which R2 is undefined


class Window(NamedTuple):
    """Images from `smallest` to `largest` pixels, and what is probed on them."""

    smallest: int
    largest: int
    settings: tuple[Setting, ...]
    layers: dict[Pooled, tuple[str, ...]]


class Design(NamedTuple):
    """How images become training and held-out parts."""

    train: int = 5  # training images of the published setting
    test: int = 20  # held-out images of the published setting
    splits: int = 25  # draws of the published setting, and splits of the others
    seed: int = 0  # of the draws and splits
    # further ranges of widths for the published setting, smallest and largest in pixels
    ranges: tuple[tuple[int, int], ...] = ()
    scaling: Scaling = "common"  # see `ridge.standardisation`
    alphas: Float[np.ndarray, " A"] = evaluate.ALPHAS  # penalties of ridge


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
            axes = {"place": values, "split": splits, "target": TARGETS, "estimator": ESTIMATORS}
            frame = pd.MultiIndex.from_product([[*axis] for axis in axes.values()], names=[*axes]).to_frame(
                False
            )
            frame["alpha"] = np.stack([np.full_like(solved.alpha, np.nan), solved.alpha], -1).ravel()
            frame["r2"] = np.stack([solved.ols, solved.ridge], -1).ravel()
            frame[["pooling", "layer"]] = frame.pop("place").tolist()
            limits = {"smallest": window.smallest, "largest": window.largest}
            frames.append(frame.assign(setting=setting, **limits)[[*_SCORES]])
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
                both = np.concatenate([train, test])
                part = (np.arange(len(both)) < len(train))[None]
                fit = evaluate.fit(rows[both], targets[both], part, alphas, design.scaling)
                guesses = rows[test] @ fit.weights[0] + fit.intercept[0]
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
