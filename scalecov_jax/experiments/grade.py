"""A grader of diabetic retinopathy: trained, tested on eyes of other patients, and held beside the published one.

How it is trained is defined in `grade_training.py`, what its grades are worth in `grade_scores.py`.

Source: de la Torre, Valls, Puig 2020 (arXiv 1712.08107).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, roc_curve

from scalecov_jax import training
from scalecov_jax.atomic import kept_arrays, write_arrays
from scalecov_jax.checkpoints import Network
from scalecov_jax.experiments.grade_scores import REFERABLE, evaluate, two_eyes
from scalecov_jax.experiments.grade_training import PREPROCESSING, eye_features, grade_probabilities, train
from scalecov_jax.imaging.eyes import GRADES, PARTS, open_eyes
from scalecov_jax.imaging.image_set import ImageSet
from scalecov_jax.imaging.prepared_eyes import prepare_eyes
from scalecov_jax.report import plots
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.model_card import curve_image
from scalecov_jax.report.numbers import number
from scalecov_jax.report.page import DE_LA_TORRE, Image, Page, Section, Table, render_text
from scalecov_jax.settings import setting, together
from scalecov_jax.training import TrainingSettings

# de la Torre, Valls, Puig 2020, on photographs of EyePACS, by part, classifier and score.
PUBLISHED = {
    ("validation", "network", "qwk"): 0.814,
    ("test", "network", "qwk"): 0.801,
    ("test", "both_eyes", "qwk"): 0.844,
    ("test", "network", "sensitivity"): 0.906,
    ("test", "network", "specificity"): 0.847,
}
FEW_PATIENTS = 20  # below, intervals over patients are too narrow
SEVERE = ("sensitivity", "specificity", "PPV", "NPV", "F1", "MCC", "AUC", "TP", "TN", "FP", "FN")
NAMES = {"eyes": "eyes", "patients": "patients", "qwk": "QWK", "accuracy": "accuracy"} | {
    name.lower(): f"{name}, grades 2-4" for name in SEVERE
}
LINEAR = {
    "one_eye": "QWK, linear classifier of one eye",
    "both_eyes": "QWK, linear classifier of both eyes",
}
WHOLE = ("eyes", "patients", "tp", "tn", "fp", "fn")  # scores that are counts
NOT_JUDGED = "second eye not judged"
RENDERED = "Trained and tested on rendered retinas: what it scores says nothing about patients."
RESEARCH = "For research; it is no medical device."


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """What determines the results."""

    architecture: str = setting("dr_grader", help="Its module must have the fields width and classes.")
    width: float = setting(0.5, help="Multiplier of all filter counts; the published network has 1.")
    size: int = setting(256, low=1, help="Height and width of the trimmed eyes, in pixels; published: 640.")
    batch_size: int = setting(16, low=1, help="Eyes a step.")
    steps: int = setting(1000, low=1, help="Length of the training.")
    learning_rate: float = setting(1e-3, help="The largest, more than 0; it falls along a cosine to 0.")
    warmup: int = setting(50, low=0, help="Steps in which the learning rate rises to it, fewer than steps.")
    weight_decay: float = setting(0.0, low=0, help="Of AdamW.")
    log_every: int = setting(20, low=1, help="Steps between the rows of curve.csv.")
    save_every: int = setting(100, low=1, help="Steps between checkpoints.")
    title: str = setting("A grader of diabetic retinopathy", help="Heading of the report.")
    images: str = setting(
        "retina",
        help="retina (rendered), a folder of photographs with one CSV (image, level), or tfds:DATA_DIR.",
    )
    concept: str = setting(
        "", help="Grades of a folder's photographs, csv:PATH:COLUMN; those of its one CSV file when empty."
    )
    groups: str = setting(
        "", help="Their patients, csv:PATH:COLUMN; as its CSV file or names tell when empty."
    )
    train: int = setting(4000, low=1, help="Rendered eyes to train on; folders and tfds are read whole.")
    validation: int = setting(500, low=1, help="Rendered eyes to follow the training on.")
    test: int = setting(1000, low=1, help="Rendered eyes of the test.")
    validation_share: float = setting(0.1, low=0, high=1, help="Of patients in a folder; tfds has its own.")
    test_share: float = setting(0.1, low=0, high=1, help="Of the patients of a folder.")


def check(settings: Settings) -> dict[str, Network]:
    """The list of eyes and the architecture; no network is opened.

    Raises:
        ValueError: See `eyes.open_eyes` and `training.classifier`; a part lacks a grade.
    """
    together(
        lambda: training.classifier(settings, GRADES),
        lambda: _check_grades(settings, _listed(_open(settings))),
    )
    return {}


def plan(settings: Settings) -> str:
    """What a run would do, for people; nothing is computed."""
    counts = {part: len(eyes) for part, eyes in _open(settings).items()}
    needed = sum(counts.values()) * 3 * settings.size**2
    return (
        f"Would trim {', '.join(f'{count} for {part}' for part, count in counts.items())} to {settings.size} x {settings.size} "
        f"pixels ({needed / 1e9:.1f} GB in the folder), and train the grader for {settings.steps} steps of "
        f"{settings.batch_size}. Nothing was done."
    )


def run(settings: Settings, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Prepare eyes, train the grader, test it on eyes of other patients, and write it to `folder/network`.

    Trimmed eyes, states of the training and features of eyes in the folder are not computed again.

    Returns:
        predictions (eyes of the test part) and confusion (their number by true and predicted grade); curve, see
        `training.train`; scores: columns part, classifier (network, both_eyes or one_eye) and those of
        `grade_scores.evaluate`; left_out: columns part, name, reason and detail.

    Raises:
        ValueError: No usable eye, or none of some grade in a part.
        FloatingPointError: The loss is not finite.
    """
    if folder is None:
        with TemporaryDirectory() as temporary:
            return run(settings, Path(temporary))
    opened = _open(settings)
    prepared = {
        part: prepare_eyes(eyes, folder / f"{part}.npy", settings.size, part) for part, eyes in opened.items()
    }
    eyes = {
        part: rows.iloc[prepared[part].kept].reset_index(drop=True) for part, rows in _listed(opened).items()
    }
    _check_grades(settings, eyes)
    module = training.classifier(settings, GRADES)
    grades = {part: rows["grade"].to_numpy() for part, rows in eyes.items()}
    state, curve = train(module, prepared["train"].images, grades["train"], folder, settings)
    variables, features, probabilities, scores = state.variables, {}, {}, []
    for part in PARTS[1:]:
        path = folder / f"{part}_features.npz"
        stored = kept_arrays(path, "features of eyes 1")
        if stored is None:
            stored = {"features": eye_features(module, variables, prepared[part].images, part)}
            write_arrays(path, stored, "features of eyes 1")
        features[part] = stored["features"]
        probabilities[part] = grade_probabilities(variables, features[part])
        evaluated = evaluate(grades[part], probabilities[part], eyes[part]["patient"].to_numpy(str))
        scores.append(evaluated.rename_axis("score").reset_index().assign(part=part, classifier="network"))
    seen = pd.DataFrame({"score": "eyes", "value": [float(len(eyes["train"]))]})
    scores.append(seen.assign(part="train", classifier="network"))
    left_out = []
    for part in PARTS:
        skipped = dict.fromkeys((*opened[part].skipped, *prepared[part].skipped))
        left_out += [(part, *one) for one in skipped]
    judged = {part: eyes[part] for part in PARTS[1:]}
    try:
        scores.append(two_eyes(judged, features, seed=settings.seed).assign(part="test"))
    except ValueError as error:  # such as too few patients with two eyes: all else can be told
        left_out.append(("test", "other eyes", NOT_JUDGED, str(error)))
    predicted = probabilities["test"].argmax(1)
    confusion = pd.DataFrame(confusion_matrix(grades["test"], predicted, labels=range(GRADES)))
    table = pd.concat(scores, ignore_index=True)[["part", "classifier", "score", "value", "low", "high"]]
    qwk = _scores_of(table, "test")["value"]["qwk"]
    training.save_network(
        variables,
        settings,
        folder,
        class_names=tuple(map(str, range(GRADES))),
        preprocessing=PREPROCESSING,
        origin=f"trained on {settings.images} by scripts/train_grader.py",
        test_qwk=None if np.isnan(qwk) else float(qwk),
    )
    return {
        "predictions": eyes["test"]
        .assign(predicted=predicted)
        .join(pd.DataFrame(probabilities["test"]).add_prefix("p")),
        "confusion": confusion.add_prefix("predicted_").rename_axis("grade").reset_index(),
        "curve": curve,
        "scores": table,
        "left_out": pd.DataFrame(left_out, columns=["part", "name", "reason", "detail"], dtype="str"),
    }


