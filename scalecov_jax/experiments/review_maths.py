"""What `review` measures at every layer: rows of (layer, quantity, value, low, high); docs/review.md defines the quantities."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float

from scalecov_jax.checkpoints import Network
from scalecov_jax.compilation import jit
from scalecov_jax.evidence import Evidence, Known, weigh
from scalecov_jax.experiments.probe_memory import pixel_features
from scalecov_jax.explanation.capture import capture
from scalecov_jax.explanation.localisation import average_precision, relevance_mass
from scalecov_jax.imaging.batching import batches
from scalecov_jax.imaging.image_set import Example, ImageSet
from scalecov_jax.models.preprocessing import preprocess
from scalecov_jax.probes import evaluate, review, statistics
from scalecov_jax.probes.splits import grouped_k_folds

SIDE = 56  # pixels of the maps on which objects are looked for
RATIOS = (0.05, 0.1, 0.2, 0.4)  # of objects that grow
FOLDS = 10  # of the shares of stacked layers
VECTORS = ("filter", "pattern")


def object_on_grid(example: Example, side: int = SIDE) -> Bool[np.ndarray, "side side"]:
    """Whether the middle of each cell of a square grid over an image lies in the mask, else the box; at least one cell does.

    Raises:
        ValueError: The image has neither.
    """
    height, width = example.image.shape[:2]
    rows, columns = ((np.arange(side) + 0.5) * extent / side for extent in (height, width))
    if example.mask is not None and np.any(example.mask):
        mask = np.asarray(example.mask) > 0
        inside, middle = mask[rows.astype(int)][:, columns.astype(int)], np.argwhere(mask).mean(0)
    elif example.mask is None and example.box is not None:
        x_min, y_min, x_max, y_max = example.box
        across, down = ((x_min - 1 <= columns) & (columns <= x_max)), ((y_min - 1 <= rows) & (rows <= y_max))
        inside, middle = down[:, None] & across[None], np.array([y_min - 1 + y_max, x_min - 1 + x_max]) / 2
    else:
        raise ValueError(
            f"{example.name}: alignment needs a box or a mask that is not empty, and this image has none."
        )
    if not inside.any():
        row, column = np.minimum(middle / (height, width) * side, side - 1).astype(int)
        inside[row, column] = True
    return inside


def pixels_of(
    source: ImageSet, phi: Mapping[str, np.ndarray], seed: int
) -> dict[str, Float[np.ndarray, "N _"]]:
    """Random projections of the pixels to the width of each layer; those of a narrow layer are the first of a wide one."""
    widths = {layer: values.shape[1] for layer, values in phi.items()}
    projected = pixel_features(source, np.arange(len(source)), seed, max(widths.values()))
    return {layer: projected[:, :width] for layer, width in widths.items()}


Row = tuple[str, str, float, float, float]  # layer, quantity, value, low, high


class Grown(NamedTuple):
    """Objects at every ratio, all ratios of the first object first."""

    features: Mapping[str, np.ndarray]
    measure: np.ndarray


class Sample(NamedTuple):
    """The images, their features, and the probes of their halves."""

    groups: Sequence[str]
    measure: Float[np.ndarray, " N"]
    features: Mapping[str, Float[np.ndarray, "N _"]]
    fits: Mapping[str, review.Halves]

    @property
    def chosen(self) -> np.ndarray:
        """The part whose probe has not seen an image: the rest of the first halving for the images of its part."""
        parts = next(iter(self.fits.values())).parts
        return np.where(parts[0], len(parts) // 2, 0)

    def row(
        self, layer: str, quantity: str, top: np.ndarray, bottom: np.ndarray | None = None, root: bool = False
    ) -> Row:
        """A ratio over the images, or its root, with its jackknife interval."""
        value, without = review.ratio(top, np.ones_like(top) if bottom is None else bottom, self.groups)
        value, without = (np.sqrt(value), np.sqrt(without)) if root else (value, without)
        return _row(layer, quantity, float(value), statistics.deviations(without))


def _row(layer: str, quantity: str, value: float, deviation: np.ndarray, most: float = np.inf) -> Row:
    found = statistics.jackknife(float(value), deviation, most)
    return layer, quantity, found.value, found.interval.low, found.interval.high


def _of_known(quantity: str, layers: Sequence[str], known: Known) -> Iterator[Row]:
    for layer, value, deviation in zip(layers, known.value[:, 0], known.deviation[:, 0], strict=True):
        yield _row(layer, quantity, value, deviation, 1.0)


def readings(
    sample: Sample,
    known: Evidence,
    splits: np.ndarray,
    pixels: Mapping[str, np.ndarray],
    orders: int,
    seed: int,
) -> Iterator[Row]:
    """R2 and its controls, and both in nats."""
    rows = [*_of_known("r2", known.layers, known.r2)]
    yield from rows
    yield from _of_known("untrained_r2", known.layers, known.controls["random_weights"])
    y = sample.measure
    yield from _of_known(
        "random_projection_r2",
        known.layers,
        weigh(pixels, y[:, None], ["pixels"], splits, groups=sample.groups).r2,
    )
    for layer, _, *values in rows:
        yield layer, "v_information", *review.v_information(np.array(values)).tolist()
    for layer, values in sample.features.items():
        gains = review.code_gains(values, y, orders=orders, seed=seed, groups=sample.groups)
        yield sample.row(layer, "code_gain", *gains)


def robustness(sample: Sample, changed: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Row]:
    """Change of the score under changes of the image that leave the concept as it is."""
    for layer, values in sample.features.items():
        fit, at = sample.fits[layer], sample.chosen
        before = np.einsum("nd,nd->n", values, fit.weights[at]) + fit.intercept[at]
        spread = np.square(before - before.mean())
        for kind, features in changed.items():
            moved = np.einsum("nd,nd->n", features[layer] - values, fit.weights[at])
            yield sample.row(layer, kind, np.square(moved), spread, root=True)


def steering(sample: Sample, grown: Grown | None) -> Iterator[Row]:
    """Gains of steps along the vectors, and what is read of objects that truly grow."""
    for layer, fit in sample.fits.items():
        for vector, gains in zip(VECTORS, fit.gains, strict=True):
            yield layer, f"gain_{vector}", float(gains.mean()), *np.percentile(gains, (2.5, 97.5)).tolist()
        if grown is None:
            continue
        objects = grown.features[layer].reshape(-1, len(RATIOS), grown.features[layer].shape[1])
        steps = np.diff(grown.measure.reshape(-1, len(RATIOS)), axis=1)
        change = np.diff(objects.astype(np.float64), axis=1)
        weights, pattern, scale = fit.weights[0], fit.pattern[0], sample.features[layer].std(0)
        read = (change @ weights * steps).sum(1)
        value, without = review.ratio(read, np.square(steps).sum(1))
        yield _row(layer, "true_gain", float(value), statistics.deviations(without))
        scale = np.where(scale > 1e-6 * scale.max(), scale, np.inf)
        mean = (change * steps[..., None]).sum((0, 1)) / scale  # slope of each feature by the measure
        for vector, values in (
            ("filter", weights * np.where(np.isinf(scale), 0, scale)),
            ("pattern", pattern / scale),
        ):
            yield layer, f"cosine_{vector}", review.cosine(values, mean), np.nan, np.nan


def layers(sample: Sample, known: Evidence, seed: int) -> Iterator[Row]:
    """What a layer adds to all others, and to those before it."""
    assert known.cases is not None
    y = sample.measure
    errors = y[None] - known.cases.prediction[..., 0]
    names = len({*sample.groups})
    stacks = review.stacks(errors, grouped_k_folds(sample.groups, min(FOLDS, names), seed))
    spread = np.square(y - y.mean())

    def r2(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, without = review.ratio(np.square(errors), np.broadcast_to(spread, errors.shape), sample.groups)
        return 1 - value, statistics.deviations(1 - without)

    (together, moved), (own, own_moved) = r2(stacks.together[None]), r2(errors)
    (rest, rest_moved), (until, until_moved) = r2(stacks.without), r2(stacks.until)
    for at, layer in enumerate(known.layers):
        yield _row(layer, "stacked_r2", together[0], moved[0], 1.0)
        unique, change = together[0] - rest[at], moved[0] - rest_moved[at]
        yield _row(layer, "unique_r2", unique, change)
        yield _row(layer, "shared_r2", own[at] - unique, own_moved[at] - change)
        before, before_moved = (until[at - 1], until_moved[at - 1]) if at else (0.0, 0.0)
        yield _row(layer, "added_r2", until[at] - before, until_moved[at] - before_moved)


def alignment(
    sample: Sample, network: Network, source: ImageSet, objects: Bool[np.ndarray, "N S S"], batch_size: int
) -> Iterator[Row]:
    """How well the maps of the vectors fall on the objects; layers without a map are left out."""
    side = objects.shape[1]
    means = {layer: values.mean(0) for layer, values in sample.features.items()}
    both = [0, int(sample.chosen.max())]  # the first half and the rest
    vectors = {
        layer: np.stack([*fit.weights[both], *fit.pattern[both]], 1).astype(np.float32)
        for layer, fit in sample.fits.items()
    }

    @jit
    def forward(variables: Any, pixels: Array, means: Any, vectors: Any) -> dict[str, Array]:
        inputs = preprocess(pixels, network.card.preprocessing)
        found = capture(network.module, variables, inputs, tuple(means))
        # Of a vector minus its mean the norm does not matter, since each map is ranked, or is a share of itself.
        maps = {
            layer: (one - means[layer][None, None, None]) @ vectors[layer]
            for layer, one in found.items()
            if one.ndim == 4
        }
        return {
            layer: jax.image.resize(one, (len(one), side, side, 4), "linear") for layer, one in maps.items()
        }

    others = objects[other_images(sample.groups)]
    values: dict[tuple[str, str], list[float]] = {}
    for batch in batches(source, network.card.input_size, batch_size, []):
        maps = jax.device_get(forward(network.variables, batch.images, means, vectors))
        for layer, of_batch in maps.items():
            for index, four in zip(batch.indices[batch.valid], of_batch[batch.valid], strict=True):
                half = int(sample.chosen[index] > 0)
                for vector, scores in zip(VECTORS, (four[..., half], four[..., 2 + half]), strict=True):
                    values.setdefault((layer, f"ap_{vector}"), []).append(
                        average_precision(scores, objects[index])
                    )
                    values.setdefault((layer, f"mass_{vector}"), []).append(
                        relevance_mass(scores, objects[index])
                    )
                    if vector == "filter":
                        values.setdefault((layer, "ap_other"), []).append(
                            average_precision(scores, others[index])
                        )
    for (layer, quantity), of_images in values.items():
        yield sample.row(layer, quantity, np.array(of_images))
        if quantity == "ap_filter":
            yield sample.row(layer, "ap_chance", objects.mean((1, 2)))


def other_images(groups: Sequence[str]) -> np.ndarray:
    """For each image one of another group: half of the groups further on in the order of their names."""
    names, of = np.unique(np.asarray(groups), return_inverse=True)
    first = np.unique(of, return_index=True)[1]
    return first[(of + len(names) // 2) % len(names)]


def entanglement(
    phi: Mapping[str, np.ndarray],
    measures: Float[np.ndarray, "N M"],
    concepts: Sequence[str],
    splits: np.ndarray,
    groups: Sequence[str],
    known: Evidence,
) -> pd.DataFrame:
    """Correlations of concepts and of their readings, cosines of filters, and R2 beyond each other concept."""
    assert known.cases is not None
    assert known.dual is not None
    correlation = np.corrcoef(measures.T)
    readings = [np.corrcoef(one.T) for one in known.cases.prediction]
    filters = {}
    for (layer, values), dual in zip(phi.items(), known.dual, strict=True):
        weights, _, scale = evaluate.weights_of(values, dual[:1], measures)
        filters[layer] = weights[0].T * scale
    rows = []
    for other, beside in enumerate(concepts):
        rest = [at for at in range(len(concepts)) if at != other]
        if not rest:
            continue
        names = [concepts[at] for at in rest]
        found = weigh(phi, measures[:, rest], names, splits, groups=groups, nuisances=measures[:, [other]])
        assert found.partial is not None
        for at, layer in enumerate(found.layers):
            for column, concept in enumerate(rest):
                partial_r2 = statistics.jackknife(
                    float(found.partial.value[at, column]), found.partial.deviation[at, column], 1.0
                )
                cosine = review.cosine(filters[layer][concept], filters[layer][other])
                rows.append(
                    (
                        layer, concepts[concept], beside, correlation[concept, other], readings[at][concept, other], cosine,
                        known.r2.value[at, concept], partial_r2.value, *partial_r2.interval,
                    )
                )  # fmt: skip
    columns = ["layer", "concept", "beside", "correlation", "reading_correlation", "cosine", "r2"]
    return pd.DataFrame(rows, columns=[*columns, "partial_r2", "low", "high"])
