"""Batches of equal shape from a source, decoded ahead by threads or by other processes."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from scalecov_jax.imaging.decoding import resize_image
from scalecov_jax.imaging.decoding_process import DecodingProcess
from scalecov_jax.imaging.image_set import Example, ImageError, Skipped, Source


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
    source: Source, size: int, batch_size: int, skipped: list[Skipped], *, workers: int = 0
) -> Iterator[Batch]:
    """Decode and resize a source, at most two batches ahead of the one that is being used.

    Every batch has the same shape: the last is padded. An image that fails to decode costs only its own row.

    Args:
        source: Examples of any size.
        size: Height and width of the batch in pixels.
        batch_size: Rows a batch.
        skipped: Images that fail to decode are appended, in order, when their batch is taken.
        workers: Processes that decode; 0 for as many threads of this process as processors, at most 8. They change nothing
            but the speed.

    Raises:
        ValueError: `size` or `batch_size` below 1, `workers` below 0; a source that cannot be handed to processes, or a process
            that ends before its time.
    """
    if min(size, batch_size) < 1 or workers < 0:
        raise ValueError(
            f"size and batch_size must be at least 1 and workers at least 0, got {size}, {batch_size}, {workers}."
        )
    return _stream(source, size, batch_size, skipped, workers)


def _stream(
    source: Source, size: int, batch_size: int, skipped: list[Skipped], workers: int
) -> Iterator[Batch]:
    processes: list[DecodingProcess] = []
    idle: SimpleQueue[DecodingProcess] = SimpleQueue()

    def load(index: int) -> UInt8[np.ndarray, "size size 3"]:
        if not workers:
            return resize_image(source[index].image, size)
        process = idle.get()
        try:
            return process.load(index)
        finally:
            idle.put(process)

    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1), thread_name_prefix="decode")
    try:
        for _ in range(min(workers, len(source))):
            processes.append(DecodingProcess(source, size))
            idle.put(processes[-1])
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
        for process in processes:
            process.close()


@dataclass(frozen=True)
class Reordered:
    """Examples of a source in another order; a blank one where the index is -1."""

    source: Source
    indices: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int, /) -> Example:
        if self.indices[place] < 0:
            return Example(np.zeros((1, 1, 3), np.uint8), None, None, None, "", "")
        return self.source[int(self.indices[place])]
