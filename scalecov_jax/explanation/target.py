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


@dataclass(frozen=True)
class Target:
    """A scalar of a network: y = link(w . pool(a) + b), with a the output of `layer`; vectors are not pooled.

    A class logit, a probability, a unit of a regression head and the projection on an RCV are all of this form, so that every
    method takes any of them.
    """

    layer: str  # where it is read
    # w, [D] for all images or [N, D] with one row an image; none to take the largest feature of each image
    weights: Any
    bias: Any = 0.0  # b
    link: Callable[[Any], Any] = _identity  # applied to the sum, elementwise
    among: tuple[int, ...] = ()  # without w, features of which the largest is taken; all when empty

    def __call__(self, output: Float[Array, "N H W D"] | Float[Array, "N D"]) -> Float[Array, " N"]:
        """The target of each image, from the output of its layer."""
        pooled = global_average_pool(output)
        if self.weights is None:
            return self.link((pooled[:, np.array(self.among)] if self.among else pooled).max(1))
        if self.weights.shape not in ((pooled.shape[1],), pooled.shape):
            raise ValueError(
                f"The target has weights {list(self.weights.shape)}, but {self.layer} has features {list(pooled.shape)}; "
                f"expected [{pooled.shape[1]}], or one row for each of the {len(pooled)} images."
            )
        weights = jnp.broadcast_to(self.weights, pooled.shape)
        return self.link((pooled * weights).sum(1) + self.bias)


jax.tree_util.register_dataclass(
    Target, data_fields=["weights", "bias"], meta_fields=["layer", "link", "among"]
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
    count = class_count(network)
    if count < 2:
        raise ValueError("A network with one class has no severity; expected a grade a class.")
    return Target(LOGITS, jnp.arange(count) - (count - 1) / 2)


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
    """The target with its largest feature chosen once for each image, so that it stays when the network changes.

    A target with weights stays as it is; `output` is that of its layer.
    """
    if target.weights is not None:
        return target
    pooled = global_average_pool(output)
    allowed = np.array(target.among or range(pooled.shape[1]))
    weights = jax.nn.one_hot(allowed[np.asarray(pooled)[:, allowed].argmax(1)], pooled.shape[1])
    return Target(target.layer, weights, link=target.link)


def class_count(network: Network) -> int:
    """Number of outputs of the classification head.

    Raises:
        ValueError: The network stops before it.
    """
    module: Any = network.module
    check_layer(network.architecture, LOGITS, module.last)
    return network.variables["params"][LOGITS]["kernel"].shape[-1]


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
