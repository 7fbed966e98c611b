"""A cut is checked by what the cut network returns, not by what is captured inside it."""

import jax
import jax.numpy as jnp
import numpy as np
import probe_runs
import pytest
from flax import linen as nn
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax.atomic import write_json
from scalecov_jax.cutting import check_pruning, cut_checkpoint, pruned_network
from scalecov_jax.imaging.image_set import Example
from scalecov_jax.models.architecture import ARCHITECTURES, Architecture
from scalecov_jax.models.layers import ConvBlock

weights = probe_runs.weights


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


@pytest.mark.parametrize(("estimator", "layer"), [("ols", "stem"), ("ridge", "block_1")])
def test_prune_by_scores(weights, tmp_path, estimator, layer):
    selected = {"ols": {"layer": "stem"}, "ridge": {"layer": "block_1"}}
    summary = {"architecture": "tiny", "weights": "some_weights", "selected": selected}
    write_json(tmp_path / "summary.json", summary)
    text = cut_checkpoint(str(weights), str(tmp_path / "cut"), None, str(tmp_path), estimator)
    assert f"tiny cut after {layer}" in text
    assert checkpoints.load(tmp_path / "cut").module.last == layer


def test_prune_by_layer(weights, tmp_path):
    text = cut_checkpoint(str(weights), str(tmp_path / "cut"), "block_1", None)
    assert text.startswith(
        "tiny cut after block_1: 6,144 -> 1,440 parameters (76.56 % less than without its head)"
    )
    head = cut_checkpoint(str(weights), str(tmp_path / "head"), "softmax", None)
    assert "6,309 -> 6,309 parameters (0.00 % less" in head
    with pytest.raises(ValueError, match="cut exists"):
        cut_checkpoint(str(weights), str(tmp_path / "cut"), "stem", None)
    with pytest.raises(ValueError, match="no layer 'block_11'; did you mean block_1"):
        cut_checkpoint(str(weights), str(tmp_path / "other"), "block_11", None)
    with pytest.raises(ValueError, match="stops at block_1, before 'block_2'"):
        cut_checkpoint(str(tmp_path / "cut"), str(tmp_path / "other"), "block_2", None)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        (None, "holds no layer selected by ridge for some_weights"),
        ("{", "holds no layer"),
        ('{"selected": {"ridge": {"layer": "stem"}}, "architecture": "tiny"}', "is damaged"),  # by hand
        (
            {"selected": {"ols": {"layer": "stem"}}, "architecture": "tiny"},
            "holds no layer selected by ridge",
        ),
        ({"networks": {"other": {}}}, "for some_weights"),
        ({"selected": {"ridge": {"layer": "add_1"}}, "architecture": "resnet50"}, "is about resnet50, but"),
    ],
)
def test_scores_that_choose_no_layer(weights, tmp_path, summary, message):
    if isinstance(summary, str):
        (tmp_path / "summary.json").write_text(summary)
    elif summary is not None:
        write_json(tmp_path / "summary.json", summary)
    with pytest.raises(ValueError, match=message):
        cut_checkpoint(str(weights), str(tmp_path / "cut"), None, str(tmp_path))
    assert not (tmp_path / "cut").exists()
