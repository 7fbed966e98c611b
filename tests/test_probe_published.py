"""Published and measured R2 of every layer side by side."""

import numpy as np
import pandas as pd
import pytest

from scalecov_jax.experiments import probe_published, published
from scalecov_jax.experiments.probe_published import compare, over_classes, over_runs, published_widths
from scalecov_jax.experiments.probe_tables import score_table
from scalecov_jax.scores import CONDITIONS, ESTIMATORS

CLASSES = pd.DataFrame(
    {"weights": "net", "image_class": ["car", "cat"], "images": [334, 133], "n_train": [233, 93]}
)


def make_scores(architecture, layers, runs=12, seed=0):
    """R2 near the published values, so that most rows agree."""
    rng = np.random.default_rng(seed)
    tables = []
    for image_class in CLASSES["image_class"]:
        for condition in CONDITIONS:
            for estimator in ESTIMATORS:
                read = [published.CURVES[architecture].get(layer, {}).get(condition, 0.2) for layer in layers]
                mean = np.log(np.maximum(read, 1e-3)) + 1 if estimator == "ols" else np.full(len(layers), 0.5)
                r2 = mean[:, None, None] + 0.02 * rng.normal(size=(len(layers), runs, 1))
                names = {"architecture": architecture, "weights": "net", "condition": condition}
                names |= {"image_class": image_class, "estimator": estimator}
                tables.append(score_table(r2, None, layers=layers, concepts=["scale"], **names))
    return pd.concat(tables, ignore_index=True)


def make_widths(architecture, layers, width=None):
    widths = [width or published_widths(architecture)[layer] for layer in layers]
    return pd.DataFrame({"architecture": architecture, "weights": "net", "layer": layers, "width": widths})


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
    some = scores.query("condition == 'trained' and estimator == 'ols' and layer == 'add_2'")["r2"].to_numpy()
    car, both = some[:12], np.array([*some[:10], *some[12:22]])  # ten repetitions of each class
    key = ("trained", "ols", "add_2")
    mean, sd = over_runs(scores[scores["image_class"] == "car"]).loc[key]
    assert (mean, sd) == (pytest.approx(car.mean()), pytest.approx(car.std(ddof=1)))
    mean, sd = over_classes(scores).loc[key]
    assert mean == pytest.approx(np.log(np.exp(both - 1).mean()) + 1)
    assert sd == pytest.approx(np.exp(both - 1).std(ddof=1))


def test_far_negative_runs_stay_finite():
    lost = make_scores("resnet50", ("softmax",)).assign(r2=-1e6)
    mean, _ = over_classes(lost).loc["trained", "ols", "softmax"]
    assert np.isfinite(mean)
    assert mean < -700


def test_explanations_follow_the_numbers():
    layers = ("mixed0", "mixed3", "mixed8", "softmax")
    moved = make_scores("inception_v3", layers)
    moved.loc[moved["layer"] == "mixed8", "r2"] -= 0.5
    rows = compare(moved, make_widths("inception_v3", layers), CLASSES).set_index(
        ["source", "layer", "condition"]
    )
    curve = rows.loc["Figure A2"]
    assert len(curve) == len(published.CURVES["inception_v3"]) * len(CONDITIONS)
    explanations = curve["explanation"]
    assert "published D / n_train = 256 / 282" in explanations["mixed0", "trained"]
    assert explanations["mixed3", "trained"] == "within the spread of the runs"
    assert explanations["mixed8", "trained"] == "lower; other images and n_train (163, published 282)"
    assert "extrapolates" in explanations["softmax", "trained"]
    missing = curve.loc["mixed9", "trained"]
    assert missing[["ours", "ridge"]].isna().all()
    assert missing["explanation"] == "not measured here: the last layer probed is softmax"
    narrow = compare(moved, make_widths("inception_v3", layers, 64), CLASSES)
    narrow = narrow.set_index(["source", "layer", "condition"])["explanation"]
    assert "another width (D = 64, published 1280)" in narrow["Table A1", "mixed8", "trained"]
    printed = rows.loc["Table A1", "mixed10", "trained"]
    assert (printed["published"], printed["published_sd"]) == (0.54, 0.05)


def test_networks_and_concepts_that_the_paper_has_not():
    scores = make_scores("resnet50", ("add_1",))
    widths = make_widths("resnet50", ("add_1",))
    assert compare(scores, widths.assign(architecture="vgg16"), CLASSES).empty
    assert compare(scores.assign(concept="mean_red"), widths, CLASSES).empty


@pytest.mark.parametrize("architecture", ["inception_v3", "resnet50"])
def test_findings_and_section(architecture):
    layers = tuple(published.CURVES[architecture])
    scores, widths = make_scores(architecture, layers), make_widths(architecture, layers)
    rows = compare(scores, widths, CLASSES)
    peak, correlation, distance = probe_published.findings("Net", architecture, rows)
    layer, r2 = published.PEAK[architecture]
    assert peak.at == f"Net {layer}"
    assert (peak.value, peak.published) == (pytest.approx(r2, abs=0.02), r2)
    assert f"largest at {layer}" in peak.note
    assert correlation.value == pytest.approx(1, abs=1e-3)
    assert distance.value < 0.02
    section = probe_published.section("Net", "net", rows, scores, CLASSES)
    assert len(section.tables) == rows["source"].nunique() == (2 if architecture == "inception_v3" else 1)
    assert [row[0] for row in section.tables[0].rows] == [*layers]
    assert [image.name for image in section.images] == ["net-published"]