def _open(settings: Settings) -> dict[str, ImageSet]:
    held_out = settings.validation_share, settings.test_share
    tables = {"concept": settings.concept, "groups": settings.groups}
    options = {
        **tables,
        "size": settings.size,
        "seed": settings.seed,
        "shares": (1 - sum(held_out), *held_out),
    }
    return {
        part: open_eyes(settings.images, part=part, count=getattr(settings, part), **options)
        for part in PARTS
    }


def _listed(opened: Mapping[str, ImageSet]) -> dict[str, pd.DataFrame]:
    """Names, patients, sides and grades of the eyes of each part."""
    columns = {"name": "image", "group": "patient", "side": "side", "grade": "grade"}
    return {part: eyes.table[[*columns]].rename(columns=columns) for part, eyes in opened.items()}


def _check_grades(settings: Settings, eyes: Mapping[str, pd.DataFrame]) -> None:
    lacking = [
        f"{grade} for {part}"
        for part, rows in eyes.items()
        for grade in sorted({*range(GRADES)} - {*rows["grade"]})
    ]
    if lacking:
        raise ValueError(f"{settings.images}: all grades are needed; no usable eye of {', '.join(lacking)}.")


# Report


def report(settings: Settings, tables: Mapping[str, pd.DataFrame], folder: Path | None = None) -> Page:
    """Agreement with the true grades, referable retinopathy, what the second eye adds, and the training."""
    scores, left_out = tables["scores"], tables["left_out"]
    eyes = {part: int(_scores_of(scores, part)["value"]["eyes"]) for part in PARTS}
    seen = settings.steps * settings.batch_size
    text = render_text("grade.html", "description", settings=settings, eyes=eyes, seen=seen)
    held_out = _scores_of(scores, "validation")["value"]["qwk"]
    images = [_confusion(tables["confusion"]), *_roc(settings, tables)]
    shown = [_score_table(scores)]
    if len(left_out):
        groups = left_out.groupby(["part", "reason"], sort=False)
        columns = {
            "number": groups.size().astype(str),
            "the first 20": groups["name"].agg(lambda names: "; ".join(names.head(20))),
            "the first in detail": groups["detail"].first(),
        }
        shown.append(Table.of("Left out; left_out.csv names all.", pd.DataFrame(columns).reset_index()))
    sections = [
        Section("Grades", "", images, shown, text),
        Section("Training", "", [curve_image(tables["curve"], settings, "QWK", held_out)]),
    ]
    findings = [*_findings(settings, scores), *_cautions(settings, scores, left_out)]
    return Page(settings.title, findings, sections, render_text("grade.html", "reading"), method=DE_LA_TORRE)


