"""Linear regression heads on the pooled features of a cut network, all seeds in one compiled call.

With X the rows of a batch, standardised once for all seeds, and m, s the mean and sd of X on the training part of a seed, a head
reads ((X - m) / s) k + b = X (k / s) + b - m . (k / s): the standardisation of a seed moves into its kernel and bias, so that
the batch meets the kernels of all seeds in one product and no array of shape R N D exists. Reading X from memory is the
cost, hence ten seeds cost hardly more than one; that asks for one order of the rows for all, weighed by each seed's mask.
Axis letters as elsewhere, and R seeds, E epochs, B rows of a batch.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key
from tqdm import tqdm

from scalecov_jax.compilation import jit
from scalecov_jax.probes import evaluate, ridge

AnyArray: TypeAlias = np.ndarray | Array
Mask: TypeAlias = Bool[AnyArray, "R N"] | Float[AnyArray, "R N"]
ORDER_SEED = 0
MOMENT_ROWS = 128


class Heads(NamedTuple):
    """Trained heads; predictions in px are features @ kernel.T + bias."""

    kernel: Float[Array, "R D"]  # in px a unit of the raw feature
    bias: Float[Array, " R"]  # in px
    # mean squared error in px^2 on the training rows of each epoch, measured batch by batch before each step
    losses: Float[Array, "R E"]


class Swept(NamedTuple):
    """Heads of all seeds on one layer; predictions in px are features @ kernel.T + bias."""

    kernel: Float[np.ndarray, "R D"]
    bias: Float[np.ndarray, " R"]
    alpha: Float[np.ndarray, " R"]  # penalties of ridge; 0 without one
    predicted: Float[np.ndarray, "R N"]  # of every row


def train_heads(
    features: Float[AnyArray, "N D"],
    targets: Float[AnyArray, " N"],
    train: Mask,
    seeds: Sequence[int],
    *,
    epochs: int = 50,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
) -> Heads:
    """Train one head a seed with Adam and cosine decay to zero on the squared error of standardised targets.

    Features and targets are standardised by the training part of each seed. The initial kernel is Glorot-uniform from the seed,
    the initial bias 0. The rows of all seeds come in one order, the same in every call, new in each epoch; what remains after
    the last full batch is left out of that epoch. In each batch the error of a seed is the mean over the rows of its part.

    A mask is one row a seed, 1 or True in its training part; other rows have no influence. Targets are in px. A weight moves by
    about learning_rate / 2 a step at most: few rows need more epochs. Of batches at most N rows are used.

    Raises:
        ValueError: Values that are not finite, a mask of other values than 0 and 1, a training part of fewer than two rows or
            with constant targets, another number of seeds than of masks, settings that are not positive.
        FloatingPointError: A loss overflowed.

    Source: Kingma and Ba 2015, Adam; Loshchilov and Hutter 2017, SGDR (the cosine); Glorot and Bengio 2010 (initial kernel).
    """
    x, y, mask = checked_arrays({"features": features}, targets, train, seeds)
    if min(epochs, batch_size, learning_rate) <= 0:
        raise ValueError(
            f"epochs, batch_size and learning_rate must be positive, got {epochs}, {batch_size}, {learning_rate}."
        )
    with jax.default_matmul_precision("highest"):
        heads = _train(
            jnp.asarray(x["features"], jnp.float32),
            jnp.asarray(y, jnp.float32),
            jnp.asarray(mask, jnp.float32),
            jnp.stack([jax.random.key(seed) for seed in seeds]),
            learning_rate,
            epochs=epochs,
            batch_size=min(batch_size, len(y)),
        )
    bad = np.argwhere(~np.isfinite(np.asarray(heads.losses)))
    if len(bad):
        row, epoch = bad[bad[:, 1].argmin()]
        raise FloatingPointError(
            f"The training loss of seed {seeds[row]} is not finite from epoch {epoch} of {epochs} on "
            f"({len(set(bad[:, 0]))} of {len(seeds)} seeds fail); lower the learning rate of {learning_rate}."
        )
    return heads


@partial(jit, static_argnames=("epochs", "batch_size"))
def _train(
    features: Float[Array, "N D"],
    targets: Float[Array, " N"],
    train: Float[Array, "R N"],
    keys: Key[Array, " R"],
    learning_rate: float | Float[Array, ""],
    *,
    epochs: int,
    batch_size: int,
) -> Heads:
    shared = ridge.standardisation(features, train.max(0))
    x = ridge.standardise(features, shared)
    mean, inverse = _moments(x, train, shared)
    goal = jax.vmap(ridge.standardisation, (None, 0))(targets[:, None], train)
    weight, y = train.T, ((targets[None] - goal.mean) / goal.scale * train).T
    steps = len(targets) // batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, epochs * steps))

    def fold(params: tuple[Array, Array]) -> tuple[Float[Array, "R D"], Float[Array, " R"]]:
        slope = params[0] * inverse
        return slope, params[1] - (mean * slope).sum(1)

    def loss(params: tuple[Array, Array], rows: Int[Array, " B"]) -> tuple[Array, tuple[Array, Array]]:
        slope, offset = fold(params)
        w = weight[rows]
        residual = (jnp.einsum("bd,rd->br", x[rows], slope) + offset[None]) * w - y[rows]
        error, count = jnp.square(residual).sum(0), w.sum(0)
        # The seeds share no parameter: the gradient of the sum is the gradient of each.
        return (error / jnp.maximum(count, 1.0)).sum(), (error, count)

    def step(state: tuple, rows: Int[Array, " B"]) -> tuple[tuple, tuple[Array, Array]]:
        params, moments = state
        gradient, sums = jax.grad(loss, has_aux=True)(params, rows)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), sums

    def epoch(state: tuple, key: Key[Array, ""]) -> tuple[tuple, Float[Array, " R"]]:
        order = jax.random.permutation(key, len(targets))[: steps * batch_size]
        state, (errors, counts) = jax.lax.scan(step, state, order.reshape(steps, batch_size))
        return state, errors.sum(0) / jnp.maximum(counts.sum(0), 1.0)

    initial = jax.vmap(lambda key: jax.nn.initializers.glorot_uniform()(key, (x.shape[1], 1))[:, 0])(keys)
    params = (initial, jnp.zeros(len(keys)))
    orders = jax.random.split(jax.random.key(ORDER_SEED), epochs)
    (params, _), losses = jax.lax.scan(epoch, (params, optimizer.init(params)), orders)
    slope, offset = fold(params)
    kernel = slope / shared.scale[None] * goal.scale
    bias = goal.mean[:, 0] + goal.scale[:, 0] * offset - (kernel * shared.mean[None]).sum(1)
    return Heads(kernel, bias, (losses * jnp.square(goal.scale[:, 0])[None]).T)


def _moments(
    x: Float[Array, "N D"], train: Float[Array, "R N"], shared: ridge.Standardisation
) -> tuple[Float[Array, "R D"], Float[Array, "R D"]]:
    """Mean and 1 / sd of each seed's part of the standardised x, all seeds in one pass over the rows.

    1 / sd is 0, and so the kernel, where the sd is below 1e-2 of the mean of x, of which rounding leaves as much, or below 1e-5
    of the mean of the raw feature, whose product with a kernel in float32 would leave the bias no digits.
    """
    count = train.shape[1]
    rows = jnp.arange(-(-count // MOMENT_ROWS) * MOMENT_ROWS)
    weight = jnp.where(rows[None] < count, train[:, jnp.minimum(rows, count - 1)], 0.0)
    weight = (weight / train.sum(1, keepdims=True)).reshape(len(train), -1, MOMENT_ROWS)

    def add(sums: Float[Array, "2 R D"], block: tuple[Array, Array]) -> tuple[Float[Array, "2 R D"], None]:
        w, xb = block[0], x[jnp.minimum(block[1], count - 1)]
        return sums + jnp.stack([w @ xb, w @ jnp.square(xb)]), None

    # Sums of sums: one running sum over all rows would lose the digits that the difference of squares needs.
    blocks = (jnp.moveaxis(weight, 1, 0), rows.reshape(-1, MOMENT_ROWS))
    (mean, square), _ = jax.lax.scan(add, jnp.zeros((2, len(train), x.shape[1])), blocks)
    variance = square - jnp.square(mean)
    raw = mean + (shared.mean / shared.scale)[None]
    constant = variance <= jnp.maximum(1e-4 * jnp.square(mean), 1e-10 * jnp.square(raw))
    return mean, jnp.where(constant, 0.0, jax.lax.rsqrt(jnp.where(constant, 1.0, variance)))


def checked_arrays(
    features: Mapping[str, AnyArray], targets: AnyArray, train: AnyArray, seeds: Sequence[int] | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray, Bool[np.ndarray, "R N"]]:
    """All arrays on the host and the masks as booleans; only the number of seeds is checked.

    Raises:
        ValueError: Whatever `train_heads` does not accept, every problem at once.
    """
    arrays = {name: np.asarray(values) for name, values in features.items()}
    y, mask = np.asarray(targets), np.asarray(train)
    problems = []
    for name, values in {**arrays, "targets": y}.items():
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            first = ", ".join(str(index.tolist()) for index in bad[:3])
            problems.append(
                f"{name}: {len(bad)} of {values.size} values are NaN or infinite, first at {first}."
            )
    if seeds is not None and len(seeds) != len(mask):
        problems.append(f"seeds: got {len(seeds)} for {len(mask)} training masks; one mask a seed is needed.")
    selected = mask.astype(bool)
    if (mask != selected).any():
        problems.append(f"train: only 0 and 1 are allowed, got {mask[mask != selected][0]}.")
    for row, part in enumerate(selected):
        if part.sum() < 2:
            problems.append(f"train: mask {row} selects {part.sum()} rows; at least 2 are needed.")
        elif np.ptp(y[part]) == 0:
            problems.append(f"targets: all equal {y[part][0]} on the training part of mask {row}.")
    if problems:
        raise ValueError("\n".join(problems))
    return arrays, y, selected


def sweep(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    targets: Float[np.ndarray, " N"],
    train: Mask,
    seeds: Sequence[int],
    *,
    head: Literal["ridge", "head"],
    progress: bool = False,
    **settings: Any,
) -> dict[str, Swept]:
    """Every seed's head and its predictions in px for every row, by layer; one layer's do not depend on the others.

    The head is "ridge" for `evaluate.fit` (penalties by leave-one-out; only the number of seeds matters) or "head" for
    `train_heads`; settings are those of that function. Layers of equal width share one compilation.

    Raises:
        ValueError: As `train_heads` and `evaluate.fit`, for all layers at once; another `head`.
        FloatingPointError: As `train_heads`; its note names the layer.
    """
    if head not in ("ridge", "head"):
        raise ValueError(f'head must be "ridge" or "head", got {head!r}.')
    _, y, mask = checked_arrays(features, targets, train, seeds)
    swept = {}
    for name, values in tqdm(features.items(), desc="heads", unit="layer", disable=not progress):
        try:
            if head == "ridge":
                fit = evaluate.fit(np.asarray(values), y[:, None], mask, **settings)
                kernel, bias, alpha = (np.asarray(part)[..., 0] for part in fit)
            else:
                heads = train_heads(values, targets, train, seeds, **settings)
                # float64, because the bias cancels much of a feature whose mean is far above its sd.
                kernel, bias = np.asarray(heads.kernel, np.float64), np.asarray(heads.bias, np.float64)
                alpha = np.zeros(len(bias))
        except FloatingPointError as error:
            error.add_note(f"In layer {name}.")
            raise
        swept[name] = Swept(kernel, bias, alpha, kernel @ values.T.astype(np.float64) + bias[:, None])
    return swept
