"""Every network of Keras: each layer against keras.applications, weight files, folding, cutting, training, what it sees."""

import contextlib
import dataclasses
import os
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from quick_keras import quick_keras
from test_models import TOLERANCE, images, random_network
from test_port import same

from scalecov_jax import extraction as features
from scalecov_jax.checkpoints import random_network as reinitialised
from scalecov_jax.imaging.image_set import Example
from scalecov_jax.models import efficientnet, parity
from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.models.folding import fold
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.models.port import port
from scalecov_jax.models.preprocessing import TORCH_MEAN, TORCH_SD, preprocess
from scalecov_jax.models.pruning import (
    abstract_variables,
    count_parameters,
    cumulative_parameters,
    prune,
)
from scalecov_jax.models.receptive_field import _window, clean_region, receptive_field, undefined_layers

# Height and width of the images: odd and even ones, for steps of 2 pad them differently.
SIZES = {
    "inception_v3": (128, 107),
    "resnet50": (64, 64),
    "resnet101": (64, 64),
    "resnet152": (64, 64),
    "vgg16": (64, 64),
    "mobilenet_v2": (75, 64),
    "densenet121": (75, 64),
    "efficientnet_b0": (75, 64),
    "convnext_tiny": (75, 64),
}
CLASSES = 10
KEPT = Path(__file__).with_name("keras_features.npz")
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module", params=SIZES)
def drawn(request):
    """A network of Keras's options with random variables, and two images."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SIZES[request.param], 3)).astype(np.uint8)
    return random_network(request.param, input_size=64, classes=CLASSES), jnp.asarray(pixels)


@pytest.fixture(scope="module")
def both(drawn):
    """The network, and Keras's model with its variables."""
    with quick_keras():
        keras = parity._import_keras()
        keras.layers.Conv2D(1, 1), keras.layers.BatchNormalization()  # Moves the automatic names.
        return drawn[0], parity.keras_model(drawn[0], *SIZES[drawn[0].architecture.name])


def some(pooled):
    """Eight channels of every layer: a row per layer and image."""
    return np.concatenate([v[:, np.linspace(0, v.shape[1] - 1, 8).astype(int)] for v in pooled.values()])


def assert_kept(name, pooled):
    """Pooled features of every layer are those that Keras gave when KEPT was written."""
    with np.load(KEPT) as file:
        pairs = zip(some(pooled).reshape(-1, 2, 8), file[name].reshape(-1, 2, 8), strict=True)
    errors = dict(zip(pooled, (parity.relative_error(*pair) for pair in pairs), strict=True))
    assert all(error <= TOLERANCE for error in errors.values()), errors


def test_pooled_features_are_those_that_keras_gave(drawn):
    given, pixels = drawn
    layers = given.architecture.layers
    compute = jax.jit(
        lambda v: features.pooled_features(given.module, v, pixels, layers, given.card.preprocessing)
    )
    pooled = compute(given.variables)
    assert_kept(given.architecture.name, {layer: np.asarray(pooled[layer]) for layer in layers})


@pytest.mark.large
def test_every_layer_equals_keras(both, drawn):
    given, pixels = drawn
    name, x = given.architecture.name, jax.device_get(preprocess(pixels, given.card.preprocessing))
    expected, found = parity._keras_outputs(both[1], given, x), parity.capture(given, x)
    assert tuple(expected) == given.architecture.layers
    errors = {layer: parity.relative_error(found[layer], values) for layer, values in expected.items()}
    print(f"{name}: worst {max(errors.items(), key=lambda item: item[1])}")
    assert all(error <= TOLERANCE for error in errors.values()), errors
    pooled = {layer: v.reshape(len(v), -1, v.shape[-1]).mean(1) for layer, v in expected.items()}
    if os.environ.get("SCALECOV_GOLDEN") == "write":
        with np.load(KEPT) if KEPT.exists() else contextlib.nullcontext({}) as kept:
            np.savez_compressed(KEPT, **{**kept, name: some(pooled)})
    assert_kept(name, pooled)


