"""From the classified images to curves over the size, with intervals over images, and the plateau of each curve."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest

from scalecov_jax.images.example import FILTERS, Filter
from scalecov_jax.paper.resizing import FILLED, Classified
from scalecov_jax.probes.statistics import draw_groups, percentile_interval

ALL = "all"
ORDER = (
    ALL,
    "images",
    "smaller images",
    "larger images",
    "small objects",
    "medium objects",
    "large objects",
    FILLED,
)
RESAMPLES = 9999
REFERENCE: Filter = "lanczos"  # as published
STRIDE = 32  # pixels between the last maps' positions, in both architectures
Measure = Literal["probability", "top1", "top5"]
MEASURES: dict[Measure, Callable[[Classified], float]] = {
    "probability": lambda row: row.probability,
    "top1": lambda row: float(row.rank <= 1),
    "top5": lambda row: float(row.rank <= 5),
}


class Point(NamedTuple):
    """A group of images at one size (a row of curves.csv); low and high bound 95 % intervals over images.

    Attributes:
        weights: Name of the weights.
        group: Of images; `all` for all of them.
        filter: Of resizing.
        size: Height and width in pixels.
        images: How many.
        probability: Mean softmax output of the true class, which the paper calls top-1 accuracy; percentile bootstrap.
        top1: Share of images whose true class comes first; Wilson.
        top5: Share of images whose true class is among the first five; Wilson.
    """

    weights: str
    group: str
    filter: Filter
    size: int
    images: int
    probability: float
    probability_low: float
    probability_high: float
    top1: float
    top1_low: float
    top1_high: float
    top5: float
    top5_low: float
    top5_high: float


class Plateau(NamedTuple):
    """The sizes around the best that are not shown to be worse (a row of plateaus.csv).

    Attributes:
        weights: Name of the weights.
        group: Of images.
        filter: Of resizing.
        measure: probability, top1 or top5; its mean over images is compared.
        best: The size of the largest mean, in pixels; the smallest of several.
        value: The mean there.
        first: Smallest size of the plateau, in pixels.
        last: Largest size of the plateau, in pixels.
        smallest: Of the sizes counted; a plateau that begins there may go on below.
        largest: Of the sizes counted; a plateau that ends there may go on above.
    """

    weights: str
    group: str
    filter: Filter
    measure: Measure
    best: int
    value: float
    first: int
    last: int
    smallest: int
    largest: int


class Difference(NamedTuple):
    """Mean probability with a filter minus that with Lanczos on the same images (a row of filters.csv), 95 % interval."""

    weights: str
    filter: Filter
    size: int
    difference: float
    low: float
    high: float


class GridLoss(NamedTuple):
    """How far a size off the training's grid lies below its neighbours on it (a row of grid.csv), 95 % interval.

    A size is on the grid where it differs from the training's by a multiple of the network's stride: there every strided layer
    meets the borders of its maps as in training.

    Attributes:
        weights: Name of the weights.
        size: Off the grid, in pixels.
        loss: Mean probability on the straight line between the nearest sizes on the grid, minus that at this size.
    """

    weights: str
    size: int
    loss: float
    low: float
    high: float


def resampled_means(
    values: Float[np.ndarray, "N K"], seed: int, resamples: int = RESAMPLES
) -> Float[np.ndarray, "B K"]:
    """Means of K columns over N images drawn with replacement, the same draws for every column, so that columns are paired."""
    return _draws(len(values), seed, resamples) @ values / len(values)


@functools.lru_cache(maxsize=1)  # drawing takes longer than all else; curves of one group follow each other
def _draws(count: int, seed: int, resamples: int) -> Float[np.ndarray, "B N"]:
    """How often each image is drawn."""
    return draw_groups(count, resamples, seed).astype(float)


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, after Wilson 1927."""
    interval = binomtest(successes, count).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def points(rows: Iterable[Classified], seed: int = 0) -> list[Point]:
    """Means and intervals of each weights, group, filter and size.

    A single image tells nothing of the spread: its interval of the mean probability is 0 to 1.
    """
    found = []
    for weights, group, name, sizes, images in _curves(rows):
        values = {measure: _values(images, measure) for measure in MEASURES}
        means = resampled_means(values["probability"], seed)
        count = len(images)
        for column, size in enumerate(sizes):
            probability = values["probability"][:, column]
            interval = percentile_interval(means[:, column]) if count > 1 else (0.0, 1.0)
            shares = []
            for measure in ("top1", "top5"):
                hits = int(values[measure][:, column].sum())
                shares += [hits / count, *wilson_interval(hits, count)]
            found.append(
                Point(weights, group, name, size, count, float(probability.mean()), *interval, *shares)
            )
    return found


def counted(sizes: Sequence[int], input_size: int) -> list[int]:
    """The sizes that a plateau is sought in: those on the training's grid where there are at least three, else all."""
    on_grid = [size for size in sizes if (size - input_size) % STRIDE == 0]
    return on_grid if len(on_grid) >= 3 else list(sizes)


