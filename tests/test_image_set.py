"""Sets of images: what is known without decoding, parts, and images changed when they are read."""

import pickle

import numpy as np
import pytest

from scalecov_jax.imaging.image_set import Box, Example, ImageError, Source, boxes_of, concatenate, image_set


def example(number, box=None):
    image = np.full((4, 5, 3), number, np.uint8)
    return Example(image, f"kind {number % 2}", box, None, f"p{number // 2}", f"{number}.png", 10 + number)


IMAGES = image_set([example(number, Box(1, 2, 3, 4) if number else None) for number in range(4)])


def same(first, second):
    assert first._replace(image=None) == second._replace(image=None)
    np.testing.assert_array_equal(first.image, second.image)


def test_a_set_is_a_source_of_its_examples():
    assert isinstance(IMAGES, Source)
    assert len(IMAGES) == len([*IMAGES]) == 4
    same(IMAGES[3], example(3, Box(1, 2, 3, 4)))
    same(IMAGES[-4], example(0))
    same(pickle.loads(pickle.dumps(IMAGES))[1], IMAGES[1])
    with pytest.raises(IndexError):
        IMAGES[4]


def test_what_is_known_before_decoding():
    blind = IMAGES.take([2, 0])
    object.__setattr__(blind, "decode", lambda index: pytest.fail("decoded"))
    assert boxes_of(blind) == [Box(1, 2, 3, 4), None]
    assert (blind.sized, blind.outline(0).image.shape, blind.outline(0).name) == (True, (4, 5, 3), "2.png")
    assert [*blind.column("group")] == ["p1", "p0"]
    with pytest.raises(ValueError, match="did you mean label"):
        blind.column("labels")


def test_parts_and_what_is_left_out():
    kept = IMAGES.where(np.array([True, False, True, False]), "odd", ["", "one", "", "three"])
    assert [one.name for one in kept] == ["0.png", "2.png"]
    assert [(*one,) for one in kept.skipped] == [("1.png", "odd", "one"), ("3.png", "odd", "three")]
    again = kept.take([1])
    same(again[0], IMAGES[2])
    both = concatenate([kept, IMAGES.take([3])])
    assert [one.name for one in both] == ["0.png", "2.png", "3.png"]
    assert both.skipped == kept.skipped
    assert IMAGES.assign(group=[*"abcd"])[2].group == "c"


@pytest.mark.parametrize(
    ("most", "kept"), [(0, range(7)), (7, range(7)), (9, range(7)), (3, [0, 3, 6]), (1, [0])]
)
def test_limits_are_spread_over_the_list(most, kept):
    seven = image_set(map(example, range(7))).spread(most)
    assert [one.name for one in seven] == [f"{index}.png" for index in kept]


def test_images_changed_when_read_forget_what_was_known_of_their_frame():
    def halve(example):
        if example.name == "3.png":
            raise ValueError("no disc")
        return example._replace(image=example.image[:2])

    halved = IMAGES.map(halve)
    assert (halved[1].image.shape, halved[1].box, halved[1].file_bytes, halved.sized) == (
        (2, 5, 3),
        None,
        None,
        False,
    )
    assert halved[1].group == "p0"
    with pytest.raises(ImageError, match=r"3\.png: no disc"):
        halved[3]