@pytest.mark.large
@pytest.mark.parametrize("drawn", [name for name in SIZES if "resnet1" not in name], indirect=True)
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_files_written_by_keras(both, tmp_path):
    """One Keras model in all of its formats, with and without its head, and inside another one."""
    given, model = both
    model.save_weights(tmp_path / "keras3.weights.h5")
    model.save(tmp_path / "whole.h5")
    name, preprocessing = given.architecture.name, given.architecture.preprocessing
    if name == "efficientnet_b0":
        preprocessing = (
            "unit"  # Keras's model begins with a normalisation, and this one was given no statistics
        )
        with pytest.raises(ValueError, match="expects the preprocessing unit and not torch"):
            port(tmp_path / "whole.h5", name, "torch")
    if name == "resnet50":
        preprocessing = "torch"  # which the random statistics fit
    if name == "vgg16":  # its dense layers are those of images of 64 x 64 pixels
        with pytest.raises(ValueError, match=r"fc1/kernel \[2048, 4096\] instead of \[25088, 4096\]"):
            port(tmp_path / "whole.h5", name, preprocessing)
        given = cut(given, given.architecture.trunk)
    last = given.card.options.get("last")
    ported = port(tmp_path / "keras3.weights.h5", name, preprocessing, last)
    assert same(ported, given)
    assert ported.card.options == given.card.options | ({"classes": CLASSES} if last is None else {})
    assert same(port(tmp_path / "whole.h5", name, preprocessing, last), given)
    others = {"inception_v3": "resnet50", "resnet50": "inception_v3"}
    if name in others:
        model.save(tmp_path / "whole.keras")
        assert same(port(tmp_path / "whole.keras", name, preprocessing), given)
        keras, trunk = parity._import_keras(), given.architecture.trunk
        outer = keras.Sequential([keras.Input((*SIZES[name], 3)), model, keras.layers.Dense(2)])  # fine-tuned
        for nested in ("nested.h5", "nested.keras"):
            outer.save(tmp_path / nested)
            assert same(port(tmp_path / nested, name, preprocessing, trunk), cut(given, trunk))

    with h5py.File(tmp_path / "keras3.weights.h5", "r+") as file:
        strip_names(file["layers"])
    if name in others:
        with pytest.raises(ValueError, match=f"holds {name} .* and not {others[name]}"):
            port(tmp_path / "keras3.weights.h5", others[name], preprocessing)
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
    options = {key: value for key, value in network.card.options.items() if key != "classes"}
    card = dataclasses.replace(network.card, options=options | {"last": layer})
    return network._replace(module=module, variables=variables, card=card)


def strip_names(group):
    """As Keras wrote files before version 3.8."""
    for one in group.values():
        if isinstance(one, h5py.Group):
            if "name" in one.attrs:
                del one.attrs["name"]
            strip_names(one)


@pytest.mark.parametrize(
    ("mean", "variance", "expected"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "torch"),  # of the published file; Keras divides twice
        ((0.485, 0.456, 0.406), (0.229**2, 0.224**2, 0.225**2), "torch"),
        ((0, 0, 0), (1, 1, 1), "unit"),
        ((0.5, 0.5, 0.5), (1, 1, 1), "there is no such preprocessing"),
    ],
)
def test_preprocessing_inside_keras_efficientnet(mean, variance, expected):
    tensors = {"normalization_1/mean": np.float32(mean), "normalization_1/variance": np.float32(variance)}
    if len(expected) < 6:
        assert efficientnet.declared_preprocessing(tensors) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            efficientnet.declared_preprocessing(tensors)


