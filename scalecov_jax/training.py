"""Training of networks from scratch that an interruption does not change: checkpoints, a curve, the same bits after a resume."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import linen as nn
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from scalecov_jax import checkpoints
from scalecov_jax.atomic import replacing
from scalecov_jax.compilation import jit
from scalecov_jax.models.architecture import get_architecture
from scalecov_jax.models.preprocessing import Preprocessing
from scalecov_jax.models.receptive_field import check_size
from scalecov_jax.settings import Base, setting
from scalecov_jax.states import newest_state, write_state


@dataclass(frozen=True)
class TrainingSettings(Base):
    """What determines a training; the defaults suit InceptionV3 at a quarter of its width on scenes."""

    architecture: str = setting("inception_v3", help="Its module must have the fields width and classes.")
    width: float = setting(0.25, help="Multiplier of all filter counts, more than 0.")
    size: int = setting(128, low=1, help="Height and width of the images, in pixels.")
    batch_size: int = setting(32, low=1, help="Images a step.")
    steps: int = setting(12_000, low=1, help="Length of the training.")
    learning_rate: float = setting(2e-3, help="The largest, more than 0; it falls along a cosine to 0.")
    warmup: int = setting(300, low=0, help="Steps in which the learning rate rises to it, fewer than steps.")
    weight_decay: float = setting(0.02, low=0, help="Of AdamW.")
    seed: int = setting(0, low=0, help="Of weights, images and batches.")
    log_every: int = setting(50, low=1, help="Steps between the rows of curve.csv.")
    save_every: int = setting(250, low=1, help="Steps between checkpoints.")

    def problems(self) -> list[str]:
        """A width or learning rate of 0, and a warm-up that does not end."""
        positive = {"width": self.width, "learning_rate": self.learning_rate}
        problems = [
            f"{name} is {value}; expected more than 0" for name, value in positive.items() if value <= 0
        ]
        if self.warmup >= self.steps:
            problems.append(f"warmup is {self.warmup}, but steps {self.steps}; expected fewer")
        return problems


class TrainState(NamedTuple):
    """Everything that an interrupted training needs to go on with the same bits."""

    params: Any
    batch_stats: Any
    optimizer: optax.OptState
    step: Int[Array, ""]

    @property
    def variables(self) -> dict[str, Any]:
        """Of the network, as NumPy arrays."""
        return jax.device_get({"params": self.params, "batch_stats": self.batch_stats})


def classifier(settings: TrainingSettings, classes: int) -> nn.Module:
    """The network to train, stopped at its logits.

    Raises:
        ValueError: The architecture is unknown or without the fields that are set, or the images are too small for it.
    """
    architecture = get_architecture(settings.architecture)
    fields = architecture.module.__dataclass_fields__
    if missing := [field for field in ("width", "classes") if field not in fields]:
        raise ValueError(
            f"{architecture.name} cannot be trained here: its module has no field {' and '.join(missing)}."
        )
    module = architecture.module(width=settings.width, classes=classes, last="pre_softmax")
    check_size(module, settings.size, [architecture.trunk], architecture.name)
    return module


def make_optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    """AdamW with linear warm-up, cosine decay to zero and gradients clipped to norm 1."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.warmup, settings.steps
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=settings.weight_decay)
    )


def initial_state(module: nn.Module, settings: TrainingSettings) -> TrainState:
    """A freshly initialised network."""
    key = jax.random.fold_in(jax.random.key(settings.seed), 0)
    variables = jit(module.init)(key, jnp.zeros((1, settings.size, settings.size, 3)))
    return TrainState(
        variables["params"],
        variables.get("batch_stats", {}),
        make_optimizer(settings).init(variables["params"]),
        jnp.zeros((), jnp.int32),
    )


