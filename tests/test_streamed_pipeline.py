"""The main job with streamed images: the same tables as in memory, resumed, and shared by two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from golden_tables import assert_golden
from PIL import Image
from tiny_network import LAYERS, random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.experiments import probe
from scalecov_jax.probes import evaluate, permutation
from scalecov_jax.probes.splits import k_folds
from scalecov_jax.settings import parse

FOLDS = 3
pytestmark = pytest.mark.usefixtures("quick_compilation")


def write_images(folder):
    """60 squares, the brighter the larger, in VOC layout; quicker to draw than scenes."""
    for part in ("Annotations", "JPEGImages"):
        (folder / part).mkdir()
    rng = np.random.default_rng(0)
    for number, side in enumerate(rng.integers(4, 31, 60)):
        pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
        pixels[:side, :side] += np.uint8(4 * side)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{number:02}.png")
        (folder / "Annotations" / f"{number:02}.xml").write_text(
            f"<annotation><filename>{number:02}.png</filename><object><name>striped_disc</name><bndbox><xmin>1</xmin>"
            f"<ymin>1</ymin><xmax>{side}</xmax><ymax>{side}</ymax></bndbox></object></annotation>"
        )


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "some_weights"
    checkpoints.save(folder, random_network())
    images = tmp_path_factory.mktemp("voc")
    write_images(images)
    return {
        "title": "A streamed test",
        "architecture": "tiny",
        "weights": str(folder),
        "images": str(images),
        "image_class": "striped_disc",
        "scenes": 60,
        "workers": 1,
        "layers": ",".join(LAYERS[:3]),
        "input_size": 32,
        "splitting": "k_fold",
        "splits": FOLDS,
        "seed": 5,
        "alpha_min": 10.0,
        "alpha_max": 10.0,
        "alphas": 1,
        "permutations": 19,
        "nuisances": "",
        "pixels": False,
        "batch_size": 16,
        "route": "streamed",
        "flush": 1,
    }


def run(settings, workdir, **options):
    return runner.run("probe", settings, workdir, command=["probe.py"], **options)


def scores_of(workdir):
    keys = ["condition", "concept", "image_class", "layer", "split", "estimator"]
    return pd.read_csv(workdir / "scores.csv").set_index(keys)


@pytest.fixture(scope="module")
def streamed(settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "streamed"
    return workdir, run(settings, workdir)


def test_scores_are_those_of_the_way_through_memory(settings, streamed, tmp_path):
    run({**settings, "route": "memory"}, tmp_path / "memory")
    found, expected = scores_of(streamed[0]), scores_of(tmp_path / "memory")
    assert len(found) == len(expected) == 3 * FOLDS * 3 * 2
    pd.testing.assert_frame_equal(found, expected.loc[found.index], check_exact=False, rtol=1e-6, atol=1e-5)
    rows = pd.read_csv(streamed[0] / "layers.csv")
    assert rows["layer"].tolist() == list(LAYERS[:3])
    r2 = found.query("condition == 'trained' and estimator == 'ridge'").groupby("layer", sort=False)["r2"]
    np.testing.assert_allclose(rows[["r2", "r2_sd"]], r2.agg(["mean", "std"]))
    assert (rows["images"] == 60).all()
    assert (rows["folds"] == FOLDS).all()
    np.testing.assert_allclose(rows["alpha"], 10)
    assert ((rows["p"] >= 1 / 20) & (rows["p"] <= rows["p_family"]) & (rows["p_family"] <= 1)).all()
    # Every order anew, from the features in memory.
    measure = pd.read_csv(tmp_path / "memory" / "images.csv").query("layer == @LAYERS[0]")["measure"]
    with np.load(tmp_path / "memory" / "features" / "some_weights-striped_disc-trained.npz") as file:
        features = {layer: file[f"layer_{layer}"] for layer in LAYERS[:3]}
    measure = measure.to_numpy()[:, None]
    drawn = permutation.Permuted.draw(measure, 19, settings["seed"]).rows(np.arange(60))[..., 0]
    shuffled = np.concatenate([measure, drawn], axis=1)
    solved = evaluate.score_layers(
        features, np.tile(shuffled, (FOLDS, 1, 1)), k_folds(60, FOLDS, settings["seed"]), np.array([10.0])
    )
    scores = solved.ridge.mean(1)
    np.testing.assert_allclose(rows["p"], (scores >= scores[:, :1]).mean(1))


def test_tables_are_those_kept(streamed):
    # Of the other tables there were none before.
    assert_golden(
        streamed[0], "streamed_probe", tables=["classes.csv", "cuts.csv", "skipped.csv", "widths.csv"]
    )


def test_the_report_says_what_is_absent(streamed):
    workdir, text = streamed
    summary = json.loads((workdir / "summary.json").read_text())
    (caution,) = (x for x in summary["findings"] if x["quantity"] == "number of images that were streamed")
    assert (caution["level"], caution["value"]) == ("caution", 60)
    (headline,) = (x for x in summary["findings"] if x["level"] == "headline")
    best = pd.read_csv(workdir / "layers.csv").set_index("layer").loc[headline["at"].removeprefix("tiny ")]
    assert headline["value"] == pytest.approx(best["r2"])
    assert headline["high"] - headline["value"] == pytest.approx(best["r2_sd"])
    assert headline["sentence"] in summary["answer"]
    assert "nan" not in text.lower()
    assert not (workdir / "images.csv").exists()
    assert not (workdir / "features").exists()
    assert summary["images"] == {"striped_disc": 60}
    assert summary["n_train"] == {"striped_disc": 40}
    assert pd.read_csv(workdir / "widths.csv")["width"].tolist() == [8, 16, 32]


def test_a_finished_stage_is_not_computed_again(settings, streamed, monkeypatch):
    workdir, _ = streamed
    before = (workdir / "scores.csv").read_bytes(), (workdir / "layers.csv").read_bytes()
    monkeypatch.setattr(
        "scalecov_jax.experiments.probe_streamed.stream_sums", lambda *_, **__: pytest.fail("again")
    )
    run(settings, workdir, resume=True)
    assert ((workdir / "scores.csv").read_bytes(), (workdir / "layers.csv").read_bytes()) == before


def test_other_weights_under_resume_are_refused(settings, streamed):
    workdir, _ = streamed
    folder = Path(settings["weights"])
    kept = folder.rename(folder.with_name("kept"))
    checkpoints.save(folder, random_network(seed=1))
    try:
        with pytest.raises(ValueError, match=r"cannot be resumed \(weights: \w+, now \w+\)"):
            run(settings, workdir, resume=True)
    finally:
        folder.rename(folder.with_name("other"))
        kept.rename(folder)


def test_the_plan_is_told_before_anything_is_computed(settings, tmp_path):
    text = probe.estimate(parse(probe.Settings, settings))
    assert "Route streamed: config.route says so. Memory planned" in text
    assert f"streamed in {FOLDS} folds" in text
    auto = probe.estimate(parse(probe.Settings, {**settings, "route": "auto"}))
    assert "Route memory: 60 images and their features fit" in auto
    with pytest.raises(ValueError, match=r"config\.route is 'streamed', but splits of kind 'random'"):
        run({**settings, "splitting": "random"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


IN_TWO_PROCESSES = """
import sys, json, runpy
import tiny_network
import jax
from scalecov_jax import run
jax.distributed.initialize(num_processes=2, process_id=int(sys.argv[1]))
print(run.run("probe", json.loads(sys.argv[2]), sys.argv[3], command=["probe.py"]))
"""


def test_two_processes_write_what_one_does(settings, streamed, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": address,
        "PYTHONPATH": str(Path(__file__).parent),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", IN_TWO_PROCESSES, str(number), json.dumps(settings), tmp_path / "run"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    printed = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all("Report: " in text for text in printed)
    found, expected = scores_of(tmp_path / "run"), scores_of(streamed[0])
    # Two processes add in another order; least squares enlarges that: R2 of -30.6 differed by 1.2e-6 on one processor.
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=1e-5, atol=1e-5)
