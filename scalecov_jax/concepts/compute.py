"""Concept measures of a whole source: in parallel, each image decoded once, and nothing computed twice."""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scalecov_jax.cache import MeasureCache, content_hash
from scalecov_jax.concepts.measure import ConceptMeasure
from scalecov_jax.images.example import Example, ImageError, Skipped

_WRITE_EVERY = 5.0  # seconds


class Measured(NamedTuple):
    """Values of M measures on N images, in the order of the source.

    Attributes:
        values: Finite, float64.
        names: Of the images.
        groups: Of the images: what must not be split between training and test.
        indices: Which examples of the source the rows come from.
        skipped: The images that could not be decoded.
    """

    values: Float[np.ndarray, "N M"]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    indices: Int[np.ndarray, " N"]
    skipped: tuple[Skipped, ...]


def _measure(
    measures: Sequence[ConceptMeasure], read: Callable[[int], Example], cached: MeasureCache, index: int
) -> _Outcome | Skipped:
    try:
        example = read(index)
    except ImageError as error:
        return Skipped(error.name, "unreadable image", error.problem)
    content = content_hash(example) if cached.path and any(one.reads_pixels for one in measures) else ""
    values: list[float | Exception] = []
    for one in measures:
        value = cached.get(example.name, content, one.name) if content and one.reads_pixels else None
        if value is None:
            # Whatever a measure raises is told in the end, when the other images are done.
            try:
                value = float(one.measure(example))
                if not math.isfinite(value):
                    raise ValueError(f"{example.name}: the value is {value}.")
            except Exception as error:
                values.append(error)
                continue
            if content and one.reads_pixels:
                cached.add(example.name, content, one.name, value)
        values.append(value)
    return _Outcome(example.name, example.group, tuple(values))


def _in_order(
    work: Callable[[int], _Outcome | Skipped], count: int, workers: int
) -> Generator[_Outcome | Skipped, None, None]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="measure")
    try:
        futures = (pool.submit(work, index) for index in range(count))
        ahead = deque(islice(futures, 2 * workers))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(islice(futures, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _check_outcomes(names: Sequence[str], outcomes: Sequence[_Outcome]) -> None:
    problems, first = [], None
    for column, measure in enumerate(names):
        failed = [(one.name, value) for one in outcomes if isinstance(value := one.values[column], Exception)]
        if not failed:
            continue
        first = first or failed[0][1]
        reasons: dict[str, list[str]] = defaultdict(list)
        for name, error in failed[:10]:
            # A measure names its example; a bare KeyError('x') tells nothing without its type.
            told = str(error).removeprefix(f"{name}: ").rstrip(".")
            reasons[told if isinstance(error, ValueError) else repr(error)].append(name)
        listed = "; ".join(f"{', '.join(images)}: {reason}" for reason, images in reasons.items())
        more = f"; and {len(failed) - 10} more" if len(failed) > 10 else ""
        problems.append(
            f"{measure} cannot be measured on {len(failed)} of {len(outcomes)} images ({listed}{more})."
        )
    if problems:
        raise ValueError(f"{' '.join(problems)} Leave out these images, or these measures.") from first
