"""What a part of a network responds to most: images optimised for a neuron, a channel, a layer or a direction.

An objective is optimised on K images together (more than one for diversity); M objectives of one kind, such as M channels, are
optimised at once with vmap. Steps run in compiled chunks, between which the state can be kept on disk.
"""

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key, UInt8

from scalecov_jax.atomic import kept_arrays, write_arrays
from scalecov_jax.compilation import jit
from scalecov_jax.explanation import fourier_image
from scalecov_jax.explanation.capture import capture
from scalecov_jax.models.preprocessing import Preprocessing, preprocess

Kind = Literal["direction", "neuron", "layer"]
_KIND = "state of a visualisation 1"
REDIRECTED = 16  # first steps, in which dead ReLUs pass gradients


@dataclass(frozen=True)
class Objective:
    """Something to maximise; several are summed."""

    # direction: mean over the map of a . v (a channel, where v is a unit vector of the axes). neuron: a . v at the centre of
    # the map. layer: mean of a^2
    kind: Kind
    layer: str  # where a is the output
    vectors: Any  # v of each of M objectives; [M, 0] for a layer
    weight: Any = 1.0  # in the sum


jax.tree_util.register_dataclass(Objective, data_fields=["vectors", "weight"], meta_fields=["kind", "layer"])


@dataclass(frozen=True)
class Stage:
    """A part of an optimisation with Adam."""

    steps: int = 512  # their number
    learning_rate: float = 0.05  # of Adam, whose state starts at 0
    total_variation: float = 0.0  # weight of the penalty, see `fourier_image.total_variation`
    transforms: fourier_image.Transforms = fourier_image.STANDARD  # what the images must survive
    diversity: float = 0.0  # weight of the penalty on images of one objective that resemble each other


LUCID = (Stage(),)
IMVIP = (
    Stage(512, 0.1),
    Stage(512, 0.1, 0.025, fourier_image.LIGHT),
    Stage(1024, 0.01, 0.0025),
)
"""The recipe of Graziani et al. 2019 (IMVIP): three stages, 2048 steps."""
RECIPES = {"lucid": LUCID, "imvip": IMVIP}


class State(NamedTuple):
    """Where an optimisation stands, for M objectives of K images."""

    spectra: Float[Array, "M K F size 3 2"]  # see `fourier_image.random_spectra`
    moments: Any  # of Adam
    keys: Key[Array, " M"]  # randomness of each objective
    step: int  # steps done, over all stages
    values: Float[Array, " M"]  # sum of the objectives at the last step; the mean over the K images


def channel(layer: str, channels: Sequence[int], width: int, weight: float = 1.0) -> Objective:
    """Mean activation of each of M channels of a layer of `width` channels."""
    return Objective("direction", layer, _one_hot(channels, width, layer), weight)


def neuron(layer: str, channels: Sequence[int], width: int, weight: float = 1.0) -> Objective:
    """Activation at the centre of the map of each of M channels."""
    return Objective("neuron", layer, _one_hot(channels, width, layer), weight)


def direction(
    layer: str, vectors: Float[np.ndarray, "M D"] | Float[Array, "M D"], weight: float = 1.0
) -> Objective:
    """Projection of the pooled features on each of M directions, such as v and -v of an RCV."""
    return Objective("direction", layer, jnp.asarray(vectors, jnp.float32), weight)


def whole_layer(layer: str, count: int = 1, weight: float = 1.0) -> Objective:
    """Mean square of all activations of a layer, M times alike but for the seed (DeepDream)."""
    return Objective("layer", layer, jnp.zeros((count, 0)), weight)


def start(objectives: Sequence[Objective], *, size: int = 128, images: int = 1, seed: int = 0) -> State:
    """The state before the first step; an objective's images depend on the seed and on its place among the M.

    Raises:
        ValueError: No objective, or objectives for different numbers of images.
    """
    counts = [len(one.vectors) for one in objectives]
    if not counts or len({*counts}) > 1 or not counts[0]:
        raise ValueError(
            f"Objectives that are summed must be given for the same number of images, at least one; got {counts}."
        )
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(counts[0]))
    spectra = jax.vmap(lambda key: fourier_image.random_spectra(key, images, size))(keys)
    return State(spectra, optax.adam(0.0).init(spectra), keys, 0, jnp.zeros(counts[0]))