def test_preprocessing_of_efficientnet_is_what_keras_computes():
    """Rescaling by 1 / 255, normalisation with the sd in place of the variance, rescaling by 1 / sqrt(sd)."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    keras = (pixels / 255 - TORCH_MEAN) / np.sqrt(TORCH_SD) * (1 / np.sqrt(TORCH_SD))
    np.testing.assert_allclose(preprocess(jnp.asarray(pixels), "torch"), keras, atol=1e-6)
    np.testing.assert_allclose(preprocess(jnp.asarray(pixels), "unit"), pixels / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet101", 44_707_176),
        ("resnet152", 60_419_944),
        ("vgg16", 138_357_544),
        ("mobilenet_v2", 3_538_984),
        ("densenet121", 8_062_504),
        ("efficientnet_b0", 5_330_571 - 7),  # 7 of Keras's are mean, variance and count of its normalisation
        ("convnext_tiny", 28_589_128),
    ],
)
def test_parameter_counts(name, count):
    """As Keras counts."""
    assert count_parameters(abstract_variables(ARCHITECTURES[name].module(), ARCHITECTURES[name])) == count


def test_parameters_up_to_a_layer_are_those_of_the_cut_network():
    family = ARCHITECTURES["densenet121"]
    module = family.module(width=0.125)
    cumulative = cumulative_parameters(module, family)
    assert tuple(cumulative) == family.trunk_layers
    for layer in ("pool1", "pool2_pool", "conv3_block2_concat", "relu"):
        cut_module = module.clone(last=layer)
        assert cumulative[layer] == count_parameters(abstract_variables(cut_module, family))


# Layers whose cut, folding and training are looked at: of the first third, to compile little.
PARTS = {
    "vgg16": ("block1_pool", "block2_conv2"),
    "mobilenet_v2": ("block_1_project_BN", "block_2_add"),
    "densenet121": ("conv2_block2_concat", "pool2_pool"),
    "efficientnet_b0": ("block1a_project_bn", "block2b_add"),
    "convnext_tiny": ("stem", "stage_0_block_1"),
}


@pytest.mark.parametrize("name", PARTS)
def test_folding_and_cutting_change_no_layer(name):
    first, last = PARTS[name]
    given = random_network(name, input_size=37, width=0.125, last=last)
    x = images(37, 32)
    expected = parity.capture(given, x)
    module, variables = fold(given.module, given.variables, given.architecture.epsilon)
    normalises = "batch_stats" in given.variables
    assert (module is given.module) != normalises
    assert "batch_stats" not in variables
    module, variables = prune(module, variables, given.architecture, first)
    found = np.asarray(jax.jit(module.apply)(variables, jnp.asarray(x)))
    assert parity.relative_error(found, expected[first]) < 1e-5
    if normalises:  # the rest too
        folded = given._replace(module=given.module.clone(folded=True))
        folded = folded._replace(variables=fold(given.module, given.variables, given.architecture.epsilon)[1])
        for layer, values in parity.capture(folded, x).items():
            assert parity.relative_error(values, expected[layer]) < 1e-5, layer


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "efficientnet_b0"])
def test_training_updates_every_running_statistic(name):
    given = random_network(name, width=0.125, last=PARTS[name][1])
    variables, x = jax.tree.map(jnp.asarray, (given.variables, images(32, 32)))
    _, updates = jax.jit(lambda v, x: given.module.apply(v, x, True, mutable=["batch_stats"]))(variables, x)
    before, after = (flatten_dict(one["batch_stats"]) for one in (given.variables, updates))
    assert before.keys() == after.keys()
    assert all((before[path] != after[path]).all() for path in before)


@pytest.mark.parametrize("name", ["vgg16", "convnext_tiny"])
def test_the_whole_network_ends_in_its_pooled_trunk(name):
    family = ARCHITECTURES[name]
    module = family.module(width=0.125, last=WHOLE)
    shapes = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, 64, 64, 3)))
    maps = jax.eval_shape(
        module.clone(last=family.trunk).init_with_output, jax.random.key(0), jnp.zeros((2, 64, 64, 3))
    )
    assert shapes[0].shape == (2, maps[0].shape[-1])
    assert jax.tree.structure(shapes[1]) == jax.tree.structure(maps[1])


# What they see


def chain(name):
    """Kernel size and step of the convolutions and poolings up to each layer, written down anew."""
    if name in ("resnet101", "resnet152"):
        yield "max_pool", (7, 2), (3, 2)
        counts = (3, 4, 23, 3) if name == "resnet101" else (3, 8, 36, 3)
        firsts = np.cumsum((1, *counts))
        for number in range(1, sum(counts) + 1):
            yield f"add_{number}", (1, 2 if number in firsts[1:] else 1), (3, 1)
    if name == "vgg16":
        for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
            yield from ((f"block{stage}_conv{number}", (3, 1)) for number in range(1, count + 1))
            yield f"block{stage}_pool", (2, 2)
    if name == "mobilenet_v2":
        yield "Conv1_relu", (3, 2)
        for number in range(17):
            stride = 2 if number in (1, 3, 6, 13) else 1
            alone = number in (0, 1, 3, 6, 10, 13, 16)
            prefix = f"block_{number}" if number else "expanded_conv"
            yield f"{prefix}_{'project_BN' if alone else 'add'}", (3, stride)
        yield "out_relu", (1, 1)
    if name == "densenet121":
        yield "pool1", (7, 2), (3, 2)
        for stage, count in {2: 6, 3: 12, 4: 24, 5: 16}.items():
            yield from ((f"conv{stage}_block{number}_concat", (3, 1)) for number in range(1, count + 1))
            yield ("relu", (1, 1)) if stage == 5 else (f"pool{stage}_pool", (2, 2))
    if name == "convnext_tiny":
        for stage, count in enumerate((3, 3, 9, 3)):
            yield (f"downsampling_block_{stage - 1}", (2, 2)) if stage else ("stem", (4, 4))
            yield from ((f"stage_{stage}_block_{number}", (7, 1)) for number in range(count))


@pytest.mark.parametrize(
    "name", ["resnet101", "resnet152", "vgg16", "mobilenet_v2", "densenet121", "convnext_tiny"]
)
def test_receptive_field_of_every_layer(name):
    """Sizes by the recursion."""
    size, stride, seen = 1, 1, []
    for layer, *steps in chain(name):
        for kernel, step in steps:
            size, stride = size + (kernel - 1) * stride, stride * step
        found = receptive_field(name, layer)
        assert (found.size, found.stride) == (size, stride), layer
        seen.append(layer)
    assert tuple(seen) == ARCHITECTURES[name].trunk_layers
    for layer in ("pre_softmax", "avg_pool"):
        with pytest.raises(ValueError, match="sees the whole image: it is a vector"):
            receptive_field(name, layer)


@pytest.mark.parametrize(("name", "size"), [("resnet101", 1027), ("resnet152", 1507), ("vgg16", 212)])
def test_receptive_field_of_the_last_layer_is_the_published_one(name, size):
    """Araujo et al. 2019, table 1."""
    assert receptive_field(name, ARCHITECTURES[name].trunk_layers[-1]).size == size


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("convnext_tiny", "downsampling_block_0", (48, 40)),
        ("mobilenet_v2", "block_1_project_BN", (30, 27)),
        ("efficientnet_b0", "stem_activation", (20, 17)),
        ("efficientnet_b0", "block1a_project_bn", (20, 17)),
    ],
)
def test_a_position_depends_on_the_pixels_of_its_window_alone(name, layer, size):
    """By gradients, at the first, a middle and the last position."""
    given = random_network(name, width=0.125, last=layer)
    variables, x = jax.tree.map(jnp.asarray, (given.variables, images(*size, count=1)))
    maps, pull = jax.vjp(jax.jit(lambda x: given.module.apply(variables, x)), x)
    windows = [_window(given.module, *size, layer, axis) for axis in ("height", "width")]
    rng, pull = np.random.default_rng(0), jax.jit(pull)
    for place in ((0, 0), tuple(n // 2 for n in maps.shape[1:3]), tuple(n - 1 for n in maps.shape[1:3])):
        cotangent = np.zeros(maps.shape, np.float32)
        cotangent[(0, *place)] = rng.normal(size=maps.shape[-1])
        used = np.argwhere(np.abs(np.asarray(pull(cotangent)[0])[0]).sum(-1) > 0)
        for axis, (position, window) in enumerate(zip(place, windows, strict=True)):
            first, last = 0, size[axis] - 1
            if layer != "block1a_project_bn":  # which sees all of it
                first = max(first, window.stride * position + window.offset)
                last = min(last, window.stride * position + window.offset + window.size - 1)
            assert (used[:, axis].min(), used[:, axis].max()) == (first, last), (place, axis)


def test_efficientnet_sees_the_whole_image_from_its_first_block_on():
    name, blocks = "efficientnet_b0", ARCHITECTURES["efficientnet_b0"].trunk_layers[1:]
    assert receptive_field(name, "stem_activation") == (3, 2, 0)
    assert receptive_field(name, "stem_activation", input_size=225) == (3, 2, -1)
    assert receptive_field(name, "block1a_dwconv") == (7, 2, -2)
    for layer in blocks:
        with pytest.raises(ValueError, match=f"{layer} of {name} sees the whole image: as after"):
            receptive_field(name, layer)
        assert clean_region(name, layer, 224) is None
    assert undefined_layers(ARCHITECTURES[name].module(folded=True), 224, blocks) == dict.fromkeys(blocks)
    given = random_network(name, input_size=32, width=0.125)
    with pytest.raises(
        ValueError, match=r"undefined .* at block1a_project_bn \(sees the whole image\), block3b_add \(sees"
    ):
        features.check_request(
            given, ("stem_activation", "block1a_project_bn", "block3b_add"), None, "corrected_gap"
        )


def test_vgg16_takes_other_sizes_up_to_its_poolings():
    given = random_network("vgg16", input_size=32, width=0.125, classes=3)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3)).astype(np.uint8)
    source = [Example(one, None, None, None, "", "") for one in pixels]
    pooled = features.compute_features(given, source, ("block1_pool", "block5_pool"), size=48).values
    assert [values.shape for values in pooled.values()] == [(2, 8), (2, 64)]
    with pytest.raises(ValueError, match=r"fc1/kernel is \[64, 512\] and would have to be \[256, 512\]"):
        features.compute_features(given, source, ("block1_pool", "fc2"), size=64)
    with pytest.raises(ValueError, match="fc1 takes maps of 64 values and got 256"):
        jax.eval_shape(given.module.apply, given.variables, jnp.zeros((1, 64, 64, 3)))


def test_random_convnext_begins_with_its_own_layer_scale():
    given = random_network("convnext_tiny", input_size=32, width=0.0625, last="stage_0_block_0")
    fresh = flatten_dict(reinitialised(given, 0).variables["params"])
    assert np.unique(fresh["stage_0_block_0", "layer_scale", "gamma"]) == [np.float32(1e-6)]
    assert fresh["stem", "conv", "kernel"].std() > 0.01
