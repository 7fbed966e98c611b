"""Reading the width of white noise from pooled features: linear probes, and why they succeed or fail."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from scalecov_jax.paper.noise import POOLED, Clean, NoiseFeatures, Pooled
from scalecov_jax.probes import evaluate
from scalecov_jax.probes.ridge import Scaling
from scalecov_jax.probes.splits import grouped_splits, random_splits
from scalecov_jax.scores import Estimator

Setting = Literal["published", "larger", "unseen_sizes"]
Target = Literal["width", "inverse_width", "log_width"]
Readout = Literal["gap", "corrected_gap", "corrected_gap_distance"]
Condition = Literal["trained", "random_weights"]

SETTINGS: tuple[Setting, ...] = ("published", "larger", "unseen_sizes")
TARGETS: tuple[Target, ...] = ("width", "inverse_width", "log_width")
FEWEST_UNSEEN = 5  # sizes: with fewer, 30 % of them are a single one, on which R2 is undefined


class NoiseScore(NamedTuple):
    """Held-out R2 of one probe on one split (one row of noise.csv).

    Attributes:
        architecture: Name of the family.
        weights: Name of the weights.
        condition: trained or random_weights.
        setting: published (few images), larger (70 % of all to train), unseen_sizes (held-out widths do not occur in training).
        pooling: gap, corrected_gap, or corrected_gap_distance: one feature, `log_distance` of the corrected ones.
        layer: Whose features were probed.
        smallest: Width of the smallest images used, in pixels.
        largest: Width of the largest images used, in pixels.
        target: width, inverse_width or log_width.
        split: Index of the split or draw.
        estimator: ols (minimum norm) or ridge.
        alpha: Penalty chosen on the training part; None for ols.
        r2: Coefficient of determination on the held-out part.
    """

    architecture: str
    weights: str
    condition: Condition
    setting: Setting
    pooling: Readout
    layer: str
    smallest: int
    largest: int
    target: Target
    split: int
    estimator: Estimator
    alpha: float | None
    r2: float


class NoisePrediction(NamedTuple):
    """What one probe made of one held-out image (one row of predictions.csv); lengths in pixels."""

    architecture: str
    weights: str
    setting: Setting
    pooling: Pooled
    layer: str
    target: Target
    split: int
    estimator: Estimator
    width: int
    predicted: float


class NoiseEffect(NamedTuple):
    """How the features of one layer depend on the width (one row of effects.csv).

    Attributes:
        architecture: Name of the family.
        weights: Name of the weights.
        condition: trained or random_weights.
        pooling: gap or corrected_gap.
        layer: Its name.
        smallest: Width of the smallest images used, in pixels.
        largest: Width of the largest images used, in pixels.
        between_widths: Share of the variance that lies between the means of the widths (omega squared, summed over features);
            0 in expectation where all widths have the same mean, whatever their variances.
        slope: Of the logarithm of the variance within a width against the logarithm of the number of positions averaged; None
            for gap.
    """

    architecture: str
    weights: str
    condition: Condition
    pooling: Pooled
    layer: str
    smallest: int
    largest: int
    between_widths: float
    slope: float | None


class Window(NamedTuple):
    """Images from `smallest` to `largest` pixels, and what is probed on them."""

    smallest: int
    largest: int
    settings: tuple[Setting, ...]
    layers: dict[Pooled, tuple[str, ...]]


class Design(NamedTuple):
    """How images become training and held-out parts.

    Attributes:
        train: Training images of the published setting.
        test: Held-out images of the published setting.
        splits: Draws of the published setting, and splits of the others.
        seed: Of the draws and splits.
        ranges: Further ranges of widths for the published setting, smallest and largest in pixels.
        scaling: See `ridge.standardisation`.
        alphas: Penalties of ridge.
    """

    train: int = 5
    test: int = 20
    splits: int = 25
    seed: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    scaling: Scaling = "common"
    alphas: Float[np.ndarray, " A"] = evaluate.ALPHAS


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
    if len(widths) < train + test or min(train, test) < 2 or len({*widths.tolist()}) < 2:
        raise ValueError(
            f"{train} training and {test} held-out images cannot be drawn from {len(widths)} images of "
            f"{len({*widths.tolist()})} widths; both parts need at least 2 images and there must be 2 widths."
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
    layers = tuple(clean)

    def window(smallest: int, largest: int, gap: tuple[str, ...], settings: tuple[Setting, ...]) -> Window:
        count = sum(smallest <= size <= largest for size in sizes)
        enough: dict[Setting, bool] = {
            "published": count * per_size >= design.train + design.test,
            "larger": True,
            "unseen_sizes": count >= FEWEST_UNSEEN,
        }
        corrected = tuple(
            layer for layer in gap if clean[layer].defined and min(clean[layer].positions) <= smallest
        )
        kept: tuple[Setting, ...] = tuple(setting for setting in settings if enough[setting])
        return Window(smallest, largest, kept, {"gap": gap, "corrected_gap": corrected})

    first, last = min(sizes), max(sizes)
    starts = {layer: min(one.positions) for layer, one in clean.items() if one.defined}
    found = [window(first, last, layers, SETTINGS)]
    for start in sorted({start for start in starts.values() if start > first}):
        found.append(window(start, last, tuple(x for x in layers if starts.get(x) == start), SETTINGS))
    for limits in design.ranges:
        there = {layer for one in found if one[:2] == limits for layer in one.layers["gap"]}
        if more := tuple(layer for layer in layers if layer not in there):
            found.append(window(*limits, more, ("published",)))
    return found


def main_window(found: Sequence[Window], layer: str) -> Window:
    """The window over which a layer is probed with both poolings; that of all widths where corrected GAP is not defined."""
    both = (one for one in found if "larger" in one.settings and layer in one.layers["corrected_gap"])
    return next(both, found[0])


def score_noise(
    features: NoiseFeatures,
    found: Sequence[Window],
    design: Design,
    *,
    architecture: str,
    weights: str,
    condition: Condition,
) -> list[NoiseScore]:
    """Held-out R2 of both estimators for every window, setting, pooling, layer and target.

    Source: Graziani et al. 2021, section 4.2 and Figure 7 (5 training and 20 test images, the layer mixed0).
    """
    scores: list[NoiseScore] = []
    for window in found:
        widths, values = select(features, window)
        for setting, first, solved in _solve(window.settings, widths, values, design):
            for row, (pooling, layer) in enumerate(values):
                for split, column in np.ndindex(solved.ols.shape[1:]):
                    at = (row, split, column)
                    both: tuple[tuple[Estimator, np.ndarray], ...]
                    both = (("ols", solved.ols), ("ridge", solved.ridge))
                    for estimator, r2 in both:
                        scores.append(
                            NoiseScore(
                                architecture,
                                weights,
                                condition,
                                setting,
                                pooling,
                                layer,
                                window.smallest,
                                window.largest,
                                TARGETS[column],
                                first + split,
                                estimator,
                                float(solved.alpha[at]) if estimator == "ridge" else None,
                                float(r2[at]),
                            )
                        )
    return scores


def select(
    features: NoiseFeatures, window: Window
) -> tuple[Int[np.ndarray, " N"], dict[tuple[Readout, str], Float[np.ndarray, "N _"]]]:
    """Widths and features of the images of a window; the features by readout and layer."""
    inside = (features.widths >= window.smallest) & (features.widths <= window.largest)
    values: dict[tuple[Readout, str], Float[np.ndarray, "N _"]] = {}
    for pooling in POOLED:
        for layer in window.layers[pooling]:
            rows = features.rows(pooling, layer, window.smallest, window.largest)
            values[pooling, layer] = rows
            if pooling == "corrected_gap":
                values["corrected_gap_distance", layer] = log_distance(rows)
    return features.widths[inside], values


def log_distance(features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N 1"]:
    """Log |phi - mean phi|^2 of each row: one number that grows with the variance, whatever the mean.

    The mean of K positions of a stationary field has a variance of about 1 / K. So the distance tells K, and with it the width,
    where no linear function of phi can. Features that are all equal have distance 0; it is set to the smallest float.
    """
    squared = np.square(features - features.mean(0)).sum(1, keepdims=True)
    return np.log(np.maximum(squared, np.finfo(np.float64).tiny))


def predict_noise(
    features: NoiseFeatures,
    window: Window,
    design: Design,
    layer: str,
    *,
    architecture: str,
    weights: str,
) -> list[NoisePrediction]:
    """Predicted widths of the held-out images of the published setting by least squares, and of the larger by ridge.

    For the target inverse_width the inverse of the prediction is given, where it is positive; rows without one are left out.
    """
    inside = (features.widths >= window.smallest) & (features.widths <= window.largest)
    widths = features.widths[inside]
    target, predictions = targets_of(widths), []
    plans: list[tuple[Setting, Estimator, list[tuple[np.ndarray, np.ndarray]]]] = []
    if "published" in window.settings:
        drawn = draws(widths, design.train, design.test, design.splits, design.seed)
        plans.append(("published", "ols", [(row[: design.train], row[design.train :]) for row in drawn]))
    masks = random_splits(len(widths), design.splits, design.seed)
    plans.append(("larger", "ridge", [(np.flatnonzero(mask), np.flatnonzero(~mask)) for mask in masks]))
    for pooling in POOLED:
        if layer not in window.layers[pooling]:
            continue
        rows = features.rows(pooling, layer, window.smallest, window.largest)
        for setting, estimator, parts in plans:
            for split, (train, test) in enumerate(parts):
                guesses = _predicted(rows, target, train, test, estimator, design)
                for width, guess in zip(widths[test].tolist(), guesses.tolist(), strict=True):
                    one = NoisePrediction(
                        architecture,
                        weights,
                        setting,
                        pooling,
                        layer,
                        "width",
                        split,
                        estimator,
                        width,
                        guess[0],
                    )
                    predictions.append(one)
                    if guess[1] > 0:
                        predictions.append(one._replace(target="inverse_width", predicted=1000 / guess[1]))
    return predictions


def measure_effects(
    features: NoiseFeatures,
    clean: Mapping[str, Clean],
    found: Sequence[Window],
    *,
    architecture: str,
    weights: str,
    condition: Condition,
) -> list[NoiseEffect]:
    """How the mean and the variance of the features of each layer depend on the width, for every window with all settings."""
    effects: list[NoiseEffect] = []
    for window in found:
        if "larger" not in window.settings:
            continue
        inside = (features.widths >= window.smallest) & (features.widths <= window.largest)
        widths = features.widths[inside]
        for pooling in POOLED:
            for layer in window.layers[pooling]:
                rows = features.rows(pooling, layer, window.smallest, window.largest)
                share, within = between_widths(rows, widths)
                slope = None
                if pooling == "corrected_gap" and all(value > 0 for value in within.values()):
                    positions = [clean[layer].positions[size] for size in within]
                    slope = float(np.polyfit(np.log(positions), np.log([*within.values()]), 1)[0])
                where = (layer, window.smallest, window.largest)
                effects.append(NoiseEffect(architecture, weights, condition, pooling, *where, share, slope))
    return effects


def between_widths(
    features: Float[np.ndarray, "N D"], widths: Int[np.ndarray, " N"]
) -> tuple[float, dict[int, float]]:
    """Omega squared of the width, and the variance (summed over features) within each width.

    With g widths of n images each, sums of squares B between and W within: (B - (g - 1) W / (N - g)) / (B + W + W / (N - g)). As
    all widths have equally many images, its numerator is 0 in expectation if they have one mean, even with unequal variances.

    Args:
        features: One row an image.
        widths: Of the images, in pixels; each occurs equally often and at least twice.
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


