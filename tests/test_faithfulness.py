"""Measures of maps: on maps that are right, wrong and empty by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.stats import spearmanr
from tiny_network import random_network

from scalecov_jax.explanation import faithfulness, grad_cam
from scalecov_jax.explanation.gradients import layer_gradients
from scalecov_jax.explanation.target import class_logit, head_unit
from scalecov_jax.imaging.image_set import Box


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture(scope="module")
def inputs():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 32, 32, 3)), jnp.float32)


def test_curves_begin_and_end_at_image_and_baseline(network, inputs):
    target = head_unit(network, "block_1", np.random.default_rng(1).normal(size=16))
    maps = jnp.asarray(np.random.default_rng(2).uniform(size=(3, 32, 32)), jnp.float32)
    baseline = faithfulness.blurred(inputs, 3.0)
    curves = faithfulness.insertion_deletion(
        network.module, network.variables, inputs, maps, baseline, target, steps=4
    )
    whole, nothing = (
        layer_gradients(network.module, network.variables, one, "stem", target).scores
        for one in (inputs, baseline)
    )
    assert curves.insertion.shape == (3, 5)
    np.testing.assert_allclose(curves.insertion[:, 0], nothing, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(curves.insertion[:, -1], whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(curves.deletion[:, 0], whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(curves.deletion[:, -1], nothing, rtol=1e-4, atol=1e-5)
    # Half of the pixels of an image: those with the larger values of its map.
    half = maps > jnp.median(maps, axis=(1, 2), keepdims=True)
    mixed = jnp.where(half[..., None], inputs, baseline)
    expected = layer_gradients(network.module, network.variables, mixed, "stem", target).scores
    np.testing.assert_allclose(curves.insertion[:, 2], expected, rtol=1e-3, atol=1e-4)


def test_area_and_blur():
    assert faithfulness.area_under(np.array([[0.0, 1.0, 1.0], [0, 0, 0]])).tolist() == [0.75, 0]
    image = np.random.default_rng(3).normal(size=(1, 64, 64, 3)).astype(np.float32)
    expected = gaussian_filter1d(gaussian_filter1d(image, 2, axis=1), 2, axis=2)
    ours = np.asarray(faithfulness.blurred(jnp.asarray(image), 2.0))
    np.testing.assert_allclose(ours[:, 12:-12, 12:-12], expected[:, 12:-12, 12:-12], atol=1e-4)
    np.testing.assert_allclose(faithfulness.blurred(jnp.ones((1, 8, 8, 3))), 1, rtol=1e-5)


def test_the_pointing_game():
    maps = np.zeros((4, 9, 9), np.float32)
    maps[0, 2, 6] = maps[1, 2, 6] = maps[2, 4, 4] = 1
    boxes = [Box(7, 3, 7, 3), Box(1, 1, 6, 9), Box(1, 1, 9, 9), Box(1, 1, 9, 9)]
    hit = faithfulness.hits(maps, boxes)
    assert hit.tolist() == [True, False, True, False]  # the last map is empty and points nowhere
    assert faithfulness.hits(maps, boxes, tolerance=1).tolist() == [True, True, True, False]
    centre = faithfulness.centre_hits(9, 9, boxes)
    assert centre.tolist() == [False, True, True, True]
    game = faithfulness.pointing_game(hit, centre)
    assert game == (4, 2, 3, 1, 2, 1.0)
    many = faithfulness.pointing_game(np.ones(10, bool), np.arange(10) < 2)
    assert many.p == pytest.approx(2 / 2**8)
    with pytest.raises(ValueError, match="1 boxes for 4 maps; expected one each"):
        faithfulness.hits(maps, boxes[:1])


def test_small_objects_are_counted_by_themselves():
    hit, centre = np.array([True, True, False, True]), np.array([True, False, True, False])
    strata = faithfulness.pointing_strata(hit, centre, np.array([0.9, 0.1, 0.25, 0.2]))
    assert strata == {"all": (4, 3, 2, 2, 1, 1.0), "small": (2, 2, 0, 2, 0, 0.5)}
    assert list(faithfulness.pointing_strata(hit, centre, np.ones(4))) == ["all"]
    assert faithfulness.pointing_strata(hit[:0], centre[:0], np.zeros(0)) == {}


def test_maps_that_follow_the_object_beat_those_of_other_images():
    rng = np.random.default_rng(5)
    maps, boxes = np.zeros((30, 9, 9)), []
    for one, (x, y) in zip(maps, rng.integers(1, 9, (30, 2)), strict=True):
        one[y, x] = 1
        boxes.append(Box(x + 1, y + 1, x + 1, y + 1))
    followed = faithfulness.exchange_test(maps, boxes, permutations=200)
    assert followed.hits == 30
    same = sum(np.array_equal(one, other) for one in maps for other in maps)
    assert followed.expected == pytest.approx(same / 30)
    assert followed.p == pytest.approx(1 / 201)
    fixed = faithfulness.exchange_test(np.repeat(maps[:1], 30, 0), boxes, permutations=200)
    assert fixed.p == 1
    assert faithfulness.exchange_test(0 * maps, boxes, permutations=9) == (0, 0, 1)


def test_randomising_from_the_output_down_changes_maps(network, inputs):
    target = class_logit(network, 2)

    @jax.jit
    def compute(variables):
        computed = layer_gradients(network.module, variables, inputs, "block_1", target)
        return grad_cam.grad_cam(computed.activations, computed.gradients, signed=True)

    parts = ("pre_softmax", "block_2", "stem")
    assert faithfulness.parts_downwards(network) == ("pre_softmax", "block_2", "block_1", "stem")
    results = faithfulness.weight_randomisation(network, compute, parts, seed=1)
    assert [one.layer for one in results] == list(parts)
    assert all(np.abs(one.correlation).max() < 0.99 for one in results)
    # What the map does not depend on may be random.
    (unmoved,) = faithfulness.weight_randomisation(
        network, lambda variables: np.asarray(variables["params"]["stem"]["kernel"][0]), ("pre_softmax",)
    )
    np.testing.assert_allclose(unmoved.correlation, 1)
    last = list(faithfulness.randomise_downwards(network, parts, 1))[-1][1]
    np.testing.assert_array_equal(
        last["params"]["block_1"]["kernel"], network.variables["params"]["block_1"]["kernel"]
    )
    assert (
        np.abs(last["params"]["stem"]["kernel"] - network.variables["params"]["stem"]["kernel"]).max() > 0.1
    )
    np.testing.assert_array_equal(last["batch_stats"]["stem"]["norm"]["mean"], 0)
    with pytest.raises(ValueError, match="no parts head with weights; there are "):
        list(faithfulness.randomise_downwards(network, ("head",)))


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(2, 3, 5, 5))
    second[2] = 0
    ours = faithfulness.rank_correlation(first, second)
    assert ours[0] == pytest.approx(spearmanr(first[0].ravel(), second[0].ravel()).statistic)
    assert ours[2] == 0
