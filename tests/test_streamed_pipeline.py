"""The main job with streamed images: the same tables as in memory, resumed, and shared by two processes."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_tables import assert_golden
from PIL import Image
from tiny_network import LAYERS, random_network

from scalecov_jax import checkpoints
from scalecov_jax.pipelines import probe
from scalecov_jax.probes import evaluate, permutation
from scalecov_jax.probes.splits import k_folds
from scalecov_jax.scores import Score
from scalecov_jax.streaming.scores import FoldRow
from scalecov_jax.tables import read_table

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
        "batch_size": 16,
        "dtype": "float32",
        "route": "streamed",
        "flush": 1,
    }


def run(settings, workdir, **options):
    return probe.run(settings, str(workdir), command=["probe.py"], **options)


@pytest.fixture(scope="module")
def streamed(settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "streamed"
    return workdir, run(settings, workdir)


def test_scores_are_those_of_the_way_through_memory(settings, streamed, tmp_path):
    run({**settings, "route": "memory"}, tmp_path / "memory")
    expected = {s[:8]: s for s in read_table(tmp_path / "memory" / "scores.csv", Score)}
    found = {s[:8]: s for s in read_table(streamed[0] / "scores.csv", Score)}
    assert found.keys() == expected.keys()
    assert len(found) == 3 * FOLDS * 3 * 2
    for key, score in found.items():
        assert score.alpha == expected[key].alpha
        assert score.r2 == pytest.approx(expected[key].r2, abs=1e-5)
    rows = read_table(streamed[0] / "layers.csv", FoldRow)
    assert [row.layer for row in rows] == list(LAYERS[:3])
    for row in rows:
        r2 = [
            s.r2
            for s in found.values()
            if (s.layer, s.condition, s.estimator) == (row.layer, "trained", "ridge")
        ]
        assert (row.r2, row.r2_sd) == pytest.approx((np.mean(r2), np.std(r2, ddof=1)))
        assert (row.images, row.folds, row.alpha) == (60, FOLDS, pytest.approx(10))
        assert row.p is not None
        assert 1 / 20 <= row.p <= row.p_family <= 1
    # Every order anew, from the features in memory.
    with (tmp_path / "memory" / "images.csv").open() as file:
        measure = [float(row["measure"]) for row in csv.DictReader(file) if row["layer"] == LAYERS[0]]
    with np.load(tmp_path / "memory" / "features" / "some_weights-striped_disc-trained.npz") as file:
        features = {layer: file[f"layer_{layer}"] for layer in LAYERS[:3]}
    measure = np.array(measure)[:, None]
    drawn = permutation.Permuted.draw(measure, 19, settings["seed"]).rows(np.arange(60))[..., 0]
    shuffled = np.concatenate([measure, drawn], axis=1)
    solved = evaluate.score_layers(
        features, np.tile(shuffled, (FOLDS, 1, 1)), k_folds(60, FOLDS, settings["seed"]), np.array([10.0])
    )
    scores = solved.ridge.mean(1)
    np.testing.assert_allclose([row.p for row in rows], (scores >= scores[:, :1]).mean(1))


def test_tables_are_those_kept(streamed):
    assert_golden(streamed[0], "streamed_probe")


def test_the_report_says_what_is_absent(streamed):
    workdir, table = streamed
    summary = json.loads((workdir / "summary.json").read_text())
    page = (workdir / "report.html").read_text()
    assert "the images were streamed" in " ".join(summary["warnings"])
    assert "the images were streamed" in page
    assert not (workdir / "images.csv").exists()
    assert not (workdir / "features").exists()
    assert summary["images"] == {"striped_disc": 60}
    assert summary["n_train"] == {"striped_disc": 40}
    assert summary["widths"] == {"stem": 8, "block_1": 16, "block_2": 32}
    assert "ridge" in table


def test_a_finished_stage_is_not_computed_again(settings, streamed, monkeypatch):
    workdir, _ = streamed
    before = (workdir / "scores.csv").read_bytes(), (workdir / "layers.csv").read_bytes()
    monkeypatch.setattr(
        "scalecov_jax.streaming.experiment.stream_sums", lambda *_, **__: pytest.fail("again")
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
    text = run(settings, tmp_path / "run", estimate_only=True)
    assert "Route streamed: config.route says so. Memory planned" in text
    assert f"streamed in {FOLDS} folds" in text
    auto = run({**settings, "route": "auto"}, tmp_path / "run", estimate_only=True)
    assert "Route memory: 60 images and their features fit" in auto
    with pytest.raises(ValueError, match=r"config\.route is 'streamed', but splits of kind 'random'"):
        run({**settings, "splitting": "random"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


IN_TWO_PROCESSES = """
import sys, json, runpy
import tiny_network
import jax
from scalecov_jax.pipelines import probe
jax.distributed.initialize(num_processes=2, process_id=int(sys.argv[1]))
print(probe.run(json.loads(sys.argv[2]), sys.argv[3], command=["probe.py"]))
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
    expected = read_table(streamed[0] / "scores.csv", Score)
    for one, other in zip(read_table(tmp_path / "run" / "scores.csv", Score), expected, strict=True):
        assert one[:9] == other[:9]
        assert one.r2 == pytest.approx(other.r2, abs=1e-5)
