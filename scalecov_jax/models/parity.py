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
from scalecov_jax.models.architecture import available_layers
from scalecov_jax.models.names import LAYOUTS, source_name
from scalecov_jax.models.preprocessing import preprocess

TOLERANCE = 1e-4


class LayerError(NamedTuple):
    """How far a layer is from its reference.

    Attributes:
        layer: Its name.
        shape: Of its output.
        error: Largest absolute difference / largest absolute value of the reference.
    """

    layer: str
    shape: tuple[int, ...]
    error: float


def compare_with_keras(
    network: Network, height: int | None = None, width: int | None = None, images: int = 1, seed: int = 0
) -> list[LayerError]:
    """Run random images through the network and through keras.applications filled with its variables.

    Every layer of the architecture up to the network's last is compared, before any pooling.

    Args:
        network: Of full width, not folded, with Keras's options.
        height: Of the images in pixels; the network's own when absent.
        width: Of the images in pixels; `height` when absent.
        images: How many.
        seed: Of the random images.

    Returns:
        One row for each layer, from input to output.

    Raises:
        ImportError: Keras is not installed.
        ValueError: keras.applications has no such network.
    """
    keras = _import_keras()
    height = height or network.card.input_size
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (images, height, width or height, 3)).astype(np.uint8)
    x = jax.device_get(preprocess(jax.numpy.asarray(pixels), network.card.preprocessing))
    expected = _keras_outputs(keras, network, x)
    found = capture(network, x)
    return [
        LayerError(layer, expected[layer].shape, relative_error(found[layer], expected[layer]))
        for layer in expected
    ]


def relative_error(found: Float[np.ndarray, "..."], expected: Float[np.ndarray, "..."]) -> float:
    """Largest absolute difference / largest absolute value of `expected`; infinite if the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def capture(network: Network, x: Float[np.ndarray, "N H W 3"]) -> dict[str, Float[np.ndarray, "..."]]:
    """Full output of every layer of the network's architecture for preprocessed images."""
    layers = available_layers(network.architecture, network.module)

    @jax.jit
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
    keras: Any, network: Network, x: Float[np.ndarray, "N H W 3"]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Outputs of the Keras model at every layer that the network has."""
    module: Any = network.module
    name = network.architecture.name
    options = {
        "width": 1.0,
        "folded": False,
        "count_padding": False,
        "use_scale": False,
        "stride_on_3x3": False,
        "max_pool_padding": 1,
    }
    different = {k: getattr(module, k) for k, v in options.items() if getattr(module, k, v) != v}
    if different:
        given = ", ".join(f"{option}={value}" for option, value in different.items())
        raise ValueError(
            f"keras.applications has no {name} with {given}, so there is nothing to compare with."
        )
    layers = available_layers(network.architecture, module)
    top = "pre_softmax" in layers
    build = {"inception_v3": keras.applications.InceptionV3, "resnet50": keras.applications.ResNet50}[name]
    head = {"classes": module.classes, "classifier_activation": None} if top else {}
    model = build(weights=None, include_top=top, input_shape=None if top else x.shape[1:], **head)
    if top and x.shape[1:] != model.input_shape[1:]:
        # With its head, keras.applications insists on one size; the layers themselves do not.
        model = build(
            weights=None,
            include_top=True,
            input_tensor=keras.Input(x.shape[1:]),
            **head,
        )
    by_name = _name_layers(keras, model)
    _set_weights(network, by_name)
    outputs = {layer: by_name[_keras_layer(name, layer)].output for layer in layers if layer != "softmax"}
    if "softmax" in layers:
        outputs["softmax"] = keras.layers.Softmax()(outputs["pre_softmax"])
    # A list, not a dict: Keras warns about a dict whose order it does not know.
    with jax.numpy_rank_promotion("allow"):
        values = keras.Model(model.inputs, list(outputs.values())).predict(x, verbose=0)
    return dict(zip(outputs, values if isinstance(values, list) else [values], strict=True))


def _name_layers(keras: Any, model: Any) -> dict[str, Any]:
    """Layers by name, with automatic names numbered from 1 in the order in which they were made."""
    named = {layer.name: layer for layer in model.layers}
    for kind, prefix in (
        (keras.layers.Conv2D, "conv2d"),
        (keras.layers.BatchNormalization, "batch_normalization"),
        (keras.layers.Activation, "activation"),
    ):
        automatic = [
            layer for layer in model.layers if isinstance(layer, kind) and layer.name.startswith(prefix)
        ]
        automatic.sort(key=lambda layer: [int(number) for number in re.findall(r"_(\d+)$", layer.name)])
        named |= {f"{prefix}_{i}": layer for i, layer in enumerate(automatic, start=1)}
    return named


def _keras_layer(architecture: str, layer: str) -> str:
    """Which Keras layer puts out what one of our layers does."""
    if layer == "pre_softmax":
        return "predictions"
    if architecture == "inception_v3":
        return layer.replace("conv2d_", "activation_")
    if layer == "max_pool":
        return "pool1_pool"
    layout = next(layout for layout in LAYOUTS if layout.architecture == architecture)
    block = next(path for path in layout.blocks if path.startswith(f"{layer}/"))
    return block.partition("/")[2].rpartition("_")[0] + "_add"


def _set_weights(network: Network, layers: dict[str, Any]) -> None:
    """Fill the Keras layers from the network's variables."""
    layout = next(layout for layout in LAYOUTS if layout.architecture == network.architecture.name)
    sources = {source_name(layout, path): values for path, values in flatten_dict(network.variables).items()}
    for name in {str(source).partition("/")[0] for source in sources}:
        layer = layers[name]
        layer.set_weights([sources[f"{name}/{variable.name}"] for variable in layer.weights])
