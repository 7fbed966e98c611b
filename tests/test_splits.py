"""Splits by group: no group on both sides, every class on both, and honest refusals."""

import numpy as np
import pytest

from scalecov_jax.probes.splits import grouped_splits

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
