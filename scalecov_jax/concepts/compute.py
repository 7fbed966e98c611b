"""Concept measures of a whole source: in parallel, each image decoded once, and nothing computed twice."""

import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from scalecov_jax.cache import MeasureCache, content_hash
from scalecov_jax.concepts.measure import ConceptMeasure
from scalecov_jax.imaging.image_set import MIN_IMAGES, Example, ImageError, ImageSet, Skipped, Source

_WRITE_EVERY = 5.0  # seconds


class Measured(NamedTuple):
    """Values of M measures on N images, in the order of the source."""

    values: Float[np.ndarray, "N M"]  # finite, float64
    names: tuple[str, ...]  # of the images
    groups: tuple[str, ...]  # of the images: what must not be split between training and test
    indices: Int[np.ndarray, " N"]  # which examples of the source the rows come from
    skipped: tuple[Skipped, ...]  # the images that could not be decoded


class _Outcome(NamedTuple):
    name: str
    group: str
    values: tuple[float | Exception, ...]


def measure_all(
    measures: Sequence[ConceptMeasure],
    source: Source,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    progress: str | None = None,
) -> Measured:
    """Measure every image of a source; the same whatever the number of threads.

    Where no measure reads pixels, images in folders with boxes are not decoded.

    Examples that cannot be decoded are left out and named. The `cache` (see `MeasureCache`) is read first, and written every 5
    seconds and at the end, however that comes about. Threads are as many as processors, at most 8, when not given.

    Raises:
        ValueError: No measure, one name twice, `workers` below 1, a damaged cache; measures in pixels of images whose pixels are
            of several sizes; or measures that raise or are not finite on
            some images: all of them in one message, after everything else was measured and written.
    """
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    names = [one.name for one in measures]
    if workers < 1 or not names or len(set(names)) < len(names):
        raise ValueError(
            f"Expected at least one worker and measures of different names, got {workers} and {', '.join(names) or 'none'}."
        )
    _check_pixel_sizes(measures, source)
    read = source.__getitem__
    if isinstance(source, ImageSet) and source.sized and not any(one.reads_pixels for one in measures):
        read = source.outline
    cached = MeasureCache(cache)
    outcomes: dict[int, _Outcome] = {}
    skipped: list[Skipped] = []
    written = time.monotonic()
    stream = _in_order(partial(_measure, measures, read, cached), len(source), workers)
    try:
        with (
            closing(stream),
            tqdm(total=len(source), desc=progress, unit="img", disable=progress is None) as bar,
        ):
            for index, outcome in enumerate(stream):
                if isinstance(outcome, Skipped):
                    skipped.append(outcome)
                else:
                    outcomes[index] = outcome
                if time.monotonic() - written > _WRITE_EVERY:
                    cached.write()
                    written = time.monotonic()
                bar.update()
    finally:
        cached.write()
    kept = list(outcomes.values())
    _check_outcomes(names, kept)
    values = np.array([one.values for one in kept], np.float64).reshape(-1, len(names))
    image_names = tuple(one.name for one in kept)
    groups = tuple(one.group for one in kept)
    return Measured(values, image_names, groups, np.array(list(outcomes), np.int64), tuple(skipped))


def check_measures(values: Float[np.ndarray, "N"], names: Sequence[str]) -> None:
    """Refuse values of a concept measure that nothing can be regressed on.

    Raises:
        ValueError: Lengths differ, values that are not finite (images are named), fewer than 10, all equal.
    """
    if len(values) != len(names):
        raise ValueError(f"{len(values)} values of the measure for {len(names)} images; expected one each.")
    bad = [name for name, finite in zip(names, np.isfinite(values), strict=True) if not finite]
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise ValueError(
            f"The concept measure is not finite for {len(bad)} images: {', '.join(bad[:10])}{more}."
        )
    if len(values) < MIN_IMAGES:
        raise ValueError(
            f"The concept was measured on {len(values)} images; at least {MIN_IMAGES} are needed."
        )
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        raise ValueError(
            f"The concept measure is {values[0]:g} for all {len(values)} images, so nothing can be regressed "
            "on it. Choose images in which it varies, or another measure."
        )


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


def _check_pixel_sizes(measures: Sequence[ConceptMeasure], source: Source) -> None:
    """Refuse to measure in pixels what is drawn at different microns per pixel, by more than 5 %."""
    pixels = [one.name for one in measures if one.unit in ("px", "px^2") and one.reads_pixels]
    mpp = source.table.get("mpp") if isinstance(source, ImageSet) else None
    if not pixels or mpp is None or mpp.dtype != float or mpp.isna().all():
        return
    unknown, low, high = int(np.isnan(mpp).sum()), np.nanmin(mpp), np.nanmax(mpp)
    if unknown or high > 1.05 * low:
        raise ValueError(
            f"{', '.join(pixels)} would mix images of different microns per pixel: {low:g} to {high:g}, unknown for {unknown} of "
            f"{len(mpp)}. Measure in microns, such as area_um2, or bring all to one (mpp={high:g})."
        )


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
