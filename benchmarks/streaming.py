"""What streaming costs: beside the forward pass, against the matrix product of the machine, and in memory against the images.

(a) One pass of `stream_sums` over noise, and the same forward passes alone: how much longer it takes. Bar: 5 %.
(b) Sums of synthetic features in batches that are on the device already, against the best square float32 product measured in the
    same run. Bar: 50 %.
(c) Resident memory of a process after synthetic features of 20,000 to 500,000 images; each line is a process of its own.
    Bar: flat to 5 %.

  python benchmarks/streaming.py --images=1280
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from scalecov_jax.checkpoints import Card, network, random_network
from scalecov_jax.extraction import local_to_global, sharded_forward
from scalecov_jax.imaging.image_set import Example
from scalecov_jax.models.architecture import available_layers, get_architecture
from scalecov_jax.models.pruning import abstract_variables
from scalecov_jax.streaming.stream_sums import DeviceSums, Targets, stream_sums

ARCHITECTURE = flags.DEFINE_string("architecture", "inception_v3", "Network of part (a).")
IMAGES = flags.DEFINE_integer("images", 320, "Images of part (a).")
BATCH = flags.DEFINE_integer("batch_size", 32, "Images a forward pass.")
PRODUCTS = flags.DEFINE_enum("products", "float64", ["float64", "float32"], "In what part (a) multiplies.")
WIDTH = flags.DEFINE_integer("width", 2048, "Features of the layer of parts (b) and (c).")
ROWS = flags.DEFINE_string("rows", "20000,100000,500000", "Images of part (c), separated by commas.")
PARTS = flags.DEFINE_string("parts", "abc", "Which parts.")
ONE = flags.DEFINE_integer("one", 0, "Measure this number of images of part (c) in this process.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Repeats, of which the median is told.")


class Noise:
    """Images made beforehand, so that neither way decodes."""

    def __init__(self, count: int, size: int):
        rng = np.random.default_rng(0)
        self.count = count
        self.images = [rng.integers(0, 256, (size, size, 3), np.uint8) for _ in range(16)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index % 16], None, None, None, "", "")


def median_of(action: Callable[[], object]) -> float:
    """Median of seconds, after one call that compiles."""
    action()
    seconds = []
    for _ in range(REPEATS.value):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def beside_the_forward_pass() -> None:
    """Part (a)."""
    family = get_architecture(ARCHITECTURE.value)
    card = Card(ARCHITECTURE.value, {}, "tf", 299, "benchmark")
    blank = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), abstract_variables(family.module(), family)
    )
    net = random_network(network(blank, card), 0)
    layers = available_layers(family, net.module)
    count, source = IMAGES.value, Noise(IMAGES.value, 299)
    targets = Targets(np.random.default_rng(0).normal(size=(count, 8)), np.empty((count, 0), np.int32), 0)
    folds = np.arange(count) * 5 // count
    forward, size = sharded_forward(net, layers, BATCH.value, jnp.float32)
    batch = np.stack([source[row].image for row in range(size)])
    passes = sum(-(-int((folds == fold).sum()) // size) for fold in range(5))

    def bare() -> None:
        running = None
        for _ in range(passes):
            pooled = forward(batch)
            if running is not None:
                jax.block_until_ready(running)
            running = pooled
        jax.block_until_ready(running)

    def streamed() -> None:
        stream_sums(
            net, source, np.arange(count), folds, targets, layers, batch_size=size, products=PRODUCTS.value
        )

    alone, both = median_of(bare), median_of(streamed)
    print(
        f"(a) {ARCHITECTURE.value}, {len(layers)} layers, {passes * size} images, products in {PRODUCTS.value}: forward pass "
        f"{alone:.2f} s ({passes * size / alone:.1f} images/s), streamed {both:.2f} s; added {100 * (both / alone - 1):+.1f} %"
    )


def against_the_product() -> None:
    """Part (b)."""
    best = 0.0
    for side in (1024, 2048, 4096):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(side, side)).astype(np.float32))
        product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
        best = max(best, 2 * side**3 / median_of(lambda product=product, x=x: product(x).block_until_ready()))
    for products in ("float32", "float64"):
        for rows in (256, 2048):
            feed, count = _feeder(rows, products), 16384 // rows
            seconds = median_of(lambda feed=feed, count=count: feed(count))
            speed = 2 * WIDTH.value**2 * rows * count / seconds
            print(
                f"(b) {products}, {rows} rows at a time, width {WIDTH.value}: {speed / 1e9:.1f} GFLOP/s of {best / 1e9:.1f} "
                f"(square float32 product): {100 * speed / best:.0f} %"
            )


def _feeder(rows: int, products: str) -> Callable[[int], object]:
    rng = np.random.default_rng(0)
    adder = DeviceSums(np.zeros(1), 1, products)  # pyright: ignore[reportArgumentType]
    x = rng.normal(size=(rows, WIDTH.value)).astype(np.float32)
    pooled = {"layer": local_to_global(adder.mesh, x)}
    targets, weight = rng.normal(size=(rows, 1)), np.ones(rows)

    def feed(count: int) -> object:
        for _ in range(count):
            adder.add(pooled, targets, weight)
        return adder.total()

    return feed


def memory() -> None:
    """Part (c)."""
    if ONE.value:
        rng = np.random.default_rng(0)
        adder = DeviceSums(np.zeros(1), 1, "float64")
        for _ in range(ONE.value // 1000):
            x = rng.standard_normal((1000, WIDTH.value), np.float32)
            adder.add({"layer": local_to_global(adder.mesh, x)}, rng.normal(size=(1000, 1)), np.ones(1000))
        adder.total()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"(c) {ONE.value:,} images: {peak:.0f} MB (features alone {4e-6 * ONE.value * WIDTH.value:.0f} MB)"
        )
        return
    for count in ROWS.value.split(","):
        command = [sys.executable, __file__, f"--one={count}", f"--width={WIDTH.value}"]
        subprocess.run(command, check=True)


def main(_: list[str]) -> None:
    """Measure."""
    if ONE.value:
        memory()
        return
    device = jax.devices()[0].device_kind
    print(f"{jax.device_count()} x {device}, jax {jax.__version__}", flush=True)
    for part, measure in (("a", beside_the_forward_pass), ("b", against_the_product), ("c", memory)):
        if part in PARTS.value:
            measure()
            sys.stdout.flush()


if __name__ == "__main__":
    app.run(main)
