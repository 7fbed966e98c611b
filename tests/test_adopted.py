"""A network of another package, unedited: its layers are probed, it is cut, saved and loaded like ours."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from test_fine_tuning import patches

from scalecov_jax import checkpoints
from scalecov_jax import extraction as features
from scalecov_jax.imaging.batching import batches
from scalecov_jax.models.adopted import adopt
from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.models.pruning import count_parameters, cumulative_parameters, prune
from scalecov_jax.models.receptive_field import receptive_field

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, deterministic):
        y = nn.Conv(self.width, (3, 3), strides=2, name="inner")(x)
        y = nn.BatchNorm(use_running_average=deterministic)(y)
        return nn.relu(y)  # outside any module


class Theirs(nn.Module):
    """No `last`, modules made in setup, a head."""

    def setup(self):
        self.stem = nn.Conv(4, (3, 3))
        self.blocks = [Block(8), Block(16)]
        self.classify = nn.Dense(3)

    def __call__(self, x, deterministic=True):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, deterministic)
        return self.classify(x.mean((1, 2)))


@pytest.fixture
def theirs(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "theirs", adopt("theirs", Theirs(), input_size=32))
    variables = jax.device_get(Theirs().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    return checkpoints.network(variables, checkpoints.Card("theirs", {}, "torch", 32, "tests"))


def test_its_blocks_are_layers(theirs):
    family = theirs.architecture
    assert family.layers == ("stem", "blocks_0", "blocks_1", "classify")
    assert (family.trunk, family.head) == ("blocks_1", ("classify",))
    source, _ = patches(8)
    pooled = features.compute_features(theirs, source, (*family.trunk_layers, "classify")).values
    images = next(batches(source, 32, 8, [])).images
    apply: Any = Theirs().apply
    inputs = features.preprocess(jnp.asarray(images), "torch")
    outputs, state = apply(theirs.variables, inputs, capture_intermediates=True)
    for layer in family.trunk_layers:
        expected = np.mean(state["intermediates"][layer]["__call__"][0], (1, 2))
        np.testing.assert_allclose(pooled[layer], expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(pooled["classify"], outputs, rtol=2e-5, atol=1e-6)


def test_it_is_cut_saved_and_loaded(theirs, tmp_path):
    source, _ = patches(8)
    whole = features.compute_features(theirs, source, ("blocks_0",)).values["blocks_0"]
    module, variables = prune(theirs.module, theirs.variables, theirs.architecture, "blocks_0")
    assert set(variables["params"]) == {"stem", "blocks_0"}
    assert receptive_field(theirs.architecture, "blocks_1")[:2] == (9, 4)
    counts = cumulative_parameters(theirs.module, theirs.architecture)
    assert counts["blocks_0"] == count_parameters(variables) == 112 + 296 + 32
    card = checkpoints.Card("theirs", {"last": "blocks_0"}, "torch", 32, "tests")
    checkpoints.save(tmp_path / "cut", theirs._replace(module=module, variables=variables, card=card))
    cut = checkpoints.load(tmp_path / "cut")
    alone = features.compute_features(cut, source, ("blocks_0",))
    np.testing.assert_array_equal(alone.values["blocks_0"], whole)
    assert alone.origins == features.compute_features(theirs, source, ("blocks_0",)).origins
    output = jax.jit(cut.module.apply)(cut.variables, jnp.zeros((1, 32, 32, 3)))
    assert output.shape == (1, 16, 16, 8)


def test_layers_that_it_has_not_are_refused():
    with pytest.raises(
        ValueError, match="calls no block_7; its own modules are stem, blocks_0, blocks_1, classify"
    ):
        adopt("theirs", Theirs(), layers=("stem", "block_7"), input_size=32)
    with pytest.raises(ValueError, match="No layer of Theirs returns a map; it has classify"):
        adopt("theirs", Theirs(), layers=("classify",), input_size=32)
