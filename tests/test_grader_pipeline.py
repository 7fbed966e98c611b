"""The grader from settings to files: trained, killed and resumed to the same bits, graded, and refused in clear words."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
import tiny_network  # noqa: F401 - registers its architecture
from golden_tables import assert_golden
from sklearn.metrics import cohen_kappa_score

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.experiments import grade, grade_training
from scalecov_jax.imaging import prepared_eyes, retina
from scalecov_jax.imaging.image_set import ImageError, ImageSet, Pixels
from scalecov_jax.imaging.prepared_eyes import prepare_eyes
from scalecov_jax.settings import parse

pytestmark = pytest.mark.usefixtures("quick_compilation")
SETTINGS = {
    "title": "A test",
    "images": "retina",
    "train": 40,
    "validation": 40,
    "test": 50,
    "validation_share": 0.2,
    "test_share": 0.2,
    "architecture": "tiny",
    "size": 32,
    "width": 0.5,
    "batch_size": 8,
    "steps": 30,
    "learning_rate": 1e-2,
    "warmup": 2,
    "weight_decay": 0.0,
    "seed": 1,
    "log_every": 2,
    "save_every": 4,
}
TRAIN = """
import json, sys
import test_grader_pipeline as test
from scalecov_jax import run
from scalecov_jax.imaging import retina

retina.render = test.draw
run.run("grade", json.loads(sys.argv[1]), sys.argv[2], command=["train_grader.py"])
"""


def draw(key, grade, size, left=False):
    """In place of a retina, whose rendering takes long to compile: the grade is how light it is."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    image = np.clip(40 + 40 * int(grade) + rng.normal(0, 10, (size, size, 3)), 0, 255)
    return image.astype(np.uint8), np.zeros((size, size), np.uint8)


def train(folder, *, command=("train_grader.py",), resume=False, **changed):
    return runner.run("grade", SETTINGS | changed, folder, command=command, resume=resume)


@pytest.fixture(scope="module")
def unbroken(quick_compilation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grader") / "unbroken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retina, "render", draw)
        told = train(folder)
    return folder, told


def test_files(unbroken):
    folder, told = unbroken
    network = checkpoints.load(folder / "network")
    assert network.card.options == {"width": 0.5, "classes": 5}
    assert (network.card.preprocessing, network.card.input_size) == ("unit", 32)
    settings, tables = runner.read(folder)
    assert settings == parse(grade.Settings, SETTINGS)
    rows = tables["predictions"]
    assert len(rows) == SETTINGS["test"]
    qwk = cohen_kappa_score(rows["grade"], rows["predicted"], weights="quadratic")
    scores = tables["scores"].set_index(["part", "classifier", "score"])["value"]
    assert scores["test", "network", "qwk"] == pytest.approx(qwk)
    assert scores["validation", "network", "eyes"] == 40
    assert scores["train", "network", "eyes"] == 40
    assert scores["test", "both_eyes", "patients"] == scores["test", "one_eye", "patients"] == 25
    assert network.card.notes["test_qwk"] == pytest.approx(qwk)
    np.testing.assert_array_equal(rows[[f"p{x}" for x in range(5)]].to_numpy().argmax(1), rows["predicted"])
    summary = json.loads((folder / "summary.json").read_text())
    findings = {(x["at"].split(",")[0], x["quantity"]): x for x in summary["findings"]}
    assert findings["test", "QWK"]["value"] == pytest.approx(qwk)
    assert findings["test", "QWK"]["low"] <= qwk <= findings["test", "QWK"]["high"]
    assert findings["test", "number of rendered eyes"]["level"] == "caution"
    page = (folder / "report.html").read_text()
    assert "says nothing about patients" in page
    assert "10.1016/j.neucom.2018.07.102" in page
    assert "Graziani" not in page
    assert (folder / "figures" / "grade-roc.png").exists()
    assert f"{folder / 'report.html'}" in told
    card = (folder / "tiny.md").read_text()
    assert "240 in 30 steps of 8" in card
    assert "`train_grader.py`" in card


def test_tables_are_those_kept(unbroken):
    assert_golden(unbroken[0], "grader", columns=["seconds"])


