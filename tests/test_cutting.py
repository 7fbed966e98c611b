"""A cut is checked by what the cut network returns, not by what is captured inside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax.cutting import check_pruning, pruned_network
from scalecov_jax.images.image_set import Example
from scalecov_jax.models.architecture import ARCHITECTURES, Architecture
from scalecov_jax.models.layers import ConvBlock


class Outside(nn.Module):
    """Its activation lies outside the captured block, so that a cut network returns something else."""

    last: str = "block_2"

    @nn.compact
    def __call__(self, x, train=False):
        for number in (1, 2):
            x = ConvBlock(8, (3, 3), 2, normalise=False, activation=None, name=f"block_{number}")(x, train)
            x = nn.relu(x)
            if self.last == f"block_{number}":
                return x
        return x


def images(count):
    rng = np.random.default_rng(0)
    return [
        Example(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8), None, None, None, str(index), str(index))
        for index in range(count)
    ]


def test_a_cut_that_changes_the_feature_is_seen(monkeypatch):
    monkeypatch.setitem(
        ARCHITECTURES, "outside", Architecture("outside", Outside, ("block_1", "block_2"), input_size=32)
    )
    variables = jax.device_get(jax.jit(Outside().init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    network = checkpoints.network(variables, checkpoints.Card("outside", {}, "tf", 32, "tests"))
    pruning = check_pruning(network, pruned_network(network, "block_1"), images(4))
    assert pruning.relative_difference > 0.1
    assert pruning.max_difference == pytest.approx(pruning.relative_difference * pruning.largest)


@pytest.mark.parametrize("pooling", ["gap", "max", "corrected_gap"])
def test_a_cut_after_a_captured_layer_changes_nothing(pooling):
    network = random_network()
    pruning = check_pruning(network, pruned_network(network, "block_1"), images(5), pooling=pooling)
    assert pruning.relative_difference < 1e-5
    assert pruning.parameters_after < pruning.parameters_before