def descend(
    module: nn.Module,
    settings: TrainingSettings,
    state: TrainState,
    images: Float[Array, "N S S 3"],
    loss: Callable[[Float[Array, "N C"]], Float[Array, ""]],
) -> tuple[TrainState, Float[Array, ""], Float[Array, "N C"]]:
    """One step of the optimiser on a loss of the logits of a batch of preprocessed images; the module is stopped at them.

    Returns:
        The state after the step, and the loss and the logits before it.
    """

    def loss_of(params: Any) -> tuple[Array, tuple[Any, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits: Any
        logits, updates = module.apply(variables, images, True, mutable=["batch_stats"])
        return loss(logits), (updates.get("batch_stats", {}), logits)

    (value, (batch_stats, logits)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, optimizer = make_optimizer(settings).update(gradient, state.optimizer, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    return TrainState(params, batch_stats, optimizer, state.step + 1), value, logits


def train(
    step: Callable[[TrainState, int], tuple[TrainState, Any]],
    module: nn.Module,
    folder: Path,
    settings: TrainingSettings,
) -> tuple[TrainState, pd.DataFrame]:
    """Train to the end, or go on from the last state in `folder`: the bits are those of an unbroken training.

    Writes `folder/states` (every `save_every` steps; see `states.write_state`), which hold the curve so far, whose clock goes on
    too, and `folder/curve.csv` (every `log_every` steps), to look at while it trains.

    `step` makes of a state and the number of the step, from 1, the next state and its metrics: a NamedTuple of scalars, `loss`
    the first; their means over the steps between are the columns of the curve. All that it draws depends on the number. It knows
    the weight decay and the warm-up, which are not read here.

    Returns:
        The last state, and the curve: step, images, the metrics, seconds.

    Raises:
        ValueError: The states in `folder` are of another training, or one cannot be written.
        FloatingPointError: The loss is not finite; names the step.
    """
    steps, size, state = settings.steps, settings.batch_size, initial_state(module, settings)
    stored = newest_state(folder / "states", lambda _: state)
    rows: list[dict[str, float]] = stored.facts["curve"] if stored else []
    if stored:
        state = jax.device_put(stored.tree)
    start = time.monotonic() - (stored.facts["seconds"] if stored else 0.0)
    first, window = int(state.step), []
    with tqdm(total=steps * size, initial=first * size, unit="img") as bar:
        for number in range(first + 1, steps + 1):
            state, metrics = step(state, number)
            window.append(metrics)
            bar.update(size)
            if number % settings.log_every == 0 or number == steps:
                means = [round(mean, 4) for mean in np.mean(jax.device_get(window), axis=0).tolist()]
                row = {
                    "step": number,
                    "images": number * size,
                    **dict(zip(metrics._fields, means, strict=True)),
                }
                if not np.isfinite(row["loss"]):
                    raise FloatingPointError(
                        f"The loss is {row['loss']} at step {number}; lower the learning rate."
                    )
                rows.append({**row, "seconds": round(time.monotonic() - start, 1)})
                with replacing(folder / "curve.csv") as partial:
                    pd.DataFrame(rows).to_csv(partial, index=False, lineterminator="\n")
                bar.set_postfix({name: f"{row[name]:.3f}" for name in metrics._fields})
                window = []
            if number % settings.save_every == 0 or number == steps:
                noted = {"curve": rows, "seconds": time.monotonic() - start}
                write_state(folder / "states", number, state, noted)
    return state, pd.DataFrame(rows)


def save_network(
    variables: Any,
    settings: TrainingSettings,
    folder: Path,
    *,
    class_names: tuple[str, ...],
    preprocessing: Preprocessing,
    origin: str,
    **notes: Any,
) -> None:
    """Write what was trained to `folder/network`, in place of what an earlier sitting left there; see `checkpoints.Card`."""
    options = {"width": settings.width, "classes": len(class_names)}
    notes["images_seen"] = settings.steps * settings.batch_size
    card = checkpoints.Card(
        settings.architecture, options, preprocessing, settings.size, origin, class_names=class_names, notes=notes
    )  # fmt: skip
    checkpoints.save(folder / "network", checkpoints.network(variables, card), overwrite=True)
