"""Files, page and card of a grader from made-up grades; what is undefined is said so."""

import json

import numpy as np
import pytest

from scalecov_jax import checkpoints
from scalecov_jax.images.example import Skipped
from scalecov_jax.report import grader
from scalecov_jax.report.grader_card import write_grader_card
from scalecov_jax.report.model_card import write_model_card
from scalecov_jax.tables import read_table
from scalecov_jax.transfer.grades import evaluate
from scalecov_jax.transfer.two_eyes import TwoEyes

FACTS = {"command": "train_grader.py --seed=3", "device": "1 x abacus", "versions": "Python 3\nthis 1"}
SETTINGS = {"title": "Eyes <graded>", "images": "retina", "size": 64, "seed": 3, "batch_size": 15}


def graded(seed, count=40, highest=5):
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, highest, count)
    near = np.clip(grades + rng.integers(-1, 2, count), 0, highest - 1)
    probabilities = 0.5 * np.eye(5)[near] + 0.5 * np.eye(5)[grades]
    probabilities[:, :highest] = 0.9 * probabilities[:, :highest] + 0.1 / highest
    patients = [f"{seed}_{number // 2}" for number in range(count)]
    names = [f"{patient}_{number % 2}" for number, patient in enumerate(patients)]
    sides = ["left", "right"] * (count // 2)
    return grader.Graded(
        names,
        patients,
        sides,
        grades,
        probabilities,
        evaluate(grades, probabilities, patients, replicates=50),
    )


@pytest.fixture
def folder(tmp_path):
    rows = ["step,images,loss,qwk,seconds", "10,150,-0.1,0.1,30.0", "20,300,-0.9,0.5,60.0"]
    (tmp_path / "curve.csv").write_text("\n".join([*rows, ""]))
    return tmp_path


@pytest.fixture
def network():
    card = checkpoints.Card(
        "dr_grader", {"width": 0.5}, "tf", 64, "here", class_names=("0", "1", "2", "3", "4")
    )
    return checkpoints.network({"params": {"some": np.zeros((3, 4))}}, card)


def test_files_and_page(folder):
    validation, test = graded(0), graded(1, count=60)
    both = TwoEyes(test.evaluation, validation.evaluation, None, (2, 7))
    found = grader.Found(100, validation, test, both)
    told = grader.write(folder, SETTINGS, found, [Skipped("x<y", "no grade", "")], FACTS)
    one = test.evaluation
    assert one.qwk is not None
    rows = read_table(folder / "predictions.csv", grader.Prediction)
    assert [row.image for row in rows] == test.names
    assert [row.grade for row in rows] == test.grades.tolist()
    np.testing.assert_allclose([row[5:] for row in rows], test.probabilities)
    assert all(row.predicted == np.argmax(row[5:]) for row in rows)
    table = read_table(folder / "confusion.csv", grader.ConfusionRow)
    np.testing.assert_array_equal([row[1:] for row in table], one.confusion)

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test"]["qwk"] == one.qwk
    assert tuple(summary["test"]["qwk_interval"]) == one.qwk_interval
    assert summary["two_eyes"]["left_out"] == [2, 7]
    assert summary["skipped"] == {"no grade": 1}
    html = (folder / "report.html").read_text()
    for text in (
        "Eyes &lt;graded&gt;",
        "x&lt;y",
        "says nothing about patients",
        "columns cannot be compared",
        "0.844",
        "10.1016/j.neucom.2018.07.102",
        f"QWK is {one.qwk:.2f} (95 % interval",
        "7 others are left out",
    ):
        assert text in html
    assert "Graziani" not in html
    assert (folder / "figures" / "roc.png").stat().st_size > 1000
    assert "says nothing about patients" in told
    assert f"{'QWK':<28}{validation.evaluation.qwk:>12.3f}{one.qwk:>12.3f}" in told


def test_what_is_undefined_is_said(folder):
    healthy = graded(2, count=12, highest=2)
    settings = {**SETTINGS, "images": "/eyes"}
    told = grader.write(folder, settings, grader.Found(5, healthy, healthy, None, "no pairs."), (), FACTS)
    html = (folder / "report.html").read_text()
    assert "sensitivity undefined and specificity 1.00" in told
    for text in ("undefined", "no medical device", "6 patients", "second eye was not judged: no pairs"):
        assert text in html
    assert not (folder / "figures" / "roc.png").exists()
    assert "NaN" not in (folder / "summary.json").read_text() + html
    assert json.loads((folder / "summary.json").read_text())["test"]["auc"] is None


def test_card_of_a_grader(folder, network):
    validation, test = graded(0).evaluation, graded(1).evaluation
    both = TwoEyes(test, validation, None, (0, 0))
    training = {"optimiser": "Adam, 0.0003", "sampling": "grades equally often"}
    write_grader_card(
        folder / "grader", network, validation, test, folder / "curve.csv", FACTS, SETTINGS, training, both
    )  # fmt: skip
    text = (folder / "grader.md").read_text()
    for fact in (
        "# dr_grader, width 0.5, trained on rendered retinas\n",
        "12 parameters.\nTrained and tested on rendered retinas: what it scores says nothing about patients.\n",
        f"**Held-out QWK: {test.qwk:.3f}** (95 % interval ",
        " on 40 eyes of 20 patients never trained on.",
        f"| QWK | {validation.qwk:.2f} | {test.qwk:.2f} |\n",
        f"| QWK, linear classifier of both eyes | | {test.qwk:.2f} |\n",
        "![Loss and kappa against images seen](grader-curve.png)",
        "| images seen | 300 in 20 steps of 15 |\n| optimiser | Adam, 0.0003 |\n| sampling | grades equally often |\n",
        "| wall time | 1 min |\n| hardware | 1 x abacus |\n| versions | Python 3, this 1 |\n",
        "| classes | 0, 1, 2, 3, 4 |\n",
    ):
        assert fact in text
    assert (folder / "grader-curve.svg").exists()


def test_card_of_scenes_to_the_letter(tmp_path, network):
    (tmp_path / "curve.csv").write_text("step,images,loss,top1,seconds\n2,8,2.5,0.1,1\n4,16,1.5,0.4,300\n")
    settings = {
        "width": 0.5,
        "size": 64,
        "seed": 3,
        "batch_size": 4,
        "weight_decay": 0.02,
        "learning_rate": 0.1,
    }
    accuracy = {"all": (0.913, 80), "0.1-0.2": (0.5, 10)}
    write_model_card(
        tmp_path / "net", network, accuracy, tmp_path / "curve.csv", FACTS, {**settings, "warmup": 3}
    )
    assert (
        (tmp_path / "net.md").read_text()
        == """# dr_grader, width 0.5, trained on scenes

Classifies 5 classes of rendered scenes (64 px) whatever the size of the object
(box ratio 0.02-0.9, log-uniform). 12 parameters. For demonstrations and tests of
scalecov_jax; it knows nothing of photographs.

**Held-out top-1: 91.3 %** on 80 scenes never trained on.

| box ratio | top-1 | scenes |
|---|---|---|
| all | 91.3 % | 80 |
| 0.1-0.2 | 50.0 % | 10 |

![Loss and accuracy against images seen](net-curve.png)

| | |
|---|---|
| command | `train_grader.py --seed=3` |
| seed | 3 |
| images seen | 16 in 4 steps of 4 |
| optimiser | AdamW, weight decay 0.02 |
| learning rate | to 0.1 in 3 steps, then cosine decay to 0 |
| curriculum | smallest ratio from 0.3 to 0.02 in the first quarter |
| wall time | 5 min, both networks training side by side on the machine |
| hardware | 1 x abacus |
| versions | Python 3, this 1 |
| preprocessing | `tf` |
| classes | 0, 1, 2, 3, 4 |
"""
    )
