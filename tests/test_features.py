"""Pooled features: what they are, what may not change them, and how often they are compiled."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_network import LAYERS, random_network

from scalecov_jax import extraction as features
from scalecov_jax.cache import FeatureStore
from scalecov_jax.checkpoints import random_network as reinitialised
from scalecov_jax.imaging.image_set import Example, ImageError, Skipped
from scalecov_jax.models.architecture import available_layers
from scalecov_jax.models.preprocessing import preprocess

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)


def source(images=IMAGES):
    return [Example(image, None, None, None, str(i), f"image {i}") for i, image in enumerate(images)]


class Broken(list):
    """A source of which one image cannot be decoded."""

    def __getitem__(self, index, /):
        if index == 4:
            raise ImageError("image 4", "broken")
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture(scope="module")
def computed(network):
    return features.compute_features(network, source(), LAYERS, batch_size=4)


def captured_everywhere(network, images):
    """The mean over pixels of every module's output, by its path."""

    @jax.jit
    def apply(variables, x):
        return network.module.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])[1]

    found = apply(network.variables, preprocess(jnp.asarray(images), network.card.preprocessing))
    outputs = {
        path[:-1]: np.asarray(values[0]) for path, values in flatten_dict(found["intermediates"]).items()
    }
    return {path: out.mean((1, 2)) if out.ndim == 4 else out for path, out in outputs.items()}


def assert_close(actual, expected, relative=1e-5):
    """Equal to a part of the largest value."""
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=relative * np.abs(expected).max())


@pytest.mark.parametrize(
    ("architecture", "options", "size"),
    [
        ("tiny", {}, 32),
        ("resnet50", {"width": 1 / 16, "last": "add_5"}, 32),
        ("inception_v3", {"width": 1 / 16, "last": "mixed1"}, 75),
    ],
)
def test_features_are_the_means_of_the_captured_outputs(architecture, options, size):
    network = random_network(architecture, input_size=size, **options)
    images = RNG.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    layers = available_layers(network.architecture, network.module)
    assert layers[-1] == network.module.last
    everywhere = captured_everywhere(network, images)
    pooled = features.compute_features(network, source(images), layers, batch_size=2)
    assert tuple(pooled.values) == layers
    for layer in layers:
        assert pooled.values[layer].dtype == np.float32
        assert_close(pooled.values[layer], everywhere[(layer,)])


def test_inner_convolutions_go_by_their_name():
    network = random_network("inception_v3", input_size=75, width=1 / 16, last="mixed2")
    images = RNG.integers(0, 256, (2, 75, 75, 3), dtype=np.uint8)
    layers = ("conv2d_20", "conv2d_6", "mixed0")
    pooled = features.compute_features(network, source(images), layers, batch_size=2).values
    everywhere = captured_everywhere(network, images)
    (path,) = (path for path in everywhere if path[-1:] == ("conv2d_20",))
    assert path == ("mixed2", "conv2d_20")
    assert_close(pooled["conv2d_20"], everywhere[path])
    assert_close(pooled["conv2d_6"], everywhere[("mixed0", "conv2d_6")])
    assert_close(pooled["mixed0"], everywhere[("mixed0",)])


def captured_maps(network, images, layers):
    """The outputs of modules by name."""
    x = preprocess(jnp.asarray(images), network.card.preprocessing)
    found = jax.jit(
        lambda v, x: network.module.apply(v, x, capture_intermediates=True, mutable=["intermediates"])[1]
    )(network.variables, x)["intermediates"]
    return {
        path[-2]: np.asarray(one[0])
        for path, one in flatten_dict(found).items()
        if path[-2:-1] in {(layer,) for layer in layers}
    }


@pytest.mark.parametrize(
    ("architecture", "options", "layers", "size"),
    [
        # Layer: first and last clean row, first and last clean column.
        ("tiny", {}, {"stem": (1, 18, 1, 24), "block_1": (1, 3, 1, 5)}, (39, 50)),
        (
            "inception_v3",
            {"width": 1 / 16, "last": "mixed1"},
            {
                "conv2d_5": (1, 22, 1, 20),
                "mixed0": (3, 8, 3, 7),
                "conv2d_6": (1, 10, 1, 9),
                "mixed1": (5, 6, 5, 5),
            },
            (112, 103),
        ),
        (
            "resnet50",
            {"width": 1 / 16, "last": "add_4", "max_pool_padding": 0},
            {"add_4": (3, 4, 3, 3)},
            (64, 53),
        ),
    ],
)
def test_poolings_against_the_captured_maps(architecture, options, layers, size):
    network = random_network(architecture, **options)
    images = RNG.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    maps = captured_maps(network, images, layers)
    for pooling in [name for name, one in features.POOLINGS.items() if one.pool]:
        pooled = jax.jit(
            lambda v, x, pooling=pooling: features.pooled_features(
                network.module, v, x, tuple(layers), network.card.preprocessing, pooling=pooling
            )
        )(network.variables, images)
        for layer, (top, bottom, left, right) in layers.items():
            expected = {
                "gap": maps[layer].mean((1, 2)),
                "max": maps[layer].max((1, 2)),
                "corrected_gap": maps[layer][:, top : bottom + 1, left : right + 1].mean((1, 2)),
            }
            assert_close(np.asarray(pooled[layer]), expected[pooling])


