"""Training of the grader of diabetic retinopathy: balanced batches of prepared eyes, augmented on the device, QWK loss."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, UInt8
from tqdm import tqdm

from scalecov_jax import training
from scalecov_jax.compilation import jit
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.models.preprocessing import Preprocessing, preprocess
from scalecov_jax.training import TrainingSettings, TrainState, descend

# Black is zero, so that what lies around the retina has no part of a score.
PREPROCESSING: Preprocessing = "unit"
BATCH = 32  # eyes graded at a time
TINY = 1e-7  # of the observed disagreement: a batch that is graded perfectly has a finite loss


class Metrics(NamedTuple):
    """Of one batch: log(1 - kappa) of the probabilities, and kappa of the likeliest grades."""

    loss: Float[Array, ""]
    qwk: Float[Array, ""]


def qwk_loss(probabilities: Float[Array, "N C"], grades: Int[Array, " N"]) -> Float[Array, ""]:
    """The loss log(1 - kappa) of a batch on soft counts.

    With omega_ij = (i - j)^2 / (C - 1)^2, N_i images of grade i and probabilities p_kj: log N - log D, where
    N = sum_k sum_j omega_{t_k j} p_kj and D = sum_i (N_i / N) sum_j omega_ij sum_k p_kj.

    A grade that the batch lacks adds nothing to D and nothing is divided by its number. D is 0 only where all images have
    one grade and all predictions are certain of it; N is then 0 too. One rule covers all of it: 1e-7 an image is added to N and
    to D, so that the loss is 0 there and finite everywhere.

    Source: de la Torre, Valls, Puig 2020 (arXiv 1712.08107), the QWK loss.
    """
    count, classes = probabilities.shape
    index = jnp.arange(classes, dtype=probabilities.dtype)
    weights = (index[:, None] - index[None]) ** 2 / (classes - 1) ** 2
    observed = (weights[grades] * probabilities).sum()
    share = (grades[:, None] == jnp.arange(classes)[None]).mean(0, dtype=probabilities.dtype)
    expected = share @ weights @ probabilities.sum(0)
    return jnp.log(observed + TINY * count) - jnp.log(expected + TINY * count)


def balanced_batch(grades: Int[np.ndarray, " N"], count: int, seed: int, step: int) -> Int[np.ndarray, " B"]:
    """Indices of one batch: a grade by chance, all that occur alike, then an eye of that grade, with replacement.

    The batch depends on the number of the step alone, so that a resumed training draws the same.

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
    settings: TrainingSettings,
    state: TrainState,
    images: UInt8[Array, "N S S 3"],
    grades: Int[Array, " N"],
    key: Key[Array, ""],
) -> tuple[TrainState, Metrics]:
    """One step on the QWK loss of a batch, augmented by the key folded with the step; the module stops at pre_softmax."""
    inputs = preprocess(augment(jax.random.fold_in(key, state.step), images), PREPROCESSING)
    state, loss, logits = descend(
        module, settings, state, inputs, lambda logits: qwk_loss(jax.nn.softmax(logits), grades)
    )
    likeliest = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])
    return state, Metrics(loss, 1 - jnp.exp(qwk_loss(likeliest, grades)))


def train(
    module: nn.Module,
    images: UInt8[np.ndarray, "N S S 3"],
    grades: Int[np.ndarray, " N"],
    folder: Path,
    settings: TrainingSettings,
) -> tuple[TrainState, pd.DataFrame]:
    """Train from scratch, or go on, see `training.train`.

    Images, and their grades from 0 to 4, may lie on disk (`np.memmap`); the module stops at pre_softmax.

    Raises:
        FloatingPointError: The loss is not finite; names the step.
    """
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    step = jit(partial(train_step, module, settings), donate_argnums=0)

    def next_state(state: TrainState, number: int) -> tuple[TrainState, Metrics]:
        chosen = np.sort(balanced_batch(grades, settings.batch_size, settings.seed, number))
        return step(state, images[chosen], grades[chosen], key)

    return training.train(next_state, module, folder, settings)


def eye_features(
    module: Any, variables: Any, images: UInt8[np.ndarray, "N S S 3"], label: str = ""
) -> Float[np.ndarray, "N D"]:
    """The output of avg_pool, 64 numbers at full width, of a grader whatever it is stopped at; images may lie on disk."""
    pooled = jit(module.clone(last=WHOLE).apply)
    variables = jax.device_put(variables)
    parts = []
    for start in tqdm(range(0, len(images), BATCH), desc=label, unit="batch"):
        batch = np.asarray(images[start : start + BATCH])
        whole = np.pad(batch, ((0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
        pixels = preprocess(jnp.asarray(whole), PREPROCESSING)
        parts.append(np.asarray(pooled(variables, pixels))[: len(batch)])
    return np.concatenate(parts)


def grade_probabilities(variables: Any, features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N C"]:
    """The probability of each grade from the features of avg_pool."""
    head = jax.device_get(variables["params"]["pre_softmax"])
    logits = features.astype(np.float64) @ head["kernel"] + head["bias"]
    return np.asarray(jax.nn.softmax(logits, axis=-1))
