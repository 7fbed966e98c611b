"""Fine-tuning: the step against plain gradients, statistics of batch normalisation, kill and resume, damage, divergence."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_network import random_network

from scalecov_jax.cutting import pruned_network
from scalecov_jax.imaging.image_set import Example
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.transfer import fine_tuning
from scalecov_jax.transfer.fine_tuning import (
    Recipe,
    Regressor,
    Units,
    fine_tune,
    initial_state,
    predict_areas,
)

RECIPE = Recipe(epochs=4, batch_size=8, learning_rate=3e-3, targets="standardised", batch_norm="recomputed")
SIZE = 32
pytestmark = pytest.mark.usefixtures("quick_compilation")


def patches(count=60):
    """Noise whose brightness is the area to read."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, SIZE, SIZE, 3)) // rng.integers(1, 5, (count, 1, 1, 1))
    images = images.astype(np.uint8)
    source = [Example(image, None, None, None, str(i), str(i)) for i, image in enumerate(images)]
    return source, images.mean((1, 2, 3)) * 4


def start(layer=WHOLE):
    return pruned_network(random_network(), layer)


def tune(folder, recipe=RECIPE, network=None, areas=None, **options):
    source, truth = patches()
    truth = truth if areas is None else areas
    options = {"size": SIZE, "seed": 3, "recipe": recipe} | options
    return fine_tune(
        network or start(), source, truth, np.arange(42), np.arange(42, 60), Path(folder), **options
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return tune(folder), folder


def same(first, second):
    np.testing.assert_array_equal(first.predicted, second.predicted)
    assert first.curve == second.curve
    for one, other in zip(*map(jax.tree.leaves, (first[:2], second[:2])), strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_learns(unbroken):
    fitted, folder = unbroken
    _, truth = patches()
    held_out = truth[42:]
    assert np.abs(fitted.predicted - held_out).mean() < 0.35 * np.abs(held_out - truth[:42].mean()).mean()
    assert fitted.curve[-1][1] < 0.3 * fitted.curve[0][1]
    assert [row[0] for row in fitted.curve] == [1, 2, 3, 4]
    assert (folder / "curve.csv").read_text().splitlines()[0] == "epoch,train_mse,test_mae"


def test_the_first_step_is_adam_on_the_squared_error(tmp_path):
    """One epoch of one batch, recomputed here from the module itself."""
    source, truth = patches(8)
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=1e-2)
    network = start("block_1")
    fitted = fine_tune(
        network, source, truth, np.arange(8), np.arange(8), tmp_path, size=SIZE, seed=5, recipe=recipe
    )
    images = jnp.asarray(np.stack([one.image for one in source]))
    order = np.random.default_rng((5, 1)).permutation(8)
    state = initial_state(network, 1e-2, 5)

    def loss(params):
        x = images[order].astype(jnp.float32) / 127.5 - 1
        variables = {"params": params["trunk"], "batch_stats": network.variables["batch_stats"]}
        maps, _ = network.module.apply(variables, x, True, mutable=["batch_stats"])
        output = maps.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
        return jnp.mean((output - truth[order]) ** 2)

    @jax.jit
    def by_hand(params):
        optimizer, (error, gradient) = optax.adam(1e-2), jax.value_and_grad(loss)(params)
        updates, _ = optimizer.update(gradient, optimizer.init(params))
        return error, optax.apply_updates(params, updates)

    error, after = by_hand(state.params)
    assert fitted.curve[0][1] == pytest.approx(float(error), rel=1e-5)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(fitted.params),
        jax.tree.leaves(after),
        strict=True,
    ):
        # Adam's first step is the sign of the gradient: rounding decides it where the gradient is 0.
        agree = np.isclose(one, other, atol=1e-6)
        assert agree.mean() > 0.97, path


def test_recomputed_statistics_are_the_average_over_training_batches(tmp_path):
    source, _ = patches()
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=1e-3, batch_norm="recomputed")
    fitted = tune(tmp_path, recipe)
    kernel = fitted.params["trunk"]["stem"]["kernel"]
    means = []
    for number in range(5):
        x = (
            np.stack([source[i].image for i in range(8 * number, 8 * number + 8)]).astype(np.float32) / 127.5
            - 1
        )
        maps = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        means.append(np.asarray(maps).mean((0, 1, 2)))
    np.testing.assert_allclose(fitted.batch_stats["stem"]["norm"]["mean"], np.mean(means, axis=0), atol=2e-5)


def test_frozen_statistics_stay_and_running_ones_move(tmp_path):
    network = start()
    before = jax.tree.leaves(network.variables["batch_stats"])
    for how, equal in (("frozen", True), ("running", False)):
        recipe = Recipe(epochs=1, batch_size=8, learning_rate=1e-3, batch_norm=how)
        after = jax.tree.leaves(tune(tmp_path / how, recipe).batch_stats)
        assert equal == all(np.array_equal(one, two) for one, two in zip(before, after, strict=True))


def test_raw_inputs_are_not_preprocessed():
    network = start("stem")
    images = jnp.asarray(patches(4)[0][0].image[None])
    state = initial_state(network, 1e-3, 0)
    units = Units(jnp.float32(0), jnp.float32(1))
    regressor = Regressor(network.module, "raw")
    variables = jax.tree.map(jnp.asarray, network.variables)
    maps = network.module.apply(variables, images.astype(jnp.float32))
    expected = maps.mean((1, 2)) @ state.params["head"]["kernel"]
    np.testing.assert_allclose(
        predict_areas(regressor, state.params, state.batch_stats, units, images), expected, rtol=1e-5
    )


