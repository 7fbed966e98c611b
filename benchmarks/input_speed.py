"""How fast images are decoded and resized, without a network: by threads, and by one, two, ... processes.

  python benchmarks/input_speed.py --images=VOCdevkit/VOC2007/JPEGImages

The ways take turns, so that a busy machine slows all of them; medians and the range are told. Starting the processes is not
counted, but told apart.
"""

import os
import statistics
import time
from typing import NamedTuple

from absl import app, flags

from scalecov_jax.imaging.batching import batches
from scalecov_jax.imaging.folder import read_folder
from scalecov_jax.imaging.image_set import ImageSet

IMAGES = flags.DEFINE_string("images", "../shared/data/voc_single/JPEGImages", "Folder of JPEG files.")
SIZE = flags.DEFINE_integer("size", 299, "Height and width to which images are resized, in pixels.")
BATCH = flags.DEFINE_integer("batch_size", 32, "Images a batch.")
WORKERS = flags.DEFINE_string("workers", "0,1,2", "Numbers of processes; 0 for threads.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Passes of each.")


class Once(NamedTuple):
    """One pass: seconds until the first batch, images/s after it."""

    first: float
    rate: float


def measure(source: ImageSet, workers: int) -> Once:
    """One pass over the source."""
    started = time.perf_counter()
    stream = batches(source, SIZE.value, BATCH.value, [], workers=workers)
    next(stream)
    begun = time.perf_counter()
    count = sum(int(batch.valid.sum()) for batch in stream)
    return Once(begun - started, count / (time.perf_counter() - begun))


def main(_: list[str]) -> None:
    """Measure."""
    source = read_folder(IMAGES.value)
    found: dict[int, list[Once]] = {int(text): [] for text in WORKERS.value.split(",")}
    for _ in range(REPEATS.value):
        for workers, passes in found.items():
            passes.append(measure(source, workers))
    print(f"{len(source)} images to {SIZE.value} pixels, {os.cpu_count()} cores, {REPEATS.value} passes each")
    for workers, passes in found.items():
        rates = [one.rate for one in passes]
        first = statistics.median(one.first for one in passes)
        name = f"{workers} processes" if workers else "threads"
        print(
            f"{name:<12} {statistics.median(rates):6.1f} images/s ({min(rates):.1f} to {max(rates):.1f}), first batch after "
            f"{first:.2f} s"
        )


if __name__ == "__main__":
    app.run(main)
