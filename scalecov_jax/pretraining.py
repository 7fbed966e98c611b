"""Training a network from scratch as a classifier of scenes of random object size, so that invariance to size is learnt."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, UInt8

from scalecov_jax.images import scenes


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


def scale_to_unit(images: UInt8[Array, "N H W 3"]) -> Float[Array, "N H W 3"]:
    """The preprocessing `tf`: x / 127.5 - 1."""
    return images.astype(jnp.float32) / 127.5 - 1.0


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
        variables["batch_stats"],
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
        logits, updates = module.apply(variables, scale_to_unit(images), True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits, updates["batch_stats"])  # pyright: ignore[reportReturnType]

    (loss, (logits, batch_stats)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = Metrics(loss, jnp.mean(logits.argmax(-1) == labels))
    return TrainState(params, batch_stats, optimizer_state, state.step + 1), metrics


def evaluate(
    module: nn.Module, variables: Any, key: Key[Array, ""], batch_size: int, size: int
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Classify one batch of scenes with ratios over the whole range.

    Returns:
        Whether each image is classified correctly (0 or 1), and its ratio.
    """
    images, labels, ratios = scenes.draw(key, batch_size, size)
    logits = module.apply(variables, scale_to_unit(images))
    return (logits.argmax(-1) == labels).astype(jnp.float32), ratios  # pyright: ignore[reportAttributeAccessIssue]
