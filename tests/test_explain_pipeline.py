"""scripts/explain.py on a tiny network: every method writes what it says, goes on, and refuses what cannot be."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from golden_tables import assert_golden
from PIL import Image
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.concepts.measure import get_measure
from scalecov_jax.experiments import explain
from scalecov_jax.experiments.explain_inputs import open_inputs
from scalecov_jax.extraction import compute_features
from scalecov_jax.probes.splits import random_splits
from scalecov_jax.settings import parse
from scalecov_jax.vectors import STRIP, fit_rcvs, load_rcvs, save_rcvs

CONCEPTS = ("scale", "mean_luminance")
pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_scenes")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "some_weights"
    checkpoints.save(folder, random_network())
    changes = {"weights": str(folder), "layer": "block_2", "scenes": 12, "batch_size": 8}
    settings = {**changes, "steps": 3, "size": 32, "channels": "0,3", "shown": 2}
    # As a probe run writes them.
    source, network = images_of(settings), checkpoints.load(folder)
    pooled = compute_features(network, source, ("block_1", "block_2"), size=32)
    measures = {name: np.array([get_measure(name).measure(one) for one in source]) for name in CONCEPTS}
    rcvs = [
        rcv
        for layer, values in pooled.values.items()
        for rcv in fit_rcvs(network, layer, values, measures, random_splits(12, 3, 0))
    ]
    save_rcvs(folder.parent / "rcvs.npz", rcvs)
    return {**settings, "rcvs": str(folder.parent / "rcvs.npz")}


def images_of(settings):
    return open_inputs(parse(explain.Settings, settings))[0][0].source


def test_groups_of_a_plain_folder(settings, tmp_path):
    lines = ["image,patient"]
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
        lines.append(f"{number:02},p{number // 3}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    given = {"images": str(tmp_path), "groups": f"csv:{tmp_path}/t.csv:patient"}
    source = images_of(settings | given)
    assert [source[at].group for at in range(12)] == [f"p{at // 3}" for at in range(12)]


def run(settings, method, workdir, **options):
    return runner.run("explain", {**settings, "method": method}, workdir, command=["explain.py"], **options)


def finding(folder, quantity, at=""):
    """The value of the finding with these words."""
    (value,) = (
        found["value"]
        for found in json.loads((folder / "summary.json").read_text())["findings"]
        if quantity in found["quantity"] and at in found["at"]
    )
    return value


@pytest.mark.parametrize(
    ("method", "table", "rows", "kept"),
    [
        ("grad_cam", "maps", 24, "maps"),
        ("sensitivity", "sensitivity", 2, "gradients"),
        ("feature_visualization", "visualisations", 4, "states"),
    ],
)
def test_tables_reports_and_a_second_run(settings, method, table, rows, kept, tmp_path):
    workdir = tmp_path / "run"
    text = run(settings, method, workdir)
    assert ("some_weights-random" in text) == (method != "sensitivity")  # RCVs are of the trained weights
    assert not re.search(r"\bnan\b", text.lower())
    tables = runner.read(workdir)[1]
    assert len(tables[table]) == rows
    assert_golden(workdir, method)
    figures = {"grad_cam": {"overlays"}, "sensitivity": {"directions"}, "feature_visualization": {"sheet"}}
    assert {path.stem for path in (workdir / "figures").iterdir()} == figures[
        method
    ]  # S is constant: no bars
    assert {*tables["pictures"]["figure"]} == figures[method] - {"directions"}
    assert all((workdir / file).stat().st_size for file in tables["pictures"]["file"])
    # Images with two maps each; two channels of two networks.
    assert len(tables["pictures"]) == {"grad_cam": 6, "sensitivity": 0, "feature_visualization": 4}[method]
    html = (workdir / "report.html").read_text()
    for found in json.loads((workdir / "summary.json").read_text())["findings"]:
        assert found["quantity"] in html
    path = workdir / f"{table}.csv"
    before = path.read_bytes(), {one: one.stat().st_mtime_ns for one in (workdir / kept).iterdir()}
    (workdir / "summary.json").unlink()  # as a kill leaves it
    assert run(settings, method, workdir, resume=True) == text
    assert path.read_bytes() == before[0]
    assert {one: one.stat().st_mtime_ns for one in (workdir / kept).iterdir()} == before[1]


def test_findings_agree_with_the_tables(settings, tmp_path):
    run({**settings, "random_weights": False, "rcvs": settings["rcvs"]}, "sensitivity", tmp_path / "run")
    rows = runner.read(tmp_path / "run")[1]["sensitivity"].set_index("concept")
    assert finding(tmp_path / "run", "mean z of scale") == rows["dimension_free"]["scale"]
    assert finding(tmp_path / "run", "smallest held-out R²") == rows["r2"]["scale"] < 0
    tables = {
        "sensitivity": rows.reset_index().assign(br=[3.0, -0.5], br_low=[2.0, -0.7], br_high=[4.0, 0.1]),
        "rcvs": rows.reset_index()[["weights", "layer", "concept", "r2"]],
        "skipped": pd.DataFrame([("a", "no image", "empty")] * 2, columns=["image", "reason", "detail"]),
    }
    given = parse(explain.Settings, {**settings, "method": "sensitivity"})
    page = explain.report(given, tables)
    (headline,) = (found for found in page.findings if found.level == "headline")
    assert "mean_luminance" in headline.quantity  # nothing is read along scale, whose R2 is negative
    assert (headline.value, headline.low, headline.high) == (-0.5, -0.7, 0.1)
    bars, directions = page.sections[0].images
    own = rows.loc["mean_luminance"]
    width = 2 * 1.96 * np.sqrt(own["smooth_images"] ** 2 + own["smooth_directions"] ** 2 / 10)
    assert f"smooth: {width:.2f} at 10 to" in directions.alt
    assert "mean_luminance, some_weights −0.50 (−0.70 to 0.10)" in bars.alt
    (left_out,) = (found for found in page.findings if "left out" in found.quantity)
    assert (left_out.value, left_out.level) == (100, "caution")


def test_rcvs_of_a_probe_run_are_targets_and_strips(settings, tmp_path):
    plain = {**settings, "random_weights": False, "faithfulness": False, "concepts": "scale,mean_luminance"}
    aimed = {**plain, "layer": "block_1", "target": "rcv:scale@block_2"}
    network = checkpoints.load(Path(settings["weights"]))
    features = compute_features(network, images_of(settings), ("block_2",), size=32).values["block_2"]
    rcv = next(rcv for rcv in load_rcvs(settings["rcvs"]) if (rcv.measure, rcv.layer) == ("scale", "block_2"))
    for vector in ("filter", "pattern"):
        workdir = tmp_path / vector
        run({**aimed, "vector": vector}, "grad_cam", workdir)
        assert finding(workdir, f"held-out R² of the RCV ({vector}) of scale", "block_2") == rcv.r2
        scores = runner.read(workdir)[1]["maps"]["score"]
        np.testing.assert_allclose(scores, features @ rcv.vector(vector), rtol=1e-3, atol=1e-4)
    run({**plain, "objective": "rcv"}, "feature_visualization", tmp_path / "strip")
    tables = runner.read(tmp_path / "strip")[1]
    rows = tables["visualisations"][["objective", "part"]].to_numpy().tolist()
    assert rows == [[f"rcv:{concept}", part] for concept in ("scale", "mean_luminance") for part in STRIP]
    assert tables["pictures"]["row"].nunique() == 2
    assert set(tables["rcvs"]["concept"]) == {"scale", "mean_luminance"}


def test_a_damaged_state_is_made_again(settings, tmp_path, caplog):
    run({**settings, "random_weights": False}, "feature_visualization", tmp_path / "run")
    path = tmp_path / "run/states/some_weights.npz"
    table = (tmp_path / "run/visualisations.csv").read_bytes()
    for damaged in (path.read_bytes()[:99], b""):
        path.write_bytes(damaged)
        run({**settings, "random_weights": False}, "feature_visualization", tmp_path / "run", resume=True)
        assert "some_weights.npz is damaged" in caplog.text
        assert (tmp_path / "run/visualisations.csv").read_bytes() == table


def test_maps_meet_boxes_in_the_pointing_game(settings, tmp_path):
    group = {
        **settings,
        "random_weights": False,
        "tolerance": 15,
        "target": "logit:1,3",
        "randomisation": True,
    }
    workdir = tmp_path / "run"
    run(group, "grad_cam_pp", workdir)
    assert_golden(workdir, "grad_cam_pp")
    tables = runner.read(workdir)[1]
    maps, games = tables["maps"], tables["pointing"].set_index("stratum")
    small = maps[maps["box_share"] < 0.25]
    assert (games["images"] == [12, len(small)]).all()
    assert (games["hits"] == [maps["hit"].sum(), small["hit"].sum()]).all()
    assert (games["centre_hits"] == [maps["centre_hit"].sum(), small["centre_hit"].sum()]).all()
    assert games["other_maps"].notna().tolist() == [True, False]
    share = 100 * maps["hit"].mean()
    assert finding(workdir, "largest value of a map", "12 images with a box") == pytest.approx(share)
    assert finding(workdir, "insertion") == pytest.approx(maps["insertion"].mean())
    forgotten = tables["randomised"].set_index("layer")
    assert [*forgotten.index] == ["pre_softmax", "block_2", "block_1", "stem"]
    assert {*forgotten["images"]} == {12}
    for layer in ("pre_softmax", "stem"):
        correlation = forgotten["correlation"][layer]
        assert finding(workdir, f"random down to {layer}") == pytest.approx(correlation)
    assert {path.name for path in (workdir / "figures").glob("*.png")} == {"overlays.png", "randomised.png"}
    with np.load(workdir / "maps/some_weights.npz") as file:
        assert file["layer_maps"].shape == (12, *file["layer_maps"].shape[1:])
        assert np.isfinite(file["layer_maps"]).all()


def test_photographs_without_boxes(settings, tmp_path):
    (tmp_path / "photos").mkdir()
    for example in images_of(settings).take(range(3)):
        Image.fromarray(example.image).save(tmp_path / "photos" / f"{example.name}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    given = {**settings, "images": str(tmp_path / "photos"), "faithfulness": False, "random_weights": False}
    run(given, "grad_cam", tmp_path / "run")
    tables = runner.read(tmp_path / "run")[1]
    assert tables["pointing"].empty
    assert tables["maps"][["box_share", "hit", "centre_hit", "insertion", "deletion"]].isna().all(axis=None)
    assert tables["skipped"]["image"].tolist() == ["broken.png"]
    assert finding(tmp_path / "run", "mean of predicted") == pytest.approx(tables["maps"]["score"].mean())
    assert finding(tmp_path / "run", "left out") == pytest.approx(25)


def test_tables_without_a_folder_are_the_same(settings, tmp_path):
    run({**settings, "random_weights": False}, "grad_cam", tmp_path / "run")
    given = parse(explain.Settings, {**settings, "random_weights": False})
    tables, kept = explain.run(given), runner.read(tmp_path / "run")[1]
    pd.testing.assert_frame_equal(tables["maps"], kept["maps"], check_exact=False)
    assert tables["pictures"].empty


def test_what_would_be_computed_is_said_beforehand(settings):
    given = {**settings, "method": "feature_visualization"}
    text = explain.plan(parse(explain.Settings, given))
    assert "feature_visualization of 0,3 of block_2 for some_weights, some_weights-random" in text
    assert "12 images" in explain.plan(parse(explain.Settings, settings))


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
            "config.vector is 'x'.*config.channels is 'a'; expected an integer; config.shown is 0; expected at least 1",
        ),
        ({"layer": "block_1,block_2"}, "config.layer is 'block_1,block_2'; expected a single layer"),
    ],
)
def test_mistakes_are_named_before_anything_is_computed(settings, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run({**settings, **changes}, "grad_cam", tmp_path / "run")
    assert not (tmp_path / "run").exists()
