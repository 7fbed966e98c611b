"""Splits of images into a training and a held-out part, as masks; True marks the training part."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

HELD_OUT = 0.3  # of the images, as published
Kind = Literal["auto", "random", "stratified", "grouped", "k_fold", "grouped_k_fold", "leave_one_group_out"]

# Kinds that know nothing of groups, and those that keep groups together instead.
UNGROUPED: dict[str, Kind] = {"random": "grouped", "stratified": "grouped", "k_fold": "grouped_k_fold"}


def make_splits(
    kind: Kind | str,
    count: int,
    splits: int,
    seed: int,
    *,
    groups: Sequence[str] | np.ndarray | None = None,
    values: Sequence[float] | np.ndarray | None = None,
) -> Bool[np.ndarray, "S N"]:
    """Splits of a kind that a config names; True marks the training part.

    auto is grouped where several images belong to one group, and random otherwise; leave_one_group_out makes as many splits as
    there are groups. Groups are the patients, slides or source images of the images; values are of the concept measure, and count
    for stratified alone.

    Raises:
        ValueError: No such kind (the nearest is named), groups or values missing or not one an image, or what the kind's own
            function refuses.
    """
    kinds = get_args(Kind)
    if kind not in kinds:
        near = get_close_matches(kind, kinds, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"No splits are called {kind!r}; {hint}There are {', '.join(kinds)}.")
    if kind == "auto":
        kind = "random" if groups is None or len({*groups}) == len(groups) else "grouped"
    if kind == "random":
        return random_splits(count, splits, seed)
    if kind == "k_fold":
        return k_folds(count, splits, seed)
    if kind == "stratified":
        return stratified_splits(_one_an_image(kind, "values", values, count), splits, seed)
    groups = _one_an_image(kind, "groups", groups, count)
    if kind == "grouped":
        return grouped_splits(groups, splits, seed)
    return grouped_k_folds(groups, splits, seed) if kind == "grouped_k_fold" else leave_one_group_out(groups)


def random_splits(count: int, splits: int, seed: int, held_out: float = HELD_OUT) -> Bool[np.ndarray, "S N"]:
    """Independent random splits; `held_out` of the images, rounded up, are held out.

    Split s depends on (seed, s) alone, so that more splits leave the first ones as they were.

    Raises:
        ValueError: Fewer than two images would lie on one side.
    """
    held = _held_out(count, held_out)
    masks = np.ones((splits, count), bool)
    for split, mask in enumerate(masks):
        mask[np.random.default_rng((seed, split)).permutation(count)[:held]] = False
    return masks


def shuffled(values: Float[np.ndarray, " N"], splits: int, seed: int) -> Float[np.ndarray, "S N"]:
    """The control `shuffled_measure`: one random permutation of the measure a split."""
    return np.stack([np.random.default_rng((seed, split, 1)).permutation(values) for split in range(splits)])


def stratified_splits(
    values: Sequence[float] | Sequence[str] | np.ndarray,
    splits: int,
    seed: int,
    held_out: float = HELD_OUT,
    bins: int = 5,
) -> Bool[np.ndarray, "S N"]:
    """Independent random splits with the same distribution of a measure on both sides.

    Each bin gives its share to the held-out part, to within one image. As many images are held out as in `random_splits`, and
    split s depends on (seed, s) alone. At most `bins` distinct values, and names, are classes with a bin each; more are parted by
    rank into bins of equal size, equal values never.

    Raises:
        ValueError: Fewer than two images would lie on one side, values that are not finite, or no bin.
    """
    values = np.asarray(values)
    numeric = np.issubdtype(values.dtype, np.number)
    if bins < 1 or (numeric and not np.isfinite(values).all()):
        raise ValueError(
            f"Stratifying needs finite values and at least one bin, got bins={bins} and {values.tolist()}."
        )
    held = _held_out(len(values), held_out)
    if numeric and len(np.unique(values)) > bins:
        values = np.floor((rankdata(values) - 0.5) * bins / len(values))
    _, member, sizes = np.unique(values, return_inverse=True, return_counts=True)
    wanted = held_out * sizes
    masks = np.ones((splits, len(member)), bool)
    for split, mask in enumerate(masks):
        rng = np.random.default_rng((seed, split))
        # Largest remainders take what rounding down leaves, equal ones by lot.
        quota = np.floor(wanted).astype(int)
        order = np.lexsort((rng.random(len(sizes)), np.round(quota - wanted, 9)))
        quota[order[: held - quota.sum()]] += 1
        for one, take in enumerate(quota):
            mask[rng.permutation(np.flatnonzero(member == one))[:take]] = False
    return masks


def grouped_splits(
    groups: Sequence[str] | np.ndarray,
    splits: int,
    seed: int,
    held_out: float = HELD_OUT,
    *,
    classes: Sequence[float] | np.ndarray | None = None,
) -> Bool[np.ndarray, "S N"]:
    """Independent random splits that keep every group on one side, and have every class on both.

    Groups are assigned at random until the held-out part has `held_out` of the groups (rounded, at least one); an assignment
    that leaves out one of the `classes` (such as magnifications) of one part is drawn again. Split s depends on (seed, s) alone.

    Raises:
        ValueError: Fewer than two groups, a class that occurs in one group only, or no split found that has every class on both
            sides; names the classes.
    """
    names, member = _groups(groups)
    kinds, kind = np.unique([0] * len(member) if classes is None else classes, return_inverse=True)
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


def k_folds(count: int, folds: int, seed: int) -> Bool[np.ndarray, "S N"]:
    """Every image is held out in exactly one fold; folds are random, and differ by at most one image in size.

    Raises:
        ValueError: Fewer than two folds, or a fold would hold out fewer than two images, whose R2 is undefined.
    """
    if not 2 <= folds <= count // 2:
        raise ValueError(
            f"{count} images cannot be assigned to {folds} folds; expected 2 to {count // 2} folds, so that each holds out at "
            "least 2 images."
        )
    fold = np.empty(count, int)
    fold[np.random.default_rng((seed, 0)).permutation(count)] = np.arange(count) % folds
    return _held_out_once(fold, folds)


def grouped_k_folds(groups: Sequence[str] | np.ndarray, folds: int, seed: int) -> Bool[np.ndarray, "S N"]:
    """Every group is held out in exactly one fold, as a whole.

    Groups are assigned from the largest to the smallest, each to the fold that has the fewest images so far; groups of the same
    size in random order. The sizes of two folds differ by at most that of the largest group.

    Raises:
        ValueError: Fewer than two folds, or fewer groups than folds.
    """
    names, member = _groups(groups)
    if not 2 <= folds <= len(names):
        raise ValueError(
            f"{len(names)} groups cannot be assigned to {folds} folds; expected 2 to {len(names)} folds, since groups stay whole."
        )
    sizes = np.bincount(member)
    fold, filled = np.empty(len(names), int), np.zeros(folds, int)
    for group in np.lexsort((np.random.default_rng((seed, 0)).random(len(names)), -sizes)):
        fold[group] = np.argmin(filled)
        filled[fold[group]] += sizes[group]
    return _held_out_once(fold[member], folds)


def leave_one_group_out(groups: Sequence[str] | np.ndarray) -> Bool[np.ndarray, "S N"]:
    """One split a group, in the order of their names, that holds out this group alone.

    Raises:
        ValueError: Fewer than two groups.
    """
    names, member = _groups(groups)
    return _held_out_once(member, len(names))


def padded(masks: Bool[np.ndarray, "S N"]) -> tuple[Int[np.ndarray, "S n"], Float[np.ndarray, "S n"]]:
    """Indices of the True entries, padded with 0 to the longest row, and weights that are 0 where padded."""
    counts = masks.sum(1)
    weight = np.arange(counts.max())[None] < counts[:, None]
    indices = np.zeros(weight.shape, np.int32)
    indices[weight] = np.nonzero(masks)[1]
    return indices, weight.astype(np.float64)


def _held_out_once(fold: Int[np.ndarray, " N"], folds: int) -> Bool[np.ndarray, "S N"]:
    return fold[None] != np.arange(folds)[:, None]


def _held_out(count: int, share: float) -> int:
    held = int(np.ceil(share * count))
    if held < 2 or count - held < 2:
        raise ValueError(
            f"Splitting {count} images with a share of {share} held out leaves {count - held} to train and {held} to "
            "test; both need at least 2."
        )
    return held


def _groups(groups: Sequence[str] | np.ndarray) -> tuple[np.ndarray, Int[np.ndarray, " N"]]:
    """Sorted names and the index of each image's group."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"All {len(member)} images belong to {', '.join(map(str, names)) or 'no group'}; a split by source image or patient "
            "needs at least two."
        )
    return names, member


def _one_an_image(
    kind: str, name: str, given: Sequence[str] | Sequence[float] | np.ndarray | None, count: int
) -> np.ndarray:
    if given is None or len(given) != count:
        found = "none" if given is None else f"{len(given)}"
        raise ValueError(
            f"Splits of kind {kind!r} need {name}, one for each of the {count} images; got {found}. Give them, or take kind "
            "'random' or 'k_fold'."
        )
    return np.asarray(given)
