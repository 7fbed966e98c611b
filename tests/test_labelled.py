"""Labelled images: where labels come from, what is no label, and how images become square."""

import csv

import numpy as np
import pandas as pd
import pytest

from scalecov_jax.imaging import scenes
from scalecov_jax.imaging.decoding import central_square, clip_to_square
from scalecov_jax.imaging.image_set import Box, Example, boxes_of, image_set
from scalecov_jax.imaging.labelled import class_indices, open_labelled, parse_classes, squared

RNG = np.random.default_rng(0)


def labels(*class_names):
    return pd.DataFrame({"name": [f"{index}.png" for index in range(len(class_names))], "label": class_names})


def test_shared_photographs(shared):
    images = open_labelled(str(shared / "data" / "imagenet_samples"))
    assert len(images) == 142
    assert images.skipped == ()
    with (shared / "data" / "imagenet_samples" / "index.csv").open() as file:
        truth = {row["file"]: int(row["class_index"]) for row in csv.DictReader(file)}
    assert (
        dict(
            zip(
                images.table["name"].str.removeprefix("images/"),
                class_indices(images.table, 1000),
                strict=True,
            )
        )
        == truth
    )


# Boxes and scenes


def test_boxes_of_several_classes(shared):
    folder = str(shared / "data" / "voc_single")
    images = open_labelled(folder, "train:466, cat:281")
    assert [*images.table["label"]] == ["466"] * 103 + ["281"] * 133
    assert images.skipped == ()
    example, known = images[150], images.outline(150)
    assert example._replace(image=None, file_bytes=None) == known._replace(image=None)
    assert example.image.shape == known.image.shape
    with pytest.raises(ValueError, match="no object of class 'dog'"):
        open_labelled(folder, "train:466,dog:5")
    with pytest.raises(ValueError, match="give class_indices as well, as in car:751"):
        open_labelled(folder)


def test_scenes_are_of_all_classes(monkeypatch):
    def blank(name, count, seed, size):
        image = np.zeros((size, size, 3), np.uint8)
        return [
            Example(image, name, Box(1, 1, 4, 8), None, "", f"{name}_{index}_{seed}")
            for index in range(count)
        ]

    monkeypatch.setattr(scenes, "examples", blank)
    images = open_labelled("scenes", count=2, seed=3, size=8)
    assert [*images.table["label"]] == list(np.repeat(scenes.CLASSES, 2))
    assert images.outline(2)._replace(image=None) == images[2]._replace(image=None)
    np.testing.assert_array_equal(
        class_indices(images.table, 16, scenes.CLASSES), np.repeat(np.arange(16), 2)
    )


def test_classes_are_pairs():
    assert parse_classes(" n02058221:146, racing car : sports_car,") == {
        "n02058221": "146",
        "racing car": "sports_car",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("car", "got car"),
        ("car:751,:3,cat:", "got :3, cat:"),
        ("", "got none"),
        ("car:1,car:2", "named twice in 'car:1,car:2'"),
    ],
)
def test_classes_that_are_no_pairs(text, message):
    with pytest.raises(ValueError, match=message):
        parse_classes(text)


# Labels and classes


def test_labels_are_integers_or_names():
    found = class_indices(labels("2", "cock", "0", "+1"), 3, ("tench", "cock", "hen"))
    np.testing.assert_array_equal(found, [2, 1, 0, 1])


@pytest.mark.parametrize("label", ["3", "-1", "1.0", "1_0", "", "nan", "²"])
def test_labels_that_are_no_class(label):
    with pytest.raises(
        ValueError, match=r"no class of small, which has 3 classes \(0 to 2; it names none of them\)"
    ) as error:
        class_indices(labels("0", label), 3, network="small")
    assert "1.png: label" in str(error.value)
    assert "0.png" not in str(error.value)


def test_all_bad_labels_at_once_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"1\.png: label 'cok', did you mean cock\?; 2\.png: label 7\.$"):
        class_indices(labels("tench", "cok", "7"), 3, ("tench", "cock", "hen"))


# Squares


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 9), (9, 4), (6, 6), (1, 7)])
def test_crop_and_clipped_box_agree_with_a_painted_box(shape):
    height, width = shape
    rng = np.random.default_rng(height * 10 + width)
    for _ in range(40):
        (left, right), (top, bottom) = (np.sort(rng.integers(1, n + 1, 2)) for n in (width, height))
        painted = np.zeros((height, width, 3), np.uint8)
        painted[top - 1 : bottom, left - 1 : right] = 1
        rows, columns = np.nonzero(central_square(painted)[..., 0])
        box = clip_to_square(Box(left, top, right, bottom), height, width)
        if len(rows):
            assert box == (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
        else:
            assert box is None


def test_squared_crops_clips_and_leaves_out():
    pixels = RNG.integers(0, 256, (4, 8, 3), dtype=np.uint8)
    boxes = [Box(1, 1, 2, 4), Box(2, 1, 4, 2), None]
    images = image_set(Example(pixels, "0", box, None, "", f"{index}") for index, box in enumerate(boxes))
    cropped = squared(images, "crop")
    assert [(one.name, one.reason) for one in cropped.skipped] == [("0", "object outside the central square")]
    assert boxes_of(cropped) == [Box(1, 1, 2, 2), None]
    assert cropped.table[["width", "height"]].to_numpy().tolist() == [[4, 4], [4, 4]]
    for index in range(2):
        np.testing.assert_array_equal(cropped[index].image, pixels[:, 2:6])
        assert cropped[index].box == boxes_of(cropped)[index]
    assert squared(images, "stretch") is images
