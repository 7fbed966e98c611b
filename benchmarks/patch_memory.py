"""Peak memory of cutting patches and of streaming them from disk, against their number.

Each line is a process of its own: it cuts that many annotated images into patches, opens the set and reads every patch once in
batches, as training does. Holding all patches in memory, the usual way, is given for comparison.

  python benchmarks/patch_memory.py --images=20,80,320
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from absl import app, flags

from scalecov_jax.imaging.batching import batches
from scalecov_jax.imaging.image_set import ImageSet, Pixels
from scalecov_jax.imaging.patches import open_patches, prepare_patches

IMAGES = flags.DEFINE_string("images", "20,80,320", "Numbers of annotated images, separated by commas.")
ONE = flags.DEFINE_integer("one", 0, "Measure this number in this process (used by the others).")
SIZE = flags.DEFINE_integer("size", 224, "Height and width of the patches in pixels.")


def noise(index: int) -> Pixels:
    """An image of 1000 x 1000 pixels with nuclei."""
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, (1000, 1000, 3), np.uint8)
    y, x = np.mgrid[:1000, :1000]
    labels = np.where((y % 40 - 20) ** 2 + (x % 40 - 20) ** 2 < 100, 1 + y // 40 * 25 + x // 40, 0)
    return Pixels(image, labels.astype(np.int32))


def peak() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure() -> None:
    """Cut, open, stream; print one line."""
    with tempfile.TemporaryDirectory() as folder:
        start = peak()
        names = [str(index) for index in range(ONE.value)]
        known = pd.DataFrame({"name": names, "group": names, "magnification": 40.0})
        prepare_patches(ImageSet(known, noise), Path(folder) / "patches", size=SIZE.value)
        cut = peak()
        patches = open_patches(Path(folder) / "patches")
        seen = sum(int(batch.valid.sum()) for batch in batches(patches, SIZE.value, 32, []))
        held = len(patches) * SIZE.value**2 * 3 / 1e6
        print(f"{ONE.value:>7}{seen:>9}{start:>9.0f}{cut:>14.0f}{peak():>17.0f}{held:>16.0f}")


def main(_: list[str]) -> None:
    """Print the table."""
    if ONE.value:
        measure()
        return
    print(
        f"{'images':>7}{'patches':>9}{'start':>9}{'after cutting':>14}{'after streaming':>17}{'all in memory':>16}  (MB)"
    )
    for count in IMAGES.value.split(","):
        command = [sys.executable, __file__, f"--one={count}", f"--size={SIZE.value}"]
        print(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="", flush=True
        )


if __name__ == "__main__":
    app.run(main)
