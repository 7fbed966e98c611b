"""Scenes that need no compilation, for tests of what is done with scenes and not of how they look."""

import numpy as np

from scalecov_jax.imaging import scenes
from scalecov_jax.imaging.image_set import Box, Example


def _scene(rng, class_id, ratio, size, place=None):
    """A square of its own colour, with as many stripes as the class's number, on noise."""
    extent = np.sqrt(ratio)
    x_min, y_min = (rng.random(2) if place is None else place) * (1 - extent) * size
    at = np.arange(size) + 0.5
    rows, columns = ((at >= low) & (at < low + extent * size) for low in (y_min, x_min))
    colour, behind = rng.random((2, 3))
    stripes = 0.75 + 0.25 * np.sin(2 * np.pi * (1 + class_id) * (at - x_min) / (extent * size))
    square = stripes[:, None] * (0.7 + 0.3 * colour)
    noise = (0.1 + 0.3 * behind) * rng.uniform(0.5, 1, (size, size, 3))
    image = np.where((rows[:, None] & columns)[..., None], square, noise)
    box = Box(x_min + 1, y_min + 1, x_min + extent * size, y_min + extent * size)
    return np.round(255 * image).astype(np.uint8), box


def examples(image_class, count, seed, size=128):
    """Stands in for `scenes.examples`."""
    class_id = scenes.check_class(image_class)
    rng = np.random.default_rng((seed, class_id))
    ratios = np.exp(rng.uniform(*np.log([scenes.SMALLEST, scenes.LARGEST]), count))
    names = [f"{image_class}_{index:04d}" for index in range(count)]
    drawn = [_scene(rng, class_id, ratio, size) for ratio in ratios]
    return [
        Example(image, image_class, box, None, name, name)
        for (image, box), name in zip(drawn, names, strict=True)
    ]


def growing(image_class, count, ratios, seed, size=128):
    """Stands in for `scenes.growing`."""
    class_id = scenes.check_class(image_class)
    found = []
    for index in range(count):
        group = f"{image_class}_growing_{index:04d}"
        for ratio in ratios:
            rng = np.random.default_rng((seed, 99, class_id, index))
            image, box = _scene(rng, class_id, ratio, size, place=0.5 * np.ones(2))
            found.append(Example(image, image_class, box, None, group, f"{group}_{ratio:.4f}"))
    return found


def contact_sheet(seed):
    """Stands in for `scenes.contact_sheet`."""
    return np.hstack([one.image for one in examples(scenes.CLASSES[0], 9, seed)])
