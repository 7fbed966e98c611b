"""Scores of five classes divided among all pixels and layers of the grader, against five plain gradients, in one run.

One image of 640 x 640 pixels, full width, random weights (they do not change the time). A plain gradient is one forward and one
backward pass from a logit to the image. Both in turns, medians, without compilation; prints seconds, the ratio (bar: 3) and load.

  python benchmarks/score_propagation.py
"""

import os
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from scalecov_jax.checkpoints import Card, Network, random_network
from scalecov_jax.compilation import jit
from scalecov_jax.explanation.capture import capture
from scalecov_jax.explanation.score_propagation import peak_bytes, propagate_scores, relative_error
from scalecov_jax.explanation.target import Target, class_logit
from scalecov_jax.models.architecture import get_architecture
from scalecov_jax.models.folding import fold

SIZE = flags.DEFINE_integer("size", 640, "Height and width of the image in pixels.")
REPEATS = flags.DEFINE_integer("repeats", 7, "Interleaved repetitions, of which the median counts.")


@partial(jit, static_argnames="module")
def gradient(module: object, variables: object, inputs: jax.Array, target: Target) -> jax.Array:
    """One forward and one backward pass to the image."""

    def score(inputs: jax.Array) -> jax.Array:
        return target(capture(module, variables, inputs, (target.layer,))[target.layer]).sum()

    return jax.grad(score)(inputs)


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of a call."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def main(_: list[str]) -> None:
    """Time both."""
    architecture = get_architecture("dr_grader")
    card = Card("dr_grader", {}, "tf", SIZE.value, "benchmark")
    network = random_network(Network(architecture.module(), None, architecture, card), 0)
    module, variables = fold(network.module, network.variables, architecture.epsilon)
    biases = np.random.default_rng(1)  # zero in a new network: then no layer had a constant
    variables = jax.tree.map_with_path(
        lambda path, one: biases.normal(size=one.shape).astype(np.float32) if path[-1].key == "bias" else one,
        variables,
    )
    variables = jax.device_put(variables)
    shape = (1, SIZE.value, SIZE.value, 3)
    inputs = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)
    targets = [class_logit(network, grade) for grade in range(5)]
    calls = {
        "scores of five classes, all layers": lambda: propagate_scores(module, variables, inputs, targets),
        "five plain gradients": lambda: [gradient(module, variables, inputs, one) for one in targets],
    }
    print(
        f"{os.cpu_count()} cores, JAX {jax.__version__} on {jax.devices()[0].device_kind}, load {os.getloadavg()[0]:.1f}"
    )
    worst = relative_error(jax.device_get(propagate_scores(module, variables, inputs, targets))).max()
    print(f"largest relative error {worst:.1e}, peak_bytes {peak_bytes(module, variables, shape, targets)}")
    for call in calls.values():
        jax.block_until_ready(call())
    times = np.array([[seconds(call) for call in calls.values()] for _ in range(REPEATS.value)])
    for name, one in zip(calls, times.T, strict=True):
        print(f"{name:36}{np.median(one):8.2f} s  ({one.min():.2f} to {one.max():.2f})")
    divided, plain = np.median(times, 0)
    print(f"ratio {divided / plain:.2f} (bar: 3), load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    app.run(main)
