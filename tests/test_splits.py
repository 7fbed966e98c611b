"""Splits: no group on both sides, every class on both, every image held out once, and honest refusals."""

from typing import get_args

import numpy as np
import pytest

from scalecov_jax.probes.splits import (
    Kind,
    grouped_k_folds,
    grouped_splits,
    k_folds,
    leave_one_group_out,
    make_splits,
    stratified_splits,
)

GROUPS = np.repeat([f"g{i}" for i in range(10)], 6)
CLASSES = np.tile([5.0, 10.0, 40.0], 20)


def test_no_group_lies_on_both_sides():
    for mask in grouped_splits(GROUPS, 20, 1, classes=CLASSES):
        assert not {*GROUPS[mask]} & {*GROUPS[~mask]}
        assert len({*GROUPS[~mask]}) == 3


def test_every_class_is_on_both_sides_even_when_rare():
    classes = CLASSES.copy()
    classes[[0, 6]] = 20.0  # in g0 and g1 alone
    masks = grouped_splits(GROUPS, 20, 1, classes=classes)
    for mask in masks:
        assert {*classes[mask]} == {*classes[~mask]} == {5.0, 10.0, 20.0, 40.0}


def test_a_split_depends_on_its_number_and_the_seed_alone():
    masks = grouped_splits(GROUPS, 5, 1, classes=CLASSES)
    np.testing.assert_array_equal(masks[:2], grouped_splits(GROUPS, 2, 1, classes=CLASSES))
    assert len({mask.tobytes() for mask in masks}) > 1
    assert (masks != grouped_splits(GROUPS, 5, 2, classes=CLASSES)).any()


def test_without_classes_only_the_groups_count():
    classes = CLASSES.copy()
    classes[GROUPS == "g3"] = 8.0
    masks = grouped_splits(GROUPS, 50, 0)
    assert any(8.0 not in classes[mask] for mask in masks)
    assert not any({*GROUPS[mask]} & {*GROUPS[~mask]} for mask in masks)


def test_one_source_image_is_refused():
    with pytest.raises(ValueError, match="All 4 images belong to only; a split by source"):
        grouped_splits(["only"] * 4, 1, 0)


def test_a_class_of_one_group_is_refused_by_name():
    classes = CLASSES.copy()
    classes[GROUPS == "g3"] = 8.0
    with pytest.raises(ValueError, match="Class 8 occurs in one group only"):
        grouped_splits(GROUPS, 1, 0, classes=classes)


def test_an_impossible_split_is_refused():
    groups = np.array(["a", "a", "b", "b", "c", "c", "d", "d"])
    classes = np.array([1.0, 1, 1, 2, 2, 3, 3, 1])  # 1: a b d; 2: b c; 3: c d
    with pytest.raises(ValueError, match=r"No split of 4 groups with 1 held out.*1: 3, 2: 2, 3: 2"):
        grouped_splits(groups, 1, 0, 0.25, classes=classes)


def test_stratified_splits_keep_the_quantiles():
    values = np.random.default_rng(0).lognormal(size=84)
    masks = stratified_splits(values, 20, seed=3, bins=4)
    assert set((~masks).sum(1)) == {26}
    member = np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values)
    for mask in masks:
        for one in range(4):
            assert abs((member[~mask] == one).sum() - 0.3 * (member == one).sum()) < 1
    assert len({mask.tobytes() for mask in masks}) == 20


@pytest.mark.parametrize("values", [np.array([0.0] * 33 + [1.0] * 7), np.array(["car"] * 33 + ["bird"] * 7)])
def test_stratified_splits_keep_classes(values):
    for mask in stratified_splits(values, 10, seed=0):
        assert (values[~mask] == values[-1]).sum() in (2, 3)
        assert (~mask).sum() == 12


@pytest.mark.parametrize("sizes", [(50, 2, 2, 2, 2, 2), (2, 2, 2, 2, 2, 50), (2, 2, 50, 2, 2, 2)])
def test_stratified_splits_never_part_equal_values(sizes):
    values = np.repeat(np.arange(6.0), sizes)
    for mask in stratified_splits(values, 20, seed=0):
        assert (values[~mask] == np.argmax(sizes)).sum() == 15


@pytest.mark.parametrize(("count", "folds"), [(10, 5), (23, 4), (60, 2)])
def test_k_folds_hold_every_image_out_once(count, folds):
    masks = k_folds(count, folds, seed=0)
    assert masks.shape == (folds, count)
    np.testing.assert_array_equal((~masks).sum(0), 1)
    assert np.ptp((~masks).sum(1)) <= 1
    assert (masks != k_folds(count, folds, seed=1)).any()


def test_grouped_k_folds_divide_no_group_and_are_balanced():
    rng = np.random.default_rng(0)
    groups = np.repeat([f"patient {i}" for i in range(30)], rng.integers(1, 12, size=30))
    largest = np.unique(groups, return_counts=True)[1].max()
    seen = set()
    for seed in range(5):
        masks = grouped_k_folds(groups, 4, seed)
        np.testing.assert_array_equal((~masks).sum(0), 1)
        assert not any({*groups[mask]} & {*groups[~mask]} for mask in masks)
        assert np.ptp((~masks).sum(1)) <= largest
        seen.add(masks.tobytes())
    assert len(seen) > 1


def test_leave_one_group_out():
    masks = leave_one_group_out(GROUPS)
    assert [{*GROUPS[~mask]} for mask in masks] == [{f"g{i}"} for i in range(10)]
    np.testing.assert_array_equal((~masks).sum(0), 1)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_make_splits_is_reproducible_and_partitions(kind):
    values = np.random.default_rng(0).normal(size=60)
    masks = make_splits(kind, 60, 4, 7, groups=GROUPS, values=values)
    assert masks.shape == (10 if kind == "leave_one_group_out" else 4, 60)
    assert masks.dtype == bool
    assert masks.any(1).all()
    assert (~masks).any(1).all()
    np.testing.assert_array_equal(masks, make_splits(kind, 60, 4, 7, groups=GROUPS, values=values))
    if kind in ("random", "stratified", "grouped"):
        np.testing.assert_array_equal(masks[:2], make_splits(kind, 60, 2, 7, groups=GROUPS, values=values))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_splits("kfold", 9, 2, 0), "called 'kfold'; did you mean k_fold"),
        (
            lambda: make_splits("grouped", 9, 2, 0),
            "'grouped' need groups, one for each of the 9 images; got none",
        ),
        (
            lambda: make_splits("grouped_k_fold", 9, 2, 0, groups=["a"] * 8),
            "one for each of the 9 images; got 8",
        ),
        (lambda: make_splits("stratified", 9, 2, 0), "'stratified' need values"),
        (
            lambda: grouped_k_folds(["a", "a", "b"], 5, 0),
            "2 groups cannot be assigned to 5 folds; expected 2 to 2",
        ),
        (lambda: k_folds(9, 5, 0), "9 images cannot be assigned to 5 folds; expected 2 to 4"),
        (lambda: leave_one_group_out(["a", "a"]), "All 2 images belong to a"),
        (lambda: stratified_splits([1.0, np.nan] * 5, 1, 0), "needs finite values"),
        (lambda: stratified_splits([1.0, 2.0, 3.0], 1, 0), "both need at least 2"),
    ],
)
def test_splits_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
