"""A score divided exactly among the pixels of the image and the constants of every layer.

Every activation a has the score lambda a with lambda = dy/da. A layer hands on what is linear in its input and keeps the rest,
its constant c = f(a) - f'(a) a: the bias behind a ReLU that is open, and nothing behind one that is closed. Then

    y = sum over pixels of lambda x + sum over layers of sum over positions of lambda c.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.compilation import jit
from scalecov_jax.explanation.target import Target
from scalecov_jax.models.layers import patch_maps


class Parts(NamedTuple):
    """The parts of T scores of N images."""

    scores: Float[Array, "T N"]  # the targets themselves
    gradients: Float[Array, "T N H W 3"]  # lambda at the tensor that enters the first layer
    inputs: Float[Array, "T N H W"]  # lambda x summed over the channels
    # lambda c by path of the layer (`layer_names` has their order): maps summed over the channels, or one number where the
    # layer has no maps
    constants: dict[str, Float[Array, "T N ..."]]
    # what the target keeps: its bias, what its link has that is not linear, and what its layer has behind the last module
    # inside it
    link: Float[Array, "T N"]


def sum_channels(scores: Float[Array, "N *P D"]) -> Array:
    """The score of each position."""
    return scores.sum(-1)


def propagate_scores(
    module: nn.Module,
    variables: Any,
    inputs: Float[Array, "N H W 3"],
    targets: Sequence[Target],
    reduce: Callable[[Array], Array] = sum_channels,
) -> Parts:
    """Divide scores among pixels and layers, in one forward pass and one backward pass for each score (by vmap).

    Exact for any network. Layers are the modules without modules inside them; fold batch normalisation first (`folding.fold`),
    or it counts as a layer of its own. What lies between two modules (a GELU, a product of squeeze-and-excitation, an addition)
    belongs to the one after it. The rules of the source follow for linear layers, ReLU and pooling; any other function phi keeps
    phi(a) - phi'(a) a, which for layer normalisation is nearly all of its output, and for attention, with logits L and weights A,
    -2 times the covariance of L and v under A. Of two equal values a maximum has both, in
    equal shares; so have the poolings of the networks, which are maxima of two at a time. A probability is divided likewise, and
    what its softmax or sigmoid keeps is the constant of that layer or of the link: it is not linear, so that the parts of a
    logit are easier to read. Targets are of one layer and one link; the zero of the inputs decides what is input and what
    constant; `reduce` makes of the scores of a layer's values what is kept of them.

    Raises:
        ValueError: Targets of several layers, a layer that is not there, dropout or batch normalisation in training.

    Source: de la Torre, Valls and Puig 2020, section 3 (1712.08107); Srinivas and Fleuret 2019, full-gradient representation, for
    lambda as the gradient.
    """
    if len({(target.layer, target.link) for target in targets}) != 1:
        raise ValueError(
            f"Scores are propagated together from one layer and link, got {len(targets)} targets at "
            f"{', '.join(sorted({target.layer for target in targets})) or 'no layer'}; call once for each."
        )
    return _propagate(module, variables, inputs, tuple(targets), reduce)


@partial(jit, static_argnames=("module", "reduce"))
def _propagate(
    module: nn.Module,
    variables: Any,
    inputs: Array,
    targets: tuple[Target, ...],
    reduce: Callable[[Array], Array],
) -> Parts:
    layer = targets[0].layer

    def by_linearity(inputs: Array) -> tuple[dict[str, Array], Array]:
        return _run(module, variables, inputs, layer, lambda _, output: _restart(output))

    (outputs, end), (linear, slope) = jax.jvp(by_linearity, (inputs,), (inputs,))
    constants = {name: outputs[name] - linear[name] for name in outputs}

    def by_offsets(inputs: Array, offsets: dict[str, Array]) -> Array:
        return _run(module, variables, inputs, layer, lambda name, output: output + offsets[name])[1]

    zeros = jax.tree.map(jnp.zeros_like, constants)
    _, pull_back = jax.vjp(by_offsets, inputs, zeros)
    read = [jax.jvp(target, (end,), (slope,)) for target in targets]
    ends = jnp.stack([jax.grad(lambda a, target=target: target(a).sum())(end) for target in targets])

    def back(gradient: Array) -> tuple[Array, Array, dict[str, Array]]:
        at_input, at_layers = pull_back(gradient)
        kept = {name: reduce(at_layers[name] * constants[name]) for name in constants}
        return at_input, reduce(at_input * inputs), kept

    gradients, pixels, kept = jax.vmap(back)(ends)
    scores = jnp.stack([score for score, _ in read])
    return Parts(scores, gradients, pixels, kept, scores - jnp.stack([slope for _, slope in read]))


def sum_of_parts(parts: Parts) -> Float[np.ndarray, "T N"]:
    """What all parts add up to, in float64: the score, up to rounding."""
    maps = (parts.inputs, *parts.constants.values(), parts.link)
    return np.sum([np.asarray(one, np.float64).reshape(*one.shape[:2], -1).sum(2) for one in maps], axis=0)


def relative_error(parts: Parts) -> Float[np.ndarray, "T N"]:
    """|sum of parts - score| / |score|; of a score of 0 the difference itself."""
    return relative_difference(sum_of_parts(parts), np.asarray(parts.scores))


def relative_difference(
    sums: Float[np.ndarray, "*B"], scores: Float[np.ndarray, "*B"]
) -> Float[np.ndarray, "*B"]:
    """|sum - score| / |score| in float64; of a score of 0 the difference itself."""
    scores = np.asarray(scores, np.float64)
    return np.abs(sums - scores) / np.where(scores == 0, 1, np.abs(scores))


def layer_names(module: nn.Module, variables: Any, shape: tuple[int, ...], layer: str) -> tuple[str, ...]:
    """The layers that keep constants, up to `layer`, for images [N, H, W, 3] of a shape; nothing is computed.

    Raises:
        ValueError: See `propagate_scores`.
    """
    found: list[str] = []

    def note(name: str, output: Array) -> Array:
        found.append(name)
        return output

    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    jax.eval_shape(lambda one: _run(module, variables, one, layer, note)[1], images)
    return tuple(found)


def peak_bytes(module: nn.Module, variables: Any, shape: tuple[int, ...], targets: Sequence[Target]) -> int:
    """Bytes of memory that `propagate_scores` takes for images of a shape, by its compiled program; nothing is computed."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    compiled = _propagate.program().lower(module, variables, images, tuple(targets), sum_channels).compile()
    used: Any = compiled.memory_analysis()
    return int(used.temp_size_in_bytes + used.argument_size_in_bytes + used.output_size_in_bytes)


