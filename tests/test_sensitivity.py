"""Concept sensitivities: equal to finite differences, signed, beside measured random directions."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import norm, t
from test_grad_cam import gradients_64, tail
from tiny_network import random_network

from scalecov_jax.explanation import sensitivity
from scalecov_jax.explanation.target import class_logit, class_probability

LAYER = "block_1"


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture(scope="module")
def computed(network):
    inputs = np.random.default_rng(3).normal(size=(12, 32, 32, 3))
    return gradients_64(network, inputs, class_logit(network, 2))


@pytest.fixture(scope="module")
def along():
    return np.random.default_rng(4).normal(size=(5, 16)) * np.array([[1], [3], [0.1], [1], [7]])


def in_jax(*arrays):
    return [jnp.asarray(one, jnp.float32) for one in arrays]


def test_sensitivities_equal_finite_differences(network, computed, along):
    """The change of the logit when the pooled features move along the unit direction, for every image and concept."""
    ours = np.asarray(sensitivity.sensitivities(*in_jax(computed.gradients, along)))
    step = 1e-5
    for column, direction in enumerate(along / np.linalg.norm(along, axis=1, keepdims=True)):
        moved = [tail(network, computed.activations + sign * step * direction)[:, 2] for sign in (1, -1)]
        np.testing.assert_allclose(ours[:, column], (moved[0] - moved[1]) / (2 * step), atol=1e-5)
    assert (ours > 0).any()
    assert (ours < 0).any()


def test_they_are_signed_and_keep_their_scale(computed, along):
    """No absolute value and no scaling to 0-1 comes before the product (METHODS: the published sensitivities had both)."""
    gradients, directions = in_jax(computed.gradients, along)
    ours = sensitivity.sensitivities(gradients, directions)
    np.testing.assert_allclose(sensitivity.sensitivities(gradients, -directions), -ours)
    np.testing.assert_allclose(sensitivity.sensitivities(3 * gradients, directions), 3 * ours, rtol=1e-5)
    np.testing.assert_allclose(sensitivity.sensitivities(gradients, 9 * directions), ours, rtol=1e-5)


def test_the_dimension_free_sensitivity_counts_standard_deviations_of_chance(computed):
    gradients, directions = in_jax(computed.gradients, sensitivity.random_directions(20000, 16, 0))
    z = np.asarray(sensitivity.dimension_free(gradients, directions))
    np.testing.assert_allclose(z.mean(1), 0, atol=0.05)
    np.testing.assert_allclose(z.std(1), 1, atol=0.03)
    np.testing.assert_allclose(sensitivity.dimension_free(5 * gradients, directions), z, rtol=1e-4, atol=1e-5)
    assert not np.asarray(sensitivity.dimension_free(0 * gradients, directions)).any()


def test_tcav_of_random_directions_is_a_half_within_its_interval(computed):
    (gradients,) = in_jax(computed.gradients)
    drawn = sensitivity.random_directions(400, 16, 1)
    result = sensitivity.tcav_test(gradients, drawn, seed=2)
    assert result.low <= 0.5 <= result.high
    assert (result.p <= 0.05).mean() <= 0.08
    inside = (result.low <= result.score) & (result.score <= result.high)
    assert inside.mean() > 0.9


def test_the_baseline_is_measured_on_the_same_gradients():
    """With one gradient for all images every score is 0 or 1: the interval says so, and nothing is significant."""
    same = jnp.tile(jnp.asarray(np.random.default_rng(5).normal(size=(1, 8)), jnp.float32), (30, 1))
    result = sensitivity.tcav_test(same, np.asarray(same[:1]))
    assert result.score.tolist() == [1.0]
    assert (result.low, result.high) == (0, 1)
    assert result.p[0] == 1
    # Where the gradients of images differ, a direction that they share stands out.
    rng = np.random.default_rng(6)
    shared = np.eye(200)[0]
    mixed = jnp.asarray(shared[None] * 3 + rng.normal(size=(60, 200)), jnp.float32)
    found = sensitivity.tcav_test(mixed, np.stack([shared, np.eye(200)[1]]).astype(np.float32))
    assert found.p[0] < 0.01 < found.p[1]
    # A direction to which no image reacts scores a half.
    still = [sensitivity.tcav_test(0 * same, np.eye(8)[:1], smooth=smooth) for smooth in (False, True)]
    assert [one.score.tolist() for one in still] == [[0.5], [0.5]]


def test_of_a_linear_head_the_smooth_score_is_known_and_so_is_what_random_directions_add():
    """One gradient for all images: TCAV of a random direction is a coin, the smooth score uniform between 0 and 1."""
    gradient, concepts = np.eye(40)[0] * 7, np.random.default_rng(7).normal(size=(3, 40))
    same, v = in_jax(np.tile(gradient, (30, 1)), concepts)
    sign, smooth = (sensitivity.tcav_test(same, v, smooth=one, count=4000) for one in (False, True))
    cosine = concepts[:, 0] / np.linalg.norm(concepts, axis=1)
    share = t(39).cdf(
        cosine * np.sqrt(39 / (1 - cosine**2))
    )  # the distribution of a correlation, in another form
    np.testing.assert_allclose(smooth.score, share, atol=1e-5)
    np.testing.assert_allclose(smooth.p, 2 * np.minimum(share, 1 - share), atol=0.03)
    assert sign.p.tolist() == [1, 1, 1]
    assert (smooth.low, smooth.high) == pytest.approx((0.025, 0.975), abs=0.01)
    for found, sd in ((sign, 1 / 2), (smooth, 1 / np.sqrt(12))):
        assert found.over_directions == pytest.approx(sd, rel=0.03)
        np.testing.assert_allclose(found.over_images, 0, atol=1e-6)
        reach = t(29).ppf(0.975) * found.over_directions / np.sqrt(4000)
        expected = np.clip([found.score - reach, found.score + reach], 0, 1)
        np.testing.assert_allclose(found.interval, expected, atol=1e-5)
    alone = sensitivity.tcav_test(same, v, groups=["one"] * 30, count=50)
    assert np.isnan([alone.over_images, *alone.interval]).all()


def test_of_gaussian_gradients_both_scores_are_known():
    """S ~ N(m, 1) makes TCAV Phi(m); z = S sqrt(D) / |g| ~ N(m c, c^2) makes the smooth score Phi(m c / sqrt(1 + c^2))."""
    width, shift = 300, np.array([0.0, 0.4, -1.2])
    mean = np.concatenate([shift, np.full(width - 3, 0.5)])
    gradients, v = in_jax(
        mean + np.random.default_rng(8).normal(size=(6000, width)), np.eye(width, dtype=np.float32)[:3]
    )
    sign, smooth = (sensitivity.tcav_test(gradients, v, smooth=one, count=20) for one in (False, True))
    np.testing.assert_allclose(sign.score, norm.cdf(shift), atol=0.015)
    c = np.sqrt(width / (width + np.square(mean).sum()))
    np.testing.assert_allclose(smooth.score, norm.cdf(shift * c / np.sqrt(1 + c**2)), atol=0.015)


@pytest.mark.parametrize("smooth", [False, True])
def test_errors_are_those_of_other_images_and_other_directions(smooth):
    """The sd of score - mean of n random directions over redraws of both, with two images a patient."""
    rng, found, groups = np.random.default_rng(10), [], [str(index // 2) for index in range(30)]
    for draw in range(250):
        patients = 0.5 + rng.normal(size=(15, 1, 12))
        gradients = (patients + 0.3 * rng.normal(size=(15, 2, 12))).reshape(30, 12)
        along = np.concatenate([np.eye(12)[:1], sensitivity.random_directions(8, 12, draw)])
        drawn = {"seed": draw, "smooth": smooth, "groups": groups, "count": 8}
        one = sensitivity.tcav_test(*in_jax(gradients, along), **drawn)
        error = np.square(one.over_images[0]) + np.square(one.over_directions) / 8
        found.append((one.score[0] - one.score[1:].mean(), error))
    beyond, error = np.transpose(found)
    assert np.sqrt(error.mean()) == pytest.approx(beyond.std(), rel=0.15)


def test_bidirectional_relevance(computed, along):
    s = np.asarray(sensitivity.sensitivities(*in_jax(computed.gradients, along)))
    r2 = np.array([0.5, -0.3, 0.9, 0.2, 1.0])
    br = sensitivity.bidirectional_relevance(s, r2)
    np.testing.assert_allclose(br[2], 0.9 * s[:, 2].mean() / s[:, 2].std(), rtol=1e-5)
    assert br[1] == 0  # a negative R2 does not turn the sign
    low, high = sensitivity.relevance_intervals(s, r2, draws=300)
    assert ((low <= br) & (br <= high)).all()
    assert (high - low)[[0, 2, 3, 4]].min() > 0
    # Images of one slide are drawn together: twice the same images tell no more.
    names = [str(index) for index in range(12)] * 2
    grouped = sensitivity.relevance_intervals(np.tile(s, (2, 1)), r2, draws=300, groups=names)
    np.testing.assert_allclose(grouped[1] - grouped[0], high - low, rtol=0.4)
    with pytest.raises(ValueError, match="of column 0 are the same for all 12 images"):
        sensitivity.bidirectional_relevance(np.ones((12, 1)), np.ones(1))


def test_probabilities_have_sensitivities_too(network, along):
    inputs = np.random.default_rng(9).normal(size=(4, 32, 32, 3))
    computed = gradients_64(network, inputs, class_probability(network, 2))
    ours = np.asarray(sensitivity.sensitivities(*in_jax(computed.gradients, along[:1])))[:, 0]
    unit = along[0] / np.linalg.norm(along[0])
    moved = [softmax(tail(network, computed.activations + step * unit), 1)[:, 2] for step in (1e-5, -1e-5)]
    np.testing.assert_allclose(ours, (moved[0] - moved[1]) / 2e-5, atol=1e-5)
