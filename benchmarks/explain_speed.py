"""Grad-CAM maps against one forward and backward pass, and channels visualised together against one, in one run.

The pass to which the maps are compared gives the gradient of the same logits by the images, for the same images and batches.
Prints median seconds without compilation, the ratios and the load; where others use the machine too, the ratio of processor
times says more than that of wall-clock times.

  python benchmarks/explain_speed.py --weights=runs/weights/inception_v3
  python benchmarks/explain_speed.py --images=64 --steps=32                # random weights, shorter

The maps have random weights, for their time does not depend on them. Channels with random weights may die on the way.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from scalecov_jax.checkpoints import Card, Network, load, random_network
from scalecov_jax.explain import feature_visualization, grad_cam
from scalecov_jax.explain.capture import capture
from scalecov_jax.explain.gradients import layer_gradients
from scalecov_jax.explain.target import Target, class_logit
from scalecov_jax.models.architecture import get_architecture
from scalecov_jax.models.folding import fold

IMAGES = flags.DEFINE_integer("images", 256, "Maps.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Images of a batch.")
WEIGHTS = flags.DEFINE_string(
    "weights", "", "Checkpoint of InceptionV3 for the visualised channels; random when empty."
)
LAYER = flags.DEFINE_string("layer", "mixed10", "Explained layer.")
CHANNEL_LAYER = flags.DEFINE_string("channel_layer", "mixed4", "Layer of the visualised channels.")
CHANNELS = flags.DEFINE_integer("channels", 8, "Channels visualised together.")
STEPS = flags.DEFINE_integer("steps", 512, "Steps of a visualisation.")
SIZE = flags.DEFINE_integer("size", 128, "Height and width of a visualisation in pixels.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Interleaved repetitions, of which the median counts.")


def make_network() -> Network:
    """InceptionV3 with random weights."""
    architecture = get_architecture("inception_v3")
    card = Card("inception_v3", {}, "tf", 299, "benchmark")
    return random_network(Network(architecture.module(), None, architecture, card), 0)


@partial(jax.jit, static_argnames=("module", "layer"))
def maps(module: object, variables: object, inputs: jax.Array, layer: str, target: Target) -> jax.Array:
    """Grad-CAM."""
    computed = layer_gradients(module, variables, inputs, layer, target)
    return grad_cam.grad_cam(computed.activations, computed.gradients)


@partial(jax.jit, static_argnames="module")
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


def compare(calls: dict[str, Callable[[], object]], bar: float) -> None:
    """Time two calls, interleaved; print the ratio of the first to the second."""
    for call in calls.values():
        call()
    times = np.array([[seconds(call) for call in calls.values()] for _ in range(REPEATS.value)])
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
    compare(
        {
            f"{count * BATCH.value} Grad-CAM maps at {LAYER.value}": lambda: [
                jax.block_until_ready(maps(module, variables, batch, LAYER.value, target))
                for _ in range(count)
            ],
            "one forward and backward pass": lambda: [
                jax.block_until_ready(image_gradients(module, variables, batch, target)) for _ in range(count)
            ],
        },
        1.3,
    )
    if WEIGHTS.value:
        network = load(Path(WEIGHTS.value))
        module, variables = fold(network.module, network.variables, network.architecture.epsilon)
        variables = jax.device_put(variables)
    width = jax.eval_shape(lambda inputs: capture(module, variables, inputs, (CHANNEL_LAYER.value,)), batch)[
        CHANNEL_LAYER.value
    ].shape[-1]

    def visualise(channels: int) -> jax.Array:
        objectives = [feature_visualization.channel(CHANNEL_LAYER.value, range(channels), width)]
        stage = feature_visualization.Stage(STEPS.value)
        return feature_visualization.visualise(
            module,
            variables,
            network.card.preprocessing,
            objectives,
            recipe=(stage,),
            size=SIZE.value,
            chunk=STEPS.value,
        ).spectra

    compare(
        {
            f"{CHANNELS.value} channels of {CHANNEL_LAYER.value}": lambda: visualise(CHANNELS.value),
            "one channel": lambda: visualise(1),
        },
        3.0,
    )


if __name__ == "__main__":
    app.run(main)
