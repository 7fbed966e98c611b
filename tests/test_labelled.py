"""Labelled images: where labels come from, what is no label, and how images become square."""

import csv

import numpy as np
import pytest
from PIL import Image

from scalecov_jax.images import scenes
from scalecov_jax.images.example import (
    Box,
    Example,
    ImageError,
    Source,
    central_square,
    clip_to_square,
)
from scalecov_jax.images.labelled import (
    Label,
    LabelledImages,
    class_indices,
    open_labelled,
    parse_classes,
    read_index,
    scene_images,
    spread,
    squared,
)

RNG = np.random.default_rng(0)


def save(path, height=4, width=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_index(folder, *rows, columns=("file", "name", "class_index")):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder


def labels(*class_names):
    return [Label(f"{index}.png", name, None, 4, 4) for index, name in enumerate(class_names)]


# Folders with index.csv


def test_files_beside_the_index_and_in_images(tmp_path):
    beside = save(tmp_path / "a.png", 4, 6)
    inside = save(tmp_path / "images" / "b.png", 7, 5)
    images = read_index(write_index(tmp_path, ("b.png", "hen", " 8"), ("a.png", "cock", "tench")))
    assert isinstance(images, Source)
    assert images.labels == (Label("b.png", "8", None, 5, 7), Label("a.png", "tench", None, 6, 4))
    assert [one.name for one in images] == ["b.png", "a.png"]
    np.testing.assert_array_equal(images[0].image, inside)
    np.testing.assert_array_equal(images[-1].image, beside)
    assert (images[0].label, images[0].box, images.skipped) == ("8", None, ())
    with pytest.raises(IndexError):
        images[2]


def test_all_problems_of_an_index_at_once(tmp_path):
    folder = tmp_path / "photographs"
    for name in ("a.png", "unlabelled.png", "images/forgotten.JPG", "twice.png", "../outside.png"):
        save(folder / name)
    rows = [("a.png", "", "3"), ("gone.png", "", "4"), ("unlabelled.png", "", " "), ("twice.png", "", "1")]
    rows += [("twice.png", "", "2"), ("../outside.png", "", "5"), ("", "", "6")]
    with pytest.raises(ValueError, match=r"photographs/index\.csv: ") as error:
        read_index(write_index(folder, *rows))
    for problem in (
        "line 3: no file gone.png",
        "line 4: unlabelled.png has no label",
        "line 6: twice.png has a label already",
        "line 7: ../outside.png lies outside the folder",
        "line 8: names no file",
        "images/forgotten.JPG has no label (no line names it)",
    ):
        assert problem in str(error.value)
    assert "a.png" not in str(error.value).replace("unlabelled.png", "")


def test_many_problems_are_counted(tmp_path):
    rows = [(f"{index}.png", "", "1") for index in range(14)]
    with pytest.raises(ValueError, match=r"line 11: no file 9\.png; and 4 more\.$"):
        read_index(write_index(tmp_path, *rows))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "photographs: no such folder; expected index.csv with the columns file and"),
        (lambda folder: (folder / "Annotations").mkdir(parents=True), "give class_indices as well, as in car:751"),
        (lambda folder: write_index(folder, columns=("file", "class")), "no column class_index; the columns are file, class"),
        (lambda folder: write_index(folder), "lists no image"),
        (lambda folder: write_index(folder, columns=()), "no column file and class_index; the columns are none"),
    ],
)  # fmt: skip
def test_folders_without_labels(tmp_path, prepare, message):
    prepare(tmp_path / "photographs")
    with pytest.raises(ValueError, match=message):
        open_labelled(str(tmp_path / "photographs"))


def test_unreadable_images_are_skipped_by_name(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    images = read_index(write_index(tmp_path, ("b.png", "", "1"), ("a.png", "", "2")))
    assert [(one.name, one.reason) for one in images.skipped] == [("b.png", "unreadable image")]
    assert images[0].label == "2"


def test_truncated_images_cost_only_themselves(tmp_path):
    save(tmp_path / "a.png", 40, 40)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    images = squared(read_index(write_index(tmp_path, ("a.png", "", "2"))), "crop")
    with pytest.raises(ImageError, match=r"a\.png"):
        images[0]


def test_shared_photographs(shared):
    images = open_labelled(str(shared / "data" / "imagenet_samples"))
    assert len(images) == 142
    assert images.skipped == ()
    with (shared / "data" / "imagenet_samples" / "index.csv").open() as file:
        truth = {row["file"]: int(row["class_index"]) for row in csv.DictReader(file)}
    found = class_indices(images.labels, 1000)
    assert {one.name: index for one, index in zip(images.labels, found, strict=True)} == truth


# Boxes and scenes


def test_boxes_of_several_classes(shared):
    folder = str(shared / "data" / "voc_single")
    images = open_labelled(folder, "train:466, cat:281")
    assert len(images) == 103 + 133
    assert [one.class_name for one in images.labels] == ["466"] * 103 + ["281"] * 133
    example = images[150]
    assert (example.label, example.name, example.box) == (
        "cat",
        images.labels[150].name,
        images.labels[150].box,
    )
    assert example.image.shape[:2] == (images.labels[150].height, images.labels[150].width)
    with pytest.raises(ValueError, match="no object of class 'dog'"):
        open_labelled(folder, "train:466,dog:5")


def test_scenes_are_of_all_classes(monkeypatch):
    def blank(name, count, seed, size):
        image = np.zeros((size, size, 3), np.uint8)
        return [
            Example(image, name, Box(1, 1, 4, 8), None, "", f"{name}_{index}_{seed}")
            for index in range(count)
        ]

    monkeypatch.setattr(scenes, "examples", blank)
    images = open_labelled("scenes", count=2, seed=3, size=8)
    assert [one.class_name for one in images.labels] == list(np.repeat(scenes.CLASSES, 2))
    assert images.labels[2] == Label(f"{scenes.CLASSES[1]}_0_3", scenes.CLASSES[1], Box(1, 1, 4, 8), 8, 8)
    assert images[31].name == images.labels[31].name
    np.testing.assert_array_equal(
        class_indices(images.labels, 16, scenes.CLASSES), np.repeat(np.arange(16), 2)
    )
    assert len(scene_images(1, 0, 4)) == 16


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
    images = LabelledImages(
        tuple(Label(f"{index}", "0", box, 8, 4) for index, box in enumerate(boxes)),
        lambda index: Example(pixels, "0", boxes[index], None, "", f"{index}"),
    )
    cropped = squared(images, "crop")
    assert [(one.name, one.reason) for one in cropped.skipped] == [("0", "object outside the central square")]
    assert cropped.labels == (Label("1", "0", Box(1, 1, 2, 2), 4, 4), Label("2", "0", None, 4, 4))
    for index in range(2):
        np.testing.assert_array_equal(cropped[index].image, pixels[:, 2:6])
        assert cropped[index].box == cropped.labels[index].box
    assert squared(images, "stretch") is images


@pytest.mark.parametrize(
    ("most", "kept"), [(0, range(7)), (7, range(7)), (9, range(7)), (3, [0, 3, 6]), (1, [0])]
)
def test_limits_are_spread_over_the_list(most, kept):
    images = LabelledImages(
        tuple(labels(*"0123456")),
        lambda index: Example(np.zeros((4, 4, 3), np.uint8), None, None, None, "", f"{index}.png"),
    )
    found = spread(images, most)
    assert [one.name for one in found.labels] == [f"{index}.png" for index in kept]
    assert [one.name for one in found] == [f"{index}.png" for index in kept]
