"""Measures of localisation by hand and against scikit-learn; FullGrad and the plain gradient against direct computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.stats import wilcoxon
from sklearn.metrics import average_precision_score
from tiny_network import random_network

from scalecov_jax.explanation.full_grad import full_grad, gradient_size, rescaled
from scalecov_jax.explanation.localisation import (
    average_precision,
    chance,
    compare_methods,
    lesion_hit,
    lesion_recall,
    lesions,
    locate,
)
from scalecov_jax.explanation.score_propagation import propagate_scores
from scalecov_jax.explanation.target import class_logit, severity
from scalecov_jax.models.folding import fold

pytestmark = pytest.mark.usefixtures("quick_compilation")


MASK = np.array([[1, 1, 0, 0, 0], [0, 0, 2, 0, 0], [0, 0, 0, 0, 0], [3, 0, 0, 0, 3]], np.uint8)


def test_lesions_are_what_touches_and_has_one_value():
    assert lesions(MASK).max() == 4
    assert lesions(MASK > 0).max() == 3  # of one kind, 1 and 2 touch at a corner
    with pytest.raises(ValueError, match="without any lesion"):
        lesions(np.zeros((3, 3), bool))


def test_the_highest_pixel_hits_or_misses():
    scores = np.zeros((4, 5))
    assert not lesion_hit(scores, MASK)  # nowhere above zero
    scores[2, 1] = 1.0
    assert [lesion_hit(scores, MASK, one) for one in (0, 1)] == [False, True]
    scores[1, 2] = 2.0
    assert lesion_hit(scores, MASK)
    scores[:] = 0
    scores[0, 4] = 1.0  # off by two along one axis, at the border
    assert [lesion_hit(scores, MASK, one) for one in (0, 1, 2)] == [False, False, True]


def test_recall_counts_lesions_not_pixels():
    marked = np.zeros(MASK.shape, bool)
    assert lesion_recall(marked, MASK) == 0
    marked[0, :2] = marked[3, 4] = marked[2, 2] = True
    assert lesion_recall(marked, MASK) == 2 / 4


@pytest.mark.parametrize("values", [3, 1000])
def test_average_precision_is_the_sum_over_values_from_the_highest(values):
    rng = np.random.default_rng(values)
    for _ in range(20):
        scores, mask = rng.integers(-values, values, (7, 9)).astype(np.float32), rng.random((7, 9)) < 0.2
        mask[0, 0] = True
        chosen = [scores >= value for value in np.unique(scores)[::-1]]
        found = np.array([(mask & marked).sum() for marked in chosen])
        precision = found / [marked.sum() for marked in chosen]
        expected = (np.diff(found, prepend=0) * precision).sum() / mask.sum()
        assert average_precision(scores, mask) == pytest.approx(expected, abs=1e-12)
        peer = average_precision_score(mask.ravel(), scores.ravel())
        assert average_precision(scores, mask) == pytest.approx(peer, abs=1e-12)
    assert average_precision(np.zeros((7, 9)), mask) == pytest.approx(mask.mean())
    with pytest.raises(ValueError, match="1 of 63 values of a map are not finite"):
        average_precision(np.where(np.arange(63).reshape(7, 9) == 5, np.nan, 0), mask)
    with pytest.raises(ValueError, match="has no precision"):
        average_precision(scores, np.zeros((7, 9), bool))


def test_chance_is_what_random_pixels_reach():
    rng = np.random.default_rng(0)
    reached = []
    for _ in range(1000):
        marked = np.zeros(MASK.size, bool)
        marked[rng.choice(MASK.size, 6, replace=False)] = True
        found = locate(rng.random(MASK.shape), MASK, marked.reshape(MASK.shape), tolerance=1)
        reached.append((found.hit, found.recall))
    expected = chance(MASK, 6, tolerance=1)
    np.testing.assert_allclose(np.mean(reached, 0), expected[:2], atol=0.04)
    assert expected.precision == 5 / 20
    assert chance(MASK, MASK.size).recall == 1
    assert chance(MASK, 0).recall == 0


def test_methods_are_compared_by_patients():
    rng = np.random.default_rng(1)
    patients = [f"p{number // 2}" for number in range(24)]
    first = rng.random(24)
    values = {"ours": first, "worse": first - 0.1 - 0.05 * rng.random(24), "same": first.copy()}
    found = compare_methods(values, "ours", patients)
    means = (values["worse"] - first).reshape(12, 2).mean(1)
    assert found["worse"].p == pytest.approx(wilcoxon(means, method="exact").pvalue)
    assert found["worse"].holm == pytest.approx(2 * found["worse"].p)
    assert found["same"].p == found["same"].holm == 1
    assert found["ours"].p is None
    low, high = found["worse"].difference_interval
    assert low < found["worse"].difference < high < 0
    assert found["worse"].difference == pytest.approx(means.mean())
    alone = compare_methods(values, "ours", ["one"] * 24)["worse"]
    assert alone.interval is None
    assert alone.p is None


def test_full_grad_and_gradient_follow_their_formulas():
    network = random_network()
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    targets = (class_logit(network, 1), severity(network))
    biases = {name: one["bias"] for name, one in variables["params"].items()}

    def score(weights, inputs, added):
        a = inputs
        for name, stride in (("stem", 2), ("block_1", 2), ("block_2", 2)):
            kernel = variables["params"][name]["kernel"]
            a = jax.lax.conv_general_dilated(
                a, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            a = jax.nn.relu(a + biases[name] + added[name])
            a = nn.max_pool(a, (3, 3), (2, 2), ((1, 1), (1, 1))) if name == "stem" else a
        logits = a.mean((1, 2)) @ variables["params"]["pre_softmax"]["kernel"] + biases["pre_softmax"]
        return (logits * weights).sum()

    one_hot = np.eye(5, dtype=np.float32)[1][None]
    found = full_grad(module, variables, inputs, targets)
    parts = propagate_scores(module, variables, inputs, targets)
    with jax.numpy_rank_promotion("allow"):
        shapes = {"stem": (2, 16, 16, 8), "block_1": (2, 4, 4, 16), "block_2": (2, 2, 2, 32)}
        zeros = {name: jnp.zeros(shape) for name, shape in shapes.items()}
        slopes_of = jax.jit(jax.grad(score, (1, 2)))
        for row, weights in enumerate((one_hot, np.array([[-2, -1, 0, 1, 2]], np.float32))):
            slope, slopes = slopes_of(weights, inputs, zeros)
            expected = np.asarray(rescaled(slope * inputs))
            for name in ("stem", "block_1", "block_2"):
                one = np.abs(np.asarray(slopes[name] * biases[name]))
                flat = one.reshape(2, -1)
                low, high = (getattr(flat, how)(1)[:, None, None, None] for how in ("min", "max"))
                summed = ((one - low) / (high - low)).sum(-1)
                expected = expected + np.asarray(jax.image.resize(summed, (2, 32, 32), "bilinear"))
            np.testing.assert_allclose(np.asarray(found[row]), expected, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(gradient_size(parts)[row], np.abs(slope).max(-1), rtol=1e-3, atol=1e-6)
    without = jax.tree.map_with_path(
        lambda path, one: np.zeros_like(one) if path[-1].key == "bias" else one, variables
    )
    alone = full_grad(module, without, inputs, targets)
    assert float(alone.max()) <= 3  # of the input only: three channels in [0, 1]


def test_rescaled_layers_lie_between_0_and_1():
    scores = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
    scores[1] = 0.0
    found = np.asarray(rescaled(jnp.asarray(scores)))
    assert found[[0, 2]].min() == 0
    assert found[[0, 2]].max() == 1
    assert not found[1].any()