def _scores_of(scores: pd.DataFrame, part: str, classifier: str = "network") -> pd.DataFrame:
    """Columns value, low and high by score."""
    rows = scores[(scores["part"] == part) & (scores["classifier"] == classifier)]
    return rows.set_index("score")[["value", "low", "high"]]


def _findings(settings: Settings, scores: pd.DataFrame) -> Iterator[Finding]:
    """The scores that count, those of the test part first; what is undefined is left to a caution."""
    gain, rendered = "gain in QWK by the second eye", settings.images == "retina"
    for part, classifier, name, quantity, first in (
        ("test", "network", "qwk", NAMES["qwk"], True),
        ("test", "network", "sensitivity", NAMES["sensitivity"], True),
        ("test", "network", "specificity", NAMES["specificity"], True),
        ("test", "both_eyes", "qwk", LINEAR["both_eyes"], True),
        ("test", "both_eyes", "gain", gain, True),
        ("test", "one_eye", "qwk", LINEAR["one_eye"], False),
        ("test", "network", "accuracy", NAMES["accuracy"], False),
        ("test", "network", "auc", NAMES["auc"], False),
        ("validation", "network", "qwk", NAMES["qwk"], False),
    ):
        own = _scores_of(scores, part, classifier)
        if name not in own.index or np.isnan(own["value"][name]):
            continue
        value, low, high = own.loc[[name]].to_numpy(float)[0].tolist()
        known: dict[str, Any] = {} if np.isnan(low) else {"low": low, "high": high, "interval": "95 %"}
        if (printed := PUBLISHED.get((part, classifier, name))) is not None:
            # Of another task no difference is formed.
            known |= {"published": f"{printed} on photographs" if rendered else printed, "source": "EyePACS"}
        if name == "gain":
            known["note"] = f"{number(own['value']['left_out'], 0)} patients without two eyes are left out."
        at = f"{part}, {number(own['value']['eyes'], 0)} eyes of {number(own['value']['patients'], 0)} patients"
        yield Finding(quantity, at, value, level="headline" if first else "result", **known)