@jax.custom_jvp
def _restart(output: Array) -> Array:
    """The output itself; from here on its tangent is the output, whatever it was."""
    return output


@_restart.defjvp
def _(primals: tuple[Array], _: tuple[Array]) -> tuple[Array, Array]:
    return primals[0], primals[0]


def _run(
    module: nn.Module,
    variables: Any,
    inputs: Array,
    layer: str,
    change: Callable[[str, Array], Array],
) -> tuple[dict[str, Array], Array]:
    """Outputs of all layers up to `layer` before each was changed, and the output of `layer`."""
    outputs: dict[str, Array] = {}
    open_calls: list[bool] = []  # whether a module was called inside
    end: list[Array] = []

    def keep(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != "__call__" or context.module.name is None:
            return call(*args, **kwargs)
        _check_inference(context.module, args, kwargs)
        open_calls[:] = [True] * len(open_calls)
        open_calls.append(False)
        output = call(*args, **kwargs)
        inside = open_calls.pop()
        name = "/".join(context.module.path)
        if not (end or inside) and isinstance(output, jax.Array):
            while name in outputs:  # a module called twice
                name = f"{name}'"
            outputs[name] = output
            output = change(name, output)
        if layer in (context.module.name, "/".join(context.module.path)):
            end.append(output)
        return output

    with nn.intercept_methods(keep):
        module.apply(variables, inputs)
    if not end:
        raise ValueError(f"{type(module).__name__} has no layer {layer!r}; there are {', '.join(outputs)}.")
    return outputs, patch_maps(module, end[0], inputs.shape[1:3])


def _check_inference(module: nn.Module, args: Any, kwargs: Any) -> None:
    """Refuse what depends on chance or on the batch."""
    if isinstance(module, nn.Dropout):
        fixed = kwargs.get("deterministic", args[1] if len(args) > 1 else module.deterministic)
        if not fixed and module.rate > 0:
            raise ValueError(f"{module.name} drops out at random: scores need dropout as at inference.")
    if isinstance(module, nn.BatchNorm):
        fixed = kwargs.get("use_running_average", args[1] if len(args) > 1 else module.use_running_average)
        if not fixed:
            raise ValueError(
                f"{'/'.join(module.path)} normalises by the batch: scores need its running statistics, as at inference."
            )
