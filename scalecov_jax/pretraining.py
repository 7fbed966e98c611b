"""Training a network from scratch as a classifier of scenes of random object size, so that invariance to size is learnt."""

import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

from scalecov_jax.images import scenes
from scalecov_jax.models.compilation import jit
from scalecov_jax.models.preprocessing import preprocess

PREPROCESSING = "tf"


class TrainState(NamedTuple):
    """Everything that an interrupted training needs to go on with the same bits."""

    params: Any
    batch_stats: Any
    optimizer: optax.OptState
    step: Int[Array, ""]


class Metrics(NamedTuple):
    """Of one batch: mean cross-entropy in nats, and the share of images whose likeliest class is the true one."""

    loss: Float[Array, ""]
    top1: Float[Array, ""]


def make_optimizer(
    learning_rate: float, steps: int, warmup: int, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW with linear warm-up, cosine decay to zero and gradients clipped to norm 1."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=weight_decay))


def initial_state(
    module: nn.Module, optimizer: optax.GradientTransformation, key: Key[Array, ""], size: int
) -> TrainState:
    """A freshly initialised network."""
    variables = jax.jit(module.init)(key, jnp.zeros((1, size, size, 3)))
    return TrainState(
        variables["params"],
        variables.get("batch_stats", {}),
        optimizer.init(variables["params"]),
        jnp.zeros((), jnp.int32),
    )


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
        optimizer: From `make_optimizer`.
        state: Before the step.
        key: Of the whole training; the batch is drawn from it folded with the step.
        steps: Length of the training, for the curriculum.
        batch_size: Scenes a step.
        size: Height and width of the scenes in pixels.
    """
    images, labels, _ = scenes.draw(
        jax.random.fold_in(key, state.step), batch_size, size, smallest_ratio(state.step, steps)
    )

    def loss_of(params: Any) -> tuple[Array, tuple[Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = module.apply(
            variables, preprocess(images, PREPROCESSING), True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits, updates.get("batch_stats", {}))  # pyright: ignore[reportReturnType]

    (loss, (logits, batch_stats)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = Metrics(loss, jnp.mean(logits.argmax(-1) == labels))
    return TrainState(params, batch_stats, optimizer_state, state.step + 1), metrics


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
    """Train to the end, or go on from the last checkpoint in `folder`: the bits are those of an unbroken training.

    Writes `folder/states` (every `save_every` steps) and `folder/curve.csv` (every `log_every` steps), whose clock goes on too.

    Raises:
        FloatingPointError: The loss is not finite; names the step.
    """
    key = jax.random.key(seed)
    state = initial_state(module, optimizer, jax.random.fold_in(key, 0), size)
    step = jit(
        partial(train_step, module, optimizer, steps=steps, batch_size=batch_size, size=size),
        donate_argnums=0,
    )
    with (
        ocp.training.Checkpointer(str(folder / "states")) as checkpointer,
        (folder / "curve.csv").open("a") as curve,
    ):
        if checkpointer.latest is not None:
            state = checkpointer.load(abstract_state=state)
        if curve.tell() == 0:
            curve.write("step,images,loss,top1,seconds\n")
            curve.flush()
        earlier = (folder / "curve.csv").read_text().splitlines()[-1].rpartition(",")[2]
        start = time.monotonic() - (0.0 if earlier == "seconds" else float(earlier))
        first, window = int(state.step), []
        with tqdm(total=steps * batch_size, initial=first * batch_size, unit="img") as bar:
            for number in range(first + 1, steps + 1):
                state, metrics = step(state, jax.random.fold_in(key, 1))
                window.append(metrics)
                bar.update(batch_size)
                if number % log_every == 0 or number == steps:
                    loss, top1 = np.mean(jax.device_get(window), axis=0)
                    if not np.isfinite(loss):
                        raise FloatingPointError(
                            f"The loss is {loss} at step {number}; lower the learning rate."
                        )
                    seconds = time.monotonic() - start
                    curve.write(f"{number},{number * batch_size},{loss:.4f},{top1:.4f},{seconds:.1f}\n")
                    curve.flush()
                    bar.set_postfix(loss=f"{loss:.3f}", top1=f"{top1:.3f}")
                    window = []
                if number % save_every == 0 or number == steps:
                    checkpointer.save(number, state)
    return state


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
