"""The paper's layers on real photographs with real weights, against an independent scikit-learn run."""

import csv

import numpy as np
import pandas as pd
import pytest

from scalecov_jax.concepts.compute import measure_all
from scalecov_jax.concepts.measure import get_measures
from scalecov_jax.experiments.probe_tables import score_table
from scalecov_jax.extraction import compute_features
from scalecov_jax.imaging.voc import read_boxes
from scalecov_jax.models.architecture import available_layers
from scalecov_jax.models.port import port
from scalecov_jax.probes import evaluate
from scalecov_jax.probes.splits import random_splits, shuffled
from scalecov_jax.selection import select_layers

SPLITS = 10


@pytest.mark.large
@pytest.mark.parametrize(
    ("architecture", "file", "preprocessing", "last", "peak"),
    [
        ("resnet50", "resnet50_imagenet_int8pruned.h5", "torch", None, "add_15"),
        ("inception_v3", "inception_v3_imagenet2015_to_mixed8.h5", "tf", "mixed8", "mixed8"),
    ],
)
def test_scale_of_cars_peaks_where_the_paper_found_it(shared, architecture, file, preprocessing, last, peak):
    network = port(shared / "weights" / file, architecture, preprocessing, last)
    layers = available_layers(network.architecture, network.module)
    source = read_boxes(shared / "data/voc_single", "car")
    assert len(source) == 334
    measures = measure_all(get_measures(["scale"]), source).values[:, 0]
    features = compute_features(network, source, layers, size=299)
    assert not features.skipped
    targets = np.stack([np.tile(measures, (SPLITS, 1)), shuffled(measures, SPLITS, 0)], -1)
    solved = evaluate.score_layers(features.values, targets, random_splits(334, SPLITS, 0))

    names = {"architecture": architecture, "weights": file, "condition": "trained", "image_class": "car"}
    scores = pd.concat(
        score_table(r2[..., :1], None, layers=layers, concepts=["scale"], estimator=estimator, **names)
        for estimator, r2 in (("ols", solved.ols), ("ridge", solved.ridge))
    )
    assert {one.estimator: one.layer for one in select_layers(scores, layers)} == {"ols": peak, "ridge": peak}

    with (shared / "reference/scale_r2.csv").open() as table:
        reference = {
            row["layer"]: row
            for row in csv.DictReader(table)
            if (row["class"], row["architecture"]) == ("car", architecture) and row["layer"] != "softmax"
        }
    compared = [layer for layer in layers if layer in reference]
    assert len(compared) == {"resnet50": 17, "inception_v3": 9}[architecture]
    for layer in compared:
        ridge, control = solved.ridge[layers.index(layer)].mean(0)
        assert ridge == pytest.approx(float(reference[layer]["ridge_r2"]), abs=0.05), layer
        assert control == pytest.approx(0, abs=0.05), layer
    # The published early collapse: least squares fails where D ~ n_train, ridge does not.
    early = {"resnet50": "add_2", "inception_v3": "mixed0"}[architecture]
    assert solved.ols[layers.index(early), :, 0].mean() < -1
    assert solved.ridge[layers.index(early), :, 0].mean() > 0.5
