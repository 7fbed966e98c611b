"""Targets, gradients at a layer and the maps made of them, against finite differences of a network written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax import vectors as rcv
from scalecov_jax.explanation import grad_cam
from scalecov_jax.explanation.gradients import check_gradients, layer_gradients
from scalecov_jax.explanation.target import (
    class_count,
    class_index,
    class_logit,
    class_probability,
    group_logit,
    head_unit,
    predicted_logit,
    rcv_projection,
    settled,
)
from scalecov_jax.models.architecture import get_architecture
from scalecov_jax.models.pruning import abstract_variables

LAYER = "block_1"


def conv_block(x, params, stats):
    """Convolution 3x3 with stride 2 and padding 1, batch normalisation, ReLU."""
    kernel = np.asarray(params["kernel"], np.float64)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = ((side + 1) // 2 for side in x.shape[1:3])
    y = sum(
        padded[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )
    mean, var = (np.asarray(stats["norm"][name], np.float64) for name in ("mean", "var"))
    return np.maximum((y - mean) / np.sqrt(var + 1e-3) + np.asarray(params["norm"]["bias"], np.float64), 0)


def tail(network, maps):
    """Logits from the output of block_1."""
    params, stats = network.variables["params"], network.variables["batch_stats"]
    maps = conv_block(maps, params["block_2"], stats["block_2"])
    head = params["pre_softmax"]
    return maps.mean((1, 2)) @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"], np.float64)


def differences(function, maps, step=1e-5):
    """Central differences of one number an image by its own activations; the images vary together."""
    gradients = np.zeros_like(maps)
    for at in np.ndindex(maps.shape[1:]):
        shift = np.zeros(maps.shape[1:])
        shift[at] = step
        gradients[(slice(None), *at)] = (function(maps + shift) - function(maps - shift)) / (2 * step)
    return gradients


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(1).normal(size=(3, 32, 32, 3))


def gradients_64(network, inputs, target, layer=LAYER):
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), network.variables)
        return jax.device_get(layer_gradients(network.module, variables, jnp.asarray(inputs), layer, target))


@pytest.fixture(scope="module")
def logit(network, inputs):
    """Gradients of the logits of three classes, ours and by finite differences."""
    ours = gradients_64(network, inputs, class_logit(network, [0, 3, 4]))
    maps = np.asarray(ours.activations)
    return ours, differences(lambda a: tail(network, a)[np.arange(3), [0, 3, 4]], maps)


def published(activations, gradients):
    """The formulas image by image and map by map, with the factor exp(S) left out."""
    results = {name: np.zeros(activations.shape[:3]) for name in grad_cam.METHODS}
    for n, (a, g) in enumerate(zip(activations, gradients, strict=True)):
        for k in range(a.shape[2]):
            below = 2 * g[..., k] ** 2 + a[..., k].sum() * g[..., k] ** 3
            alpha = np.divide(g[..., k] ** 2, below, out=np.zeros_like(below), where=below != 0)
            results["grad_cam"][n] += g[..., k].mean() * a[..., k]
            results["grad_cam_plus"][n] += np.maximum(g[..., k], 0).mean() * a[..., k]
            results["grad_cam_pp"][n] += (alpha * np.maximum(g[..., k], 0)).sum() * a[..., k]
    return {name: np.maximum(maps, 0) for name, maps in results.items()}


def test_gradients_equal_finite_differences(logit, network):
    ours, expected = logit
    np.testing.assert_allclose(ours.gradients, expected, atol=1e-8)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(ours.scores, tail(network, ours.activations)[np.arange(3), [0, 3, 4]])


@pytest.mark.parametrize("method", grad_cam.METHODS)
def test_maps_equal_the_published_formulas(logit, method):
    ours, differences = logit
    expected = published(ours.activations, differences)[method]
    parts = jnp.asarray(ours.activations), jnp.asarray(ours.gradients)
    maps = np.asarray(grad_cam.cam(method, *parts))
    assert expected.max() > 0
    np.testing.assert_allclose(maps, expected, atol=1e-4 * expected.max())
    signed = np.asarray(grad_cam.cam(method, *parts, signed=True))
    np.testing.assert_allclose(np.maximum(signed, 0), maps, rtol=1e-6)
    assert (signed.min() < 0) == (method == "grad_cam")


def test_probability_head_and_sigmoid_are_targets_too(network, inputs):
    maps = gradients_64(network, inputs, class_logit(network, 0)).activations
    kernel = np.random.default_rng(2).normal(size=16)
    cases = (
        (class_probability(network, 2), lambda a: softmax(tail(network, a), 1)[:, 2]),
        (head_unit(network, LAYER, kernel, 3.0), lambda a: a.mean((1, 2)) @ kernel + 3),
        (head_unit(network, LAYER, kernel, 0.5, jax.nn.sigmoid), lambda a: expit(a.mean((1, 2)) @ kernel + 0.5)),
    )  # fmt: skip
    for target, function in cases:
        ours = gradients_64(network, inputs, target)
        np.testing.assert_allclose(ours.scores, function(np.asarray(ours.activations)), rtol=1e-6)
        np.testing.assert_allclose(ours.gradients, differences(function, maps), atol=1e-6)


def test_the_probability_of_a_single_output_is_its_sigmoid(inputs):
    single = random_network(classes=1)
    x = jnp.asarray(inputs, jnp.float32)
    logits = jax.jit(single.module.clone(last="pre_softmax").apply)(single.variables, x)
    ours = layer_gradients(single.module, single.variables, x, LAYER, class_probability(single, 0))
    np.testing.assert_allclose(ours.scores, expit(np.asarray(logits)[:, 0]), rtol=1e-5)


def test_the_predicted_class_is_that_of_the_largest_logit(network, inputs):
    x = inputs.astype(np.float32)
    ours = layer_gradients(network.module, network.variables, x, LAYER, predicted_logit(network))
    logits = tail(network, np.asarray(ours.activations, np.float64))
    named = layer_gradients(
        network.module, network.variables, x, LAYER, class_logit(network, logits.argmax(1))
    )
    np.testing.assert_allclose(ours.scores, logits.max(1), rtol=1e-4)
    np.testing.assert_allclose(ours.gradients, named.gradients, atol=1e-6)
    group = group_logit(network, (4, "1", 4))
    among = layer_gradients(network.module, network.variables, x, LAYER, group)
    np.testing.assert_allclose(among.scores, logits[:, [1, 4]].max(1), rtol=1e-4)
    once = settled(group, jnp.asarray(logits))
    assert once.weights.argmax(1).tolist() == np.array([1, 4])[logits[:, [1, 4]].argmax(1)].tolist()
    assert settled(once, jnp.asarray(logits)) is once
    with pytest.raises(ValueError, match="group of classes is empty"):
        group_logit(network, ())


def test_projection_on_an_rcv(network, inputs):
    direction = np.zeros(32)
    direction[3] = 2
    own = checkpoints.fingerprints(network, ["block_2"])["block_2"]
    vector = rcv.Rcv(
        "contrast",
        "",
        "tiny",
        "block_2",
        own,
        "gap",
        1.0,
        0.5,
        1.0,
        0.0,
        direction,
        direction,
        direction,
        direction,
    )
    target = rcv_projection(network, vector)
    ours = layer_gradients(network.module, network.variables, inputs.astype(np.float32), "block_2", target)
    np.testing.assert_allclose(ours.scores, np.asarray(ours.activations)[..., 3].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(ours.gradients[..., 3], 1 / 4)
    assert not np.asarray(ours.gradients[..., :3]).any()


def test_permuting_images_permutes_maps(network, inputs):
    x, order = inputs.astype(np.float32), np.array([2, 0, 1])
    classes = np.array([0, 3, 4])

    def maps(images, classes):
        ours = layer_gradients(
            network.module, network.variables, images, LAYER, class_logit(network, classes)
        )
        return np.asarray(grad_cam.grad_cam_pp(ours.activations, ours.gradients))

    np.testing.assert_allclose(maps(x[order], classes[order]), maps(x, classes)[order], atol=1e-6)


@pytest.mark.parametrize("method", grad_cam.METHODS)
def test_no_gradient_gives_a_map_of_zeros(method):
    activations = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.float32)
    maps = grad_cam.cam(method, activations, jnp.zeros_like(activations))
    assert not np.asarray(maps).any()
    scaled = grad_cam.scale_maps(maps)
    assert not np.asarray(scaled).any()
    assert np.asarray(grad_cam.upsample(scaled, 6, 8)).shape == (2, 6, 8)
    # Maps of either sign, as before a ReLU, are finite whatever their sum.
    one = jnp.full((1, 2, 2, 1), -0.5), jnp.ones((1, 2, 2, 1))
    assert np.isfinite(grad_cam.cam(method, *one, signed=True)).all()


def test_maps_are_scaled_and_upsampled_about_their_centres():
    maps = np.zeros((2, 3, 3), np.float32)
    maps[0, 1, 1], maps[1, 0, 2] = 4, -2
    scaled = grad_cam.scale_maps(jnp.asarray(maps))
    assert (scaled[0].max(), scaled[1].min()) == (1, -1)
    large = np.asarray(grad_cam.upsample(scaled, 9, 9))
    assert np.unravel_index(large[0].argmax(), (9, 9)) == (4, 4)
    np.testing.assert_allclose(large[0], large[0].T)


@pytest.mark.parametrize("name", ["inception_v3", "resnet50", "vgg16", "convnext_tiny"])
def test_inner_and_outer_layers_of_real_architectures_can_be_explained(name):
    """Shapes alone, without computing."""
    network = _abstract(name)
    size = 224 if name == "vgg16" else 96
    layer = {"inception_v3": "conv2d_20"}.get(name, network.architecture.trunk)
    target = class_logit(network, 1)
    traced = jax.eval_shape(
        lambda variables, x: layer_gradients(network.module, variables, x, layer, target),
        network.variables,
        jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32),
    )
    assert traced.activations.shape == traced.gradients.shape
    assert (len(traced.activations.shape), traced.scores.shape) == (4, (2,))


def _abstract(name):
    architecture = get_architecture(name)
    module = architecture.module()
    card = checkpoints.Card(name, {}, architecture.preprocessing, architecture.input_size, "tests")
    return checkpoints.Network(module, abstract_variables(module, architecture), architecture, card)


def test_a_target_before_the_layer_is_refused(network, inputs):
    x = inputs.astype(np.float32)
    target = head_unit(network, "stem", np.ones(8))
    with pytest.raises(ValueError, match="read at stem, before block_1, which therefore cannot explain it"):
        layer_gradients(network.module, network.variables, x, LAYER, target)
    with pytest.raises(ValueError, match=r"no module is called 'blok_1'; did you mean block_1"):
        layer_gradients(network.module, network.variables, x, "blok_1", target)
    with pytest.raises(ValueError, match="'norm' names several modules"):
        layer_gradients(network.module, network.variables, x, "norm", target)
    with pytest.raises(ValueError, match=r"weights \[7\], but stem has features \[3, 8\]; expected \[8\]"):
        layer_gradients(network.module, network.variables, x, "stem", head_unit(network, "stem", np.ones(7)))


def test_classes_that_are_not_there(network):
    named = network._replace(card=checkpoints.Card("tiny", {}, "tf", 32, "tests", class_names=tuple("abcde")))
    assert (class_count(named), class_index(named, "c"), class_index(named, "4")) == (5, 2, 4)
    with pytest.raises(ValueError, match="no class 5; expected an index from 0 to 4 or a name such as a"):
        class_logit(named, [0, 5])
    with pytest.raises(ValueError, match="no class 'striped'; expected an index from 0 to 4"):
        class_probability(network, "striped")
    with pytest.raises(ValueError, match="stops at block_1, before 'pre_softmax'"):
        class_logit(random_network(last="block_1"), 0)
    with pytest.raises(ValueError, match="has no layer 'blok_2'; did you mean block_2"):
        head_unit(network, "blok_2", np.ones(32))


def test_gradients_that_are_not_finite_are_named(network, inputs):
    x = inputs.astype(np.float32)
    x[1, 0, 0, 0] = np.nan
    ours = layer_gradients(network.module, network.variables, x, LAYER, class_logit(network, 0))
    with pytest.raises(FloatingPointError, match=r"at block_1 are NaN or infinite for 1 of 3 images: b\."):
        check_gradients(ours, LAYER, ("a", "b", "c"))
