"""The one list of architectures: all that the rest of the package knows of a network."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from flax import linen as nn

from scalecov_jax.models import inception_v3, resnet50
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.models.preprocessing import Preprocessing


@dataclass(frozen=True)
class Architecture:
    """A family of networks.

    Attributes:
        name: As in configs and tables.
        module: Linen module with a field `last` that names the layer to stop after.
        layers: The layers that are probed, from input to output, by the source's names.
        epsilon: Added to the variance by every batch normalisation.
        input_size: Height and width of the images it was trained on, in pixels.
        preprocessing: What its Keras weights expect.
    """

    name: str
    module: type[nn.Module]
    layers: tuple[str, ...]
    epsilon: float
    input_size: int
    preprocessing: Preprocessing

    @property
    def trunk(self) -> str:
        """The last layer before the classification head."""
        return self.layers[self.layers.index("pre_softmax") - 1]


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "inception_v3", inception_v3.InceptionV3, inception_v3.LAYERS, inception_v3.EPSILON, 299, "tf"
        ),
        Architecture("resnet50", resnet50.ResNet50, resnet50.LAYERS, resnet50.EPSILON, 224, "caffe"),
    )
}


def get_architecture(name: str) -> Architecture:
    """Look an architecture up.

    Raises:
        ValueError: There is none of that name; names the nearest and all.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"No architecture is called {name!r}; {_nearest(name, ARCHITECTURES)}.")
    return ARCHITECTURES[name]


def check_layer(architecture: Architecture, layer: str, last: str | None = None) -> str:
    """Return `layer` if the network has it; `avg_pool`, the pooled whole, if it goes so far.

    Args:
        architecture: The network's family.
        layer: Name to check.
        last: Where this network stops, if not at its end.

    Raises:
        ValueError: There is no such layer, or the network stops before it.
    """
    layers = architecture.layers
    if layer == WHOLE and last in (None, WHOLE, *layers[layers.index("pre_softmax") :]):
        return layer
    if layer not in layers:
        raise ValueError(f"{architecture.name} has no layer {layer!r}; {_nearest(layer, layers)}.")
    if last in layers and layers.index(layer) > layers.index(last):
        there = ", ".join(layers[: layers.index(last) + 1])
        raise ValueError(
            f"This {architecture.name} stops at {last}, before {layer!r}; choose one of {there}."
        )
    return layer


def available_layers(architecture: Architecture, module: Any) -> tuple[str, ...]:
    """The layers of `architecture` up to the one that `module` stops after."""
    last = architecture.trunk if module.last == WHOLE else module.last
    return architecture.layers[: architecture.layers.index(last) + 1]


def _nearest(name: str, known: Any) -> str:
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return (f"did you mean {' or '.join(close)}? " if close else "") + f"There are {', '.join(known)}"
