"""InceptionV3 and ResNet50: lowering, folding, counts, cutting, and every layer against keras.applications."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from quick_keras import quick_keras

from scalecov_jax.checkpoints import Card, Network, network
from scalecov_jax.compilation import jit
from scalecov_jax.models import parity
from scalecov_jax.models.architecture import ARCHITECTURES, get_architecture
from scalecov_jax.models.folding import fold
from scalecov_jax.models.layers import average_pool, convolve, forward_only, halve, max_pool, mean_by_rows
from scalecov_jax.models.pruning import (
    abstract_variables,
    count_parameters,
    cumulative_parameters,
    prune,
)

TOLERANCE = 1e-4
# Of the kernels of the heads of networks whose values grow with random weights; else softmax is 1 for one class.
HEAD = {"resnet50": 5e-6, "resnet101": 5e-10, "resnet152": 5e-14, "vgg16": 5e-3}


def random_network(name: str, input_size: int | None = None, **options) -> Network:
    """Random kernels, and statistics of which none is 0 or 1, so that leaving one out shows."""
    architecture = get_architecture(name)
    rng = np.random.default_rng(7)

    def draw(path, leaf):
        if path[-1] == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        low, high = (0.5, 1.5) if path[-1] in ("scale", "var") else (0.05, 0.3)
        return rng.uniform(low, high, leaf.shape)

    abstract = flatten_dict(abstract_variables(architecture.module(**options), architecture, input_size))
    variables = {path: draw(path, leaf).astype(np.float32) for path, leaf in abstract.items()}
    if ("params", "pre_softmax", "kernel") in variables:
        variables["params", "pre_softmax", "kernel"] *= HEAD.get(name, 0.1)
    size = input_size or architecture.input_size
    card = Card(name, options, architecture.preprocessing, size, "random")
    return network(unflatten_dict(variables), card)


def images(height: int, width: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((1, 1), 1, "SAME"),
        ((1, 1), 2, "SAME"),
        ((3, 3), 1, "SAME"),
        ((5, 5), 1, "SAME"),
        ((1, 7), 1, "SAME"),
        ((7, 1), 1, "SAME"),
        ((1, 3), 1, "SAME"),
        ((3, 1), 1, "SAME"),
        ((3, 3), 1, "VALID"),
        ((3, 3), 2, "VALID"),
        ((3, 3), 1, 1),
        ((3, 3), 2, 1),
        ((7, 7), 2, 3),
    ],
)
@pytest.mark.parametrize("size", [(14, 11), (15, 16)])
def test_every_convolution_used_equals_numpy_under_our_compiler_options(kernel, stride, padding, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 5)).astype(np.float32)
    weights = rng.normal(size=(*kernel, 5, 6)).astype(np.float32)
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    padded = jax.lax.padtype_to_pads(size, kernel, (stride, stride), pads) if isinstance(pads, str) else pads
    wide = np.pad(x.astype(np.float64), ((0, 0), *padded, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, kernel, (1, 2))[:, ::stride, ::stride]
    expected = np.einsum("nyxchw,hwcd->nyxd", windows, weights)
    found = jit(partial(convolve, stride=stride, padding=padding))(jnp.asarray(x), jnp.asarray(weights))
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a lowering for a CPU")
@pytest.mark.parametrize("padding", ["SAME", "VALID", 1])
@pytest.mark.parametrize("size", [(14, 17), (35, 16)])
def test_convolutions_by_tiles_equal_laxs_in_float64(padding, size):
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((2, *size, 64), (3, 3, 64, 96)))
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    with jax.enable_x64(True):
        wide = (jnp.asarray(array, jnp.float64) for array in (x, kernel))
        expected = np.asarray(
            jax.lax.conv_general_dilated(*wide, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
    assert "conv_general_dilated" in str(jax.make_jaxpr(partial(convolve, padding=padding))(x, kernel))
    with forward_only():
        by_tiles = partial(convolve, padding=padding)
        assert "conv_general_dilated" not in str(jax.make_jaxpr(by_tiles)(x, kernel))
        found = jit(by_tiles)(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(2, 7, 5, 3), (2, 1, 4, 3), (2, 3)])
def test_the_mean_by_rows_is_the_mean(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = x.mean((1, 2), dtype=np.float64) if len(shape) == 4 else x
    np.testing.assert_allclose(jit(mean_by_rows)(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("side", "stride", "padding"),
    [(3, 1, "SAME"), (3, 2, "SAME"), (5, 2, 2), (7, 1, "SAME"), (4, 2, "VALID")],
)
@pytest.mark.parametrize("size", [(14, 11), (15, 16)])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # each has its form; both can run here
def test_every_depthwise_convolution_equals_lax(side, stride, padding, size, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(0)
    x, weights = (rng.normal(size=shape).astype(np.float32) for shape in ((2, *size, 5), (side, side, 1, 5)))
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    numbers = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        x, weights, (stride, stride), pads, dimension_numbers=numbers, feature_group_count=5
    )
    depthwise = jax.jit(partial(convolve, stride=stride, padding=padding))
    np.testing.assert_allclose(depthwise(jnp.asarray(x), jnp.asarray(weights)), expected, atol=2e-5)
    half = depthwise(jnp.asarray(x, jnp.bfloat16), jnp.asarray(weights, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16  # the inputs are rounded, and the sum once
    np.testing.assert_allclose(half.astype(np.float32), expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(14, 11), (15, 16)])
@pytest.mark.parametrize(("window", "padding"), [(3, 0), (3, 1), (2, 0)])
def test_max_pool_equals_flax_and_padding_never_wins(size, window, padding):
    x = jnp.asarray(np.random.default_rng(0).normal(-5, 1, (2, *size, 3)).astype(np.float32))
    expected = nn.max_pool(x, (window, window), (2, 2), [(padding, padding)] * 2)
    np.testing.assert_array_equal(max_pool(x, padding, window), expected)


@pytest.mark.parametrize("size", [(14, 11), (15, 16)])
def test_halving_equals_flax(size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32))
    np.testing.assert_allclose(halve(x), nn.avg_pool(x, (2, 2), (2, 2)), atol=1e-6)


def test_average_pool_counts_the_padding_only_when_asked():
    x = np.ones((1, 4, 5, 1), np.float32)
    np.testing.assert_allclose(average_pool(jnp.asarray(x)), x, rtol=1e-6)
    counted = np.asarray(average_pool(jnp.asarray(x), count_padding=True))[0, :, :, 0]
    np.testing.assert_allclose(counted[[0, 0, 1], [0, 1, 1]], [4 / 9, 6 / 9, 1], rtol=1e-6)


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 75), ("resnet50", 40)])
def test_folding_changes_no_layer(name, size):
    given = random_network(name, width=0.125, classes=5)
    module, variables = fold(given.module, given.variables, given.architecture.epsilon)
    assert "batch_stats" not in variables
    x = images(size, size)
    expected = parity.capture(given, x)
    found = parity.capture(given._replace(module=module, variables=variables), x)
    assert list(given.architecture.layers) == sorted(found, key=given.architecture.layers.index)
    for layer, values in expected.items():
        assert parity.relative_error(found[layer], values) < 1e-5, layer


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 75), ("resnet50", 40)])
def test_pruned_output_equals_the_captured_layer(name, size):
    given = random_network(name, width=0.125, classes=5)
    x = images(size, size)
    expected = parity.capture(given, x)
    for layer in (*given.architecture.layers[::3], given.architecture.layers[-1]):
        module, variables = prune(given.module, given.variables, given.architecture, layer)
        found = np.asarray(module.apply(jax.tree.map(jnp.asarray, variables), jnp.asarray(x)))
        assert parity.relative_error(found, expected[layer]) < 1e-5, layer
    assert count_parameters(variables) == count_parameters(given.variables)


def test_parameter_counts():
    def count(name, last):
        return count_parameters(
            abstract_variables(ARCHITECTURES[name].module(last=last), ARCHITECTURES[name])
        )

    inception = ARCHITECTURES["inception_v3"]
    cumulative = cumulative_parameters(inception.module(), inception)
    blocks = (429440, 707408, 993056, 2146976, 3445920, 5138656, 6831392, 8975264, 10674848)
    assert cumulative["conv2d_5"] == 173072
    assert [cumulative[f"mixed{i}"] for i in range(11)] == [*blocks, 15722720, 21802784]
    assert count("inception_v3", "softmax") == count("inception_v3", "pre_softmax") == 23851784
    found = [count("resnet50", last) for last in ("add_15", "add_16", "softmax")]
    assert found == [19115904, 23587712, 25636712]


@pytest.mark.parametrize(
    ("size", "padding", "sides"),
    [
        (224, 0, (55, 55, 28, 14, 7)),
        (224, 1, (56, 56, 28, 14, 7)),
        (299, 0, (74, 74, 37, 19, 10)),
        (299, 1, (75, 75, 38, 19, 10)),
    ],
)
def test_map_sizes_of_both_resnet_variants(size, padding, sides):
    architecture = ARCHITECTURES["resnet50"]
    layers = ("max_pool", "add_3", "add_4", "add_8", "add_14")
    for layer, side in zip(layers, sides, strict=True):
        module = architecture.module(last=layer, width=0.0625, max_pool_padding=padding)
        shapes = partial(module.init_with_output, jax.random.key(0))
        output, _ = jax.eval_shape(shapes, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
        assert output.shape[1:3] == (side, side)


@pytest.mark.large
@pytest.mark.parametrize("name", ["inception_v3", "resnet50"])
def test_every_layer_equals_keras_at_the_size_of_training(name):
    given = random_network(name)
    with quick_keras():
        rows = parity.compare_with_keras(given)
    assert tuple(row.layer for row in rows) == given.architecture.layers
    print(f"{name}: worst {max(rows, key=lambda row: row.error)}")
    for row in rows:
        assert row.error <= TOLERANCE, row


@pytest.mark.large
def test_parity_sees_one_changed_weight(monkeypatch):
    """The comparison can fail: what lies before the change agrees, what lies behind does not."""
    given = random_network("resnet50", last="add_4")
    flat = flatten_dict(given.variables)
    path = ("params", "add_3", "conv2_block3_2", "kernel")
    kernel = flat[path].copy()
    kernel[0, 0, :, 0] += 0.5
    changed = given._replace(variables=unflatten_dict({**flat, path: kernel}))
    capture = parity.capture
    monkeypatch.setattr(parity, "capture", lambda _, x: capture(changed, x))
    with quick_keras():
        rows = {row.layer: row.error for row in parity.compare_with_keras(given, 96)}
    assert list(rows) == ["max_pool", "add_1", "add_2", "add_3", "add_4"]
    assert all(rows[layer] < TOLERANCE for layer in ("max_pool", "add_1", "add_2"))
    assert all(rows[layer] > TOLERANCE for layer in ("add_3", "add_4"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {"stride_on_3x3": True}, "stride_on_3x3=True"),
        ("resnet50", {"max_pool_padding": 0}, "max_pool_padding=0"),
        ("inception_v3", {"width": 0.125, "count_padding": True}, r"width=0\.125, count_padding=True"),
    ],
)
def test_parity_needs_a_network_that_keras_has(name, options, message):
    given = random_network(name, last=ARCHITECTURES[name].layers[0], **options)
    with pytest.raises(ValueError, match=message):
        parity.compare_with_keras(given, 96)
