"""Fine-tuning a whole or a pruned network, with a linear head, for the mean nucleus area of a patch or for one of two classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from scalecov_jax.atomic import replacing
from scalecov_jax.checkpoints import Network
from scalecov_jax.compilation import jit
from scalecov_jax.imaging.batching import Reordered, batches
from scalecov_jax.imaging.image_set import Skipped, Source
from scalecov_jax.models.layers import MOMENTUM, global_average_pool, patch_maps
from scalecov_jax.models.preprocessing import Preprocessing, preprocess
from scalecov_jax.states import newest_state, write_state
from scalecov_jax.training import TrainState

Loss = Literal["squared_error", "sigmoid_cross_entropy"]
LOG_EVERY = 10  # steps between looks at the loss


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune; as published 5 epochs, batch 32, Adam 1e-4, targets in pixels, raw inputs, running statistics."""

    epochs: int = 5  # passes over the training patches; the last one is evaluated
    # patches a step, over all devices; the rest of an epoch that fills no batch is left out
    batch_size: int = 32
    learning_rate: float = 1e-4  # of Adam, constant
    # regress pixels as they are (the published way: slow, as the head must grow to hundreds), or standardised by the training
    # part and predicted back in pixels
    targets: Literal["pixels", "standardised"] = "pixels"
    # statistics used for prediction: the running ones (published), or averages over one more pass through the training patches
    # with the final weights, which short trainings need; or `frozen`: the normalisation is that of the weights from beginning
    # to end
    batch_norm: Literal["running", "recomputed", "frozen"] = "running"
    # squared error; or the cross-entropy of two classes, 0 and 1, whose logit the head then gives
    loss: Loss = "squared_error"


class Regressor(NamedTuple):
    """What of the fitted function is not learnt: area = offset + scale head(pool(trunk(preprocess(image))))."""

    trunk: nn.Module  # network stopped after the layer of the cut
    preprocessing: Preprocessing  # of the images
    loss: Loss = "squared_error"  # see `Recipe`


class Units(NamedTuple):
    """Mean and scale of the areas in pixels: those of the training part, or 0 and 1."""

    offset: Float[Array, ""]
    scale: Float[Array, ""]


class Fitted(NamedTuple):
    """A fine-tuned network."""

    params: Any  # of trunk and head
    batch_stats: Any  # used for prediction
    predicted: Float[np.ndarray, " n"]  # area of every held-out patch, in pixels; or its logit
    # epoch, training MSE (px^2) and held-out MAE (px), which chose nothing; or training cross-entropy (nats) and share of
    # held-out patches whose class is wrong
    curve: tuple[tuple[int, float, float], ...]
    units: Units  # of the areas


