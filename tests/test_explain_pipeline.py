"""scripts/explain.py on a tiny network: every method writes what it says, goes on, and refuses what cannot be."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from golden_tables import assert_golden
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax.concepts.measure import get_measure
from scalecov_jax.features import compute_features
from scalecov_jax.pipelines import explain
from scalecov_jax.probes.splits import random_splits
from scalecov_jax.rcv import STRIP, fit_rcvs, load_rcvs, save_rcvs

CONFIG = Path(__file__).parents[1] / "configs" / "explain.py"
CONCEPTS = ("scale", "mean_luminance")
pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_scenes")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "some_weights"
    checkpoints.save(folder, random_network())
    spec = importlib.util.spec_from_file_location("explain_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    changes = {"weights": str(folder), "layer": "block_2", "scenes": 12, "batch_size": 8}
    small = {"steps": 3, "size": 32, "channels": "0,3", "shown": 2}
    settings = {**module.get_config().to_dict(), **changes, **small}
    # As a probe run writes them.
    source, network = explain._open(settings, {})[0], checkpoints.load(folder)
    pooled = compute_features(network, source, ("block_1", "block_2"), size=32)
    measures = {name: np.array([get_measure(name).measure(one) for one in source]) for name in CONCEPTS}
    rcvs = [
        rcv
        for layer, values in pooled.values.items()
        for rcv in fit_rcvs(network, layer, values, measures, random_splits(12, 3, 0))
    ]
    save_rcvs(folder.parent / "rcvs.npz", rcvs)
    return {**settings, "rcvs": str(folder.parent / "rcvs.npz")}


def run(settings, method, workdir, **options):
    return explain.run({**settings, "method": method}, str(workdir), command=["explain.py"], **options)


@pytest.mark.parametrize(
    ("method", "rows", "kept"),
    [("grad_cam", 24, "maps"), ("sensitivity", 2, "gradients"), ("feature_visualization", 4, "states")],
)
def test_tables_reports_and_a_second_run(settings, method, rows, kept, tmp_path):
    table = run(settings, method, tmp_path / "run")
    assert ("some_weights-random" in table) == (method != "sensitivity")  # RCVs are of the trained weights
    (path,) = (one for one in (tmp_path / "run").glob("*.csv") if one.name != "measures.csv")
    with path.open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == rows
    assert not {"nan", "inf"} & {cell.lower() for row in found for cell in row.values()}
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["answer"]
    assert summary["provenance"]["seed"] == "2026"
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
    assert list((tmp_path / "run/figures").glob("*.png"))
    assert_golden(tmp_path / "run", method)
    before = path.read_bytes(), {one: one.stat().st_mtime_ns for one in (tmp_path / "run" / kept).iterdir()}
    assert run(settings, method, tmp_path / "run", resume=True).split("\n")[0] == table.split("\n")[0]
    assert path.read_bytes() == before[0]
    assert {one: one.stat().st_mtime_ns for one in (tmp_path / "run" / kept).iterdir()} == before[1]


def test_rcvs_of_a_probe_run_are_targets_and_strips(settings, tmp_path):
    one = {**settings, "random_weights": False, "faithfulness": False, "concepts": "scale,mean_luminance"}
    run({**one, "layer": "block_1", "target": "rcv:scale@block_2"}, "grad_cam", tmp_path / "maps")
    told = json.loads((tmp_path / "maps/summary.json").read_text())["answer"]
    assert "The RCV (filter) of scale at block_2 has a held-out R2 of" in told
    run({**one, "objective": "rcv"}, "feature_visualization", tmp_path / "strip")
    with (tmp_path / "strip/visualisations.csv").open() as file:
        rows = [(row["objective"], row["part"]) for row in csv.DictReader(file)]
    assert rows == [(f"rcv:{concept}", part) for concept in ("scale", "mean_luminance") for part in STRIP]
    with (tmp_path / "maps/maps.csv").open() as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    network = checkpoints.load(Path(settings["weights"]))
    source = explain._open(settings, {})[0]
    features = compute_features(network, source, ("block_2",), size=32).values["block_2"]
    rcv = next(rcv for rcv in load_rcvs(settings["rcvs"]) if (rcv.measure, rcv.layer) == ("scale", "block_2"))
    np.testing.assert_allclose(scores, features @ rcv.direction, rtol=1e-3, atol=1e-4)
    run(
        {**one, "layer": "block_1", "target": "rcv:scale@block_2", "vector": "pattern"},
        "grad_cam",
        tmp_path / "p",
    )
    with (tmp_path / "p/maps.csv").open() as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(scores, features @ rcv.vector("pattern"), rtol=1e-3, atol=1e-4)


def test_a_damaged_state_is_named(settings, tmp_path):
    run({**settings, "random_weights": False}, "feature_visualization", tmp_path / "run")
    path = tmp_path / "run/states/some_weights.npz"
    for damaged in (path.read_bytes()[:99], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"some_weights\.npz is damaged .*; delete it to start anew"):
            run({**settings, "random_weights": False}, "feature_visualization", tmp_path / "run", resume=True)


def test_maps_meet_boxes_in_the_pointing_game(settings, tmp_path):
    group = {
        **settings,
        "random_weights": False,
        "tolerance": 15,
        "target": "logit:1,3",
        "randomisation": True,
    }
    run(group, "grad_cam_pp", tmp_path / "run")
    (games,) = json.loads((tmp_path / "run/summary.json").read_text())["pointing_game"].values()
    with (tmp_path / "run/maps.csv").open() as file:
        small = [float(row["box_share"]) < 0.25 for row in csv.DictReader(file)]
    assert games["all"]["images"] == len(small) == 12
    assert games["small"]["images"] == sum(small) > 0
    with (tmp_path / "run/randomised.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == ["pre_softmax", "block_2", "block_1", "stem"]
    assert {row["images"] for row in rows} == {"12"}
    assert_golden(tmp_path / "run", "grad_cam_pp")
    assert (tmp_path / "run/figures/randomised.png").exists()
    with np.load(tmp_path / "run/maps/some_weights.npz") as file:
        assert file["layer_maps"].shape == (12, *file["layer_maps"].shape[1:])
        assert np.isfinite(file["layer_maps"]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "block_9"}, "no module is called 'block_9'; did you mean block_"),
        ({"layer": "pre_softmax"}, "has no maps"),
        ({"target": "logit:nothing"}, "nothing"),
        ({"target": "logit:1,7"}, "no class '7'"),
        ({"target": "rcv:scale"}, "expected predicted, .* or rcv:CONCEPT@LAYER"),
        ({"target": "rcv:scala@block_2"}, "scale"),
        ({"target": "rcv:scale@block_1"}, "read at block_1, before block_2"),
        ({"target": "rcv:scale@block_2", "rcvs": ""}, r"config.rcvs is empty; expected rcvs.npz"),
        (
            {"target": "rcv:scale@stem"},
            "has no RCV of scale fitted at stem of the weights some_weights; it has mean_lum",
        ),
        (
            {"target": "rcv:count@block_2"},
            "has no RCV of count .* it has mean_luminance at block_2; scale at block_2",
        ),
        (
            {"shown": 0, "channels": "a", "vector": "x"},
            "vector is 'x'.*config.shown is 0.*; config.channels has a",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(settings, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run({**settings, **changes}, "grad_cam", tmp_path / "run")
    assert not (tmp_path / "run").exists()
