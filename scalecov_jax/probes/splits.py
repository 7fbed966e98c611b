"""Splits of images into a training and a held-out part, as masks."""

from collections.abc import Sequence

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


def grouped_splits(
    groups: Sequence[str] | np.ndarray,
    splits: int,
    seed: int,
    held_out: float = 0.3,
    *,
    classes: Sequence[float] | np.ndarray | None = None,
) -> Bool[np.ndarray, "S N"]:
    """Independent random splits that keep every group on one side, and have every class on both; True marks the training part.

    Groups are dealt at random until the held-out part has `held_out` of the groups (rounded, at least one); a deal that leaves a
    class out of one part is drawn again.

    Args:
        groups: Patient, slide or source image of each image.
        splits: Number of splits S.
        seed: Split s depends on (seed, s) alone.
        held_out: Share of the groups that is held out.
        classes: Class of each image, such as its magnification; when absent, nothing but the groups counts.

    Raises:
        ValueError: Fewer than two groups, a class that occurs in one group only, or no split found that has every class on both
            sides; names the classes.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    kinds, kind = np.unique([0] * len(member) if classes is None else classes, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"All {len(member)} images belong to {', '.join(map(str, names)) or 'no group'}; a split by source image or patient "
            "needs at least two."
        )
    present = np.zeros((len(kinds), len(names)), bool)
    present[kind, member] = True
    if classes is not None and (lonely := [f"{kinds[k]:g}" for k in np.flatnonzero(present.sum(1) < 2)]):
        raise ValueError(
            f"Class {', '.join(lonely)} occurs in one group only, so that it is missing from one part of every split; add images "
            "or leave the class out (config.magnifications)."
        )
    held = min(max(1, round(held_out * len(names))), len(names) - 1)
    masks = np.ones((splits, len(member)), bool)
    for split, mask in enumerate(masks):
        rng = np.random.default_rng((seed, split))
        for _ in range(10_000):
            out = np.zeros(len(names), bool)
            out[rng.permutation(len(names))[:held]] = True
            if present[:, out].any(1).all() and present[:, ~out].any(1).all():
                break
        else:
            raise ValueError(
                f"No split of {len(names)} groups with {held} held out has every class on both sides; classes and their groups: "
                + ", ".join(f"{kinds[k]:g}: {present[k].sum()}" for k in range(len(kinds)))
            )
        mask[out[member]] = False
    return masks
