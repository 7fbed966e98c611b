"""Training of the grader of diabetic retinopathy: balanced batches of prepared eyes, augmented on the device, QWK loss."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, UInt8
from tqdm import tqdm

from scalecov_jax import training
from scalecov_jax.compilation import jit
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.models.preprocessing import Preprocessing, preprocess
from scalecov_jax.training import TrainState, descend, initial_state
from scalecov_jax.transfer.qwk import qwk_loss

PREPROCESSING: Preprocessing = (
    "unit"  # black is zero, so that what lies around the retina has no part of a score
)
BATCH = 32  # eyes graded at a time


class Metrics(NamedTuple):
    """Of one batch: log(1 - kappa) of the probabilities, and kappa of the likeliest grades."""

    loss: Float[Array, ""]
    qwk: Float[Array, ""]


class Outputs(NamedTuple):
    """What the network says of eyes.

    Attributes:
        features: The output of avg_pool, 64 numbers at full width.
        probabilities: Of each grade.
    """

    features: Float[np.ndarray, "N D"]
    probabilities: Float[np.ndarray, "N C"]


def balanced_batch(grades: Int[np.ndarray, " N"], count: int, seed: int, step: int) -> Int[np.ndarray, " B"]:
    """Indices of one batch: a grade by chance, all that occur alike, then an eye of that grade, with replacement.

    Args:
        grades: Of all eyes.
        count: Size of the batch.
        seed: Of the training.
        step: The batch depends on its number alone, so that a resumed training draws the same.

    Source: de la Torre, Valls, Puig 2020 (arXiv 1712.08107), training: classes equalised by sampling.
    """
    draw = np.random.default_rng((seed, step))
    members = [np.flatnonzero(grades == grade) for grade in np.unique(grades)]
    return np.array([draw.choice(members[which]) for which in draw.integers(len(members), size=count)])


def augment(key: Key[Array, ""], images: UInt8[Array, "N S S 3"]) -> Float[Array, "N S S 3"]:
    """Rotate by any angle, mirror at random, and change brightness and contrast; pixels stay in 0-255.

    An image x becomes m + c (b x - m), with brightness b from 0.85 to 1.15, contrast c from 0.8 to 1.2 and m the mean of b x.
    Corners that turn in are black.

    Source: de la Torre, Valls, Puig 2020 (arXiv 1712.08107), training.
    """
    angles, mirrors, lights, contrasts = jax.random.split(key, 4)
    count, size = images.shape[:2]
    angle = jax.random.uniform(angles, (count,), maxval=2 * jnp.pi)
    mirror = jnp.where(jax.random.bernoulli(mirrors, 0.5, (count,)), -1.0, 1.0)
    light = jax.random.uniform(lights, (count, 1, 1, 1), minval=0.85, maxval=1.15)
    contrast = jax.random.uniform(contrasts, (count, 1, 1, 1), minval=0.8, maxval=1.2)
    middle = (size - 1) / 2
    x, y = jnp.meshgrid(*2 * [jnp.arange(size) - middle])

    def turn(
        image: Float[Array, "S S 3"], angle: Float[Array, ""], mirror: Float[Array, ""]
    ) -> Float[Array, "S S 3"]:
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        rows, columns = middle + sin * mirror * x + cos * y, middle + cos * mirror * x - sin * y
        return _bilinear(image, rows, columns)

    turned = jax.vmap(turn)(images.astype(jnp.float32), angle, mirror) * light
    mean = turned.mean((1, 2, 3), keepdims=True)
    return jnp.clip(mean + contrast * (turned - mean), 0.0, 255.0)


def _bilinear(
    image: Float[Array, "H W C"], rows: Float[Array, "A B"], columns: Float[Array, "A B"]
) -> Float[Array, "A B C"]:
    """The image between its pixels; black outside."""
    height, width = image.shape[:2]
    top, left = jnp.floor(rows), jnp.floor(columns)
    total = jnp.zeros((*rows.shape, image.shape[2]))
    for down in (0, 1):
        for right in (0, 1):
            i, j = (top + down).astype(int), (left + right).astype(int)
            weight = (1 - jnp.abs(rows - top - down)) * (1 - jnp.abs(columns - left - right))
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            pixel = image[jnp.clip(i, 0, height - 1), jnp.clip(j, 0, width - 1)]
            total = total + jnp.where(inside, weight, 0.0)[..., None] * pixel
    return total


def train_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    images: UInt8[Array, "N S S 3"],
    grades: Int[Array, " N"],
    key: Key[Array, ""],
) -> tuple[TrainState, Metrics]:
    """One step on the QWK loss of an augmented batch.

    Args:
        module: The grader, stopped at pre_softmax.
        optimizer: Such as of `training.make_optimizer`.
        state: Before the step.
        images: Trimmed eyes.
        grades: Theirs.
        key: Of the training; the augmentation is drawn from it folded with the step.
    """
    inputs = preprocess(augment(jax.random.fold_in(key, state.step), images), PREPROCESSING)

    def loss_of(params: Any) -> tuple[Array, tuple[Any, Array]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = module.apply(variables, inputs, True, mutable=["batch_stats"])
        loss = qwk_loss(jax.nn.softmax(logits), grades)  # pyright: ignore[reportArgumentType]
        return loss, (updates["batch_stats"], logits)  # pyright: ignore[reportReturnType]

    state, loss, logits = descend(loss_of, optimizer, state)
    likeliest = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])
    return state, Metrics(loss, 1 - jnp.exp(qwk_loss(likeliest, grades)))


def train(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    images: UInt8[np.ndarray, "N S S 3"],
    grades: Int[np.ndarray, " N"],
    folder: Path,
    *,
    seed: int,
    steps: int,
    batch_size: int,
    log_every: int,
    save_every: int,
) -> TrainState:
    """Train from scratch, or go on, see `training.train`.

    Args:
        module: The grader, stopped at pre_softmax.
        optimizer: Such as of `training.make_optimizer`.
        images: Trimmed eyes, which may lie on disk (`np.memmap`).
        grades: Theirs, 0 to 4.
        folder: Of this training only.
        seed: Of weights, batches and augmentation.
        steps: Length of the training.
        batch_size: Eyes a step.
        log_every: Steps between the rows of the curve.
        save_every: Steps between checkpoints.

    Raises:
        FloatingPointError: The loss is not finite; names the step.
    """
    key = jax.random.key(seed)
    step = jit(partial(train_step, module, optimizer), donate_argnums=0)

    def next_state(state: TrainState, number: int) -> tuple[TrainState, Metrics]:
        chosen = np.sort(balanced_batch(grades, batch_size, seed, number))
        return step(state, images[chosen], grades[chosen], jax.random.fold_in(key, 1))

    return training.train(
        next_state,
        initial_state(module, optimizer, jax.random.fold_in(key, 0), images.shape[1]),
        folder,
        steps=steps,
        batch_size=batch_size,
        log_every=log_every,
        save_every=save_every,
    )


def grade_eyes(module: Any, variables: Any, images: UInt8[np.ndarray, "N S S 3"], label: str = "") -> Outputs:
    """Grade eyes in batches.

    Args:
        module: The grader, whatever it is stopped at.
        variables: Its weights.
        images: Trimmed eyes, which may lie on disk.
        label: Of the progress bar.
    """
    pooled = jit(module.clone(last=WHOLE).apply)
    variables = jax.device_put(variables)
    found = []
    for start in tqdm(range(0, len(images), BATCH), desc=label, unit="batch"):
        batch = np.asarray(images[start : start + BATCH])
        whole = np.pad(batch, ((0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
        found.append(
            np.asarray(pooled(variables, preprocess(jnp.asarray(whole), PREPROCESSING)))[: len(batch)]
        )
    features = np.concatenate(found)
    head = jax.device_get(variables["params"]["pre_softmax"])
    logits = features.astype(np.float64) @ head["kernel"] + head["bias"]
    return Outputs(features, np.asarray(jax.nn.softmax(logits, axis=-1)))
