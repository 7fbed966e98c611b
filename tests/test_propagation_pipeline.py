"""scripts/explain.py --method=score_propagation on a tiny network: files, conservation, going on, and refusals."""

import csv
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax.pipelines import explain

CONFIG = Path(__file__).parents[1] / "configs" / "explain.py"


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    """Networks run for a moment and compile for long."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    checkpoints.save(folder / "whole", random_network())
    checkpoints.save(folder / "headless", random_network(last="block_2"))
    for name in ("images", "more"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    for number in range(15):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("images" if number < 3 else "more") / f"{number}.png")
    spec = importlib.util.spec_from_file_location("explain_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    changes = {"weights": str(folder / "whole"), "images": str(folder / "images"), "random_weights": False}
    small = {"shown": 1, "batch_size": 2, "splits": 1}
    return {**module.get_config().to_dict(), **changes, **small}


def run(settings, workdir, **options):
    settings = {**settings, "method": "score_propagation"}
    return explain.run(settings, str(workdir), command=["explain.py"], **options)


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "all"
    run({**settings, "classes": "all"}, folder)
    return folder


def test_parts_add_up_in_every_file(done):
    scores = json.loads((done / "summary.json").read_text())["scores"]
    assert len(scores) == 3 * 5
    assert {(one["image"], one["target"]) for one in scores} == {
        (f"{image}.png", str(target)) for image in range(3) for target in range(5)
    }
    for one in scores:
        assert abs(one["sum_of_parts"] - one["logit"]) < 1e-4 * abs(one["logit"])
        assert one["relative_error"] < 1e-4
    with (done / "scores.csv").open() as file:
        assert [float(row["logit"]) for row in csv.DictReader(file)] == [one["logit"] for one in scores]
    with np.load(done / "scores.npz", allow_pickle=False) as file:
        logits = np.array([one["logit"] for one in scores]).reshape(3, 5)
        np.testing.assert_array_equal(file["layer_scores"], logits)
        assert file["layer_total"].shape == (3, 5, 32, 32)
        np.testing.assert_allclose(file["layer_total"].sum((2, 3), dtype=float), logits, rtol=1e-4)
        layers = ("stem", "pool", "block_1", "block_2", "pre_softmax")
        parts = [file[f"layer_{name}"].reshape(3, 5, -1).sum(2) for name in ("input", *layers)]
        np.testing.assert_allclose(sum(parts), logits, rtol=1e-4)
        assert file["layer_block_1"].ndim == 4
        assert tuple(file["layers"][:4]) == layers[:4]  # not by name


def test_figures_and_page(done):
    names = {one.name for one in (done / "figures").iterdir()}
    walks = {f"walk_whole_001_{column:02}.png" for column in range(1, 6)}
    assert names == {"maps_whole_001.png", *walks}
    assert "add up to each within" in (done / "report.html").read_text()


def test_the_predicted_class_is_named_and_kept(settings, done, tmp_path):
    run({**settings, "limit": 2}, tmp_path / "run")
    scores = json.loads((tmp_path / "run/summary.json").read_text())["scores"]
    every = json.loads((done / "summary.json").read_text())["scores"]
    for one in scores:
        best = max((other for other in every if other["image"] == one["image"]), key=lambda row: row["logit"])
        assert one["target"] == best["target"]
        np.testing.assert_allclose(one["logit"], best["logit"], rtol=1e-5)
    before = (tmp_path / "run/scores.npz").stat().st_mtime_ns, (tmp_path / "run/scores.csv").read_bytes()
    run({**settings, "limit": 2}, tmp_path / "run", resume=True)
    after = (tmp_path / "run/scores.npz").stat().st_mtime_ns, (tmp_path / "run/scores.csv").read_bytes()
    assert after == before


def test_memory_is_told_beforehand(settings, tmp_path):
    told = run({**settings, "classes": "1,3"}, tmp_path / "run", dry_run=True)
    assert int(told.split("peak_bytes ")[1].split()[0]) > 2 * 2 * 32 * 32 * 3 * 4
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "headless"}, "has no classes: it stops at block_2.*rcv:scale@block_2"),
        ({"classes": "1,9"}, "no class '9'"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(settings, changes, message, tmp_path):
    if "weights" in changes:
        changes = {"weights": str(Path(settings["weights"]).parent / changes["weights"])}
    with pytest.raises(ValueError, match=message):
        run({**settings, **changes}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_projections_on_rcvs_need_no_head(settings, tmp_path):
    weights, images = (str(Path(settings["weights"]).parent / name) for name in ("headless", "more"))
    changes = {"weights": weights, "images": images, "target": "rcv:mean_luminance@block_2"}
    run({**settings, **changes}, tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert {one["target"] for one in summary["scores"]} == {"mean_luminance@block_2"}
    assert max(one["relative_error"] for one in summary["scores"]) < 1e-4
