"""Page and card of a grader from made-up grades; what is undefined is said so."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from scalecov_jax import checkpoints
from scalecov_jax.experiments import grade, pretrain
from scalecov_jax.experiments.grade_scores import evaluate
from scalecov_jax.report.model_card import write_card
from scalecov_jax.report.page import render_report

FACTS = {
    "command": "train_grader.py --seed=3 --config.title='A & \"B\" <c>' --resume",
    "device": "1 x abacus",
    "versions": "Python 3\nthis 1",
}
CURVE = pd.DataFrame(
    {"step": [10, 20], "images": [150, 300], "loss": [-0.1, -0.9], "qwk": [0.1, 0.5], "seconds": [30.0, 60.0]}
)
SETTINGS = grade.Settings(
    title="Eyes <graded>", size=256, seed=3, steps=20, batch_size=15, warmup=3, learning_rate=0.01
)


def graded(seed, count=40, highest=5):
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, highest, count)
    near = np.clip(grades + rng.integers(-1, 2, count), 0, highest - 1)
    probabilities = 0.5 * np.eye(5)[near] + 0.5 * np.eye(5)[grades]
    probabilities[:, :highest] = 0.9 * probabilities[:, :highest] + 0.1 / highest
    names = [f"{seed}_{number // 2}" for number in range(count)]
    eyes = pd.DataFrame({"image": names, "patient": names, "side": ["left", "right"] * (count // 2)})
    eyes = eyes.assign(grade=grades, predicted=probabilities.argmax(1))
    return eyes.assign(**{f"p{number}": probabilities[:, number] for number in range(5)})


def scored(eyes, part, classifier="network", **more):
    scores = evaluate(
        eyes["grade"].to_numpy(),
        eyes[[f"p{number}" for number in range(5)]].to_numpy(),
        eyes["patient"].to_numpy(str),
        replicates=50,
    )
    for name, row in more.items():
        scores.loc[name] = row
    return scores.rename_axis("score").reset_index().assign(part=part, classifier=classifier)


def tables_of(validation, test, *more, left_out=()):
    counts = confusion_matrix(test["grade"], test["predicted"], labels=range(5))
    confusion = pd.DataFrame(counts, columns=[f"predicted_{x}" for x in range(5)]).rename_axis("grade")
    parts = [scored(validation, "train"), scored(validation, "validation"), scored(test, "test"), *more]
    return {
        "predictions": test,
        "confusion": confusion.reset_index(),
        "curve": CURVE,
        "scores": pd.concat(parts),
        "left_out": pd.DataFrame(left_out, columns=["part", "name", "reason", "detail"], dtype="str"),
    }


@pytest.fixture(scope="module")
def tables():
    validation, test = graded(0), graded(1, count=60)
    both = scored(graded(2), "test", "both_eyes", gain=(0.1, -0.05, 0.2), left_out=(7, np.nan, np.nan))
    alone = scored(graded(3), "test", "one_eye")
    left_out = [("train", "x<y", "no grade", ""), ("train", "z", "no grade", "")]
    return tables_of(validation, test, both, alone, left_out=left_out)


def value(tables, part, classifier, score, column="value"):
    return tables["scores"].set_index(["part", "classifier", "score"])[column][part, classifier, score]


def test_findings_and_page(tables):
    page = grade.report(SETTINGS, tables)
    findings = {(x.at.split(",")[0], x.quantity): x for x in page.findings}
    qwk = findings["test", "QWK"]
    assert qwk.value == value(tables, "test", "network", "qwk")
    assert (qwk.low, qwk.high) == (
        value(tables, "test", "network", "qwk", "low"),
        value(tables, "test", "network", "qwk", "high"),
    )
    assert (qwk.at, qwk.published, qwk.difference) == (
        "test, 60 eyes of 30 patients",
        "0.801 on photographs",
        "–",
    )
    both = findings["test", "QWK, linear classifier of both eyes"]
    assert both.value == value(tables, "test", "both_eyes", "qwk")
    assert both.published == "0.844 on photographs"
    gain = findings["test", "gain in QWK by the second eye"]
    assert (gain.value, gain.low, gain.high) == (0.1, -0.05, 0.2)
    assert gain.note == "7 patients without two eyes are left out."
    assert findings["validation", "QWK"].value == value(tables, "validation", "network", "qwk")
    assert [x.quantity for x in page.findings if x.level == "caution"] == ["number of rendered eyes"]
    html = render_report(page.report({}))
    for text in ("Eyes &lt;graded&gt;", "x&lt;y; z", "says nothing about patients", "cannot be compared"):
        assert text in html
    confusion, roc, curve = (image for section in page.sections for image in section.images)
    assert (confusion.name, roc.name, curve.name) == ("grade-confusion", "grade-roc", "dr_grader-curve")
    assert f"AUC {value(tables, 'test', 'network', 'auc'):.3f}" in roc.alt
    cells = dict(zip(*list(zip(*page.sections[0].tables[0].rows, strict=True))[0:3:2], strict=True))
    assert cells["QWK"] == f"{qwk.value:.3f}"
    assert cells["TP, grades 2-4"] == f"{value(tables, 'test', 'network', 'tp'):.0f}"


def test_photographs_stand_beside_the_published_grader(tables):
    settings = grade.Settings(images="/eyes")
    findings = {x.quantity: x for x in grade.report(settings, tables).findings if x.at.startswith("test")}
    assert findings["sensitivity, grades 2-4"].published == 0.906
    assert findings["QWK"].difference.startswith(("+", "−"))
    assert "no medical device" in findings["number of eyes"].note
    assert "published, on EyePACS" in grade.report(settings, tables).sections[0].images[1].alt


def test_what_is_undefined_is_said():
    healthy = graded(2, count=12, highest=2)
    detail = "The second eye cannot be judged: no pairs."
    tables = tables_of(healthy, healthy, left_out=[("test", "other eyes", grade.NOT_JUDGED, detail)])
    page = grade.report(SETTINGS, tables)
    cautions = {x.quantity: x for x in page.findings if x.level == "caution"}
    assert cautions["number of patients"].value == 6
    assert "sensitivity, grades 2-4" in cautions["number of undefined scores"].note
    assert detail in cautions["number of second eyes that were judged"].note
    assert all(np.isfinite(x.value) for x in page.findings)
    assert "nan" not in render_report(page.report({})).lower().replace("provenance", "")
    assert [image.name for image in page.sections[0].images] == ["grade-confusion"]
    assert ("sensitivity, grades 2-4", "undefined", "undefined", "") in page.sections[0].tables[0].rows


@pytest.fixture
def folder(tmp_path):
    card = checkpoints.Card("dr_grader", {"width": 0.0625}, "tf", 256, "here", class_names=tuple("01234"))
    network = checkpoints.random_network(checkpoints.network({}, card), 0)
    checkpoints.save(tmp_path / "network", network)
    CURVE.to_csv(tmp_path / "curve.csv", index=False)
    return tmp_path


def test_card_of_a_grader(folder, tables):
    page = grade.report(SETTINGS, tables)
    write_card("grade", SETTINGS, page, folder, FACTS)
    text = (folder / "dr_grader.md").read_text()
    for sentence in page.sentences("headline"):
        assert f"- **{sentence}**\n" in text
    for row in page.sections[0].tables[0].rows:
        assert f"| {' | '.join(row)} |\n" in text
    for fact in (
        "# dr_grader, width 0.5, trained on rendered retinas\n",
        "what it scores says nothing about patients.\n",
        "![Loss and score against images seen](dr_grader-curve.png)",
        "| command | `train_grader.py --seed=3 '--config.title=A & \"B\" <c>'` |",
        "| images seen | 300 in 20 steps of 15 |\n",
        "| wall time | 1 min |\n",
    ):
        assert fact in text
    assert (folder / "dr_grader-curve.svg").exists()


def test_card_of_scenes_to_the_letter(folder):
    settings = pretrain.Settings(
        architecture="dr_grader", width=0.0625, size=256, seed=3, batch_size=4, steps=4, learning_rate=0.1, warmup=3
    )  # fmt: skip
    curve = CURVE.rename(columns={"qwk": "top1"})
    held_out = pd.DataFrame({"ratio": ["all", "0.1-0.2"], "top1": [0.913, 0.5], "scenes": [80, 10]})
    page = pretrain.report(settings, {"curve": curve, "held_out": held_out})
    write_card("pretrain", settings, page, folder, {**FACTS, "command": "a --b"})
    assert (
        (folder / "dr_grader.md").read_text()
        == """# dr_grader, width 0.0625, trained on scenes

Classifies 5 classes of rendered scenes (256 px) whatever the size of the object (box ratio 0.02-0.9,
log-uniform; the smallest from 0.3 to 0.02 in the first quarter of the training). For demonstrations and tests of scalecov_jax; it
knows nothing of photographs. 1,797 parameters.

On images never trained on:

- **dr_grader, all, 80 scenes: held-out top-1 is 91 %.**

| box ratio | top-1 | scenes |
|---|---|---|
| all | 91.3 % | 80 |
| 0.1-0.2 | 50.0 % | 10 |

![Loss and score against images seen](dr_grader-curve.png)

| | |
|---|---|
| command | `a --b` |
| seed | 3 |
| images seen | 16 in 4 steps of 4 |
| learning rate | to 0.1 in 3 steps, then cosine decay to 0 |
| weight decay | 0.02 |
| wall time | 1 min |
| hardware | 1 x abacus |
| versions | Python 3, this 1 |
| preprocessing | `tf` |
| classes | 0, 1, 2, 3, 4 |
"""
    )
