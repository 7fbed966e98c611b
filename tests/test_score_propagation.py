"""The parts of a score add up to it, for random networks, inputs and targets; lambda is the gradient."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax.explanation.score_propagation import (
    layer_names,
    peak_bytes,
    propagate_scores,
    relative_error,
    sum_of_parts,
)
from scalecov_jax.explanation.target import (
    Target,
    class_logit,
    class_probability,
    contrast,
    cumulative,
    head_unit,
    predicted_logit,
    settled,
    step,
)
from scalecov_jax.models.folding import fold
from scalecov_jax.models.layers import max_pool

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
NETWORKS = {
    "tiny": (32, {}),
    "dr_grader": (256, {"width": 0.125}),
    "resnet50": (32, {"width": 0.0625, "classes": 5}),
    "inception_v3": (75, {"width": 0.05, "classes": 5}),
}
pytestmark = pytest.mark.usefixtures("quick_compilation")


def made(architecture, seed=0):
    size, options = NETWORKS[architecture]
    network = random_network(architecture, seed=seed, input_size=size, **options)
    inputs = np.random.default_rng(seed).normal(size=(2, size, size, 3))
    return network, fold(network.module, network.variables, network.architecture.epsilon), inputs


def in_float64(module, variables, inputs, targets):
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), variables)
        return jax.device_get(propagate_scores(module, variables, jnp.asarray(inputs, "float64"), targets))


@pytest.mark.parametrize("architecture", NETWORKS)
def test_parts_add_up(architecture):
    for seed in range(3):
        network, (module, variables), inputs = made(architecture, seed)
        targets = [class_logit(network, one) for one in range(5)]
        parts = propagate_scores(module, variables, jnp.asarray(inputs, jnp.float32), targets)
        gross = sum(np.abs(np.asarray(one)).reshape(5, 2, -1).sum(2) for one in parts.constants.values())
        assert (gross > 0).all()
        assert relative_error(parts).max() < 1e-4


@pytest.mark.parametrize("architecture", NETWORKS)
def test_parts_add_up_in_float64(architecture):
    network, (module, variables), inputs = made(architecture)
    parts = in_float64(module, variables, inputs, [class_logit(network, one) for one in range(5)])
    assert relative_error(parts).max() < 1e-9


def test_lambda_is_the_gradient_and_constants_are_open_biases():
    network, (module, variables), inputs = made("tiny")
    parts = in_float64(module, variables, inputs, [class_logit(network, 2)])
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), variables)
        logits = jax.jit(lambda x: module.clone(last="pre_softmax").apply(wide, x)[:, 2])
        rng = np.random.default_rng(0)
        for _ in range(20):
            shift = np.zeros_like(inputs)
            shift[(slice(None), *rng.integers(0, (32, 32, 3)))] = 1e-6
            slope = (logits(jnp.asarray(inputs + shift)) - logits(jnp.asarray(inputs - shift))) / 2e-6
            expected = (parts.gradients[0] * (shift > 0)).sum((1, 2, 3))
            np.testing.assert_allclose(slope, expected, atol=1e-7)
        # bias x gradient by the bias, over the whole map
        by_variables = jax.device_get(
            jax.jit(
                jax.grad(lambda v: module.clone(last="pre_softmax").apply(v, jnp.asarray(inputs[:1]))[0, 2])
            )(wide)
        )["params"]
    for layer in ("stem", "block_1", "block_2", "pre_softmax"):
        expected = (by_variables[layer]["bias"] * np.asarray(variables["params"][layer]["bias"])).sum()
        np.testing.assert_allclose(parts.constants[layer][0, 0].sum(), expected, rtol=1e-5)
    np.testing.assert_allclose(parts.constants["pool"], 0, atol=1e-12)


def test_every_target_is_divided():
    network, (module, variables), inputs = made("tiny")
    for target in (
        predicted_logit(network),
        contrast(network),
        contrast(network, 3),
        step(network),
        cumulative(network),
        class_probability(network, 1),
        head_unit(network, "block_1", np.arange(16.0), 3.0, jax.nn.sigmoid),
        head_unit(network, "block_2", np.arange(32.0), 3.0),
    ):
        parts = in_float64(module, variables, inputs, [target])
        np.testing.assert_allclose(sum_of_parts(parts), parts.scores, rtol=1e-9)
    np.testing.assert_allclose(parts.link, 3.0)
    assert layer_names(module, variables, inputs.shape, "block_2") == ("stem", "pool", "block_1", "block_2")
    assert {*parts.constants} == {"stem", "pool", "block_1", "block_2"}


def test_contrasts_have_the_gradients_of_log_odds_and_weights_that_stay():
    network, _, _ = made("tiny")
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)) * 3, jnp.float32).at[0, 0].set(9.0)
    best = np.asarray(logits).argmax(1)

    def odds(values, inside):
        p = jax.nn.softmax(values)
        return jnp.log((p * inside).sum() / (p * ~inside).sum())

    def total(values):
        return sum(odds(values, np.arange(5) >= grade) for grade in range(1, 5))

    steps = np.zeros((6, 5))
    for row, grade in enumerate(np.maximum(best, 1)):
        steps[row, [grade - 1, grade]] = -1, 1
    one = [jax.grad(odds)(row, np.arange(5) == grade) for row, grade in zip(logits, best, strict=True)]
    for target, expected in (
        (contrast(network), np.stack(one)),
        (contrast(network, 3), np.stack([jax.grad(odds)(row, np.arange(5) == 3) for row in logits])),
        (cumulative(network), np.stack([jax.grad(total)(row) for row in logits])),
        (step(network), steps),
    ):
        weights = np.asarray(settled(target, logits).weights)
        np.testing.assert_allclose(weights, expected, atol=2e-6)
        np.testing.assert_allclose(weights.sum(1), 0, atol=2e-6)  # what all classes share counts nothing
        np.testing.assert_allclose(target(logits), (weights * logits).sum(1), rtol=1e-5)
        slope = jax.grad(lambda values, target=target: target(values).sum())(logits)
        np.testing.assert_allclose(slope, weights, atol=1e-6)  # the weights are held fixed

    alone = random_network("tiny", classes=1)
    for make in (contrast, step, cumulative):
        with pytest.raises(ValueError, match="expected at least two"):
            make(alone)


class Odd(nn.Module):
    """Equal values under a maximum, a function between modules, a module without a name of its own, called twice."""

    dropout: float = 0.0
    train: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        dense = nn.Dense(6, name="twice", bias_init=nn.initializers.normal())
        x = dense(jnp.concatenate([x, x], 3))
        x = jnp.maximum(jnp.concatenate([x, x], 3), jnp.concatenate([x, -x], 3))
        x = nn.max_pool(x.repeat(2, 1).repeat(2, 2), (3, 3), (1, 1), "SAME")
        x = nn.Dropout(self.dropout, deterministic=False)(nn.gelu(dense(x[..., :6])) * x.mean())
        x = nn.BatchNorm(not self.train)(x)
        return nn.Dense(5, name="end")(x.mean((1, 2)))


class Behind(nn.Module):
    """A module that goes on behind the last module inside it."""

    @nn.compact
    def __call__(self, x):
        return nn.gelu(nn.Dense(4, name="inside", bias_init=nn.initializers.normal())(x))


class Around(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="end")(
            Behind(name="block")(max_pool(x.repeat(2, 1).repeat(2, 2), size=2)).mean((1, 2))
        )


def test_what_a_layer_does_last_is_kept_and_ties_of_poolings_are_shared():
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 3))
    variables = Around().init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    for target in (Target("block", jnp.arange(4.0)), Target("end", jnp.arange(5.0))):
        parts = in_float64(Around(), variables, x, [target])
        assert relative_error(parts).max() < 1e-9
        assert (np.abs(parts.link) > 1e-6).all() == (target.layer == "block")
    slope = jax.grad(lambda x: max_pool(x, size=2).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_allclose(slope, 0.25)


def test_ties_and_steps_between_modules():
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 3))
    module = Odd()
    variables = module.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    parts = in_float64(module, variables, x, [Target("end", jnp.arange(5.0))])
    assert relative_error(parts).max() < 1e-9
    assert {"twice", "twice'"} <= {*parts.constants}
    for bad, message in ((Odd(0.5), "drops out at random"), (Odd(0.0, True), "normalises by the batch")):
        with pytest.raises(ValueError, match=message):
            propagate_scores(bad, variables, jnp.asarray(x, jnp.float32), [Target("end", jnp.ones(5))])


def test_mistakes_and_memory():
    network, (module, variables), inputs = made("tiny")
    shape = inputs.shape
    with pytest.raises(ValueError, match="has no layer 'block_9'; there are stem, pool"):
        layer_names(module, variables, shape, "block_9")
    with pytest.raises(ValueError, match="2 targets at block_1, block_2"):
        propagate_scores(
            module,
            variables,
            jnp.asarray(inputs, jnp.float32),
            [Target("block_1", None), Target("block_2", None)],
        )
    one = peak_bytes(module, variables, (1, *shape[1:]), [class_logit(network, 0)])
    assert one < peak_bytes(module, variables, (8, *shape[1:]), [class_logit(network, 0)]) < 9 * one


@pytest.mark.parametrize(
    ("architecture", "last"), [("mobilenet_v2", "block_2_add"), ("efficientnet_b0", "block2b_add")]
)
def test_parts_add_up_where_functions_are_bent_otherwise(architecture, last):
    """ReLU6; swish, with squeeze and excitation."""
    network = random_network(architecture, input_size=64, width=0.125, last=last)
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 64, 3)), jnp.float32)
    target = head_unit(network, last, np.arange(1.0, 4.0))
    assert relative_error(propagate_scores(module, variables, inputs, [target])).max() < 1e-4


@pytest.mark.large
@pytest.mark.parametrize("name", ["dr_grader", "resnet50", "inception_v3"])
def test_parts_add_up_for_trained_weights(name):
    network = checkpoints.load(CHECKPOINTS / name)
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    size = network.card.input_size
    inputs = np.random.default_rng(0).uniform(0, 1, (1, size, size, 3))
    targets = [class_logit(network, 0), class_logit(network, 4)]
    assert (
        relative_error(propagate_scores(module, variables, jnp.asarray(inputs, "float32"), targets)).max()
        < 1e-4
    )
    assert relative_error(in_float64(module, variables, inputs, targets)).max() < 1e-9
