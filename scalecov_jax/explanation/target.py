"""What is explained: one number an image, read from the output of a layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scalecov_jax.checkpoints import Network
from scalecov_jax.models.architecture import check_layer
from scalecov_jax.models.layers import global_average_pool
from scalecov_jax.vectors import Rcv, Vector, check_rcvs

LOGITS, PROBABILITIES = "pre_softmax", "softmax"


def _identity(values: Any) -> Any:
    return values


def _largest(values: Float[Array, "N D"], among: tuple[int, ...]) -> Float[Array, "N D"]:
    """One for the largest value, of those of some features if any are named."""
    allowed = jnp.array(among or range(values.shape[1]))
    return jax.nn.one_hot(allowed[values[:, allowed].argmax(1)], values.shape[1])


def _contrast(values: Float[Array, "N D"], among: tuple[int, ...]) -> Float[Array, "N D"]:
    """The largest value minus the mean of the others, weighted by their softmax."""
    chosen = _largest(values, among)
    return chosen - jax.nn.softmax(jnp.where(chosen > 0, -jnp.inf, values))


def _step(values: Float[Array, "N D"], _: tuple[int, ...]) -> Float[Array, "N D"]:
    """The largest value minus that before it; the second minus the first where that is the largest."""
    grade = jnp.maximum(values.argmax(1), 1)
    return jax.nn.one_hot(grade, values.shape[1]) - jax.nn.one_hot(grade - 1, values.shape[1])


def _cumulative(values: Float[Array, "N D"], _: tuple[int, ...]) -> Float[Array, "N D"]:
    """Sum over k > 0 of the mean of the values from k on minus that of those before, each weighted by its softmax."""
    count = values.shape[1]
    high = jnp.arange(count)[None, None] >= jnp.arange(1, count)[:, None, None]
    above, below = (jax.nn.softmax(jnp.where(part, values[None], -jnp.inf)) for part in (high, ~high))
    return (above - below).sum(0)


@dataclass(frozen=True)
class Target:
    """A scalar of a network: y = link(w . pool(a) + b), with a the output of `layer`; vectors are not pooled.

    A class logit, a probability, a unit of a regression head and the projection on an RCV are all of this form, so that every
    method takes any of them.
    """

    layer: str  # where it is read
    # w, [D] for all images or [N, D] with one row an image; none to choose them by `rule` from the features of each image
    weights: Any
    bias: Any = 0.0  # b
    link: Callable[[Any], Any] = _identity  # applied to the sum, elementwise
    among: tuple[int, ...] = ()  # without w, features of which the rule takes the largest; all when empty
    rule: Callable[[Any, tuple[int, ...]], Any] = _largest  # w [N, D] of features and `among`, held fixed

    def __call__(self, output: Float[Array, "N H W D"] | Float[Array, "N D"]) -> Float[Array, " N"]:
        """The target of each image, from the output of its layer."""
        pooled = global_average_pool(output)
        if self.weights is None:
            chosen = jax.lax.stop_gradient(self.rule(pooled, self.among))
            return self.link((pooled * chosen).sum(1) + self.bias)
        if self.weights.shape not in ((pooled.shape[1],), pooled.shape):
            raise ValueError(
                f"The target has weights {list(self.weights.shape)}, but {self.layer} has features {list(pooled.shape)}; "
                f"expected [{pooled.shape[1]}], or one row for each of the {len(pooled)} images."
            )
        weights = jnp.broadcast_to(self.weights, pooled.shape)
        return self.link((pooled * weights).sum(1) + self.bias)


jax.tree_util.register_dataclass(
    Target, data_fields=["weights", "bias"], meta_fields=["layer", "link", "among", "rule"]
)


def class_logit(network: Network, classes: int | str | Sequence[int | str] | np.ndarray) -> Target:
    """The logit of a class: the number before the softmax. Classes are given by index or name, for all images or one an image.

    Raises:
        ValueError: The network has no head, or no such class (nearest names are given).
    """
    return Target(LOGITS, _one_hot(network, classes, LOGITS))


def class_probability(network: Network, classes: int | str | Sequence[int | str] | np.ndarray) -> Target:
    """The probability of a class; of a network with one output, the sigmoid of its logit. See `class_logit`.

    Where it is close to 0 or 1 its gradient vanishes; the logit's does not.
    """
    if class_count(network) == 1:
        return Target(LOGITS, _one_hot(network, classes, LOGITS), link=jax.nn.sigmoid)
    return Target(PROBABILITIES, _one_hot(network, classes, PROBABILITIES))


def group_logit(network: Network, classes: Sequence[int | str]) -> Target:
    """The largest logit of some classes, such as all kinds of cars.

    Raises:
        ValueError: See `class_logit`; no class.
    """
    if not len(classes):
        raise ValueError("A group of classes is empty; expected an index or a name.")
    return Target(LOGITS, None, among=tuple(dict.fromkeys(class_index(network, one) for one in classes)))


def predicted_logit(network: Network) -> Target:
    """The logit of whatever class the network predicts for each image. See `class_logit`."""
    class_count(network)
    return Target(LOGITS, None)


def severity(network: Network) -> Target:
    """What speaks for a higher grade, of classes in the order of their severity: sum_k (k - mean k) logit_k.

    A logit alone counts what is the same for all classes, which changes no probability; this does not.

    Raises:
        ValueError: See `class_logit`; a network with one class.
    """
    count = _several(network)
    return Target(LOGITS, jnp.arange(count) - (count - 1) / 2)


def contrast(network: Network, given: int | str | None = None) -> Target:
    """A class, or the predicted one, against the others: logit_k - sum_(j != k) p_j logit_j / (1 - p_k), weights held fixed.

    Its gradient is that of the log odds log(p_k / (1 - p_k)), and it is linear in the logits, so that its parts add up.

    Raises:
        ValueError: See `class_logit`; a network with one class.

    Source: Explaining a distribution over classes, not a single logit: "class competition" (arXiv 2503.07346, its abstract).
    """
    _several(network)
    return Target(LOGITS, None, among=() if given is None else (class_index(network, given),), rule=_contrast)


def step(network: Network) -> Target:
    """What speaks for the predicted grade k and not the one below: logit_k - logit_(k-1); for grade 0 that of grade 1.

    Raises:
        ValueError: See `class_logit`; a network with one class.
    """
    _several(network)
    return Target(LOGITS, None, rule=_step)


def cumulative(network: Network) -> Target:
    """Cumulative severity: sum_(k > 0) of the logits of the grades from k on minus those below, softmax-weighted on each side.

    With the weights held fixed, as they are, its gradient is that of sum_(k > 0) log(P(grade >= k) / P(grade < k)).

    Raises:
        ValueError: See `class_logit`; a network with one class.
    """
    _several(network)
    return Target(LOGITS, None, rule=_cumulative)


def head_unit(
    network: Network,
    layer: str,
    kernel: Float[Array, " D"] | Float[np.ndarray, " D"],
    bias: float | Array = 0.0,
    link: Callable[[Any], Any] = _identity,
) -> Target:
    """A unit of a head on the pooled features of a layer, such as a row of `transfer.heads.Heads`.

    The link of a head is none for regression, `jax.nn.sigmoid` for the probability of a binary classifier.

    Raises:
        ValueError: The network has no such layer, or it stops before it.
    """
    last: str = network.module.last  # pyright: ignore[reportAttributeAccessIssue]
    check_layer(network.architecture, layer, last)
    return Target(layer, jnp.asarray(kernel), bias, link)


def rcv_projection(network: Network, rcv: Rcv, vector: Vector = "filter") -> Target:
    """The projection of pooled features on an RCV of unit length, its filter or its pattern.

    Raises:
        ValueError: The RCV was fitted on another network.
    """
    check_rcvs(network, rcv.layer, [rcv])
    return Target(rcv.layer, jnp.asarray(rcv.vector(vector)))


def settled(target: Target, output: Float[Array, "N H W D"] | Float[Array, "N D"]) -> Target:
    """The target with its weights chosen once for each image, so that they stay when the network changes.

    A target with weights stays as it is; `output` is that of its layer.
    """
    if target.weights is not None:
        return target
    weights = target.rule(global_average_pool(output), target.among)
    return Target(target.layer, weights, target.bias, target.link)


def class_count(network: Network) -> int:
    """Number of outputs of the classification head.

    Raises:
        ValueError: The network stops before it.
    """
    module: Any = network.module
    check_layer(network.architecture, LOGITS, module.last)
    return network.variables["params"][LOGITS]["kernel"].shape[-1]


def _several(network: Network) -> int:
    """Number of classes, at least two."""
    if (count := class_count(network)) < 2:
        raise ValueError("A network with one output has no classes to compare; expected at least two.")
    return count


def class_index(network: Network, given: int | str) -> int:
    """The index of a class given by index or by a name of the network's card.

    Raises:
        ValueError: There is no such class; names the nearest.
    """
    count, names = class_count(network), network.card.class_names
    if isinstance(given, str) and given in names:
        return names.index(given)
    text = str(given).strip()
    if text.isascii() and text.isdigit() and int(text) < count:
        return int(text)
    near = get_close_matches(text, names, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    named = f" or a name such as {names[0]}" if names else ""
    raise ValueError(
        f"The network has no class {given!r}; {hint}expected an index from 0 to {count - 1}{named}."
    )


def _one_hot(network: Network, classes: Any, layer: str) -> Array:
    module: Any = network.module
    count = class_count(network)
    check_layer(network.architecture, layer, module.last)
    given = classes.tolist() if isinstance(classes, np.ndarray) else classes
    if isinstance(given, int | str):
        return jax.nn.one_hot(class_index(network, given), count)
    return jax.nn.one_hot(np.array([class_index(network, one) for one in given]), count)
