"""Batches of equal shape from a source, decoded ahead by threads."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from scalecov_jax.images.example import ImageError, Skipped, Source, resize_image


class Batch(NamedTuple):
    """Images of one size, in the order of the source.

    Attributes:
        images: RGB; zeros where `valid` is False.
        valid: False where the batch is padded or the image could not be decoded.
        indices: Position in the source; -1 where padded.
    """

    images: UInt8[np.ndarray, "B size size 3"]
    valid: Bool[np.ndarray, "B"]
    indices: Int[np.ndarray, "B"]


def batches(
    source: Source, size: int, batch_size: int, skipped: list[Skipped], *, workers: int | None = None
) -> Iterator[Batch]:
    """Decode and resize a source, at most two batches ahead of the one that is being used.

    Every batch has the same shape: the last is padded. An image that fails to decode costs only its own row.

    Args:
        source: Examples of any size.
        size: Height and width of the batch in pixels.
        batch_size: Rows a batch.
        skipped: Images that fail to decode are appended, in order, when their batch is taken.
        workers: Threads; as many as processors, at most 8, when absent.

    Raises:
        ValueError: `size`, `batch_size` or `workers` below 1.
    """
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    if min(size, batch_size, workers) < 1:
        raise ValueError(
            f"size, batch_size and workers must be at least 1, got {size}, {batch_size}, {workers}."
        )
    return _stream(source, size, batch_size, skipped, workers)


def _stream(
    source: Source, size: int, batch_size: int, skipped: list[Skipped], workers: int
) -> Iterator[Batch]:
    def load(index: int) -> UInt8[np.ndarray, "size size 3"]:
        return resize_image(source[index].image, size)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        futures = ((index, pool.submit(load, index)) for index in range(len(source)))
        ahead = deque(islice(futures, 2 * batch_size))
        while ahead:
            batch = Batch(
                np.zeros((batch_size, size, size, 3), np.uint8),
                np.zeros(batch_size, bool),
                np.full(batch_size, -1),
            )
            for row in range(min(batch_size, len(ahead))):
                index, future = ahead.popleft()
                batch.indices[row] = index
                try:
                    batch.images[row] = future.result()
                    batch.valid[row] = True
                except ImageError as error:
                    skipped.append(Skipped(error.name, "unreadable image", error.problem))
                ahead.extend(islice(futures, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