def fine_tune(
    network: Network,
    source: Source,
    areas: Float[np.ndarray, " N"],
    train: Int[np.ndarray, " n"],
    test: Int[np.ndarray, " m"],
    folder: Path,
    *,
    size: int,
    seed: int,
    recipe: Recipe,
    preprocessing: Preprocessing | None = None,
    progress: str | None = None,
) -> Fitted:
    """Train all weights to the end, or go on from the last state in `folder`: the bits are those of an unbroken training.

    Data-parallel over all devices: the batch is split, the batch normalisation sees all of it. A state is written after every
    epoch; a damaged one is set aside with a warning and the one before it is taken, see `states.newest_state`.

    The network starts stopped after the layer of the cut (its head, if it has one, is not used). Areas are the mean nucleus area
    of each patch in pixels, or its class, 0 or 1; `train` and `test` are indices of patches of `size` pixels;
    `preprocessing` replaces that of the network's card: `raw` is the published way.

    Raises:
        ValueError: A state in `folder` of another training, areas that are not finite, too few patches for one batch, a batch
            that the devices cannot share, or a patch that cannot be decoded.
        FloatingPointError: The loss is not finite; names the step.

    Source: Graziani et al. 2021, section 3.1 and the authors' notebook.
    """
    _check(areas, train, test, recipe)
    classes = recipe.loss == "sigmoid_cross_entropy"
    standardise = recipe.targets == "standardised"
    regressor = Regressor(network.module, preprocessing or network.card.preprocessing, recipe.loss)
    units = Units(
        jnp.float32(areas[train].mean() if standardise else 0.0),
        jnp.float32(areas[train].std() if standardise else 1.0),
    )
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    state = initial_state(network, recipe.learning_rate, seed)
    stored = newest_state(folder / "states", lambda _: state)
    done = stored.number if stored else 0
    state = jax.device_put(stored.tree if stored else state, everywhere)
    steps = len(train) // recipe.batch_size
    curve: list[Any] = [tuple(row) for row in stored.facts["curve"]] if stored else []

    def stream(order: np.ndarray) -> Any:
        unreadable: list[Skipped] = []
        for batch in batches(Reordered(source, order), size, recipe.batch_size, unreadable):
            if unreadable:
                raise ValueError(f"{unreadable[0].name}: {unreadable[0].detail}")
            yield batch

    shown: Any = {"desc": progress, "unit": "step", "disable": progress is None}
    with tqdm(total=recipe.epochs * steps, initial=done * steps, **shown) as bar:
        for epoch in range(done + 1, recipe.epochs + 1):
            order = np.random.default_rng((seed, epoch)).permutation(train)[: steps * recipe.batch_size]
            losses: list[Any] = []
            for number, batch in enumerate(stream(order), start=(epoch - 1) * steps + 1):
                images, targets = jax.device_put(
                    (batch.images, areas[order[batch.indices]].astype(np.float32)), split
                )
                state, loss = _train_step(
                    regressor,
                    recipe.learning_rate,
                    recipe.batch_norm == "frozen",
                    state,
                    units,
                    images,
                    targets,
                )
                losses.append(loss)
                bar.update()
                if number % LOG_EVERY == 0 or number == epoch * steps:
                    _check_losses(losses, (epoch - 1) * steps, epoch, folder)
                    bar.set_postfix(loss=f"{np.mean(jax.device_get(losses[-LOG_EVERY:])):.3g}")
            held_out = _predict(regressor, state.params, state.batch_stats, units, stream(test), split)
            error = (held_out > 0) != (areas[test] > 0.5) if classes else np.abs(held_out - areas[test])
            mae = float(error.mean())
            curve.append((epoch, float(np.mean(jax.device_get(losses))), mae))
            columns = ("cross_entropy", "test_wrong") if classes else ("train_mse", "test_mae")
            with replacing(folder / "curve.csv") as partly:
                pd.DataFrame(curve, columns=["epoch", *columns]).to_csv(partly, index=False)
            write_state(folder / "states", epoch, state, {"curve": curve})
    batch_stats = state.batch_stats
    if recipe.batch_norm == "recomputed":
        batch_stats = _recompute(regressor, state, units, stream(train[: steps * recipe.batch_size]), split)
    predicted = _predict(regressor, state.params, batch_stats, units, stream(test), split)
    if not np.isfinite(predicted).all():
        raise FloatingPointError(
            f"Predictions after the last step are not finite ({folder}); lower the learning rate."
        )
    params, batch_stats = jax.device_get((state.params, batch_stats))
    return Fitted(params, batch_stats, predicted, tuple(curve), jax.device_get(units))


def initial_state(network: Network, learning_rate: float, seed: int) -> TrainState:
    """The weights of a network and a new head: Glorot uniform kernel, bias 0, as Keras draws it."""
    trunk = network.variables
    images = jax.ShapeDtypeStruct((1, network.card.input_size, network.card.input_size, 3), jnp.float32)
    maps: Any = jax.eval_shape(network.module.apply, trunk, images)
    kernel = jax.nn.initializers.glorot_uniform()(jax.random.key(seed), (maps.shape[-1], 1))
    params = {"trunk": trunk["params"], "head": {"kernel": kernel[:, 0], "bias": jnp.zeros(())}}
    # Copies: the training step overwrites its state in place.
    params, stats = jax.tree.map(jnp.array, (params, trunk.get("batch_stats", {})))
    return TrainState(params, stats, optax.adam(learning_rate).init(params), jnp.zeros((), jnp.int32))


def predict_areas(
    regressor: Regressor, params: Any, batch_stats: Any, units: Units, images: UInt8[Array, "N H W 3"]
) -> Float[Array, " N"]:
    """Mean nucleus area in pixels with the given statistics of the batch normalisation."""
    return _apply(regressor, params, batch_stats, units, images, False)[0]


def _apply(
    regressor: Regressor,
    params: Any,
    batch_stats: Any,
    units: Units,
    images: UInt8[Array, "N H W 3"],
    train: bool,
) -> tuple[Float[Array, " N"], Any]:
    variables = {"params": params["trunk"], "batch_stats": batch_stats}
    inputs = preprocess(images, regressor.preprocessing)
    if train:
        maps, updates = regressor.trunk.apply(variables, inputs, True, mutable=["batch_stats"])
        batch_stats = updates.get("batch_stats", batch_stats)
    else:
        maps: Any = regressor.trunk.apply(variables, inputs)
    head = params["head"]
    maps = patch_maps(regressor.trunk, maps, images.shape[1:3])  # pyright: ignore[reportArgumentType]
    output = global_average_pool(maps) @ head["kernel"] + head["bias"]  # pyright: ignore[reportArgumentType]
    return units.offset + units.scale * output, batch_stats


