"""The grader of diabetic retinopathy: its size, what its layers see, folding, cutting and training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from scalecov_jax import checkpoints
from scalecov_jax.models import parity
from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.models.folding import fold
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.models.pruning import abstract_variables, prune
from scalecov_jax.models.receptive_field import minimum_size, receptive_field

FAMILY = ARCHITECTURES["dr_grader"]


def test_parameters_and_maps_as_described():
    """16x320 to 64x5 after the poolings, 64x4 after conv15; biases, offsets and scales counted, running statistics not."""
    variables = abstract_variables(FAMILY.module(), FAMILY)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 385_877
    for layer, shape in {
        "block1_pool": (320, 320, 16),
        "block4_pool": (40, 40, 64),
        "block7_pool": (5, 5, 64),
        "conv15": (4, 4, 64),
        WHOLE: (64,),
        "softmax": (5,),
    }.items():
        module = FAMILY.module(last=layer)
        found, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((1, 640, 640, 3)))
        assert found.shape == (1, *shape)


def test_receptive_fields():
    """The true ones; the papers' 3, 5, 9, 13, ..., 637 leave out the poolings."""
    found = [receptive_field(FAMILY, layer) for layer in FAMILY.trunk_layers if "conv" in layer]
    sizes = [field.size for field in found]
    assert sizes == [3, 5, 10, 14, 24, 32, 52, 68, 108, 140, 220, 284, 444, 572, 764]
    last = found[-1]
    assert last.stride == 128
    assert last.offset + (last.size - 1) / 2 == 127.5
    assert minimum_size(FAMILY, "pre_softmax") == 256
    with pytest.raises(ValueError, match="sees the whole image: it is a vector"):
        receptive_field(FAMILY, WHOLE)


def test_folding_and_cutting_change_no_layer():
    options = {"width": 0.125, "last": "block2_conv2"}
    card = checkpoints.Card("dr_grader", options, "unit", 32, "tests")
    module = FAMILY.module(**options)
    given = checkpoints.network(abstract_variables(module, FAMILY, 32), card)
    rng = np.random.default_rng(0)
    positive = jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32), given.variables)
    given = given._replace(variables=positive)
    x = rng.uniform(size=(2, 30, 30, 3)).astype(np.float32)
    expected = parity.capture(given, x)
    module, variables = fold(given.module, given.variables, FAMILY.epsilon)
    module, variables = prune(module, variables, FAMILY, "block1_pool")
    found = np.asarray(module.apply(jax.tree.map(jnp.asarray, variables), jnp.asarray(x)))
    assert parity.relative_error(found, expected["block1_pool"]) < 1e-5

    _, updates = given.module.apply(
        jax.tree.map(jnp.asarray, given.variables), jnp.asarray(x), True, mutable=["batch_stats"]
    )
    before, after = (flatten_dict(one["batch_stats"]) for one in (given.variables, updates))
    assert before.keys() == after.keys()
    assert all((before[path] != after[path]).all() for path in before)
