"""The grader from settings to files: trained, killed and resumed to the same bits, graded, and refused in clear words."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_network  # noqa: F401 - registers its architecture
from golden_tables import assert_golden
from sklearn.metrics import cohen_kappa_score

from scalecov_jax import checkpoints
from scalecov_jax.images import prepared_eyes, retina
from scalecov_jax.images.example import ImageError
from scalecov_jax.images.eyes import Eyes
from scalecov_jax.images.prepared_eyes import prepare_eyes
from scalecov_jax.pipelines import grader
from scalecov_jax.report.model_card import read_curve

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
from scalecov_jax.images import retina
from scalecov_jax.pipelines import grader

retina.render = test.draw
grader.run(json.loads(sys.argv[1]), sys.argv[2], command=["train_grader.py"])
"""


def draw(key, grade, size, left=False):
    """In place of a retina, whose rendering takes long to compile: the grade is how light it is."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    image = np.clip(40 + 40 * int(grade) + rng.normal(0, 10, (size, size, 3)), 0, 255)
    return image.astype(np.uint8), np.zeros((size, size), np.uint8)


def train(folder, *, command=("train_grader.py",), resume=False, **changed):
    return grader.run(SETTINGS | changed, str(folder), command=command, resume=resume)


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
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == SETTINGS["test"]
    true, predicted = (np.array([int(row[name]) for row in rows]) for name in ("grade", "predicted"))
    qwk = cohen_kappa_score(true, predicted, weights="quadratic")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test"]["qwk"] == pytest.approx(qwk)
    assert network.card.notes["test_qwk"] == summary["test"]["qwk"]
    assert summary["two_eyes"]["both"]["patients"] == 25
    probabilities = np.array([[float(row[f"p{grade}"]) for grade in range(5)] for row in rows])
    np.testing.assert_array_equal(probabilities.argmax(1), predicted)
    page = (folder / "report.html").read_text()
    assert "rendered" in page.lower()
    assert f"{folder / 'network'}" in told
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
        while not (folder / "states" / "8").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "network").exists()
    assert 8 <= read_curve(folder / "curve.csv")["step"][-1] < SETTINGS["steps"]

    def never(*arguments):
        raise AssertionError("an eye was drawn again")

    monkeypatch.setattr(retina, "render", never)
    train(folder, command=["train_grader.py", "--resume"], resume=True)
    ours, expected = (checkpoints.load(path / "network") for path in (folder, unbroken[0]))
    assert ours.card == expected.card
    jax.tree.map(np.testing.assert_array_equal, ours.variables, expected.variables)
    for name in ("predictions.csv", "confusion.csv"):
        assert (folder / name).read_bytes() == (unbroken[0] / name).read_bytes()
    curve, whole = (read_curve(path / "curve.csv") for path in (folder, unbroken[0]))
    np.testing.assert_array_equal(curve["loss"], whole["loss"])


def test_preparation_goes_on_where_it_stopped_and_names_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared_eyes, "CHUNK", 4)
    asked, stop = [], 9

    def read(index):
        asked.append(index)
        if index == stop:
            raise RuntimeError("pulled the plug")
        if index in (2, 10):
            raise ImageError(f"eye_{index}", "no visible disc")
        return np.full((6, 6, 3), index, np.uint8)

    names = tuple(f"eye_{index}" for index in range(14))
    eyes = Eyes(names, (0,) * 14, names, ("",) * 14, read)
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

    def unreadable(index):
        raise ImageError("eye", "no visible disc")

    with pytest.raises(ValueError, match=r"None of the 1 eyes test can be used .*no visible disc"):
        prepare_eyes(Eyes(("a",), (0,), ("a",), ("",), unreadable), tmp_path / "none.npy", 6, "test")


def test_dry_run_computes_nothing(tmp_path):
    told = grader.run(SETTINGS, str(tmp_path / "dry"), command=[], dry_run=True)
    assert "40 for train, 40 for validation, 50 for test to 32 x 32 pixels (0.0 GB" in told
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 0, "steps": 0}, "config.size is 0; expected at least 1; config.steps is 0"),
        ({"width": 0}, "config.width is 0; expected more than 0"),
        ({"warmup": 30}, "config.warmup is 30, but config.steps 30; expected fewer"),
        ({"weight_decay": float("nan")}, "config.weight_decay is nan"),
        ({"architecture": "dr_grader", "size": 200}, "config.size is 200, of which conv15 sees nothing"),
        ({"architecture": "dr_grade"}, "No architecture is called 'dr_grade'.*dr_grader"),
        ({"images": "nowhere"}, "nowhere: no such folder"),
        ({"test": 2}, "all grades are needed; no usable eye of .* for test"),
    ],
)
def test_mistakes(changed, message, tmp_path, monkeypatch):
    monkeypatch.setattr(retina, "render", draw)
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **changed)
