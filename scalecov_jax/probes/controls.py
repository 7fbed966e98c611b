"""Features that know nothing of what a network has learnt, to compare its layers with."""

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from scalecov_jax.images.example import Source, resize_image

SIDE = 32  # pixels; 3072 values an image


def pixel_features(
    source: Source, indices: np.ndarray, width: int = 1024, seed: int = 0, *, progress: str | None = None
) -> Float[np.ndarray, "N width"]:
    """A random projection of the pixels of small copies of the images, x W / sqrt(3072) with standard normal W.

    Source: Hewitt & Liang 2019, Designing and Interpreting Probes with Control Tasks (a probe is worth what it reads beyond a
        control); random projection: Johnson & Lindenstrauss 1984.
    """
    pixels = np.stack(
        [
            resize_image(source[int(index)].image, SIDE).ravel() / 255.0
            for index in tqdm(indices, desc=progress, unit="img", disable=progress is None)
        ]
    )
    projection = np.random.default_rng((seed, 4)).normal(size=(pixels.shape[1], width))
    return (pixels @ projection / np.sqrt(pixels.shape[1])).astype(np.float32)
