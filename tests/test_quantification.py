"""Published and measured R2 of every layer side by side."""

import json

import numpy as np
import pytest
from scalecov_jax.paper.quantification import (
    compare_classes,
    compare_runs,
    mean_over_classes,
    mean_over_runs,
    published_widths,
)
from scalecov_jax.report.quantification import compare, headlines, sections

from scalecov_jax.paper import published
from scalecov_jax.scores import CONDITIONS, ESTIMATORS, Score
from scalecov_jax.tables import write_table

CLASSES = {"car": 334, "cat": 133}
N_TRAIN = {"car": 233, "cat": 93}


def make_scores(architecture, layers, runs=12, seed=0):
    """R2 near the published values, so that most rows agree."""
    rng = np.random.default_rng(seed)
    rows = []
    for image_class in CLASSES:
        for condition in CONDITIONS:
            for estimator in ESTIMATORS:
                for layer in layers:
                    read = published.CURVES[architecture].get(layer, {}).get(condition, 0.2)
                    mean = np.log(max(read, 1e-3)) + 1 if estimator == "ols" else 0.5
                    for split in range(runs):
                        r2 = float(mean + 0.02 * rng.normal())
                        alpha = None if estimator == "ols" else 1.0
                        rows.append(
                            Score(architecture, "net", condition, "scale", image_class, layer, split, estimator, alpha, r2)
                        )  # fmt: skip
    return rows


def test_published_widths_follow_from_the_networks():
    """The numbers of METHODS 1.4, which come from the paper's text."""
    widths = published_widths("inception_v3")
    assert [widths[layer] for layer in ("mixed0", "mixed1", "mixed3", "mixed8", "mixed10", "softmax")] == [
        256, 288, 768, 1280, 2048, 1000,
    ]  # fmt: skip
    assert published_widths("resnet50")["add_15"] == 2048
    assert set(published.TABLE_A1) == set(widths)


def test_the_published_curve_peaks_where_the_paper_says():
    for architecture, (layer, r2) in published.PEAK.items():
        curve = {one: read["trained"] for one, read in published.CURVES[architecture].items()}
        assert max(curve, key=curve.__getitem__) == layer
        assert np.log(curve[layer]) + 1 == pytest.approx(r2, abs=0.006)


def test_averages():
    scores = make_scores("resnet50", ("add_1", "add_2"))
    some = [s.r2 for s in scores if (s.condition, s.estimator, s.layer) == ("trained", "ols", "add_2")]
    car, both = np.array(some[:12]), np.array(some[:10] + some[12:22])  # ten repetitions of each class
    mean, sd = mean_over_runs(scores, "trained", "ols", "car")["add_2"]
    assert (mean, sd) == (pytest.approx(car.mean()), pytest.approx(car.std(ddof=1)))
    mean, sd = mean_over_classes(scores, "trained", "ols")["add_2"]
    assert mean == pytest.approx(np.log(np.exp(both - 1).mean()) + 1)
    assert sd == pytest.approx(np.exp(both - 1).std(ddof=1))


def test_far_negative_runs_stay_finite():
    lost = [s._replace(r2=-1e6) for s in make_scores("resnet50", ("softmax",))]
    mean, _ = mean_over_classes(lost, "trained", "ols")["softmax"]
    assert np.isfinite(mean)
    assert mean < -700


def test_explanations_follow_the_numbers():
    layers = ("mixed0", "mixed3", "mixed8", "softmax")
    widths = {layer: published_widths("inception_v3")[layer] for layer in layers}
    scores = make_scores("inception_v3", layers)
    moved = [s._replace(r2=s.r2 - 0.5) if s.layer == "mixed8" else s for s in scores]
    rows = {(r.layer, r.condition): r for r in compare_classes("inception_v3", moved, widths, N_TRAIN)}
    assert len(rows) == len(published.CURVES["inception_v3"]) * len(CONDITIONS)
    assert "published D / n_train = 256 / 282" in rows["mixed0", "trained"].explanation
    assert rows["mixed3", "trained"].explanation == "within the spread of the runs"
    assert rows["mixed8", "trained"].explanation == "lower; other images and n_train (163, published 282)"
    assert "extrapolates" in rows["softmax", "trained"].explanation
    missing = rows["mixed9", "trained"]
    assert (missing.ours, missing.ridge) == (None, None)
    assert missing.explanation == "not measured here: the last layer probed is softmax"
    narrow = compare_runs(moved, "car", dict.fromkeys(layers, 64), 233)
    assert "another width (D = 64, published 1280)" in next(
        r.explanation for r in narrow if (r.layer, r.condition) == ("mixed8", "trained")
    )


@pytest.fixture
def folder(tmp_path):
    networks, scores = {}, []
    for architecture in published.CURVES:
        widths = published_widths(architecture)
        networks[architecture] = {
            "architecture": architecture,
            "images": CLASSES,
            "n_train": N_TRAIN,
            "widths": widths,
        }
        scores += [s._replace(weights=architecture) for s in make_scores(architecture, widths)]
    write_table(tmp_path / "scores.csv", Score, scores)
    (tmp_path / "summary.json").write_text(json.dumps({"networks": networks}))
    return tmp_path


def test_rows_and_sections_from_a_finished_run(folder):
    rows = compare(folder)
    peak = next(r for r in rows if r.quantity == "ResNet50: R² at add_15, least squares")
    assert (peak.published, float(peak.ours)) == ("0.76", pytest.approx(np.log(0.788) + 1, abs=0.02))
    assert float(peak.difference) == pytest.approx(float(peak.ours) - 0.76, abs=0.011)
    assert rows[0].quantity == "InceptionV3: layer where scale is best readable, least squares"
    assert rows[0][2:5] == ("mixed8", "mixed8", "same")
    assert rows[:4] == headlines(folder)
    a1 = next(r for r in rows if r.quantity.endswith("Table A1, trained weights: R² at mixed10"))
    assert a1.published == "0.54 ± 0.05"
    pages = sections(folder)
    assert [one.heading for one in pages] == [
        "4.3 Layer-wise quantification: InceptionV3",
        "4.3 Layer-wise quantification: ResNet50",
    ]
    assert len(pages[0].tables) == 6  # Figure A2 and Table A1 under three conditions
    assert len(pages[1].tables) == 3
    assert "(median), and follows it with a correlation of 1.00" in pages[0].text
    assert (folder / "figures" / "resnet50-published.svg").exists()
