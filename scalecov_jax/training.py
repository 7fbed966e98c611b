"""Training of networks that an interruption does not change: checkpoints, a curve, and the same bits after a resume."""

import time
from collections.abc import Callable
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

from scalecov_jax.compilation import jit


class TrainState(NamedTuple):
    """Everything that an interrupted training needs to go on with the same bits."""

    params: Any
    batch_stats: Any
    optimizer: optax.OptState
    step: Int[Array, ""]


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
    variables = jit(module.init)(key, jnp.zeros((1, size, size, 3)))
    return TrainState(
        variables["params"],
        variables.get("batch_stats", {}),
        optimizer.init(variables["params"]),
        jnp.zeros((), jnp.int32),
    )


def descend(
    loss_of: Callable[[Any], tuple[Float[Array, ""], tuple[Any, Any]]],
    optimizer: optax.GradientTransformation,
    state: TrainState,
) -> tuple[TrainState, Float[Array, ""], Any]:
    """One step down the gradient of a loss.

    Args:
        loss_of: Of the parameters: the loss, and with it the new statistics of batch normalisation and whatever else is wanted.
        optimizer: Such as of `make_optimizer`.
        state: Before the step.

    Returns:
        The state after it, the loss, and what else was wanted.
    """
    (loss, (batch_stats, more)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    return TrainState(params, batch_stats, optimizer_state, state.step + 1), loss, more


def train(
    step: Callable[[TrainState, int], tuple[TrainState, Any]],
    state: TrainState,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    log_every: int,
    save_every: int,
) -> TrainState:
    """Train to the end, or go on from the last checkpoint in `folder`: the bits are those of an unbroken training.

    Writes `folder/states` (every `save_every` steps) and `folder/curve.csv` (every `log_every` steps), whose clock goes on too.

    Args:
        step: From a state and the number of the step, from 1, to the next state and its metrics: a NamedTuple of scalars, `loss`
            the first; their means over the steps between are the columns of the curve. All that it draws depends on the number.
        state: Where the training begins.
        folder: Of this training only.
        steps: Length of the training.
        batch_size: Images a step.
        log_every: Steps between the rows of the curve.
        save_every: Steps between checkpoints.

    Raises:
        FloatingPointError: The loss is not finite; names the step.
    """
    with (
        ocp.training.Checkpointer(str(folder / "states")) as checkpointer,
        (folder / "curve.csv").open("a") as curve,
    ):
        if checkpointer.latest is not None:
            state = checkpointer.load(abstract_state=state)
        earlier = (folder / "curve.csv").read_text().splitlines()
        clock = earlier[-1].rpartition(",")[2] if len(earlier) > 1 else 0.0
        start = time.monotonic() - float(clock)
        first, window = int(state.step), []
        with tqdm(total=steps * batch_size, initial=first * batch_size, unit="img") as bar:
            for number in range(first + 1, steps + 1):
                state, metrics = step(state, number)
                if curve.tell() == 0:
                    curve.write(f"step,images,{','.join(metrics._fields)},seconds\n")
                window.append(metrics)
                bar.update(batch_size)
                if number % log_every == 0 or number == steps:
                    means = dict(
                        zip(metrics._fields, np.mean(jax.device_get(window), axis=0).tolist(), strict=True)
                    )
                    curve.flush()
                    if not np.isfinite(means["loss"]):
                        raise FloatingPointError(
                            f"The loss is {means['loss']} at step {number}; lower the learning rate."
                        )
                    told = ",".join(f"{mean:.4f}" for mean in means.values())
                    curve.write(f"{number},{number * batch_size},{told},{time.monotonic() - start:.1f}\n")
                    curve.flush()
                    bar.set_postfix({name: f"{mean:.3f}" for name, mean in means.items()})
                    window = []
                if number % save_every == 0 or number == steps:
                    checkpointer.save(number, state)
    return state