def _solve(
    settings: Sequence[Setting],
    widths: np.ndarray,
    values: Mapping[tuple[Readout, str], np.ndarray],
    design: Design,
) -> list[tuple[Setting, int, evaluate.ProbeScores]]:
    """Scores of each setting, with the index of their first split."""
    target = targets_of(widths)

    def solve(rows: np.ndarray, masks: Bool[np.ndarray, "S N"]) -> evaluate.ProbeScores:
        chosen = {"-".join(key): one[rows] for key, one in values.items()}
        return evaluate.score_layers(chosen, target[rows], masks, design.alphas, design.scaling)

    solved: list[tuple[Setting, int, evaluate.ProbeScores]] = []
    if "published" in settings:
        mask = np.arange(design.train + design.test)[None] < design.train
        drawn = draws(widths, design.train, design.test, design.splits, design.seed)
        for split, rows in enumerate(drawn):
            solved.append(("published", split, solve(rows, mask)))
    masks: dict[Setting, Bool[np.ndarray, "S N"]] = {
        setting: random_splits(len(widths), design.splits, design.seed)
        if setting == "larger"
        else grouped_splits(widths, design.splits, design.seed)
        for setting in settings
        if setting != "published"
    }
    if masks:  # one compilation for both
        together = solve(np.arange(len(widths)), np.concatenate([*masks.values()]))
        for number, setting in enumerate(masks):
            part = slice(number * design.splits, (number + 1) * design.splits)
            solved.append((setting, 0, evaluate.ProbeScores(*(scores[:, part] for scores in together))))
    return solved


def _predicted(
    features: np.ndarray,
    targets: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    estimator: Estimator,
    design: Design,
) -> np.ndarray:
    rows = np.concatenate([train, test])
    part = (np.arange(len(rows)) < len(train))[None]
    alphas = None if estimator == "ols" else design.alphas
    fit = evaluate.fit(features[rows], targets[rows], part, alphas, design.scaling)
    return features[test].astype(np.float64) @ fit.weights[0] + fit.intercept[0]
