"""Whether features are kept in memory or streamed into sums, and what either takes."""

import math
import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Literal, NamedTuple, get_args

from scalecov_jax.probes import evaluate
from scalecov_jax.probes.splits import HELD_OUT
from scalecov_jax.probes.sums import ROWS, bytes_of

Asked = Literal["auto", "memory", "streamed"]
FOLDS = ("k_fold", "grouped_k_fold", "leave_one_group_out")
LARGE = 5000  # images, from which one decomposition of images x images a split takes minutes


class Route(NamedTuple):
    """How to probe."""

    name: Literal["memory", "streamed"]
    reason: str  # why, as the end of a sentence
    memory_bytes: int  # what the way through memory takes at its largest, the network aside
    streamed_bytes: int  # what streaming takes, the network aside


def choose_route(
    asked: str,
    *,
    images: int,
    widths: Sequence[int],
    splitting: str,
    splits: int,
    measures: int,
    permutations: int,
    needs_features: Sequence[str] = (),
    limit: int | None = None,
) -> Route:
    """Stream where there are many images and the splits allow it.

    `splitting` is a kind of `splits.make_splits`, of `splits` splits or folds (of leave_one_group_out the number of groups);
    `needs_features` is what else was asked for that sums cannot give, such as a probe; `limit` the bytes that may be used, half
    of the machine's memory when absent.

    Raises:
        ValueError: Streaming was asked for and is impossible, or there is no such route.
    """
    if asked not in get_args(Asked):
        near = get_close_matches(asked, get_args(Asked), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"No route is called {asked!r}; {hint}There are {', '.join(get_args(Asked))}.")
    limit = limit or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    held = images // splits if splitting in FOLDS else math.ceil(HELD_OUT * images)
    memory = 16 * images * sum(widths)  # two conditions in float32, one of them in float64 while it is solved
    memory += memory_bytes(len(widths), images, splits, images, measures, held)
    streamed = streamed_bytes(images, widths, splits, measures, permutations)
    obstacle = ""
    if splitting not in FOLDS:
        obstacle = f"splits of kind {splitting!r} hold images out several times (config.splitting can be {', '.join(FOLDS)})"
    elif splits < 3:
        obstacle = f"{splits} folds leave none to choose a penalty on (config.splits must be at least 3)"
    elif needs_features:
        obstacle = f"{', '.join(needs_features)} need the features of all images"
    if asked == "streamed":
        if obstacle:
            raise ValueError(f"config.route is 'streamed', but {obstacle}.")
        return Route("streamed", "config.route says so", memory, streamed)
    if asked == "memory":
        return Route("memory", "config.route says so", memory, streamed)
    if images <= LARGE and memory <= limit:
        return Route("memory", f"{images:,} images and their features fit", memory, streamed)
    if obstacle:
        return Route("memory", obstacle, memory, streamed)
    reason = (
        f"{images:,} images in memory would take {describe(memory)} and this run may use {describe(limit)}"
        if memory > limit
        else f"{images:,} are more than the {LARGE:,} images from which streaming is faster"
    )
    return Route("streamed", reason, memory, streamed)


def streamed_bytes(images: int, widths: Sequence[int], folds: int, measures: int, permutations: int) -> int:
    """Bytes that streaming takes.

    Sums of all folds, one fold on the device with room for its products, and the solution of the widest layer; the order of
    the images in every permutation. Only permutations grow with the number of images; `sums.ROWS` of them are added at a time.
    """
    targets = measures * (1 + folds + permutations)  # as they are, shuffled for each fold, permuted
    sums = (folds + 3) * bytes_of(widths, targets)
    widest = max(widths)
    solved = 8 * (8 * widest**2 + 3 * 15 * widest * targets)
    order = images * (4 * permutations + 8 * 2 * measures)
    return sums + solved + order + 12 * ROWS * (sum(widths) + targets)


def describe(count: int) -> str:
    """Bytes in the unit that a person would take."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def memory_bytes(layers: int, images: int, splits: int, groups: int, measures: int, held_out: int) -> int:
    """Bytes that `evaluate.infer` takes at its largest on a machine with as many workers as layers run side by side.

    For each worker the Gram matrix, its eigenvectors and the operator with room for temporaries (8 N^2), the solves of one split
    (4 T N + 2 T G); and the results of all layers.
    """
    worker = 8 * images**2 + 4 * held_out * images + 2 * held_out * groups + splits * held_out * measures
    results = layers * measures * (splits * (3 + groups + images) + 3 * images)
    return 8 * ((evaluate.layers_at_once() or layers) * worker + results)