def test_other_seeds_give_other_results(tmp_path, unbroken):
    assert (tune(tmp_path, seed=4).predicted != unbroken[0].predicted).any()


_SCRIPT = """
import sys, time
sys.path[:0] = [{tests!r}]
import test_fine_tuning as t
save = t.fine_tuning.write_state
def slow(folder, number, *args):
    save(folder, number, *args)
    print("saved", number, flush=True)
    time.sleep(1.5)
t.fine_tuning.write_state = slow
t.tune({folder!r})
"""


def test_killed_training_goes_on_to_the_same_bits(tmp_path, unbroken):
    script = _SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run"))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("saved 2"):
        assert line, "the training ended before it could be killed"
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (tmp_path / "run" / "states" / "4.npz").exists()
    same(tune(tmp_path / "run"), unbroken[0])


@pytest.mark.parametrize("damage", ["cut", "flipped", "half_written"])
def test_a_damaged_checkpoint_costs_one_epoch(tmp_path, unbroken, damage, caplog):
    tune(tmp_path)
    last = tmp_path / "states" / "4.npz"
    if damage == "half_written":
        last.rename(last.with_name("4.partial.npz"))
    else:
        content = bytearray(last.read_bytes())
        content[len(content) // 2] ^= 1
        last.write_bytes(content[:50] if damage == "cut" else content)
    with caplog.at_level("WARNING"):
        same(tune(tmp_path), unbroken[0])
    set_aside = damage != "half_written"
    assert ("State 4 is set aside as damaged_4.npz" in caplog.text) == set_aside
    assert (tmp_path / "damaged_4.npz").is_file() == set_aside


def test_a_state_of_another_shape_is_refused_and_stays(tmp_path):
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=1e-3)
    tune(tmp_path, recipe)
    (state,) = (tmp_path / "states").iterdir()
    content = state.read_bytes()
    with pytest.raises(
        ValueError, match=r"1\.npz is a state of something else.*is float32\[16\], expected none"
    ):
        tune(tmp_path, recipe, network=start("stem"))
    assert [*tmp_path.glob("**/*.npz")] == [state]
    assert state.read_bytes() == content


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_what_was_trained(tmp_path, monkeypatch):
    tune(tmp_path, Recipe(epochs=1, batch_size=8, learning_rate=1e-3))
    step = fine_tuning._train_step

    def diverge(regressor, learning_rate, frozen, state, *rest):
        number = int(state.step) + 1
        state, loss = step(regressor, learning_rate, frozen, state, *rest)
        return state, loss * np.float32(np.nan if number >= 8 else 1)

    monkeypatch.setattr(fine_tuning, "_train_step", diverge)
    with pytest.raises(FloatingPointError, match=r"step 8 \(epoch 2\).*lower the learning rate"):
        tune(tmp_path, Recipe(epochs=3, batch_size=8, learning_rate=1e-3))
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["1.npz"]


def test_what_cannot_be_trained_is_refused(tmp_path):
    _, truth = patches()
    with pytest.raises(ValueError, match=r"2 areas are not finite, of patches \[3, 50\]"):
        tune(tmp_path, areas=np.where(np.isin(np.arange(60), [3, 50]), np.nan, truth))
    with pytest.raises(
        ValueError, match="42 training and 18 held-out patches; expected at least one batch of 64"
    ):
        tune(tmp_path, Recipe(batch_size=64))


def test_patches_that_cannot_be_decoded_stop_the_training(tmp_path):
    from scalecov_jax.imaging.image_set import ImageError

    class Torn(list):
        def __getitem__(self, index):
            if index == 7:
                raise ImageError("patch 7", "torn")
            return super().__getitem__(index)

    source, truth = patches()
    with pytest.raises(ValueError, match="patch 7: torn"):
        fine_tune(
            start(),
            Torn(source),
            truth,
            np.arange(42),
            np.arange(42, 60),
            tmp_path,
            size=SIZE,
            seed=0,
            recipe=RECIPE,
        )


ON_EIGHT_DEVICES = """
import sys
import jax, numpy as np
import test_fine_tuning as t
from scalecov_jax.transfer import fine_tuning

assert jax.device_count() == 8
step = fine_tuning._train_step
def checked(regressor, learning_rate, frozen, state, units, images, areas):
    assert len(images.sharding.device_set) == 8 and images.addressable_shards[0].data.shape[0] == 1
    return step(regressor, learning_rate, frozen, state, units, images, areas)
fine_tuning._train_step = checked
fitted = t.tune(sys.argv[1], t.Recipe(1, 8, 1e-3, "standardised", "recomputed"))
np.savez(sys.argv[2], predicted=fitted.predicted, loss=fitted.curve[0][1])
"""


def test_eight_devices_equal_one(tmp_path):
    recipe = Recipe(1, 8, 1e-3, "standardised", "recomputed")
    one = tune(tmp_path / "one", recipe)
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    path = tmp_path / "eight.npz"
    command = [sys.executable, "-c", ON_EIGHT_DEVICES, tmp_path / "eight", path]
    subprocess.run(command, env=environment, check=True, timeout=300)
    with np.load(path) as eight:
        assert float(eight["loss"]) == pytest.approx(one.curve[0][1], rel=1e-4)
        np.testing.assert_allclose(eight["predicted"], one.predicted, rtol=0.01, atol=1.0)


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size is 8; expected a multiple of the 3 devices"):
        tune(tmp_path)