def test_killed_training_goes_on_to_the_same_bits(unbroken, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, json.dumps(SETTINGS), str(folder)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
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
    assert 8 <= pd.read_csv(folder / "curve.csv")["step"].iloc[-1] < SETTINGS["steps"]

    def never(*arguments):
        raise AssertionError("an eye was drawn again")

    monkeypatch.setattr(retina, "render", never)
    train(folder, command=["train_grader.py", "--resume"], resume=True)
    ours, expected = (checkpoints.load(path / "network") for path in (folder, unbroken[0]))
    assert ours.card == expected.card
    jax.tree.map(np.testing.assert_array_equal, ours.variables, expected.variables)
    for name in ("predictions.csv", "confusion.csv", "scores.csv"):
        assert (folder / name).read_bytes() == (unbroken[0] / name).read_bytes()
    curve, whole = (pd.read_csv(path / "curve.csv") for path in (folder, unbroken[0]))
    np.testing.assert_array_equal(curve["loss"], whole["loss"])
    monkeypatch.setattr(grade, "eye_features", never)
    monkeypatch.setattr(grade_training, "train_step", never)
    train(folder, resume=True)  # of what is finished nothing is computed again
    assert (folder / "predictions.csv").read_bytes() == (unbroken[0] / "predictions.csv").read_bytes()


def test_preparation_goes_on_where_it_stopped_and_names_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared_eyes, "CHUNK", 4)
    asked, stop = [], 9

    def read(index):
        asked.append(index)
        if index == stop:
            raise RuntimeError("pulled the plug")
        if index in (2, 10):
            raise ImageError(f"eye_{index}", "no visible disc")
        return Pixels(np.full((6, 6, 3), index, np.uint8))

    names = [f"eye_{index}" for index in range(14)]
    eyes = ImageSet(pd.DataFrame({"name": names, "group": names}), read)
    with pytest.raises(RuntimeError):
        prepare_eyes(eyes, tmp_path / "train.npy", 6)
    stop, asked = -1, []
    images, kept, skipped = prepare_eyes(eyes, tmp_path / "train.npy", 6)
    assert min(asked) == 8
    np.testing.assert_array_equal(kept, [0, 1, *range(3, 10), *range(11, 14)])
    np.testing.assert_array_equal(images[:, 0, 0, 0], kept)
    assert [(one.name, one.detail) for one in skipped] == [
        ("eye_2", "no visible disc"),
        ("eye_10", "no visible disc"),
    ]
    asked = []
    again = prepare_eyes(eyes, tmp_path / "train.npy", 6)
    np.testing.assert_array_equal(again.images, images)
    assert not asked

    images.flush()
    whole = (tmp_path / "train.npy").read_bytes()
    flipped = whole[:900] + bytes([whole[900] ^ 1]) + whole[901:]  # of the 8th image, in the third chunk
    for content, first in ((flipped, 8), (whole[:-1], 0), (whole[:5] + b"?" + whole[6:], 0), (b"", 0)):
        (tmp_path / "train.npy").write_bytes(content)
        asked = []
        np.testing.assert_array_equal(prepare_eyes(eyes, tmp_path / "train.npy", 6).images[:, 0, 0, 0], kept)
        assert min(asked) == first
        assert (tmp_path / "train.npy").read_bytes() == whole

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepared_eyes.os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"No space left on device: .*full\.npy"):
            prepare_eyes(eyes, tmp_path / "full.npy", 6)

    def unreadable(index):
        raise ImageError("eye", "no visible disc")

    with pytest.raises(ValueError, match=r"None of the 1 eyes test can be used .*no visible disc"):
        prepare_eyes(dataclasses.replace(eyes.take([0]), decode=unreadable), tmp_path / "none.npy", 6, "test")


def test_plan():
    told = grade.plan(parse(grade.Settings, SETTINGS))
    assert "40 for train, 40 for validation, 50 for test to 32 x 32 pixels (0.0 GB" in told


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 0, "steps": 0}, "config.size is 0; expected at least 1; config.steps is 0"),
        ({"width": 0}, "config.width is 0.0; expected more than 0"),
        ({"warmup": 30}, "config.warmup is 30, but steps 30; expected fewer"),
        ({"weight_decay": float("nan")}, "config.weight_decay is nan"),
        (
            {"architecture": "dr_grader", "size": 200},
            "dr_grader needs images of at least 256 x 256 pixels up to conv15; got 200",
        ),
        ({"architecture": "dr_grade"}, "No architecture is called 'dr_grade'.*dr_grader"),
        ({"images": "nowhere"}, "nowhere: no such folder"),
        ({"test": 2}, "all grades are needed; no usable eye of .* for test"),
        (
            {"architecture": "dr_grader", "size": 200, "images": "nowhere"},
            "needs images of at least .*nowhere: no such folder",
        ),
    ],
)
def test_mistakes(changed, message, tmp_path, monkeypatch):
    monkeypatch.setattr(retina, "render", draw)
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **changed)
    assert not (tmp_path / "run").exists()
