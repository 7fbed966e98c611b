"""The one list of architectures: all that the rest of the package knows of a network."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from flax import linen as nn

from scalecov_jax.models import (
    convnext,
    densenet,
    dr_grader,
    efficientnet,
    inception_v3,
    mobilenet_v2,
    resnet,
    vgg16,
    vit,
    vit_sources,
)
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.models.preprocessing import Preprocessing
from scalecov_jax.models.sources import Sources


@dataclass(frozen=True)
class Architecture:
    """A family of networks."""

    name: str  # as in configs and tables
    # linen module with a field `last` that names the layer to stop after. A field `folded`, if there is one, says that
    # batch normalisation is part of the kernels (see `folding.fold`).
    module: type[nn.Module]
    # the layers that are probed, from input to output, by the source's names: those of modules inside it
    layers: tuple[str, ...]
    epsilon: float = 1e-3  # added to the variance by every batch normalisation
    input_size: int = 224  # height and width of the images it was trained on, in pixels
    preprocessing: Preprocessing = "torch"  # what its Keras weights expect
    title: str = ""  # its name for people; `name` when empty
    # those of `layers` that belong to the classification head
    head: tuple[str, ...] = ("pre_softmax", "softmax")
    sources: Sources = field(default_factory=Sources)  # where weights may come from, and what to compare with
    # layers that are probed only if asked for, with those of `layers`, in the order in which they are computed
    inside: tuple[str, ...] = ()

    def __post_init__(self):
        fields = getattr(self.module, "__dataclass_fields__", {})
        possible = {
            f"{self.module.__name__} has no field `last`": "last" not in fields,
            "no layer comes before the head": not self.trunk_layers,
            "a layer is listed twice": len({*self.layers}) < len(self.layers),
            f"{WHOLE} is listed; it follows the last layer by itself": WHOLE in self.layers,
        }
        if problems := [problem for problem, wrong in possible.items() if wrong]:
            raise ValueError(f"Architecture {self.name!r} cannot be used: {'; '.join(problems)}.")

    @property
    def trunk_layers(self) -> tuple[str, ...]:
        """The layers before the classification head."""
        return tuple(layer for layer in self.layers if layer not in self.head)

    @property
    def every_layer(self) -> tuple[str, ...]:
        """`layers` and those inside them that can be asked for, from input to output."""
        return self.inside or self.layers

    def with_options(self, options: Mapping[str, Any]) -> "Architecture":
        """The family as a module with these fields has it, where its layers depend on them (`layer_names`)."""
        module: Any = self.module(**options)
        if not hasattr(module, "layer_names"):
            return self
        return replace(
            self, layers=module.layer_names, inside=module.every_layer, input_size=module.image_size
        )

    @property
    def trunk(self) -> str:
        """The last layer before the classification head."""
        return self.trunk_layers[-1]


def _family(
    name: str, module: type[nn.Module], of: Any, size: int, preprocessing: Preprocessing, title: str
) -> Architecture:
    """From a module and what the file that it stands in says of it."""
    names = {"epsilon": "EPSILON", "head": "HEAD", "sources": "SOURCES"}
    more = {field: getattr(of, constant) for field, constant in names.items() if hasattr(of, constant)}
    return Architecture(
        name, module, of.LAYERS, input_size=size, preprocessing=preprocessing, title=title, **more
    )


def _resnet(network: type[resnet.ResNet50]) -> Architecture:
    name, layers, names = network.__name__, resnet.layer_names(network), resnet.sources(network)
    return Architecture(name.lower(), network, layers, resnet.EPSILON, 224, "caffe", name, sources=names)


_FAMILIES = (
    _family("inception_v3", inception_v3.InceptionV3, inception_v3, 299, "tf", "InceptionV3"),
    *map(_resnet, (resnet.ResNet50, resnet.ResNet101, resnet.ResNet152)),
    _family("vgg16", vgg16.VGG16, vgg16, 224, "caffe", "VGG16"),
    _family("mobilenet_v2", mobilenet_v2.MobileNetV2, mobilenet_v2, 224, "tf", "MobileNetV2"),
    _family("densenet121", densenet.DenseNet121, densenet, 224, "torch", "DenseNet121"),
    _family("efficientnet_b0", efficientnet.EfficientNetB0, efficientnet, 224, "torch", "EfficientNetB0"),
    _family("convnext_tiny", convnext.ConvNeXtTiny, convnext, 224, "torch", "ConvNeXt-Tiny"),
    Architecture(
        "vit",
        vit.ViT,
        vit.ViT().layer_names,
        vit.ViT.epsilon,
        title="ViT",
        sources=vit_sources.SOURCES,
        inside=vit.ViT().every_layer,
    ),
    _family("dr_grader", dr_grader.DRGrader, dr_grader, dr_grader.INPUT_SIZE, "unit", "DR grader"),
)
ARCHITECTURES = {architecture.name: architecture for architecture in _FAMILIES}


def get_architecture(name: str) -> Architecture:
    """Look an architecture up.

    Raises:
        ValueError: There is none of that name; names the nearest and all.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"No architecture is called {name!r}; {_nearest(name, ARCHITECTURES)}.")
    return ARCHITECTURES[name]


def plain_name(name: str) -> str:
    """The name of an architecture for people; `name` where it is none that is known."""
    return (ARCHITECTURES[name].title or name) if name in ARCHITECTURES else name


def check_layer(architecture: Architecture, layer: str, last: str | None = None) -> str:
    """Return `layer` if the network, which may stop at `last`, has it; `avg_pool`, the pooled whole, if it goes so far.

    Raises:
        ValueError: There is no such layer, or the network stops before it.
    """
    layers, every = architecture.layers, architecture.every_layer
    if layer == WHOLE and last in (None, WHOLE, *architecture.head):
        return layer
    if layer not in every:
        raise ValueError(f"{architecture.name} has no layer {layer!r}; {_nearest(layer, layers, every)}.")
    if last in every and every.index(layer) > every.index(last):
        there = ", ".join(every[: every.index(last) + 1])
        raise ValueError(
            f"This {architecture.name} stops at {last}, before {layer!r}; choose one of {there}."
        )
    return layer


def available_layers(architecture: Architecture, module: Any) -> tuple[str, ...]:
    """The layers of `architecture` up to the one that `module` stops after."""
    every = architecture.every_layer
    last = architecture.trunk if module.last == WHOLE else module.last
    there = every[: every.index(last) + 1]
    return tuple(layer for layer in there if layer in architecture.layers or layer == last)


def _nearest(name: str, known: Any, every: Any = ()) -> str:
    close = get_close_matches(name, every or known, n=3, cutoff=0.5)
    return (f"did you mean {' or '.join(close)}? " if close else "") + f"There are {', '.join(known)}"