def test_vectors_pass_under_gap_and_max(network, computed):
    largest = features.compute_features(network, source(), LAYERS, batch_size=4, pooling="max")
    for layer in ("pre_softmax", "softmax"):
        assert_close(largest.values[layer], computed.values[layer], 1e-6)
    assert (largest.values["block_1"] > computed.values["block_1"]).any()
    with pytest.raises(
        ValueError,
        match=r"32 x 32 pixels at pre_softmax \(sees the whole image\), softmax \(sees the whole image\)\. Leave",
    ):
        features.compute_features(network, source(), ("stem", *LAYERS[3:]), pooling="corrected_gap")


def test_a_layer_that_padding_reaches_everywhere_is_undefined(network):
    """Position i of block_1 sees the pixels 8 i - 7 to 8 i + 7, of block_2 16 i - 15 to 16 i + 15."""
    layers = LAYERS[:3]
    images = jax.ShapeDtypeStruct((1, 15, 15, 3), np.uint8)
    message = r"undefined on images of 15 x 15 pixels at block_1 \(defined from 16 pixels\), block_2 \(defined from 32 pixels\)"
    for call in (
        lambda: features.compute_features(network, source(), layers, size=15, pooling="corrected_gap"),
        lambda: features.dry_run(network, 10, layers, size=15, pooling="corrected_gap"),
        lambda: jax.eval_shape(
            lambda x: features.pooled_features(
                network.module, network.variables, x, layers, "tf", pooling="corrected_gap"
            ),
            images,
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    for height, width in ((32, 31), (31, 32)):
        with pytest.raises(ValueError, match=f"{height} x {width} pixels at block_2"):
            features.check_pooling(network.module, (height, width), layers, "corrected_gap")
    found = features.compute_features(network, source(), layers, batch_size=3, pooling="corrected_gap")
    assert all(np.isfinite(values).all() for values in found.values.values())


def test_images_below_the_minimum_are_refused_by_name():
    network = random_network("inception_v3", input_size=75, width=1 / 16)
    for call in (
        features.compute_features,
        lambda *rest, **options: features.dry_run(network, 3, rest[2], **options),
    ):
        with pytest.raises(
            ValueError, match="inception_v3 needs images of at least 75 x 75 pixels up to mixed10; got 74"
        ):
            call(network, source(), ("mixed0", "mixed10"), size=74)


def test_a_pooling_of_ones_own_is_one_entry(network, monkeypatch, tmp_path):
    monkeypatch.setitem(features.POOLINGS, "gap_std", features.Pool("sd", lambda x: x.std((1, 2))))
    store = FeatureStore(tmp_path)
    found = features.compute_features(network, source(), LAYERS, pooling="gap_std", store=store)
    mean = features.compute_features(network, source(), LAYERS)
    assert found.pooling == "gap_std"
    vectors = [layer for layer in LAYERS if np.array_equal(found.values[layer], mean.values[layer])]
    assert vectors == [layer for layer in LAYERS if layer not in network.architecture.trunk_layers]
    # Another function of the same name is another pooling: nothing stored is used.
    monkeypatch.setitem(features.POOLINGS, "gap_std", features.Pool("2 sd", lambda x: 2 * x.std((1, 2))))
    twice = features.compute_features(network, source(), LAYERS, pooling="gap_std", store=store)
    np.testing.assert_allclose(twice.values[LAYERS[0]], 2 * found.values[LAYERS[0]], rtol=1e-5)


def test_unknown_pooling(network):
    with pytest.raises(ValueError, match="no pooling 'mean'; expected one of gap, max, corrected_gap"):
        features.check_pooling(network.module, 32, LAYERS, "mean")


def test_images_are_resized_to_the_size_asked_for(network):
    large = RNG.integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    small = [features.batches([one], 24, 1, []) for one in source(large)]
    resized = np.concatenate([next(batch).images for batch in small])
    actual = features.compute_features(network, source(large), LAYERS, size=24, batch_size=2)
    expected = features.compute_features(network, source(resized), LAYERS, size=24, batch_size=2)
    np.testing.assert_array_equal(actual.values["block_2"], expected.values["block_2"])


def test_padding_the_last_batch_changes_nothing(network, computed):
    assert {values.shape[0] for values in computed.values.values()} == {9}
    np.testing.assert_array_equal(computed.indices, np.arange(9))
    assert computed.skipped == ()
    full = features.compute_features(
        network, source(np.concatenate([IMAGES, IMAGES[:3]])), LAYERS, batch_size=4
    )
    for layer in LAYERS:
        np.testing.assert_array_equal(computed.values[layer], full.values[layer][:9])


def test_permuting_images_permutes_rows(network, computed):
    order = np.random.default_rng(1).permutation(9)
    permuted = features.compute_features(network, source(IMAGES[order]), LAYERS, batch_size=4)
    for layer in LAYERS:
        assert_close(permuted.values[layer], computed.values[layer][order], 1e-6)


def test_batch_size_changes_nothing(network, computed):
    for batch_size in (1, 64):
        other = features.compute_features(network, source(), LAYERS, batch_size=batch_size)
        for layer in LAYERS:
            assert_close(other.values[layer], computed.values[layer], 1e-6)


def test_bfloat16_is_close_to_float32(network, computed):
    half = features.compute_features(network, source(), LAYERS, batch_size=4, dtype=jnp.bfloat16)
    for layer in LAYERS:
        assert half.values[layer].dtype == np.float32
        assert_close(half.values[layer], computed.values[layer], 0.03)
        assert (half.values[layer] != computed.values[layer]).any()


def test_an_image_that_cannot_be_decoded_is_left_out_and_named(network, computed):
    found = features.compute_features(network, Broken(source()), LAYERS, batch_size=4)
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    np.testing.assert_array_equal(found.indices, kept)
    assert found.skipped == (Skipped("image 4", "unreadable image", "broken"),)
    for layer in LAYERS:
        np.testing.assert_array_equal(found.values[layer], computed.values[layer][kept])


def test_trained_and_random_weights_share_one_compilation(network):
    before = features._compiled.program()._cache_size()
    trained, random = (
        features.compute_features(one, source(), ("stem",), batch_size=3)
        for one in (network, reinitialised(network, 0))
    )
    assert features._compiled.program()._cache_size() == before + 1
    assert np.abs(trained.values["stem"] - random.values["stem"]).max() > 0.01


def test_unknown_layer(network):
    for layers in (("block_9",), ("stem", "block_9")):
        with pytest.raises(ValueError, match="Tiny has no layer 'block_9'; did you mean block_"):
            features.compute_features(network, source(), layers, batch_size=4)
        with pytest.raises(KeyError, match="no module is called block_9"):
            jax.jit(lambda v, x, layers=layers: features.pooled_features(network.module, v, x, layers, "tf"))(
                network.variables, IMAGES
            )


def test_dry_run(network, monkeypatch):
    clock = iter([10.0, 10.5])  # a batch takes half a second
    monkeypatch.setattr(features, "time", SimpleNamespace(perf_counter=clock.__next__))
    estimate = features.dry_run(network, 1000, LAYERS, batch_size=4)
    assert estimate.feature_bytes == 4 * 1000 * (8 + 16 + 32 + 5 + 5)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(network.variables))
    assert 4 * 32 * 32 * 3 < estimate.batch_bytes - weights < 5_000_000
    assert (estimate.images_per_second, estimate.seconds) == (8, 125)


ON_EIGHT_DEVICES = """
import sys
import jax, numpy as np
from tiny_network import LAYERS, random_network
from test_features import source
from scalecov_jax import extraction as features

assert jax.device_count() == 8
forward, batch_size = features.sharded_forward(random_network(), LAYERS, 6, jax.numpy.float32)
assert batch_size == 8
pooled = forward(np.zeros((8, 32, 32, 3), np.uint8))["block_2"]
assert len(pooled.sharding.device_set) == 8 and pooled.addressable_shards[0].data.shape == (1, 32)
found = features.compute_features(random_network(), source(), LAYERS, batch_size=6)
np.savez(sys.argv[1], indices=found.indices, **found.values)
"""


def test_eight_devices_equal_one(computed, tmp_path):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    path = tmp_path / "features.npz"
    subprocess.run([sys.executable, "-c", ON_EIGHT_DEVICES, path], env=environment, check=True, timeout=300)
    with np.load(path) as sharded:
        np.testing.assert_array_equal(sharded["indices"], computed.indices)
        for layer in LAYERS:
            assert_close(sharded[layer], computed.values[layer], 1e-6)