def plateaus(rows: Iterable[Classified], input_sizes: Mapping[str, int], seed: int = 0) -> list[Plateau]:
    """The plateau of each curve: the longest run of sizes around the best none of which is shown to be worse.

    A size is shown to be worse where the paired bootstrap interval of (mean at the best size - mean there) lies above 0. The
    best size is chosen on the same images, so that the plateau is rather too short than too long; it grows as images get fewer.

    Args:
        rows: One an image, filter and size.
        input_sizes: Of the images that each network was trained on, in pixels; see `counted`.
        seed: Of the bootstrap.
    """
    found = []
    for weights, group, name, all_sizes, images in _curves(rows):
        sizes = counted(all_sizes, input_sizes[weights])
        columns = [all_sizes.index(size) for size in sizes]
        for measure in MEASURES:
            values = _values(images, measure)[:, columns]
            mean = values.mean(axis=0)
            best = int(mean.argmax())
            means = resampled_means(values[:, best, None] - values, seed)
            as_good = np.percentile(means, 2.5, axis=0) <= 1e-9
            worse = np.flatnonzero(~as_good)
            first = max(worse[worse < best], default=-1) + 1
            last = min(worse[worse > best], default=len(sizes)) - 1
            curve = (weights, group, name, measure, sizes[best], float(mean[best]))
            found.append(Plateau(*curve, sizes[first], sizes[last], sizes[0], sizes[-1]))
    return found


def filter_differences(rows: Iterable[Classified], seed: int = 0) -> list[Difference]:
    """Each filter against Lanczos at each size, over all images; nothing where Lanczos was not used."""
    curves: dict[tuple[str, Filter], tuple[list[int], Float[np.ndarray, "N K"]]] = {
        (weights, name): (sizes, _values(images, "probability"))
        for weights, group, name, sizes, images in _curves(rows)
        if group == ALL
    }
    found = []
    for (weights, name), (sizes, values) in curves.items():
        if name == REFERENCE or (weights, REFERENCE) not in curves:
            continue
        difference = values - curves[weights, REFERENCE][1]
        means = resampled_means(difference, seed)
        for column, size in enumerate(sizes):
            interval = percentile_interval(means[:, column])
            found.append(Difference(weights, name, size, float(difference[:, column].mean()), *interval))
    return found


def grid_losses(rows: Sequence[Classified], input_sizes: Mapping[str, int], seed: int = 0) -> list[GridLoss]:
    """The loss of every size between two on the grid, over all images, with Lanczos or else the first filter.

    Args:
        rows: One an image, filter and size.
        input_sizes: Of the images that each network was trained on, in pixels.
        seed: Of the bootstrap.
    """
    used = {row.filter for row in rows}
    name = REFERENCE if REFERENCE in used else next(one for one in FILTERS if one in used)
    found = []
    for weights, group, _, sizes, images in _curves(row for row in rows if row.filter == name):
        on_grid = [i for i, size in enumerate(sizes) if (size - input_sizes[weights]) % STRIDE == 0]
        if group != ALL or len(on_grid) < 2:
            continue
        values = _values(images, "probability")
        for first, last in itertools.pairwise(on_grid):
            for column in range(first + 1, last):
                share = (sizes[column] - sizes[first]) / (sizes[last] - sizes[first])
                loss = (1 - share) * values[:, first] + share * values[:, last] - values[:, column]
                interval = percentile_interval(resampled_means(loss[:, None], seed)[:, 0])
                found.append(GridLoss(weights, sizes[column], float(loss.mean()), *interval))
    return found


def kind_of(group: str) -> str:
    """The group's name without its bounds; one of `ORDER`."""
    return group.partition(" (")[0]


def _curves(
    rows: Iterable[Classified],
) -> Iterator[tuple[str, str, Filter, list[int], list[list[Classified]]]]:
    """Each weights, group and filter, in order: its sizes, and of each image its row at every size.

    A group that holds all images is left out: it is there as `all`.

    Raises:
        ValueError: An image lacks a size, or has it twice.
    """
    tables: dict[tuple[str, str, Filter], dict[str, list[Classified]]] = {}
    for row in rows:
        for group in (ALL, row.group):
            table = tables.setdefault((row.weights, group, row.filter), {})
            table.setdefault(row.image, []).append(row)
    order = sorted(tables, key=lambda key: (key[0], ORDER.index(kind_of(key[1])), FILTERS.index(key[2])))
    for weights, group, name in order:
        images = [sorted(one, key=lambda row: row.size) for one in tables[weights, group, name].values()]
        sizes = [row.size for row in images[0]]
        uneven = [one[0].image for one in images if [row.size for row in one] != sizes]
        if uneven or len(set(sizes)) < len(sizes):
            raise ValueError(
                f"{weights}, {name}: expected every image once at every size; others have {', '.join(uneven[:10]) or 'all'}."
            )
        if group == ALL or len(images) < len(tables[weights, ALL, name]):
            yield weights, group, name, sizes, images


def _values(images: Sequence[Sequence[Classified]], measure: Measure) -> Float[np.ndarray, "N K"]:
    return np.array([[MEASURES[measure](row) for row in one] for one in images], float)
