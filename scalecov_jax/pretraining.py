"""Training a network from scratch as a classifier of scenes of random object size, so that invariance to size is learnt."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from scalecov_jax import training
from scalecov_jax.compilation import jit
from scalecov_jax.images import scenes
from scalecov_jax.models.preprocessing import preprocess
from scalecov_jax.training import TrainState, descend, initial_state

PREPROCESSING = "tf"


class Metrics(NamedTuple):
    """Of one batch: mean cross-entropy in nats, and the share of images whose likeliest class is the true one."""

    loss: Float[Array, ""]
    top1: Float[Array, ""]


def smallest_ratio(step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    """Curriculum: the smallest object falls from a ratio of 0.3 to `scenes.SMALLEST` in the first quarter, log-linearly."""
    progress = jnp.minimum(1.0, step / (0.25 * steps))
    return jnp.exp((1 - progress) * jnp.log(0.3) + progress * jnp.log(scenes.SMALLEST))


def train_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    key: Key[Array, ""],
    *,
    steps: int,
    batch_size: int,
    size: int,
) -> tuple[TrainState, Metrics]:
    """Render a batch of scenes and take one step on its cross-entropy.

    Args:
        module: The network, stopped at pre_softmax.
        optimizer: From `training.make_optimizer`.
        state: Before the step.
        key: Of the whole training; the batch is drawn from it folded with the step.
        steps: Length of the training, for the curriculum.
        batch_size: Scenes a step.
        size: Height and width of the scenes in pixels.
    """
    images, labels, _ = scenes.draw(
        jax.random.fold_in(key, state.step), batch_size, size, smallest_ratio(state.step, steps)
    )

    def loss_of(params: Any) -> tuple[Array, tuple[Any, Array]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = module.apply(
            variables, preprocess(images, PREPROCESSING), True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (updates.get("batch_stats", {}), logits)  # pyright: ignore[reportReturnType]

    state, loss, logits = descend(loss_of, optimizer, state)
    return state, Metrics(loss, jnp.mean(logits.argmax(-1) == labels))


def train(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    folder: Path,
    *,
    seed: int,
    steps: int,
    batch_size: int,
    size: int,
    log_every: int,
    save_every: int,
) -> TrainState:
    """Train on scenes from scratch, or go on, see `training.train`."""
    key = jax.random.key(seed)
    draws = jax.random.fold_in(key, 1)
    step = jit(
        partial(train_step, module, optimizer, steps=steps, batch_size=batch_size, size=size),
        donate_argnums=0,
    )
    return training.train(
        lambda state, _: step(state, draws),
        initial_state(module, optimizer, jax.random.fold_in(key, 0), size),
        folder,
        steps=steps,
        batch_size=batch_size,
        log_every=log_every,
        save_every=save_every,
    )


def held_out_accuracy(
    module: nn.Module, variables: Any, *, seed: int, count: int, size: int
) -> dict[str, tuple[float, int]]:
    """Top-1 accuracy and number of scenes never trained on: of all, and by the object's share of the image.

    The scenes come from a key that the training does not use (it draws from `fold_in(key, 1)`).
    """
    batch = jit(partial(_classify, module, batch_size=128, size=size))
    key = jax.random.fold_in(jax.random.key(seed), 2)
    results = [batch(variables, jax.random.fold_in(key, number)) for number in range(-(-count // 128))]
    correct, ratio = (np.concatenate(values)[:count] for values in zip(*jax.device_get(results), strict=True))
    edges = np.geomspace(scenes.SMALLEST, scenes.LARGEST, 6)
    bins = np.digitize(ratio, edges[1:-1])
    parts = {"all": np.ones(count, bool)}
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        parts[f"{low:.3f}-{high:.3f}"] = bins == number
    return {
        name: (float(correct[part].mean()), int(part.sum())) for name, part in parts.items() if part.any()
    }


def _classify(
    module: nn.Module, variables: Any, key: Key[Array, ""], *, batch_size: int, size: int
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Whether each image of a batch is classified correctly (0 or 1), and its ratio."""
    images, labels, ratios = scenes.draw(key, batch_size, size)
    logits: Any = module.apply(variables, preprocess(images, PREPROCESSING))
    return (logits.argmax(-1) == labels).astype(jnp.float32), ratios
