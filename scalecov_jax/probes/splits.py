"""Splits of images into a training and a held-out part, as masks."""

import numpy as np
from jaxtyping import Bool, Float


def random_splits(count: int, splits: int, seed: int, held_out: float = 0.3) -> Bool[np.ndarray, "S N"]:
    """Independent random splits; True marks the training part.

    Args:
        count: Number of images N.
        splits: Number of splits S.
        seed: Split s depends on (seed, s) alone, so that more splits leave the first ones as they were.
        held_out: Share of the images that is held out, rounded up to a whole number of images.

    Raises:
        ValueError: Fewer than two images would lie on one side.
    """
    held = int(np.ceil(held_out * count))
    if held < 2 or count - held < 2:
        raise ValueError(
            f"Splitting {count} images with a share of {held_out} held out leaves {count - held} to train and {held} to "
            "test; both need at least 2."
        )
    masks = np.ones((splits, count), bool)
    for split, mask in enumerate(masks):
        mask[np.random.default_rng((seed, split)).permutation(count)[:held]] = False
    return masks


def shuffled(values: Float[np.ndarray, " N"], splits: int, seed: int) -> Float[np.ndarray, "S N"]:
    """The control `shuffled_measure`: one random permutation of the measure a split."""
    return np.stack([np.random.default_rng((seed, split, 1)).permutation(values) for split in range(splits)])