def advance(
    module: nn.Module,
    variables: Any,
    preprocessing: Preprocessing,
    objectives: Sequence[Objective],
    recipe: Sequence[Stage],
    state: State,
    steps: int,
) -> State:
    """Go on for some steps, or to the end of the stage; images may be of another size than the network's own.

    Raises:
        ValueError: The network has no such layer, or vectors of another width than it.
        FloatingPointError: An objective is not finite, or has no gradient at all (a dead channel).
    """
    ends = [*itertools.accumulate(stage.steps for stage in recipe)]
    if state.step >= ends[-1]:
        return state
    at = bisect.bisect_right(ends, state.step)
    stage, begin = recipe[at], ends[at] - recipe[at].steps
    new = begin and state.step == begin
    moments = optax.adam(0.0).init(state.spectra) if new else state.moments
    steps = min(steps, ends[at] - state.step)
    spectra, moments, values, alive = _advance(
        module,
        variables,
        preprocessing,
        tuple(objectives),
        stage.transforms,
        (stage.learning_rate, stage.total_variation, stage.diversity),
        (state.spectra, moments),
        state.keys,
        state.step,
        steps,
    )
    decisive = state.step <= REDIRECTED < state.step + steps
    _check(objectives, np.asarray(values), np.asarray(alive) | (not decisive), state.step + steps)
    return State(spectra, moments, state.keys, state.step + steps, values)


def visualise(
    module: nn.Module,
    variables: Any,
    preprocessing: Preprocessing,
    objectives: Sequence[Objective],
    *,
    recipe: Sequence[Stage] = LUCID,
    size: int = 128,
    images: int = 1,
    seed: int = 0,
    state: State | None = None,
    chunk: int = 64,
    each_chunk: Callable[[State], None] | None = None,
) -> State:
    """Optimise K = `images` images for each of M objectives to the end of a recipe; see `start` and `advance`.

    Goes on from `state`, if there is one; `each_chunk` is called with the state after every `chunk` steps.

    Source: Olah, Mordvintsev and Schubert 2017, Feature Visualization; Graziani et al. 2019 (IMVIP) for the recipe of that name.
    """
    state = state or start(objectives, size=size, images=images, seed=seed)
    total = sum(stage.steps for stage in recipe)
    while state.step < total:
        state = advance(module, variables, preprocessing, objectives, recipe, state, chunk)
        if each_chunk is not None:
            each_chunk(state)
    return state


def save_state(path: Path, state: State) -> None:
    """Write a state; the file appears only when it is complete."""
    leaves = jax.tree.leaves((state.spectra, state.moments, state.values))
    named: dict[str, Any] = {f"leaf_{index}": leaf for index, leaf in enumerate(leaves)}
    write_arrays(path, {**named, "step": state.step, "keys": jax.random.key_data(state.keys)}, _KIND)


def load_state(path: Path, objectives: Sequence[Objective], *, size: int) -> State | None:
    """Read a state of `save_state`, of one image of this size for each objective; None where there is no file or a damaged one.

    Raises:
        ValueError: The file holds the state of other objectives.
    """
    if (stored := kept_arrays(path, _KIND)) is None:
        return None
    fresh = start(objectives, size=size)
    expected, tree = jax.tree.flatten((fresh.spectra, fresh.moments, fresh.values))
    leaves = [jnp.asarray(stored[f"leaf_{index}"]) for index in range(len(stored) - 2)]
    if [one.shape for one in leaves] != [one.shape for one in expected]:
        raise ValueError(f"{path} holds images of another number or size; delete it to start again.")
    spectra, moments, values = jax.tree.unflatten(tree, leaves)
    return State(
        spectra, moments, jax.random.wrap_key_data(jnp.asarray(stored["keys"])), int(stored["step"]), values
    )


def pictures(state: State) -> UInt8[np.ndarray, "M K size size 3"]:
    """The images of a state in 8 bits."""
    return np.asarray(jnp.round(255 * jax.vmap(fourier_image.to_images)(state.spectra))).astype(np.uint8)


@partial(jit, static_argnames=("module", "preprocessing", "transforms"))
def _advance(
    module: nn.Module,
    variables: Any,
    preprocessing: Preprocessing,
    objectives: tuple[Objective, ...],
    transforms: fourier_image.Transforms,
    rates: tuple[Any, Any, Any],
    start: tuple[Array, Any],
    keys: Key[Array, " M"],
    first: Any,
    steps: Any,
) -> tuple[Array, Any, Float[Array, " M"], Array]:
    learning_rate, variation, diversity = rates
    optimizer = optax.adam(learning_rate)

    def loss(
        spectra: Array, key: Any, wanted: tuple[Objective, ...], redirected: Array
    ) -> tuple[Array, Array]:
        images = fourier_image.to_images(spectra)
        seen = jax.vmap(partial(fourier_image.transform, by=transforms))(
            jax.random.split(key, len(images)), images
        )
        layers = tuple(dict.fromkeys(one.layer for one in wanted))
        with nn.intercept_methods(partial(_redirect, redirected)):
            outputs = capture(module, variables, preprocess(255 * seen, preprocessing), layers)
        gain = sum((one.weight * _gain(one, outputs[one.layer]) for one in wanted), jnp.zeros(len(images)))
        penalty = variation * fourier_image.total_variation(images).sum()
        if len(images) > 1:
            penalty += diversity * _resemblance(outputs[wanted[0].layer])
        return penalty - gain.sum(), gain.mean()

    gradient = jax.vmap(jax.grad(loss, has_aux=True), (0, 0, _mapped(objectives), None))

    def step(index: Array, carry: tuple[Array, Any, Array, Array]) -> tuple[Array, Any, Array, Array]:
        spectra, moments, _, alive = carry
        number = first + index
        now = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        by, values = gradient(spectra, now, objectives, (number < REDIRECTED).astype(jnp.float32))
        alive |= (jnp.abs(by).max(tuple(range(1, by.ndim))) > 0) & (number >= REDIRECTED)
        updates, moments = optimizer.update(by, moments, spectra)
        return optax.apply_updates(spectra, updates), moments, values, alive  # pyright: ignore[reportReturnType]

    count = len(keys)
    return jax.lax.fori_loop(0, steps, step, (*start, jnp.zeros(count), jnp.zeros(count, bool)))


