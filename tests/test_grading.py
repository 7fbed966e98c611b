"""Training of the grader: balanced batches, augmentation, steps on the QWK loss, grading."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from tiny_network import Tiny

from scalecov_jax.experiments import grade_training
from scalecov_jax.experiments.grade_training import (
    augment,
    balanced_batch,
    eye_features,
    grade_probabilities,
    train,
)
from scalecov_jax.models.preprocessing import preprocess
from scalecov_jax.training import TrainingSettings


def test_batches_are_balanced_and_depend_on_seed_and_step():
    grades = np.repeat([0, 1, 4], [900, 90, 10])  # no eye of grade 2 or 3
    drawn = np.concatenate([balanced_batch(grades, 16, 0, step) for step in range(200)])
    shares = [(grades[drawn] == grade).mean() for grade in (0, 1, 4)]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)  # 3.6 standard deviations
    assert len(np.unique(drawn[grades[drawn] == 4])) == 10
    np.testing.assert_array_equal(balanced_batch(grades, 16, 3, 7), balanced_batch(grades, 16, 3, 7))
    assert (balanced_batch(grades, 16, 3, 7) != balanced_batch(grades, 16, 3, 8)).any()
    assert (balanced_batch(grades, 16, 3, 7) != balanced_batch(grades, 16, 4, 7)).any()


def test_bilinear_equals_scipy():
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (9, 9, 3)).astype(np.float32)
    rows, columns = rng.uniform(-1.5, 9.5, (2, 6, 5))
    found = grade_training._bilinear(jnp.asarray(image), jnp.asarray(rows), jnp.asarray(columns))
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))  # scipy's own border does not fade
    expected = [
        ndimage.map_coordinates(padded[..., channel], (rows + 2, columns + 2), order=1)
        for channel in range(3)
    ]
    np.testing.assert_allclose(found, np.stack(expected, -1), atol=1e-3)


def test_augmentation_turns_mirrors_and_lights_but_keeps_the_eye():
    """A disc whose light rises with the angle stays a disc of about its size and light, turned anywhere, in both senses."""
    size = 48
    y, x = np.indices((size, size)) - (size - 1) / 2
    disc = np.hypot(x, y) < 20
    image = (disc * (100 + 100 * (np.arctan2(y, x) / np.pi))).astype(np.uint8)
    images = jnp.asarray(np.stack([image[..., None].repeat(3, -1)] * 64))
    turned = np.asarray(jax.jit(augment)(jax.random.key(0), images))
    assert turned.dtype == np.float32
    assert turned.min() >= 0
    assert turned.max() <= 255
    lit = turned[..., 0]
    levels = lit[:, disc].mean(1)
    assert (lit[:, np.hypot(x, y) > 22] < levels[:, None] * 0.25).all()
    assert 70 < levels.min() < 95 < 105 < levels.max() < 130
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    places = 23.5 + 12 * np.sin(angles), 23.5 + 12 * np.cos(angles)
    rings = np.stack([ndimage.map_coordinates(one, places, order=1) for one in lit])
    jumps = np.abs(np.diff(rings, axis=1, append=rings[:, :1])).argmax(1)
    assert len(np.unique(jumps // 10)) == 6
    rises = np.median(np.diff(rings, axis=1), axis=1) > 0
    assert 16 < rises.sum() < 48  # four standard deviations


@pytest.fixture(scope="module")
def eyes():
    """Grades that can be seen: how light the image is."""
    rng = np.random.default_rng(0)
    grades = np.repeat(np.arange(5), 8)
    images = np.clip(40 * grades[:, None, None, None] + rng.normal(40, 8, (40, 32, 32, 3)), 0, 255)
    return images.astype(np.uint8), grades


def test_training_learns_what_can_be_seen(eyes, tmp_path):
    images, grades = eyes
    module = Tiny(last="pre_softmax", width=0.5)
    settings = TrainingSettings(
        size=32, steps=60, batch_size=10, learning_rate=1e-2, warmup=5, weight_decay=0.0, log_every=20, save_every=60
    )  # fmt: skip
    variables = train(module, images, grades, tmp_path, settings)[0].variables
    rows = (tmp_path / "curve.csv").read_text().splitlines()
    assert rows[0] == "step,images,loss,qwk,seconds"
    losses = [float(row.split(",")[2]) for row in rows[1:]]
    assert losses[-1] < losses[0] - 0.7
    assert float(rows[-1].split(",")[3]) > 0.6

    features = eye_features(module, variables, images)
    assert features.shape == (40, 16)
    probabilities = grade_probabilities(variables, features)
    logits = module.apply(jax.device_put(variables), preprocess(jnp.asarray(images), "unit"))
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
