"""Grad-CAM maps against one forward and backward pass, and channels visualised together against one, in one run.

The pass to which the maps are compared gives the gradient of the same logits by the images, for the same images and batches.
Channels are visualised in chunks, in turns together and alone, and medians of chunks are compared: who else uses the machine
slows both alike. Prints median seconds without compilation, the ratios and the load; the ratio of processor times hardly
depends on others.

  python benchmarks/explain_speed.py                          # on 2 cores 4 minutes of maps and about 8 of channels
  python benchmarks/explain_speed.py --images=0 --steps=128   # channels only, shorter

Weights are random, and directions of all channels stand for single ones: neither changes the time, and no direction is dead.
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
from scalecov_jax.explanation import feature_visualization, grad_cam
from scalecov_jax.explanation.capture import capture
from scalecov_jax.explanation.gradients import layer_gradients
from scalecov_jax.explanation.target import Target, class_logit
from scalecov_jax.models.architecture import get_architecture
from scalecov_jax.models.folding import fold

IMAGES = flags.DEFINE_integer("images", 256, "Maps; none when 0.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Images of a batch.")
LAYER = flags.DEFINE_string("layer", "mixed10", "Explained layer.")
CHANNEL_LAYER = flags.DEFINE_string("channel_layer", "mixed4", "Layer of the visualised channels.")
CHANNELS = flags.DEFINE_integer("channels", 8, "Channels visualised together.")
STEPS = flags.DEFINE_integer("steps", 512, "Steps of a visualisation; none when 0.")
CHUNK = flags.DEFINE_integer("chunk", 32, "Steps before the other's turn.")
SIZE = flags.DEFINE_integer("size", 128, "Height and width of a visualisation in pixels.")
REPEATS = flags.DEFINE_integer(
    "repeats", 3, "Interleaved repetitions of the maps, of which the median counts."
)


def make_network() -> Network:
    """InceptionV3 with random weights."""
    architecture = get_architecture("inception_v3")
    card = Card("inception_v3", {}, "tf", 299, "benchmark")
    return random_network(Network(architecture.module(), None, architecture, card), 0)


@partial(jit, static_argnames=("module", "layer"))
def maps(module: object, variables: object, inputs: jax.Array, layer: str, target: Target) -> jax.Array:
    """Grad-CAM."""
    computed = layer_gradients(module, variables, inputs, layer, target)
    return grad_cam.grad_cam(computed.activations, computed.gradients)


@partial(jit, static_argnames="module")
def image_gradients(module: object, variables: object, inputs: jax.Array, target: Target) -> jax.Array:
    """One forward and one backward pass, all the way to the images."""

    def score(inputs: jax.Array) -> jax.Array:
        return target(capture(module, variables, inputs, (target.layer,))[target.layer]).sum()

    return jax.grad(score)(inputs)


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor time of a call."""
    start = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - start[0], time.process_time() - start[1]


def compare(calls: dict[str, Callable[[], object]], bar: float, repeats: int) -> None:
    """Time two calls, in turns; print the ratio of the first to the second."""
    for call in calls.values():
        call()
    times = np.array([[seconds(call) for call in calls.values()] for _ in range(repeats)])
    for name, one in zip(calls, np.moveaxis(times, 1, 0), strict=True):
        print(f"{name:36}{np.median(one[:, 0]):8.2f} s  ({one[:, 0].min():.2f} to {one[:, 0].max():.2f})")
    (first, first_cpu), (second, second_cpu) = np.median(times, 0)
    print(f"ratio {first / second:.2f}, in processor time {first_cpu / second_cpu:.2f} (bar: {bar})\n")


def main(_: list[str]) -> None:
    """Time both."""
    print(
        f"{os.cpu_count()} cores, JAX {jax.__version__} on {jax.devices()[0].device_kind}, load {os.getloadavg()[0]:.1f}\n"
    )
    network = make_network()
    target = class_logit(network, 0)
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    variables = jax.device_put(variables)
    batch = jnp.asarray(
        np.random.default_rng(0).uniform(-1, 1, (BATCH.value, 299, 299, 3)).astype(np.float32)
    )
    count = -(-IMAGES.value // BATCH.value)
    if count:
        compare(
            {
                f"{count * BATCH.value} Grad-CAM maps at {LAYER.value}": lambda: [
                    jax.block_until_ready(maps(module, variables, batch, LAYER.value, target))
                    for _ in range(count)
                ],
                "one forward and backward pass": lambda: [
                    jax.block_until_ready(image_gradients(module, variables, batch, target))
                    for _ in range(count)
                ],
            },
            1.3,
            REPEATS.value,
        )
    width = jax.eval_shape(lambda inputs: capture(module, variables, inputs, (CHANNEL_LAYER.value,)), batch)[
        CHANNEL_LAYER.value
    ].shape[-1]

    def optimiser(count: int) -> Callable[[], object]:
        vectors = np.random.default_rng(1).normal(size=(count, width))
        objectives = [feature_visualization.direction(CHANNEL_LAYER.value, vectors)]
        state = feature_visualization.start(objectives, size=SIZE.value)
        recipe = (feature_visualization.Stage(STEPS.value + CHUNK.value),)

        def advance() -> object:
            nonlocal state
            state = feature_visualization.advance(
                module, variables, network.card.preprocessing, objectives, recipe, state, CHUNK.value
            )
            return state.spectra

        return advance

    if STEPS.value:
        together = f"{CHANNELS.value} channels of {CHANNEL_LAYER.value}, {CHUNK.value} steps"
        compare(
            {together: optimiser(CHANNELS.value), "one channel": optimiser(1)},
            3.0,
            -(-STEPS.value // CHUNK.value),
        )


if __name__ == "__main__":
    app.run(main)
