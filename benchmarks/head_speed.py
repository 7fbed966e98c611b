"""Ten linear heads trained together against one head, and against a loop over the seeds, in one run.

All start from the same features in memory. The loop gives each seed only the rows of its own training part, as a researcher
would: fewer rows, but each seed reads them again. Prints median seconds without compilation, the range, the
ratios and the load; on a machine that others use too, the ratio of processor times says more than that of wall-clock times.

  python benchmarks/head_speed.py --rows=10000 --width=2048
"""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from scalecov_jax.probes import evaluate
from scalecov_jax.probes.splits import random_splits
from scalecov_jax.transfer.heads import train_heads

ROWS = flags.DEFINE_integer("rows", 10_000, "Images N.")
WIDTH = flags.DEFINE_integer("width", 2048, "Features D.")
SEEDS = flags.DEFINE_integer("seeds", 10, "Heads trained together.")
EPOCHS = flags.DEFINE_integer("epochs", 50, "Passes over the rows.")
BATCH = flags.DEFINE_integer("batch_size", 256, "Rows of a batch.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Interleaved repetitions, of which the median counts.")
RIDGE = flags.DEFINE_bool(
    "ridge", False, "Time evaluate.fit too, once, for one seed (minutes where D is large)."
)


def make_problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated features, as pooled ones are, and areas of mean 500 px."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(ROWS.value, 40)).astype(np.float32)
    features = np.maximum(latent @ rng.normal(size=(40, WIDTH.value)).astype(np.float32), 0)
    features += 0.3 * rng.normal(size=features.shape).astype(np.float32)
    targets = 500 + 200 * latent[:, 0] + 50 * rng.normal(size=ROWS.value)
    return features, targets.astype(np.float32), random_splits(ROWS.value, SEEDS.value, seed=0)


def hardware() -> str:
    """Processor or accelerator, cores and load."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1] for line in info.read_text().splitlines() if line.startswith("model name")]
    device = jax.devices()[0].device_kind
    return (
        f"{(names or [platform.processor()])[0].strip()}, {os.cpu_count()} cores, JAX {jax.__version__} on {device}, "
        f"load average {os.getloadavg()[0]:.1f}"
    )


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor time of a call."""
    start = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main(_: list[str]) -> None:
    """Time all three, interleaved."""
    features, targets, train = make_problem()
    settings = {"epochs": EPOCHS.value, "batch_size": BATCH.value}

    def together(count: int) -> object:
        return train_heads(features, targets, train[:count], range(count), **settings)

    def loop() -> object:
        own = [(features[part], targets[part], np.ones((1, part.sum()), bool)) for part in train]
        return [train_heads(*arrays, [seed], **settings) for seed, arrays in enumerate(own)]

    calls = {"one seed": lambda: together(1), "together": lambda: together(SEEDS.value), "loop": loop}
    for call in calls.values():
        call()
    times = np.array([[seconds(call) for call in calls.values()] for _ in range(REPEATS.value)])
    (one, one_cpu), (many, many_cpu), (looped, _) = np.median(times, 0)
    print(hardware())
    print(f"N = {ROWS.value}, D = {WIDTH.value}, {EPOCHS.value} epochs, batches of {BATCH.value}")
    for name, column in zip(("1 seed", f"{SEEDS.value} seeds", "loop"), times[..., 0].T, strict=True):
        print(f"{name:10} {np.median(column):7.2f} s   ({column.min():.2f} to {column.max():.2f})")
    print(
        f"{SEEDS.value} seeds / 1 seed: {many / one:.2f}, in processor time {many_cpu / one_cpu:.2f} (bar: below 2)"
    )
    print(f"loop of {SEEDS.value} single trainings / {SEEDS.value} seeds together: {looped / many:.2f}")
    if RIDGE.value:
        wall, _ = seconds(lambda: evaluate.fit(features, targets[:, None], train[:1]))
        print(f"ridge, 1 seed, with compilation: {wall:.2f} s")


if __name__ == "__main__":
    app.run(main)