@partial(jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _train_step(
    regressor: Regressor,
    learning_rate: float,
    frozen: bool,
    state: TrainState,
    units: Units,
    images: UInt8[Array, "B H W 3"],
    areas: Float[Array, " B"],
) -> tuple[TrainState, Float[Array, ""]]:
    """One step on the squared error in units of `units.scale`, returned in px^2; or on the cross-entropy, in nats."""

    def loss_of(params: Any) -> tuple[Array, tuple[Array, Any]]:
        predicted, stats = _apply(regressor, params, state.batch_stats, units, images, not frozen)
        if regressor.loss == "sigmoid_cross_entropy":
            entropy = optax.sigmoid_binary_cross_entropy(predicted, areas).mean()
            return entropy, (entropy, stats)
        error = jnp.square(predicted - areas).mean()
        return error / units.scale**2, (error, stats)

    (_, (error, stats)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, optimizer_state = optax.adam(learning_rate).update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, stats, optimizer_state, state.step + 1), error


_predict_batch = jit(predict_areas, static_argnums=0)


@partial(jit, static_argnums=0)
def _batch_statistics(
    regressor: Regressor, params: Any, stats: Any, units: Units, images: UInt8[Array, "B H W 3"]
) -> Any:
    return _apply(regressor, params, stats, units, images, True)[1]


def _predict(
    regressor: Regressor, params: Any, batch_stats: Any, units: Units, stream: Any, split: NamedSharding
) -> Float[np.ndarray, " n"]:
    parts = []
    for batch in stream:
        predicted = _predict_batch(regressor, params, batch_stats, units, jax.device_put(batch.images, split))
        parts.append(np.asarray(predicted)[batch.valid])
    return np.concatenate(parts).astype(float)


def _recompute(
    regressor: Regressor, state: TrainState, units: Units, stream: Any, split: NamedSharding
) -> Any:
    """Average of the statistics of training batches: those of a batch follow from one update of zeros by 1 - momentum."""
    zeros = jax.tree.map(jnp.zeros_like, state.batch_stats)
    total, count = zeros, 0
    for batch in stream:
        stats = _batch_statistics(regressor, state.params, zeros, units, jax.device_put(batch.images, split))
        total, count = jax.tree.map(jnp.add, total, stats), count + 1
    return jax.tree.map(lambda values: values / (count * (1 - MOMENTUM)), total)


def _check(areas: np.ndarray, train: Sequence[int] | np.ndarray, test: np.ndarray, recipe: Recipe) -> None:
    used = np.concatenate([train, test])
    if recipe.loss == "sigmoid_cross_entropy" and (
        recipe.targets != "pixels" or not np.isin(areas[used], (0, 1)).all() or len(set(areas[train])) < 2
    ):
        raise ValueError(
            f"Classes are {sorted(set(areas[used]))[:5]} with targets={recipe.targets!r}; expected 0 and 1, both in the training "
            "part, and targets='pixels', which takes them as they are."
        )
    if bad := [int(index) for index in used if not np.isfinite(areas[index])]:
        raise ValueError(f"{len(bad)} areas are not finite, of patches {bad[:5]}; leave these patches out.")
    if recipe.batch_size % jax.device_count():
        raise ValueError(
            f"batch_size is {recipe.batch_size}; expected a multiple of the {jax.device_count()} devices."
        )
    if len(train) < recipe.batch_size or not len(test):
        raise ValueError(
            f"{len(train)} training and {len(test)} held-out patches; expected at least one batch of "
            f"{recipe.batch_size} and one patch. Lower config.batch_size or add images."
        )


def _check_losses(losses: Sequence[Any], before: int, epoch: int, folder: Path) -> None:
    finite = np.isfinite(jax.device_get(losses[-LOG_EVERY:]))
    if not finite.all():
        step = before + len(losses) - len(finite) + int(np.argmin(finite)) + 1
        raise FloatingPointError(
            f"The loss is not finite at step {step} (epoch {epoch}) of {folder}; lower the learning rate. The checkpoints of "
            "the epochs before are kept."
        )
