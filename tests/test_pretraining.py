"""Training on scenes: it learns, survives a kill to the same bits, and says when it fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from golden_tables import assert_golden
from tiny_network import Tiny, draw_noise

from scalecov_jax import atomic, checkpoints, training
from scalecov_jax import run as runner
from scalecov_jax.experiments import pretrain
from scalecov_jax.imaging import scenes
from scalecov_jax.settings import parse

SETTINGS = {
    "architecture": "tiny",
    "width": 0.5,
    "size": 32,
    "batch_size": 4,
    "steps": 48,
    "learning_rate": 3e-3,
    "warmup": 4,
    "weight_decay": 0.02,
    "seed": 3,
    "log_every": 2,
    "save_every": 4,
    "held_out": 40,
}
pytestmark = pytest.mark.usefixtures("quick_compilation")
PRETRAIN = """
import json, sys
import tiny_network
from scalecov_jax import run
from scalecov_jax.imaging import scenes

scenes.draw = tiny_network.draw_noise
resume = sys.argv[3:] == ["--resume"]
command = ["pretrain.py", "--seed=3", *sys.argv[3:]]
print(run.run("pretrain", json.loads(sys.argv[1]), sys.argv[2], command=command, resume=resume))
"""


@pytest.fixture(scope="module")
def environment():
    return os.environ | {"PYTHONPATH": str(Path(__file__).parent)}


def start(environment, folder, *options, **pipes):
    command = [sys.executable, "-c", PRETRAIN, json.dumps(SETTINGS), str(folder), *options]
    return subprocess.Popen(command, env=environment, text=True, **pipes)


@pytest.fixture(scope="module")
def unbroken(environment, tmp_path_factory):
    """A whole training, and what it told."""
    folder = tmp_path_factory.mktemp("training") / "unbroken"
    process = start(environment, folder, stdout=subprocess.PIPE)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return folder, told


@pytest.fixture
def noise(monkeypatch):
    """Noise in place of scenes, whose rendering takes longest to compile."""
    monkeypatch.setattr(scenes, "draw", draw_noise)


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def test_killed_training_goes_on_to_the_same_bits(unbroken, environment, tmp_path):
    folder = tmp_path / "killed"
    process = start(environment, folder)
    try:
        deadline = time.monotonic() + 240
        while not (folder / "states" / "8.npz").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "network").exists()
    reached = pd.read_csv(folder / "curve.csv")
    assert 8 <= reached["step"].iloc[-1] < SETTINGS["steps"]
    # As if the first sitting had lasted long: the clock of the second goes on from there.
    last = max((folder / "states").glob("[0-9]*.npz"), key=lambda path: int(path.stem.split(".")[0]))
    stored = atomic.read_arrays(last, "state 1")
    facts = json.loads(str(stored["facts"])) | {"seconds": 5000.0}
    atomic.write_arrays(last, {**stored, "facts": json.dumps(facts)}, "state 1")

    assert start(environment, folder, "--resume", stdout=subprocess.DEVNULL).wait(300) == 0
    resumed, whole = (checkpoints.load(path / "network") for path in (folder, unbroken[0]))
    assert_same_bits(resumed.variables, whole.variables)
    assert resumed.card == whole.card
    curve, expected = (runner.read(path)[1]["curve"] for path in (folder, unbroken[0]))
    pd.testing.assert_frame_equal(
        curve.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True
    )
    pd.testing.assert_frame_equal(curve[: len(reached) - 1], reached[:-1], check_exact=True)
    assert curve["seconds"].is_monotonic_increasing
    assert curve["seconds"].iloc[len(reached)] >= 5000
    assert (folder / "tiny.md").read_text().count("--resume") == 0


def test_tables_are_those_kept(unbroken):
    assert_golden(unbroken[0], "pretrain", columns=["seconds"])


def test_curve(unbroken):
    curve = runner.read(unbroken[0])[1]["curve"]
    assert [*curve] == ["step", "images", "loss", "top1", "seconds"]
    np.testing.assert_array_equal(curve["step"], np.arange(2, 49, 2))
    np.testing.assert_array_equal(curve["images"], 4 * curve["step"])
    assert 2 < curve["loss"][0] < 4  # log(16) is 2.8
    assert curve["top1"].between(0, 1).all()
    assert curve["seconds"].is_monotonic_increasing


def test_network_its_card_and_its_page(unbroken):
    folder, told = unbroken
    network = checkpoints.load(folder / "network")
    assert network.card.architecture == "tiny"
    assert network.card.options == {"width": 0.5, "classes": 16}
    assert network.card.class_names == scenes.CLASSES
    assert (network.card.preprocessing, network.card.input_size) == ("tf", 32)
    assert network.card.notes["images_seen"] == 4 * 48
    settings, tables = runner.read(folder)
    assert settings == parse(pretrain.Settings, SETTINGS)
    held_out = tables["held_out"]
    assert held_out["ratio"][0] == "all"
    assert held_out["scenes"].tolist() == [40, *held_out["scenes"][1:]]
    assert held_out["scenes"][1:].sum() == 40
    assert held_out["top1"][0] == network.card.notes["held_out_top1"]
    findings = runner.page(folder).findings
    assert [finding.value for finding in findings] == pytest.approx((100 * held_out["top1"]).tolist())
    assert [finding.level for finding in findings].count("headline") == 1
    assert findings[0].sentence in (folder / "report.html").read_text()
    assert f"{folder / 'report.html'}" in told
    text = (folder / "tiny.md").read_text()
    top1 = network.card.notes["held_out_top1"]
    for fact in (
        "# tiny, width 0.5",
        f"| all | {100 * top1:.1f} % | 40 |",
        "`pretrain.py --seed=3`",
        "| seed | 3 |",
        "192 in 48 steps of 4",
        scenes.CLASSES[-1],
        "| hardware | 1 x ",
    ):
        assert fact in text
    assert (folder / "tiny-curve.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "tiny-curve.svg").exists()


def biased_network(class_id):
    """A network that always answers the same class."""
    module = Tiny(last="pre_softmax", classes=len(scenes.CLASSES), width=0.25)
    variables = jax.tree.map(
        jnp.zeros_like, jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    )
    variables["params"]["pre_softmax"]["bias"] = jnp.zeros(len(scenes.CLASSES)).at[class_id].set(1.0)
    return module, variables


def test_held_out_accuracy_counts_every_scene_once(noise):
    settings = pretrain.Settings(size=32, held_out=200)
    for class_id in range(2):
        accuracy = pretrain.held_out_accuracy(*biased_network(class_id), settings)
        whole, parts = accuracy.iloc[0], accuracy[1:]
        assert whole["scenes"] == 200
        assert parts["scenes"].sum() == 200
        assert (parts["top1"] * parts["scenes"]).sum() == pytest.approx(200 * whole["top1"])
        assert ((parts["scenes"] - 40).abs() < 5 * np.sqrt(40)).all()
        assert 0.01 < whole["top1"] < 0.15  # 1 / 16
        ratios = ["all", "0.020-0.043", "0.043-0.092", "0.092-0.196", "0.196-0.420", "0.420-0.900"]
        assert accuracy["ratio"].tolist() == ratios


def test_held_out_accuracy_of_few_scenes_leaves_empty_parts_out(noise):
    accuracy = pretrain.held_out_accuracy(*biased_network(0), pretrain.Settings(size=32, held_out=2))
    assert 2 <= len(accuracy) <= 3
    assert np.isfinite(accuracy["top1"]).all()


def test_curriculum_ends_at_the_smallest_object():
    ratios = [float(pretrain.smallest_ratio(jnp.asarray(step), 1000)) for step in (0, 125, 250, 1000)]
    np.testing.assert_allclose(
        ratios, [0.3, np.sqrt(0.3 * scenes.SMALLEST), scenes.SMALLEST, scenes.SMALLEST], rtol=1e-5
    )


def train(folder, learning_rate):
    module = Tiny(last="pre_softmax", classes=len(scenes.CLASSES), width=0.25)
    settings = pretrain.Settings(
        steps=6, batch_size=4, size=32, warmup=1, log_every=3, save_every=6, learning_rate=learning_rate
    )
    return pretrain.train(module, folder, settings), training.initial_state(module, settings)


def test_training_on_scenes_changes_every_variable(tmp_path):
    (state, _), fresh = train(tmp_path, 1e-3)
    assert int(state.step) == 6
    for before, after in zip(jax.tree.leaves(fresh[:2]), jax.tree.leaves(state[:2]), strict=True):
        assert (before != after).any()


def test_loss_that_is_not_finite_stops_with_the_step(noise, tmp_path):
    with pytest.raises(FloatingPointError, match=r"The loss is (nan|inf) at step 3; lower the learning rate"):
        train(tmp_path, 1e30)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"learning_rate": 0.0, "warmup": 48, "held_out": 0},
            r"held_out is 0; .*learning_rate is 0\.0; expected more than 0; config\.warmup is 48, but steps 48",
        ),
        ({"architecture": "tine"}, "No architecture is called 'tine'"),
        (
            {"architecture": "inception_v3", "size": 32},
            "inception_v3 needs images of at least 75 x 75 pixels",
        ),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        runner.run("pretrain", {**SETTINGS, **changed}, tmp_path / "run", command=[])
    assert not (tmp_path / "run").exists()
