"""Our networks against keras.applications with the same variables, layer by layer."""

import importlib
import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float

from scalecov_jax.checkpoints import Network
from scalecov_jax.compilation import jit
from scalecov_jax.models.architecture import available_layers
from scalecov_jax.models.preprocessing import preprocess
from scalecov_jax.models.sources import KerasModel, Layout, source_name
from scalecov_jax.models.weight_files import leaf_name

TOLERANCE = 1e-4


class LayerError(NamedTuple):
    """How far a layer is from its reference."""

    layer: str
    shape: tuple[int, ...]  # of its output
    error: float  # largest absolute difference / largest absolute value of the reference


def compare_with_keras(
    network: Network, height: int | None = None, width: int | None = None, images: int = 1, seed: int = 0
) -> list[LayerError]:
    """Run random images through the network and through keras.applications filled with its variables.

    Every layer of the architecture up to the network's last is compared, before any pooling, from input to output. The network
    is of full width, not folded, and has Keras's options. Images have its own size in pixels by default, and are square.

    Raises:
        ImportError: Keras is not installed.
        ValueError: keras.applications has no such network.
    """
    height = height or network.card.input_size
    width = width or height
    model = keras_model(network, height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, (images, height, width, 3)).astype(np.uint8)
    x = jax.device_get(preprocess(jax.numpy.asarray(pixels), network.card.preprocessing))
    expected = _keras_outputs(model, network, x)
    found = capture(network, x)
    return [
        LayerError(layer, expected[layer].shape, relative_error(found[layer], expected[layer]))
        for layer in expected
    ]


def keras_model(network: Network, height: int, width: int) -> Any:
    """The model of keras.applications with a network's variables, for images of one size.

    Raises:
        ImportError: Keras is not installed.
        ValueError: keras.applications has no such network.
    """
    keras = _import_keras()
    module: Any = network.module
    reference, layout = _keras_sources(network)
    top = module.last in network.architecture.head
    build = getattr(keras.applications, reference.builder)
    head = {"classes": module.classes, "classifier_activation": None} if top else {}
    # Through a tensor, for with its head keras.applications insists on one size; the layers themselves do not.
    with jax.numpy_rank_promotion("allow"):
        model = build(weights=None, include_top=top, input_tensor=keras.Input((height, width, 3)), **head)
    _set_weights(network, layout, _name_layers(model))
    return model


def relative_error(found: Float[np.ndarray, "..."], expected: Float[np.ndarray, "..."]) -> float:
    """Largest absolute difference / largest absolute value of `expected`; infinite if the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def capture(network: Network, x: Float[np.ndarray, "N H W 3"]) -> dict[str, Float[np.ndarray, "..."]]:
    """Full output of every layer of the network's architecture for preprocessed images."""
    layers = available_layers(network.architecture, network.module)

    @jit
    def run(variables: Any, inputs: Any) -> Any:
        return network.module.apply(
            variables,
            inputs,
            capture_intermediates=lambda module, _: module.name in layers,
            mutable=["intermediates"],
        )[1]["intermediates"]

    captured: Any = flatten_dict(run(network.variables, x))
    return {path[-2]: np.asarray(values[0]) for path, values in captured.items()}


def _import_keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        return importlib.import_module("keras")
    except ImportError as error:
        raise ImportError("The parity check needs Keras: pip install keras.") from error


def _keras_outputs(
    model: Any, network: Network, x: Float[np.ndarray, "N H W 3"]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Outputs of the Keras model at every layer that the network has."""
    keras = _import_keras()
    reference, _ = _keras_sources(network)
    layers, by_name = available_layers(network.architecture, network.module), _name_layers(model)
    names = {layer: reference.outputs.get(layer, layer) for layer in layers if layer != "softmax"}
    outputs = {layer: by_name[name].output for layer, name in names.items()}
    if "softmax" in layers:
        outputs["softmax"] = keras.layers.Softmax()(outputs["pre_softmax"])
    first = by_name[reference.after].output if reference.after else model.inputs
    # A list, not a dict: Keras warns about a dict whose order it does not know.
    with jax.numpy_rank_promotion("allow"):
        values = keras.Model(first, list(outputs.values())).predict(x, verbose=0)
    return dict(zip(outputs, values if isinstance(values, list) else [values], strict=True))


def _keras_sources(network: Network) -> tuple[KerasModel, Layout]:
    """Keras's model and its names, if it computes what the network does."""
    family, module = network.architecture, network.module
    if family.sources.keras is None:
        raise ValueError(
            f"keras.applications has no {family.name}, so there is nothing to compare with; leave out --verify."
        )
    default = family.module()
    free = {"last", "classes", "parent", "name"}
    different = {
        option: value
        for option in family.module.__dataclass_fields__
        if option not in free and (value := getattr(module, option)) != getattr(default, option)
    }
    if different:
        given = ", ".join(f"{option}={value}" for option, value in different.items())
        raise ValueError(
            f"keras.applications has no {family.name} with {given}, so there is nothing to compare with; leave out --verify."
        )
    return family.sources.keras, family.sources.layouts[0]


def _name_layers(model: Any) -> dict[str, Any]:
    """Layers and other steps by name, with automatic names numbered from 1 in the order in which they were made."""
    named = {step.name: step for step in model.operations}
    for kind in ("conv2d", "batch_normalization", "activation", "normalization", "add"):
        found = {
            int(match[1] or 0): step
            for step in model.operations
            if (match := re.fullmatch(rf"{kind}(?:_(\d+))?", step.name))
        }
        named |= {f"{kind}_{i}": found[number] for i, number in enumerate(sorted(found), start=1)}
    return named


def _set_weights(network: Network, layout: Layout, layers: dict[str, Any]) -> None:
    """Fill the Keras layers from the network's variables."""
    sources: dict[Any, Any] = {
        source_name(layout, path): values for path, values in flatten_dict(network.variables).items()
    }
    for name in {str(source).partition("/")[0] for source in sources}:
        layer = layers[name]
        # Axes of length 1 may stand elsewhere.
        found = [(one.shape, sources[f"{name}/{leaf_name(one.name)}"]) for one in layer.weights]
        layer.set_weights([values.reshape(shape) for shape, values in found])
