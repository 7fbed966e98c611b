"""Networks written for other packages: any Linen module becomes an architecture, without an edit of it.

Example:
    ARCHITECTURES["theirs"] = adopt("theirs", TheirNetwork(), input_size=224, preprocessing="torch")
    network = checkpoints.network(variables, checkpoints.Card("theirs", {}, "torch", 224, "their file"))
"""

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models.architecture import Architecture
from scalecov_jax.models.preprocessing import Preprocessing


class _ReachedError(Exception):
    """The wanted layer has returned, and something behind it is called."""


class Adopted(nn.Module):
    """A module that returns what one of its layers returns, and makes no variables for what comes behind it.

    The variables are those of the module itself, without a name in front. Layers inside `nn.scan`, `nn.remat` and other lifted
    transformations cannot end it, since their values live in a trace of their own.
    """

    # the module; called with images, and with train or deterministic where it takes one of these
    network: nn.Module
    last: str  # the layer to stop after

    def setup(self) -> None:
        """The variables lie where those of the module would."""
        nn.share_scope(self, self.network)

    def __call__(self, images: Float[Array, "N H W 3"], train: bool = False) -> Array:
        """What `last` returns."""
        taken = inspect.signature(type(self.network).__call__).parameters
        modes = {"train": train, "deterministic": not train}
        output: Any = None

        def stop(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            nonlocal output
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            if output is not None:
                raise _ReachedError
            result = call(*args, **kwargs)
            if context.module.name == self.last:
                output = result
            return result

        with nn.intercept_methods(stop), contextlib.suppress(_ReachedError):
            self.network(images, **{name: value for name, value in modes.items() if name in taken})
        if output is None:
            raise ValueError(f"No module of {type(self.network).__name__} is called {self.last!r}.")
        return output


def adopt(
    name: str,
    network: nn.Module,
    *,
    layers: Sequence[str] = (),
    input_size: int = 224,
    preprocessing: Preprocessing = "torch",
    title: str = "",
) -> Architecture:
    """An architecture from a Linen module of another package, for `ARCHITECTURES`.

    Args:
        name: As in configs and tables.
        network: The module, with its options.
        layers: Names of the modules to probe, at any depth, from input to output; by default all that the network itself calls.
            What comes behind the last map belongs to the head.
        input_size: Height and width of the images, in pixels.
        preprocessing: What its weights expect.
        title: Its name for people.

    Raises:
        ValueError: Layers that the network does not call, or none that returns a map; see also `Architecture`.
    """
    given, shapes = network, _called(network, input_size)
    children = [layer for layer, (depth, _) in shapes.items() if depth == 1]
    if missing := [layer for layer in layers if layer not in shapes]:
        raise ValueError(
            f"{type(network).__name__} calls no {' or '.join(missing)}; its own modules are {', '.join(children)}."
        )
    chosen = tuple(layers) or tuple(children)
    maps = [layer for layer in chosen if len(shapes[layer][1]) == 4]
    if not maps:
        raise ValueError(f"No layer of {type(network).__name__} returns a map; it has {', '.join(chosen)}.")
    head = chosen[chosen.index(maps[-1]) + 1 :]

    class Family(Adopted):
        network: nn.Module = given
        last: str = chosen[-1]

    return Architecture(
        name,
        Family,
        chosen,
        input_size=input_size,
        preprocessing=preprocessing,
        title=title or type(network).__name__,
        head=head,
    )


def _called(network: nn.Module, size: int) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Depth and shape of the output of every module that a network calls, by name, in the order in which they return."""
    shapes: dict[str, tuple[int, tuple[int, ...]]] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if context.method_name == "__call__" and context.module.name and hasattr(result, "shape"):
            shapes.setdefault(context.module.name, (len(context.module.path), result.shape))
        return result

    with nn.intercept_methods(note):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return shapes
