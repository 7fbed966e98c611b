"""The main job where it is broken off, and where photographs, weights or settings cannot be used."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import probe_runs
import pytest
from probe_runs import refused, run, summary_of, table, write_voc
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.experiments.probe_settings import _possible
from scalecov_jax.imaging.image_set import Example, image_set

pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_scenes")
weights, settings = probe_runs.weights, probe_runs.settings


# Photographs


@pytest.fixture
def photographs(settings, tmp_path):
    return {**settings, "images": str(tmp_path / "voc"), "image_class": "car"}


def test_truncated_images_are_counted_and_named_and_cost_only_themselves(photographs, tmp_path):
    sides = np.random.default_rng(1).permutation(np.arange(4, 30))
    write_voc(tmp_path / "voc", sides, broken=(3, 17))
    run(photographs, tmp_path / "run")
    # The measures still belong to the images: scale is found, and its shuffled control is not.
    ridge = table(tmp_path / "run", "scores").query("estimator == 'ridge'")
    means = ridge.groupby("condition")["r2"].mean()
    trained, random, shuffled = (means[name] for name in ("trained", "random_weights", "shuffled_measure"))
    assert trained > 0.7
    assert random > 0.5
    assert shuffled < 0.2
    summary = summary_of(tmp_path / "run")
    assert summary["skipped"] == {"unreadable image": 2}
    assert summary["images"] == {"car": 24}
    assert runner.page(tmp_path / "run").skipped == {"unreadable image": ["03.png", "17.png"]}
    cases = table(tmp_path / "run", "cases")
    assert all((tmp_path / "run" / file).exists() for file in cases["file"])
    assert (tmp_path / "run" / "figures" / "some_weights-all-cases.svg").exists()
    with np.load(tmp_path / "run" / "features" / "some_weights-car-trained.npz") as features:
        np.testing.assert_array_equal(features["indices"], [i for i in range(26) if i not in (3, 17)])
    before = (tmp_path / "run" / "scores.csv").read_bytes()
    run(photographs, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "scores.csv").read_bytes() == before
    assert summary_of(tmp_path / "run")["skipped"] == {"unreadable image": 2}


PROBE = """
import json, sys
import tiny_network
from scalecov_jax import run

run.run("probe", json.loads(sys.argv[1]), sys.argv[2], command=["probe.py"])
"""


def test_killed_run_is_resumed_to_the_same_bytes(photographs, tmp_path):
    write_voc(tmp_path / "voc", range(4, 28))
    workdir = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", PROBE, json.dumps(photographs), workdir],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    try:
        deadline = time.monotonic() + 240
        while not (workdir / "features" / "some_weights-car-trained.npz").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (workdir / "scores.csv").exists()
    assert len(list((workdir / "features").glob("*.npz"))) < 3
    refused(photographs, workdir, "pass --resume")
    run(photographs, workdir, resume=True)
    run(photographs, tmp_path / "unbroken")
    assert (workdir / "scores.csv").read_bytes() == (tmp_path / "unbroken" / "scores.csv").read_bytes()


@pytest.mark.parametrize(
    ("boxes", "broken", "change", "message"),
    [
        (range(4, 13), (), {}, "9 usable images .* at least 10"),
        (range(4, 16), (0, 1, 2), {}, "measured on 9 images; at least 10"),
        ([8] * 24, (), {}, r"is 0\.0625 for all 24 images"),
        (range(4, 28), (), {"image_class": "cat"}, "no object of class 'cat'.*car"),
        (
            range(4, 28),
            (),
            {"images": "/nowhere/VOC2007"},
            "no such folder; expected a folder of images",
        ),
    ],
)
def test_photographs_that_cannot_be_used(photographs, tmp_path, boxes, broken, change, message):
    write_voc(tmp_path / "voc", boxes, broken)
    refused({**photographs, **change}, tmp_path / "run", message)


# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "tinny"}, "config.architecture: .*did you mean tiny"),
        ({"architecture": "resnet50"}, "some_weights holds tiny, but config.architecture is resnet50"),
        ({"layers": "stem,block_3"}, "no layer 'block_3'; did you mean block_"),
        (
            {"weights": " , ", "images": "", "image_class": "", "concept": ""},
            "image_class is '';.*config.concept is ''; expected at least 1 value.*config.weights is '';.*images is ''",
        ),
        (
            {"weights": "/nowhere/weights", "image_class": "ringed_disk"},
            "/nowhere/weights is no folder; expected a checkpoint.*did you mean ringed_disc",
        ),
        (
            {"scenes": 0, "splits": 0, "alphas": 0, "batch_size": -1, "input_size": 0, "seed": -1},
            "scenes is 0; expected at least 1;.*input_size is 0.*splits is 0.*seed is -1.*alphas is 0.*batch_size is -1",
        ),
        ({"alpha_min": 0.0}, "0 < alpha_min <= alpha_max"),
        ({"concept": "scael"}, "There is no concept measure 'scael'. Did you mean .*scale"),
        ({"concept": "scale,scale"}, "config.concept is 'scale,scale'; expected different values"),
        ({"concept": "scale", "nuisances": "scale"}, "config.nuisances: scale is a concept as well"),
        ({"nuisances": "redness"}, "There is no concept measure 'redness'"),
        ({"probes": "lasso"}, "There is no probe lasso; there are ridge"),
        (
            {"splitting": "groupd"},
            "config.splitting is 'groupd'; expected one of auto, random, stratified, grouped",
        ),
        ({"permutations": 5}, "config.permutations is 5; expected 0 for none, or at least 19"),
        ({"groups": "patients.csv"}, "expected csv:PATH:COLUMN"),
        ({"dtype": "float16"}, "'float16'; expected one of float32, bfloat16"),
        ({"pooling": "mean"}, "config.pooling is 'mean'; expected one of gap, max, corrected_gap"),
        (
            {"pooling": "corrected_gap", "layers": "stem,softmax"},
            r"undefined on images of 32 x 32 pixels at softmax \(sees the whole image\)",
        ),
        (
            {"pooling": "corrected_gap", "layers": "stem,block_2", "input_size": 31},
            r"undefined on images of 31 x 31 pixels at block_2 \(defined from 32 pixels\)\. Leave these layers out",
        ),
        (
            {"pooling": "corrected_gap", "layers": "", "input_size": 3},
            r"at stem \(defined from 4 pixels\), block_1 \(defined from 16 pixels\), block_2 .*, softmax \(sees the whole image",
        ),
    ],
)
def test_settings_that_cannot_be_used(settings, tmp_path, change, message):
    refused({**settings, **change}, tmp_path / "run", message)


def test_two_weights_of_one_name(settings, weights, tmp_path):
    checkpoints.save(tmp_path / "some_weights", random_network(seed=1))
    both = {**settings, "weights": f"{weights},{tmp_path / 'some_weights'}"}
    refused(both, tmp_path / "run", "Two weights are called")


def test_pruned_weights_have_no_later_layer(settings, tmp_path):
    checkpoints.save(tmp_path / "cut", random_network(last="stem"))
    changed = {**settings, "weights": str(tmp_path / "cut"), "layers": "block_1"}
    refused(changed, tmp_path / "run", "stops at stem, before 'block_1'; choose one of stem")


def test_nuisances_that_images_do_not_have_are_left_out():
    pixels = np.zeros((8, 8, 3), np.uint8)
    images = image_set(Example(pixels, None, None, None, f"{number}", f"{number}") for number in range(12))
    kept = _possible(images, ("mean_red", "box_centre_x", "file_size", "csv:ages.csv:age"))
    assert kept == ("mean_red", "csv:ages.csv:age")
