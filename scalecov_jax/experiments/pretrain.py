"""Train a network on scenes of random object size, so that it learns invariance to size: settings, training, tables, report."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from scalecov_jax import training
from scalecov_jax.checkpoints import Network
from scalecov_jax.compilation import jit
from scalecov_jax.imaging import scenes
from scalecov_jax.models.preprocessing import Preprocessing, preprocess
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.model_card import curve_image
from scalecov_jax.report.page import Page, Section, Table, render_text
from scalecov_jax.settings import setting
from scalecov_jax.training import TrainingSettings, TrainState, descend

PREPROCESSING: Preprocessing = "tf"
BATCH = 128  # scenes of the final test at a time


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """What determines the results."""

    held_out: int = setting(8192, low=1, help="Scenes of the final test.")


def check(settings: Settings) -> dict[str, Network]:
    """No network is opened.

    Raises:
        ValueError: See `training.classifier`.
    """
    training.classifier(settings, len(scenes.CLASSES))
    return {}


def run(settings: Settings, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Train and test a network, and write it to `folder/network`.

    An interrupted training goes on in the folder; see `training.train`.

    Returns:
        curve (loss and top1 of the training batches), see `training.train`; held_out, see `held_out_accuracy`.

    Raises:
        FloatingPointError: The loss is not finite.
    """
    if folder is None:
        with TemporaryDirectory() as temporary:
            return run(settings, Path(temporary))
    module = training.classifier(settings, len(scenes.CLASSES))
    state, curve = train(module, folder, settings)
    variables = state.variables
    accuracy = held_out_accuracy(module, variables, settings)
    facts = {"class_names": scenes.CLASSES, "preprocessing": PREPROCESSING}
    facts |= {"origin": "trained on scenes by scripts/pretrain.py"}
    training.save_network(variables, settings, folder, **facts, held_out_top1=float(accuracy["top1"].iloc[0]))
    return {"curve": curve, "held_out": accuracy}


def report(settings: Settings, tables: Mapping[str, pd.DataFrame], folder: Path | None = None) -> Page:
    """Held-out accuracy, of all scenes and by the size of the object, and the curve of the training."""
    held_out = tables["held_out"]
    rows = held_out.to_numpy().tolist()
    findings = []
    for ratio, top1, count in rows:
        at = f"{settings.architecture}, {'box ratio ' * (ratio != 'all')}{ratio}, {count:,} scenes"
        level = "headline" if ratio == "all" else "result"
        findings.append(Finding("held-out top-1", at, 100 * top1, unit="%", level=level))
    cells = [(ratio, f"{100 * top1:.1f} %", str(count)) for ratio, top1, count in rows]
    table = Table("Scenes never trained on.", ("box ratio", "top-1", "scenes"), cells)
    image = curve_image(tables["curve"], settings, "top-1", held_out["top1"].iloc[0])
    text = render_text("pretrain.html", "description", settings=settings, classes=len(scenes.CLASSES))
    title = f"{settings.architecture}, trained on scenes"
    reading = render_text("pretrain.html", "reading")
    return Page(title, findings, [Section("Training", "", [image], [table], text)], reading)


# Training


class Metrics(NamedTuple):
    """Of one batch: mean cross-entropy in nats, and the share of images whose likeliest class is the true one."""

    loss: Float[Array, ""]
    top1: Float[Array, ""]


def smallest_ratio(step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    """Curriculum: the smallest object falls from a ratio of 0.3 to `scenes.SMALLEST` in the first quarter, log-linearly."""
    progress = jnp.minimum(1.0, step / (0.25 * steps))
    return jnp.exp((1 - progress) * jnp.log(0.3) + progress * jnp.log(scenes.SMALLEST))


def train_step(
    module: nn.Module, settings: TrainingSettings, state: TrainState, key: Key[Array, ""]
) -> tuple[TrainState, Metrics]:
    """Render a batch of scenes, drawn from the key folded with the step, and take one step on its cross-entropy."""
    smallest = smallest_ratio(state.step, settings.steps)
    draw = jax.random.fold_in(key, state.step)
    images, labels, _ = scenes.draw(draw, settings.batch_size, settings.size, smallest)

    def cross_entropy(logits: Float[Array, "N C"]) -> Float[Array, ""]:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    state, loss, logits = descend(module, settings, state, preprocess(images, PREPROCESSING), cross_entropy)
    return state, Metrics(loss, jnp.mean(logits.argmax(-1) == labels))


def train(module: nn.Module, folder: Path, settings: TrainingSettings) -> tuple[TrainState, pd.DataFrame]:
    """Train on scenes from scratch, or go on, see `training.train`."""
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    step = jit(partial(train_step, module, settings), donate_argnums=0)
    return training.train(lambda state, _: step(state, key), module, folder, settings)


def held_out_accuracy(module: nn.Module, variables: Any, settings: Settings) -> pd.DataFrame:
    """Top-1 accuracy on scenes never trained on.

    The scenes come from a key that the training does not use (it draws from `fold_in(key, 1)`).

    Returns:
        Columns ratio (all, or the limits of the object's share of the image), top1 and scenes, their number.
    """
    batch = jit(partial(_classify, module, size=settings.size))
    key, count = jax.random.fold_in(jax.random.key(settings.seed), 2), settings.held_out
    results = [batch(variables, jax.random.fold_in(key, number)) for number in range(-(-count // BATCH))]
    correct, ratio = (np.concatenate(values)[:count] for values in zip(*jax.device_get(results), strict=True))
    edges = np.geomspace(scenes.SMALLEST, scenes.LARGEST, 6)
    names = np.array([f"{low:.3f}-{high:.3f}" for low, high in itertools.pairwise(edges)])
    parts = names[np.digitize(ratio, edges[1:-1])]
    frame = pd.DataFrame(
        {"ratio": ["all"] * count + parts.tolist(), "top1": np.tile(correct, 2).astype(float)}
    )
    groups = frame.groupby("ratio")["top1"].agg(top1="mean", scenes="size")
    return groups.loc[[name for name in ("all", *names) if name in groups.index]].reset_index()


def _classify(
    module: nn.Module, variables: Any, key: Key[Array, ""], *, size: int
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Whether each image of a batch is classified correctly (0 or 1), and its ratio."""
    images, labels, ratios = scenes.draw(key, BATCH, size)
    logits: Any = module.apply(variables, preprocess(images, PREPROCESSING))
    return (logits.argmax(-1) == labels).astype(jnp.float32), ratios
