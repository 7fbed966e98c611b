"""Images optimised for parts of a network: they raise what they are meant to raise, together as well as alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_network import random_network

from scalecov_jax import vectors as rcv
from scalecov_jax.explanation import feature_visualization as visualization
from scalecov_jax.explanation import fourier_image
from scalecov_jax.explanation.feature_visualization import Stage

SHORT = (Stage(20),)
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def network():
    return random_network()


def optimise(network, objectives, **options):
    options = {"recipe": SHORT, "size": 32, "chunk": 20, **options}
    return visualization.visualise(network.module, network.variables, "tf", objectives, **options)


def test_spectra_are_images_near_grey():
    images = np.asarray(fourier_image.to_images(fourier_image.random_spectra(jax.random.key(0), 2, 33)))
    assert images.shape == (2, 33, 33, 3)
    assert abs(images.mean() - 0.5) < 0.05
    assert 0.001 < images.std() < 0.2


def test_the_transform_of_a_spectrum_is_numpys():
    spectra = np.asarray(fourier_image.random_spectra(jax.random.key(1), 1, 16))[0]
    frequency = np.sqrt(np.fft.rfftfreq(16)[:, None] ** 2 + np.fft.fftfreq(16)[None] ** 2)
    complex_spectra = spectra[..., 0] + 1j * spectra[..., 1]
    plain = np.fft.irfft2(
        np.moveaxis(complex_spectra * (16 / np.maximum(frequency, 1 / 16))[..., None], 0, 1), axes=(0, 1)
    )
    mixing = np.array([[0.26, 0.09, 0.02], [0.27, 0, -0.05], [0.27, -0.09, 0.03]])
    mixing /= np.linalg.norm(mixing, axis=0).max()
    expected = 1 / (1 + np.exp(-(plain / 4) @ mixing.T))
    ours = np.asarray(fourier_image.to_images(jnp.asarray(spectra)[None]))[0]
    np.testing.assert_allclose(np.moveaxis(ours, 0, 1), expected, atol=1e-5)


def test_transforms_move_scale_and_turn():
    image = np.zeros((21, 21, 3), np.float32)
    image[4:17, 9:12] = 1
    still = fourier_image.Transforms(3, 0, (1.0,), (0.0,), 0)
    change = jax.jit(fourier_image.transform, static_argnums=2)
    key = jax.random.key(0)
    np.testing.assert_allclose(change(key, image, still), image, atol=1e-6)
    turned = change(key, image, fourier_image.Transforms(3, 0, (1.0,), (90.0,), 0))
    np.testing.assert_allclose(turned, np.moveaxis(image, 0, 1), atol=1e-4)
    large = np.asarray(change(key, image, fourier_image.Transforms(3, 0, (2.0,), (0.0,), 0)))
    assert large[10, :, 0].sum() == pytest.approx(2 * image[10, :, 0].sum(), abs=0.6)
    small = np.asarray(change(key, image, fourier_image.Transforms(30, 0, (0.5,), (0.0,), 0)))
    assert small[0, 0, 0] == pytest.approx(0.5)  # grey around it
    shifted = [
        np.asarray(change(jax.random.key(seed), image, fourier_image.Transforms(8, 8, (1.0,), (0.0,), 4)))
        for seed in range(20)
    ]
    rows = {int(np.flatnonzero(one[:, :, 0].max(1) > 0.9)[0]) for one in shifted}
    assert len(rows) > 3
    assert rows <= set(range(11))


def test_total_variation_is_the_sum_of_differences():
    image = np.zeros((1, 3, 3, 3), np.float32)
    image[0, 1, 1] = 0.5
    assert np.asarray(fourier_image.total_variation(jnp.asarray(image))).tolist() == [4 * 3 * 0.5]


@pytest.mark.parametrize("kind", ["neuron", "layer", "direction", "sum"])
def test_objectives_rise(network, kind):
    vectors = np.random.default_rng(0).normal(size=(2, 16))
    objectives = {
        "neuron": [visualization.neuron("block_1", [13, 5], 16)],
        "layer": [visualization.whole_layer("block_1", 2)],
        "direction": [visualization.direction("block_1", np.stack([vectors[0], -vectors[0]]))],
        "sum": [
            visualization.channel("block_1", [13, 5], 16),
            visualization.channel("block_2", [5, 19], 32, weight=0.5),
        ],
    }[kind]
    states = []
    optimise(network, objectives, chunk=1, recipe=(Stage(1),), each_chunk=states.append)
    last = optimise(network, objectives)
    assert (np.asarray(last.values) > np.asarray(states[0].values)).all()


def test_a_strip_turns_from_minus_v_to_v():
    rng = np.random.default_rng(2)
    v, mean = rng.normal(size=(2, 9))
    rows = rcv.strip(v, mean)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(rows @ v / np.linalg.norm(v), [-1, -(0.5**0.5), 0, 0.5**0.5, 1], atol=1e-6)
    assert np.linalg.matrix_rank(np.vstack([rows, mean]), tol=1e-5) == 2
    with pytest.raises(ValueError, match="not zero and not parallel"):
        rcv.strip(v, 2 * v)


def test_together_they_are_what_they_are_alone(network):
    """M objectives in one call: each image has its own randomness, and none sees another."""
    both = optimise(network, [visualization.channel("block_1", [13, 13], 16)])
    alone = optimise(network, [visualization.channel("block_1", [13], 16)])
    np.testing.assert_allclose(both.spectra[0], alone.spectra[0], atol=1e-4)
    assert np.abs(np.asarray(both.spectra[1] - both.spectra[0])).max() > 1e-3
    assert visualization.pictures(both).shape == (2, 1, 32, 32, 3)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(network):
    objectives = [visualization.channel("block_1", [13], 16)]
    recipe = (Stage(10), Stage(6, 0.1, 0.02, fourier_image.LIGHT))
    whole = optimise(network, objectives, recipe=recipe)
    states = []
    optimise(network, objectives, recipe=recipe, chunk=7, each_chunk=states.append)
    assert [one.step for one in states] == [7, 10, 16]
    again = optimise(network, objectives, recipe=recipe, state=states[0], chunk=3)
    np.testing.assert_allclose(again.spectra, whole.spectra, atol=1e-4)
    assert optimise(network, objectives, recipe=recipe, state=again) is again


def test_diversity_parts_images_and_variation_smooths_them(network):
    objectives = [visualization.channel("block_1", [13], 16)]

    @jax.jit
    def resemblance(variables, pictures):
        inputs = visualization.preprocess(pictures, "tf")
        features = visualization.capture(network.module, variables, inputs, ("block_1",))["block_1"]
        return visualization._resemblance(features)

    plain = optimise(network, objectives, images=3)
    diverse = optimise(network, objectives, images=3, recipe=(Stage(20, diversity=30.0),))
    like, unlike = (
        float(resemblance(network.variables, visualization.pictures(one)[0])) for one in (plain, diverse)
    )
    assert unlike < like
    smooth = optimise(network, objectives, images=3, recipe=(Stage(20, total_variation=1.0),))
    variation = [
        float(fourier_image.total_variation(fourier_image.to_images(one.spectra[0])).sum())
        for one in (plain, smooth)
    ]
    assert variation[1] < variation[0]


def test_a_redirected_relu_revives_what_is_dead():
    x = -jnp.ones((2, 3, 3, 1))
    x = x.at[1, 0, 0, 0].set(1.0)
    wish = jnp.where(jnp.arange(9).reshape(1, 3, 3, 1) < 5, -1.0, 1.0) * jnp.ones((2, 1, 1, 1))

    @jax.jit
    def gradient(on):
        return jax.grad(lambda x: (wish * visualization.redirected_relu(x, jnp.float32(on))).sum())(x)

    on, off = np.asarray(gradient(1)), np.asarray(gradient(0))
    assert not off[0].any()
    np.testing.assert_array_equal(on[0], np.minimum(np.asarray(wish[0]), 0))
    np.testing.assert_array_equal(on[1], off[1])  # something got through: the ordinary gradient


def test_a_dead_channel_and_wrong_objectives_are_named(network):
    variables = jax.tree.map(np.array, network.variables)
    variables["params"]["pre_softmax"]["kernel"][:] = 0
    dead = network._replace(variables=variables)
    with pytest.raises(
        FloatingPointError, match=r"pre_softmax has no gradient \(a dead channel\) for channel 2"
    ):
        optimise(dead, [visualization.channel("pre_softmax", [2], 5)])
    with pytest.raises(ValueError, match="block_1 has the channels 0 to 15; got 16, -1"):
        visualization.channel("block_1", [3, 16, -1], 16)
    with pytest.raises(ValueError, match="vectors of 7 channels, but block_1 has 16"):
        optimise(network, [visualization.direction("block_1", np.ones((1, 7)))])
    with pytest.raises(ValueError, match=r"at least one; got \[2, 1\]"):
        visualization.start([visualization.whole_layer("stem", 2), visualization.whole_layer("stem", 1)])
    broken = jax.tree.map(partial(np.multiply, np.nan), network.variables)
    with pytest.raises(FloatingPointError, match="objective at block_1 is not finite for channel 13"):
        optimise(network._replace(variables=broken), [visualization.channel("block_1", [13], 16)])
