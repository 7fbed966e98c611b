"""Runs of the main job on tiny networks, for the tests of what it writes and of what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_network import LAYERS, random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner

CLASSES = ("striped_disc", "ringed_star")
TRUNK = LAYERS[:3]
SPLITS = 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "some_weights"
    checkpoints.save(folder, random_network())
    return folder


@pytest.fixture(scope="module")
def settings(weights):
    return settings_of(weights)


def settings_of(weights):
    return {
        "title": "A test",
        "architecture": "tiny",
        "weights": str(weights),
        "images": "scenes",
        "image_class": ", ".join(CLASSES),
        "scenes": 80,
        "layers": ",".join(TRUNK),
        "pooling": "gap",
        "input_size": 32,
        "splits": SPLITS,
        "seed": 5,
        "alpha_min": 0.1,
        "alpha_max": 1e4,
        "alphas": 4,
        "batch_size": 16,
        "permutations": 0,
        "nuisances": "",
        "pixels": False,
    }


def run(settings, workdir, **options):
    return runner.run("probe", settings, workdir, command=["probe.py", "--seed=5"], **options)


def table(workdir, name):
    return pd.read_csv(workdir / f"{name}.csv", keep_default_na=False, na_values=[""])


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


def findings_of(workdir, *texts, level=None):
    """Those whose quantity and place hold all texts."""
    return [
        x
        for x in summary_of(workdir)["findings"]
        if level in (None, x["level"]) and all(text in f"{x['quantity']}, {x['at']}" for text in texts)
    ]


def refused(settings, workdir, message, **options):
    """The run fails with one line that matches, and nothing is written."""
    with pytest.raises(ValueError, match=message) as error:
        run(settings, workdir, **options)
    assert "\n" not in str(error.value)
    assert not (workdir / "scores.csv").exists()


def write_voc(folder, boxes, broken=()):
    """Noise images of 32 pixels whose boxes have the given sides."""
    rng = np.random.default_rng(0)
    for part in ("Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    for index, side in enumerate(boxes):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        pixels[:side, :side] = 255 - 6 * side
        path = folder / "JPEGImages" / f"{index:02d}.png"
        Image.fromarray(pixels).save(path)
        if index in broken:
            path.write_bytes(path.read_bytes()[:1000])
        (folder / "Annotations" / f"{index:02d}.xml").write_text(
            f"<annotation><filename>{path.name}</filename><object><name>car</name><bndbox><xmin>1</xmin><ymin>1"
            f"</ymin><xmax>{side}</xmax><ymax>{side}</ymax></bndbox></object></annotation>"
        )
    return folder
