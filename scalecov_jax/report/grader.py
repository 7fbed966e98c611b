"""Files and page of a grader of diabetic retinopathy: its grades, what they are worth, and the published ones beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from scalecov_jax.images.example import Skipped, count_reasons
from scalecov_jax.report import grader_figures, page, style
from scalecov_jax.report.grader_card import RENDERED, RESEARCH, between, defined, grader_curve
from scalecov_jax.report.model_card import read_curve
from scalecov_jax.tables import write_table
from scalecov_jax.transfer.grades import REFERABLE, Evaluation
from scalecov_jax.transfer.two_eyes import TwoEyes

FEW_PATIENTS = 20  # below, intervals over patients are too narrow
PUBLISHED = {"validation": 0.814, "test": 0.801, "both": 0.844, "sensitivity": 0.906, "specificity": 0.847}
_READING = {
    "QWK": "is the quadratic weighted kappa: the agreement of predicted and true grades, where an error of two grades weighs "
    "four times an error of one. 1 is full agreement, 0 that of chance. It is the loss of the training, too.",
    "Referable": "are grades 2 to 4, which the paper calls severe. Sensitivity is the share of such eyes that get such a grade, "
    "specificity the share of the others that do not; PPV and NPV are the shares of right ones among eyes that do and do not.",
    "Intervals": "cover 95 % and are over patients: both eyes of a patient are drawn together. They speak of other patients of "
    "the same kind, not of other cameras or clinics, and not of training anew. One from 1 to 1 says that no eye was wrong, "
    "not that none ever is.",
    "Both eyes": "means a linear classifier of the network's last features of an eye and of the patient's other eye, fitted to "
    "the validation part. The classifier of one eye is fitted to the same eyes, so that what differs is the second eye.",
    "Undefined": "is what would need a division by 0, such as the sensitivity where no eye is referable.",
}


class Graded(NamedTuple):
    """Eyes of one part as the network grades them."""

    names: Sequence[str]
    patients: Sequence[str]
    sides: Sequence[str]
    grades: Int[np.ndarray, " N"]
    probabilities: Float[np.ndarray, "N 5"]
    evaluation: Evaluation


class Found(NamedTuple):
    """All that was measured.

    Attributes:
        trained_on: Number of eyes of the training part.
        validation: Eyes on which the training was followed.
        test: Eyes that nothing was chosen on.
        both: What the second eye adds; None where it was not judged.
        not_both: Why it was not.
    """

    trained_on: int
    validation: Graded
    test: Graded
    both: TwoEyes | None = None
    not_both: str = ""


class Prediction(NamedTuple):
    """A row of predictions.csv."""

    image: str
    patient: str
    side: str
    grade: int
    predicted: int
    p0: float
    p1: float
    p2: float
    p3: float
    p4: float


class ConfusionRow(NamedTuple):
    """A row of confusion.csv: eyes of one grade by predicted grade."""

    grade: int
    predicted_0: int
    predicted_1: int
    predicted_2: int
    predicted_3: int
    predicted_4: int


def write(
    folder: Path,
    settings: Mapping[str, Any],
    found: Found,
    skipped: Sequence[Skipped],
    provenance: Mapping[str, str],
) -> str:
    """Write predictions.csv and confusion.csv of the test part, figures, summary.json and report.html; returns a text for people.

    Args:
        folder: Holds the training's curve.csv, with the columns step, images, loss, qwk and seconds.
        settings: title and images are read.
        found: What to report.
        skipped: Eyes left out.
        provenance: See `provenance.provenance`.
    """
    test, evaluation = found.test, found.test.evaluation
    rows = zip(
        test.names, test.patients, test.sides, test.grades.tolist(), test.probabilities.argmax(1).tolist(),
        test.probabilities.tolist(), strict=True,
    )  # fmt: skip
    write_table(folder / "predictions.csv", Prediction, (Prediction(*facts, *p) for *facts, p in rows))
    counted = (ConfusionRow(grade, *row) for grade, row in enumerate(evaluation.confusion.tolist()))
    write_table(folder / "confusion.csv", ConfusionRow, counted)
    answer, rendered = _answer(found), settings["images"] == "retina"
    (folder / "figures").mkdir(exist_ok=True)
    embedded = {}
    for name, (figure, alt) in _figures(folder, found, rendered).items():
        content = style.render(figure, "png")
        (folder / "figures" / f"{name}.png").write_bytes(content)
        embedded[name] = page.Image(content, alt)
    warnings = [RENDERED if rendered else RESEARCH]
    if evaluation.patients < FEW_PATIENTS:
        warnings.append(f"With {evaluation.patients} patients in the test part the intervals are too narrow.")
    if found.both is None and found.not_both:
        warnings.append(f"The second eye was not judged: {found.not_both}")
    summary = {
        "answer": answer,
        "images": settings["images"],
        "trained_on": found.trained_on,
        "validation": _plain(found.validation.evaluation),
        "test": _plain(evaluation),
        "two_eyes": None
        if found.both is None
        else {
            "both": _plain(found.both.both),
            "alone": _plain(found.both.alone),
            "gain": found.both.gain,
            "left_out": found.both.left_out,
        },
        "warnings": warnings,
        "skipped": count_reasons(skipped),
        "provenance": dict(provenance),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    shown = [embedded[name] for name in ("confusion", "roc") if name in embedded]
    sections = [
        page.Section("Grades", "", shown, [_confusion_table(evaluation), _scores_table(found)]),
        page.Section("Beside the published grader", "", (), [_published_table(found, rendered)]),
        page.Section("Training", "", [embedded["curve"]]),
    ]
    named: dict[str, list[str]] = {}
    for skip in skipped:
        named.setdefault(skip.reason, []).append(skip.name)
    report = page.Report(
        settings["title"], answer, (), warnings, named, sections, provenance, _READING, page.DE_LA_TORRE
    )  # fmt: skip
    page.write_report(folder / "report.html", report)
    lines = [
        f"{name:<28}{first:>12}{second:>12}  {interval}".rstrip()
        for name, first, second, interval in _scores(found)
    ]
    return "\n".join([f"{'':<28}{'validation':>12}{'test':>12}", *lines, "", warnings[0], answer])


def _answer(found: Found) -> str:
    one = found.test.evaluation
    text = (
        f"On {one.eyes:,} eyes of {one.patients:,} patients that the training did not see, QWK is "
        f"{_told(one.qwk, one.qwk_interval)} and {100 * one.accuracy:.1f} % of the grades are right; grades 2 to 4 are told from "
        f"0 and 1 with sensitivity {_told(one.sensitivity, one.sensitivity_interval)} and specificity "
        f"{_told(one.specificity, one.specificity_interval)}."
    )
    if found.both is not None:
        both, alone, gain, left_out = found.both
        judged = (
            ""
            if gain is None
            else f" (95 % interval of the gain {page.number(gain.low)} to {page.number(gain.high)})"
        )
        text += (
            f"\nWith the features of both eyes QWK is {defined(both.qwk)}, with those of one {defined(alone.qwk)}{judged}, on "
            f"{both.patients:,} patients with two eyes; {left_out[1]:,} others are left out."
        )
    return text


def _told(value: float | None, interval: Any) -> str:
    return defined(value) + (f" ({between(interval)})" if interval is not None else "")


def _scores(found: Found) -> list[tuple[str, str, str, str]]:
    """Name, validation, test, and the interval of the test part."""
    first, second = found.validation.evaluation, found.test.evaluation
    rows = [("eyes", f"{first.eyes:,}", f"{second.eyes:,}", "")]
    rows.append(("patients", f"{first.patients:,}", f"{second.patients:,}", ""))
    for name in ("qwk", "accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "mcc", "auc"):
        interval = getattr(second, f"{name}_interval", None)
        told = (
            "" if interval is None else f"{page.number(interval.low, 3)} to {page.number(interval.high, 3)}"
        )
        label = (
            name
            if name == "accuracy"
            else "QWK"
            if name == "qwk"
            else f"{name.upper() if len(name) < 4 else name}, grades 2-4"
        )
        rows.append((label, defined(getattr(first, name), 3), defined(getattr(second, name), 3), told))
    for name in ("tp", "tn", "fp", "fn"):
        rows.append(
            (f"{name.upper()}, grades 2-4", f"{getattr(first, name):,}", f"{getattr(second, name):,}", "")
        )
    return rows


def _scores_table(found: Found) -> page.Table:
    columns = ("score", "validation", "test", "95 % interval, test")
    return page.Table("Scores of the likeliest grade; AUC of p2 + p3 + p4.", columns, _scores(found))


def _confusion_table(evaluation: Evaluation) -> page.Table:
    rows = [
        (str(grade), *(f"{count:,}" for count in row), _share(int(row[grade]), int(row.sum())))
        for grade, row in enumerate(evaluation.confusion)
    ]
    columns = ("true grade", *(f"predicted {grade}" for grade in range(len(rows))), "right")
    return page.Table("Eyes of the test part by true and predicted grade.", columns, rows)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "undefined"


def _published_table(found: Found, rendered: bool) -> page.Table:
    test = found.test.evaluation
    both = None if found.both is None else found.both.both
    rows = [
        ("QWK, validation", "validation", defined(found.validation.evaluation.qwk, 3)),
        ("QWK, test", "test", defined(test.qwk, 3)),
        ("QWK, both eyes, test", "both", "–" if both is None else defined(both.qwk, 3)),
        ("sensitivity, grades 2-4", "sensitivity", defined(test.sensitivity, 3)),
        ("specificity, grades 2-4", "specificity", defined(test.specificity, 3)),
    ]
    cells = [(name, page.number(PUBLISHED[key], 3), ours) for name, key, ours in rows]
    caption = (
        "Published on EyePACS (75,650 eyes to train on, 3,000 for validation, 10,000 for the test), and here."
    )
    if rendered:
        caption += " Rendered retinas are another task, so that the columns cannot be compared."
    return page.Table(caption, ("score", "published", "here"), cells)


def _figures(folder: Path, found: Found, rendered: bool) -> dict[str, tuple[Figure, str]]:
    """Each with what it says."""
    one = found.test.evaluation
    columns = read_curve(folder / "curve.csv")
    figures = {
        "confusion": (
            grader_figures.confusion(one.confusion),
            f"Confusion matrix of {one.eyes:,} test eyes, {100 * one.accuracy:.1f} % on the diagonal. QWK {defined(one.qwk)}.",
        ),
        "curve": (
            grader_curve(columns, found.validation.evaluation.qwk),
            f"Loss and QWK of the training batches over {int(columns['images'][-1]):,} images, and QWK "
            f"{defined(found.validation.evaluation.qwk)} of the validation part at the end.",
        ),
    }
    if one.auc is not None:
        referable = found.test.probabilities[:, REFERABLE:].sum(1)
        published = None if rendered else (PUBLISHED["sensitivity"], PUBLISHED["specificity"])
        figures["roc"] = (
            grader_figures.roc(referable, found.test.grades, one, published),
            f"ROC curve of grades 2 to 4 against 0 and 1: AUC {defined(one.auc)}; the likeliest grade decides with sensitivity "
            f"{defined(one.sensitivity)} and specificity {defined(one.specificity)}.",
        )
    return figures


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    return {**evaluation._asdict(), "confusion": evaluation.confusion.tolist()}
