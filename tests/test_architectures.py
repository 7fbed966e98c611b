"""Every further network: each layer against keras.applications, weight files, folding, cutting, training, what it sees."""

import contextlib

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from quick_keras import quick_keras
from test_models import TOLERANCE, images, random_network
from test_port import same

from scalecov_jax import features
from scalecov_jax.checkpoints import random_network as reinitialised
from scalecov_jax.images.example import Example
from scalecov_jax.models import parity, resnet
from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.models.folding import fold
from scalecov_jax.models.port import port
from scalecov_jax.models.pruning import abstract_variables, count_parameters, prune

# Height and width of the images: odd and even ones, for steps of 2 pad them differently.
SIZES = {
    "resnet101": (64, 64),
    "resnet152": (64, 64),
    "vgg16": (64, 64),
    "mobilenet_v2": (75, 64),
    "densenet121": (75, 64),
    "efficientnet_b0": (75, 64),
    "convnext_tiny": (75, 64),
}
CLASSES = 10


@pytest.fixture(scope="module", params=SIZES)
def both(request):
    """A network with random variables, and Keras's model with the same."""
    given = random_network(request.param, input_size=64, classes=CLASSES)
    with quick_keras():
        return given, parity.keras_model(given, *SIZES[request.param])


def test_every_layer_equals_keras(both, monkeypatch):
    given, model = both
    monkeypatch.setattr(parity, "keras_model", lambda *_: model)
    rows = parity.compare_with_keras(given, *SIZES[given.architecture.name])
    assert tuple(row.layer for row in rows) == given.architecture.layers
    print(f"{given.architecture.name}: worst {max(rows, key=lambda row: row.error)}")
    for row in rows:
        assert row.error <= TOLERANCE, row


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_files_written_by_keras(both, tmp_path):
    """One Keras model in all of its formats, with and without its head."""
    given, model = both
    name, preprocessing = given.architecture.name, given.architecture.preprocessing
    if name == "efficientnet_b0":
        preprocessing = "unit"  # Keras's model begins with a normalisation, and this one was given no statistics
        with pytest.raises(ValueError, match="expects the preprocessing unit and not torch"):
            model.save_weights(tmp_path / "a.weights.h5")
            port(tmp_path / "a.weights.h5", name, "torch")
    model.save_weights(tmp_path / "keras3.weights.h5")
    model.save(tmp_path / "whole.h5")
    if name == "vgg16":  # its dense layers are those of images of 64 x 64 pixels
        with pytest.raises(ValueError, match=r"fc1/kernel \[2048, 4096\] instead of \[25088, 4096\]"):
            port(tmp_path / "whole.h5", name, preprocessing)
        given = cut(given, given.architecture.trunk)
    last = given.card.options.get("last")
    ported = port(tmp_path / "keras3.weights.h5", name, preprocessing, last)
    assert same(ported, given)
    assert ported.card.options == given.card.options | ({"classes": CLASSES} if last is None else {})
    assert same(port(tmp_path / "whole.h5", name, preprocessing, last), given)

    with h5py.File(tmp_path / "keras3.weights.h5", "r+") as file:
        strip_names(file["layers"])
    nameless = port(tmp_path / "keras3.weights.h5", name, preprocessing, last)
    assert "without layer names" in nameless.card.notes["layout"]
    assert same(nameless, given)

    layout = given.architecture.sources.layouts[0]
    with h5py.File(tmp_path / "whole.h5", "r+") as file:
        for path in {"fc1", "fc2", "head_norm", "pre_softmax"} & layout.modules.keys():
            del file["model_weights"][layout.modules[path]]
        if name == "convnext_tiny":  # whose head's normalisation ends a file without head too
            file["model_weights/layer_normalization_4/layer_normalization_4/gamma"] = np.ones(768)
    with pytest.raises(ValueError, match=rf"--last={given.architecture.trunk}\."):
        port(tmp_path / "whole.h5", name, preprocessing)
    without = port(tmp_path / "whole.h5", name, preprocessing, given.architecture.trunk)
    assert same(without, cut(given, given.architecture.trunk))


def cut(network, layer):
    module, variables = prune(network.module, network.variables, network.architecture, layer)
    card = network.card
    options = {key: value for key, value in card.options.items() if key != "classes"} | {"last": layer}
    return network._replace(module=module, variables=variables, card=card.__class__(**{**vars(card), "options": options}))


def strip_names(group):
    for one in group.values():
        if isinstance(one, h5py.Group):
            if "name" in one.attrs:
                del one.attrs["name"]
            strip_names(one)
