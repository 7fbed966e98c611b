"""An architecture of a user: one module and one entry, and everything else works."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import save_file
from test_fine_tuning import patches
from tiny_network import draw_noise

from scalecov_jax import checkpoints
from scalecov_jax import extraction as features
from scalecov_jax.experiments import pretrain
from scalecov_jax.imaging import scenes
from scalecov_jax.models import parity
from scalecov_jax.models.architecture import ARCHITECTURES, Architecture, plain_name
from scalecov_jax.models.download import choose
from scalecov_jax.models.folding import fold
from scalecov_jax.models.layers import ConvBlock
from scalecov_jax.models.port import port
from scalecov_jax.models.pruning import cumulative_parameters, prune
from scalecov_jax.models.receptive_field import receptive_field, smallest_clean_size
from scalecov_jax.transfer.fine_tuning import Recipe, fine_tune

LAYERS = ("block_1", "block_2", "block_3")
pytestmark = pytest.mark.usefixtures("quick_compilation")


class Small(nn.Module):
    """As a user would write it: no head, no width, no batch statistics."""

    last: str = "block_3"

    @nn.compact
    def __call__(self, x, train=False):
        for number, layer in enumerate(LAYERS, start=1):
            x = ConvBlock(8 * number, (3, 3), 2, normalise=False, name=layer)(x, train)
            if self.last == layer:
                return x
        return x


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "small", Architecture("small", Small, LAYERS, input_size=32))
    variables = jax.device_get(jax.jit(Small().init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    return checkpoints.network(variables, checkpoints.Card("small", {}, "tf", 32, "tests"))


def test_everything_works_for_it(small, tmp_path, monkeypatch):
    family = small.architecture
    assert (family.trunk, family.trunk_layers, plain_name("small")) == ("block_3", LAYERS, "small")
    source, areas = patches(24)
    whole = features.compute_features(small, source, LAYERS).values
    assert [one.shape for one in whole.values()] == [(24, 8), (24, 16), (24, 24)]
    module, variables = prune(small.module, small.variables, family, "block_2")
    pruned = small._replace(module=module, variables=variables)
    alone = features.compute_features(pruned, source, ("block_2",)).values["block_2"]
    np.testing.assert_allclose(alone, whole["block_2"], rtol=1e-6)
    assert fold(module, variables, family.epsilon) == (module, variables)
    assert list(cumulative_parameters(small.module, family).values()) == [216, 1368, 4824]
    assert receptive_field("small", "block_3") == (15, 8, 0)
    assert smallest_clean_size("small", "block_3") == 16
    random = checkpoints.random_network(small, 1)
    assert (random.variables["params"]["block_1"]["kernel"] != 0).all()
    checkpoints.save(tmp_path / "saved", small)
    assert checkpoints.load(tmp_path / "saved").card == small.card

    recipe = Recipe(epochs=2, batch_size=8, learning_rate=1e-3, batch_norm="recomputed")
    train, test = np.arange(16), np.arange(16, 24)
    options = {"size": 32, "seed": 0}
    once = dataclasses.replace(recipe, epochs=1)
    first = fine_tune(small, source, areas, train, test, tmp_path / "tuned", recipe=once, **options)
    resumed = fine_tune(small, source, areas, train, test, tmp_path / "tuned", recipe=recipe, **options)
    assert first.batch_stats == resumed.batch_stats == {}
    assert resumed.curve[0] == first.curve[0]
    assert len(resumed.curve) == 2

    monkeypatch.setattr(scenes, "draw", draw_noise)
    classifier = nn.Sequential([Small(), lambda x: x.mean((1, 2))])
    (tmp_path / "trained").mkdir()
    settings = pretrain.Settings(steps=2, batch_size=4, size=32, warmup=1, log_every=1, save_every=1)
    state, _ = pretrain.train(classifier, tmp_path / "trained", settings)
    assert (int(state.step), state.batch_stats) == (2, {})


def test_what_only_published_networks_have_is_refused_in_one_line(small, tmp_path):
    save_file({"block_1.weight": np.ones((8, 3, 3, 3), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read as small, .* known: none at all"):
        port(tmp_path / "a.safetensors", "small", "tf")
    with pytest.raises(ValueError, match=r"keras\.applications has no small, so there is nothing to compare"):
        parity.compare_with_keras(small)
    with pytest.raises(ValueError, match="No official file of small is known with its checksum"):
        choose("small")
    with pytest.raises(ValueError, match="No official file of mobilenet_v2"):
        choose("mobilenet_v2")
    assert len(choose("convnext_tiny").digest) == 64
    assert choose("vgg16", "fc1").top
    assert not choose("vgg16", "block5_pool").top


def test_a_wrong_entry_is_refused_with_all_problems():
    class Endless(nn.Module):
        def __call__(self, x):
            return x

    with pytest.raises(ValueError, match="cannot be used") as caught:
        Architecture("mine", Endless, ("softmax", "avg_pool", "softmax"), head=("softmax", "avg_pool"))
    for problem in (
        "'mine' cannot",
        "Endless has no field `last`",
        "no layer comes before",
        "twice",
        "avg_pool is",
    ):
        assert problem in str(caught.value)