def _cautions(settings: Settings, scores: pd.DataFrame, left_out: pd.DataFrame) -> Iterator[Finding]:
    """What the eyes are, and what could not be judged or only badly."""
    test = _scores_of(scores, "test")["value"]
    patients, undefined = test["patients"], [NAMES[str(name)] for name, x in test.items() if np.isnan(x)]
    few = f"With fewer than {FEW_PATIENTS} patients the intervals are too narrow."
    division = f"They would need a division by 0: {'; '.join(undefined)}."
    not_judged = left_out.loc[left_out["reason"] == NOT_JUDGED, "detail"]
    for present, quantity, value, note in (
        (settings.images == "retina", "number of rendered eyes", test["eyes"], RENDERED),
        (settings.images != "retina", "number of eyes", test["eyes"], RESEARCH),
        (patients < FEW_PATIENTS, "number of patients", patients, few),
        (undefined, "number of undefined scores", float(len(undefined)), division),
        (len(not_judged), "number of second eyes that were judged", 0.0, " ".join(not_judged)),
    ):
        if present:
            yield Finding(quantity, "test", value, note=note, level="caution", digits=0)


def _score_table(scores: pd.DataFrame) -> Table:
    def cells(part: str, name: str, classifier: str = "network") -> tuple[str, str]:
        value, low, high = _scores_of(scores, part, classifier).loc[[name]].to_numpy(float)[0].tolist()
        shown = "undefined" if np.isnan(value) else number(value, 0 if name in WHOLE else 3)
        return shown, "" if np.isnan(low) else f"{number(low, 3)} to {number(high, 3)}"

    rows = [(label, cells("validation", name)[0], *cells("test", name)) for name, label in NAMES.items()]
    judged = [classifier for classifier in LINEAR if classifier in {*scores["classifier"]}]
    rows += [(LINEAR[classifier], "", *cells("test", "qwk", classifier)) for classifier in judged]
    columns = ("score", "validation", "test", "95 % interval, test")
    return Table("Scores of the likeliest grade; AUC of p2 + p3 + p4.", columns, rows)


def _confusion(confusion: pd.DataFrame) -> Image:
    counts = confusion.set_index("grade").set_axis(range(GRADES), axis=1)
    return plots.matrix(
        {"": counts.div(counts.sum(axis=1).clip(lower=1), axis=0)},
        rows="true grade",
        columns="predicted grade",
        name="grade-confusion",
        caption="Eyes of the test part; the colour is their share of the true grade.",
        limits=(0.0, 1.0),
        texts={"": counts.map("{:,}".format)},
    )


def _roc(settings: Settings, tables: Mapping[str, pd.DataFrame]) -> Iterator[Image]:
    """Sensitivity against 1 - specificity; none where the eyes are all referable or none is."""
    rows, test = tables["predictions"], _scores_of(tables["scores"], "test")["value"]
    if np.isnan(test["auc"]):
        return
    severe = rows[[f"p{grade}" for grade in range(REFERABLE, GRADES)]].sum(axis=1).round(9)
    fall_out, sensitivity, _ = roc_curve(rows["grade"] >= REFERABLE, severe)
    series: dict[str, tuple[Any, Any]] = {
        f"AUC {number(test['auc'], 3)}": (fall_out, sensitivity),
        "likeliest grade": ([1 - test["specificity"]], [test["sensitivity"]]),
        "chance": ([0.0, 1.0], [0.0, 1.0]),
    }
    if settings.images != "retina":
        published = (PUBLISHED["test", "network", name] for name in ("specificity", "sensitivity"))
        series["published, on EyePACS"] = ([1 - next(published)], [next(published)])
    yield plots.curves(
        pd.concat([pd.DataFrame({"series": name, "x": x, "value": y}) for name, (x, y) in series.items()]),
        x="1 − specificity",
        y="sensitivity",
        name="grade-roc",
        caption="Grades 2 to 4 against 0 and 1, in the test part.",
        limits=(0.0, 1.0),
    )
