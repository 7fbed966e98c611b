"""Tables of the noise experiment from stored features, as they were before it had its present form."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax.experiments import noise, noise_features
from scalecov_jax.settings import parse

GOLDEN = Path(__file__).parent / "golden" / "noise"
SETTINGS = {
    "title": "A test",
    "layers": "",
    "sizes": "32,20,24,28,36",
    "per_size": 6,
    "train": 5,
    "test": 10,
    "splits": 3,
    "ranges": "24-32",
    "scaling": "common",
    "random_weights": True,
    "seed": 1,
    "batch_size": 4,
    "dtype": "float32",
}


def stored(condition):
    features = {"gap": {}, "corrected_gap": {}}
    with np.load(GOLDEN / "features.npz") as file:
        for key in file:
            where, pooling, layer = key.split("/")
            if where == condition:
                features[pooling][layer] = file[key]
    return noise_features.NoiseFeatures(np.repeat([20, 24, 28, 32, 36], 6), **features)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    checkpoints.save(folder / "some_weights", random_network())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "noise_features", lambda *_, name, **__: stored(name.split("-")[1]))
        return noise.run(parse(noise.Settings, {**SETTINGS, "weights": str(folder / "some_weights")}))


@pytest.mark.parametrize("name", ["noise", "predictions", "effects"])
def test_tables_are_reproduced(tables, name):
    expected = pd.read_csv(GOLDEN / f"{name}.csv")
    # Least squares through few images multiplies rounding, which depends on the processor: R2 of -452 differed by 4e-8.
    pd.testing.assert_frame_equal(tables[name], expected, rtol=1e-6, atol=1e-9)