def _mapped(objectives: tuple[Objective, ...]) -> Any:
    """Which part of each objective has one entry for each of the M."""
    return tuple(Objective(one.kind, one.layer, 0, None) for one in objectives)  # pyright: ignore[reportArgumentType]


def _gain(objective: Objective, output: Array) -> Float[Array, " K"]:
    """Value of an objective for each of its K images."""
    maps = output if output.ndim == 4 else output[:, None, None]
    if objective.kind == "layer":
        return jnp.square(maps).mean((1, 2, 3))
    if objective.vectors.shape[0] != maps.shape[3]:
        raise ValueError(
            f"The objective has vectors of {objective.vectors.shape[0]} channels, but {objective.layer} has {maps.shape[3]}."
        )
    if objective.kind == "neuron":
        return maps[:, maps.shape[1] // 2, maps.shape[2] // 2] @ objective.vectors
    return maps.mean((1, 2)) @ objective.vectors


def _resemblance(output: Array) -> Array:
    """Cosines between the Gram matrices of the channels of every two images, summed and divided by the number of images."""
    maps = output.reshape(len(output), -1, output.shape[-1])
    grams = jnp.einsum("kpc,kpd->kcd", maps, maps).reshape(len(output), -1)
    grams = grams * jax.lax.rsqrt(jnp.square(grams).sum(1, keepdims=True) + 1e-10)
    return ((grams @ grams.T).sum() - jnp.square(grams).sum()) / len(output)


@jax.custom_vjp
def redirected_relu(x: Array, on: Float[Array, ""]) -> Array:
    """ReLU that, where no gradient at all gets through an image's maps, passes that part which would push them up, if `on` is 1.

    Source: Lucid (gradient override of the first 16 steps).
    """
    return nn.relu(x)


def _forward(x: Array, on: Array) -> tuple[Array, tuple[Array, Array]]:
    return nn.relu(x), (x, on)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, on = kept
    ordinary = jnp.where(x > 0, gradient, 0)
    upwards = jnp.where((x <= 0) & (gradient > 0), 0, gradient)  # of a loss, which sinks when x rises
    blocked = (jnp.abs(ordinary).max(tuple(range(1, x.ndim)), keepdims=True) == 0) & (on > 0)
    return jnp.where(blocked, upwards, ordinary), jnp.zeros_like(on)


redirected_relu.defvjp(_forward, _backward)


def _redirect(on: Array, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Replace the ReLU of a block; modules are created whenever a network is applied."""
    if getattr(context.module, "activation", None) is nn.relu:
        object.__setattr__(context.module, "activation", partial(redirected_relu, on=on))
    return call(*args, **kwargs)


def _check(
    objectives: Sequence[Objective], values: Float[np.ndarray, " M"], alive: np.ndarray, step: int
) -> None:
    where = ", ".join(dict.fromkeys(one.layer for one in objectives))
    for wrong, problem, advice in (
        (~np.isfinite(values), "is not finite", "lower the learning rate, or check the weights"),
        (~alive, "has no gradient (a dead channel)", "choose other channels, another seed, or an earlier layer"),
    ):  # fmt: skip
        if wrong.any():
            named = ", ".join(
                _describe(objectives[0], index) for index in np.flatnonzero(wrong)[:10].tolist()
            )
            raise FloatingPointError(
                f"After step {step} the objective at {where} {problem} for {named}; {advice}."
            )


def _describe(objective: Objective, index: int) -> str:
    vector = np.asarray(objective.vectors[index])
    if np.count_nonzero(vector) == 1:
        return f"channel {vector.argmax()}"
    return f"number {index}"


def _one_hot(channels: Sequence[int], width: int, layer: str) -> Array:
    wrong = [one for one in channels if not 0 <= one < width]
    if wrong or not channels:
        raise ValueError(
            f"{layer} has the channels 0 to {width - 1}; got {', '.join(map(str, wrong)) or 'none'}."
        )
    return jax.nn.one_hot(np.array(channels), width)
