"""Folders as researchers have them: what counts as an image, masks beside it or in a table, groups, classes, labels."""

import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from scalecov_jax.imaging.decoding import decode_image
from scalecov_jax.imaging.folder import (
    annotated,
    class_folders,
    enough,
    group_of,
    read_folder,
    side_of,
    with_sizes,
)
from scalecov_jax.imaging.image_set import ImageError, count_reasons
from scalecov_jax.imaging.sources import open_images, regroup, with_values

RNG = np.random.default_rng(0)


def write(path, size=(5, 4), value=None):
    """Random pixels, or one value; size is (width, height)."""
    path.parent.mkdir(exist_ok=True, parents=True)
    shape = (*size[::-1], 3)
    pixels = RNG.integers(0, 256, shape, np.uint8) if value is None else np.full(shape, value, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_nuclei(folder, stem, *, size=(40, 30), image="image.png", mask=True, labels=False, mask_size=None):
    """An image and its annotation: one bright square, and with labels a second one, numbered 300 and 7."""
    pixels = write(folder / f"{stem}_{image}", size)
    truth = np.zeros((mask_size or size)[::-1], np.uint16)
    truth[5:15, 5:15] = 300
    if labels:
        truth[20:24, 5:9] = 7
        Image.fromarray(truth).save(folder / f"{stem}_labels.png")
    if mask:
        Image.fromarray((truth > 0).astype(np.uint8) * 255).save(folder / f"{stem}_mask.png")
    return pixels


def names(images):
    return [*images.table["name"]]


# What is an image


def test_every_format_at_any_depth_and_nothing_hidden(tmp_path):
    for name in (
        "b.JPG",
        "a/x.TIFF",
        "a/y.webp",
        "a/b/z.jpeg",
        ".hidden.png",
        "._b.png",
        ".cache/c.png",
        "__MACOSX/b.png",
    ):
        write(tmp_path / name)
    (tmp_path / "Thumbs.db").touch()
    (tmp_path / "notes.txt").touch()
    assert names(read_folder(tmp_path)) == ["a/b/z.jpeg", "a/x.TIFF", "a/y.webp", "b.JPG"]
    assert [one.image.shape for one in read_folder(tmp_path)] == [(4, 5, 3)] * 4


def test_links_are_followed_but_never_in_circles(tmp_path):
    write(tmp_path / "elsewhere/1.png")
    (tmp_path / "set/a").mkdir(parents=True)
    write(tmp_path / "set/0.png")
    (tmp_path / "set/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/a/circle").symlink_to(tmp_path / "set")
    images = read_folder(tmp_path / "set")
    assert names(images) == ["0.png", "linked/1.png"]
    assert count_reasons(images.skipped) == {"link to a folder around it": 1}


def test_names_that_are_not_utf_8_are_left_out(tmp_path):
    write(tmp_path / "0.png")
    (tmp_path / "0.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/b\xe4r.png"))
    write(tmp_path / "1.png")
    images = read_folder(tmp_path)
    assert names(images) == ["1.png"]
    assert count_reasons(images.skipped) == {"name that is not UTF-8": 1}


def test_folders_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, problem in (("none", "no such folder"), ("empty", "no image")):
        with pytest.raises(ValueError, match=problem):
            read_folder(tmp_path / folder)
    write(tmp_path / "few/1.png")
    with pytest.raises(ValueError, match="few: 1 usable images; at least 10"):
        enough(open_images(str(tmp_path / "few")), "few")


# Masks


def test_masks_of_a_table_are_no_images(tmp_path):
    for name in ("eyes/1.tif", "eyes/2.tif", "eyes/1_vessels.png", "eyes/2_vessels.png", "eyes/3.png"):
        write(tmp_path / name, value=0 if name == "eyes/2_vessels.png" else 200)
    assert len(read_folder(tmp_path / "eyes")) == 5
    lines = ["\ufefffile,grade,mask", "eyes/1.tif,,eyes/1_vessels.png", "eyes\\2.tif,,eyes\\2_vessels.png"]
    (tmp_path / "index.csv").write_text("\n".join([*lines, "eyes/3.png,,", ""]), encoding="utf-8")
    source = read_folder(tmp_path / "eyes")
    assert names(source) == ["1.tif", "2.tif", "3.png"]
    assert [None if one.mask is None else bool(one.mask.all()) for one in source] == [True, False, None]
    assert names(read_folder(tmp_path)) == ["eyes/1.tif", "eyes/2.tif", "eyes/3.png"]
    (tmp_path / "eyes/1_vessels.png").unlink()
    with pytest.raises(ValueError, match=r"line 2: no file eyes/1_vessels\.png"):
        read_folder(tmp_path / "eyes")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("x.png", "x_mask.png"),
        ("x_image.png", "x_Labels.tif"),
        ("x_original.tif", "x_mask.png"),
        ("x.jpg", "x-labelled.png"),
        ("x [x=1,y=2].png", "x [x=1,y=2]-mask.png"),
        ("images/x.png", "masks/x.png"),
        ("images/x.jpg", "Labels/x.tif"),
        ("a/images/x.jpg", "a/masks/x.png"),
        ("x.jpg", "masks/x.png"),
    ],
)
def test_masks_beside_images_and_in_folders_beside_them(tmp_path, image, mask):
    write(tmp_path / image)
    write(tmp_path / "y_mask.png")  # of no image
    write(tmp_path / mask, value=1)
    images = read_folder(tmp_path)
    assert sorted(names(images)) == sorted([image, "y_mask.png"])
    masks = {one.name: one.mask for one in images}
    assert masks[image].all()
    assert masks["y_mask.png"] is None


def test_instance_numbers_go_before_masks(tmp_path):
    pixels = write_nuclei(tmp_path / "a", "one", labels=True)
    write_nuclei(tmp_path, "two")
    images = annotated(read_folder(tmp_path), 40.0)
    assert names(images) == ["a/one_image.png", "two_image.png"]
    one, two = images
    np.testing.assert_array_equal(one.image, pixels)
    assert {*np.unique(one.mask)} == {0, 7, 300}
    assert two.mask.dtype == bool
    assert two.mask.sum() == 100
    assert [*images.column("magnification")] == [40.0, 40.0]


def test_a_mask_of_another_size_is_refused(tmp_path):
    write(tmp_path / "1.png", (8, 8))
    write(tmp_path / "1_mask.png", (4, 6), value=0)
    with pytest.raises(ImageError, match=r"1_mask\.png has 4 x 6 pixels, the image 8 x 8"):
        read_folder(tmp_path)[0]


def test_fundus_photographs_are_read_with_their_vessels(shared):
    source = read_folder(shared / "data/fundus/drive")
    assert len(source) == 8
    example = source[0]
    assert example.image.shape == (584, 565, 3)
    assert example.mask.shape == example.image.shape[:2]
    assert 0.02 < example.mask.mean() < 0.2
    vessels = decode_image(shared / "data/fundus/drive/21_vessels.png")
    np.testing.assert_array_equal(example.mask, vessels[..., 0] > 127)


# Annotated nuclei


def test_a_table_states_magnification_and_group(tmp_path):
    for stem in ("a", "b", "c"):
        write_nuclei(tmp_path, stem, labels=stem == "b")
    (tmp_path / "index.csv").write_text(
        "image,mask,labels,magnification,group\na_image.png,a_mask.png,,40x,p1\nb_image.png,b_mask.png,b_labels.png,20,p2\n"
        "c_image.png,c_mask.png,,unstated,\n"
    )
    images = annotated(read_folder(tmp_path))
    assert [*images.column("magnification")] == [40.0, 20.0]
    assert [*images.column("group")] == ["p1", "p2"]
    assert count_reasons(images.skipped) == {"unknown magnification": 1}
    assert [*annotated(read_folder(tmp_path), 10.0).column("group")] == ["p1", "p2", "c_image.png"]


def test_every_problem_of_the_masks_of_a_table_at_once(tmp_path):
    write_nuclei(tmp_path, "a")
    (tmp_path / "index.csv").write_text(
        "image,mask\na_mask.png,a_mask.png\na_image.png,../a_mask.png\nx,gone.png\n"
    )
    with pytest.raises(
        ValueError, match=r"line 2: .* its own mask; line 3: .* lies outside; line 4: no file gone"
    ) as error:
        read_folder(tmp_path)
    assert "index.csv" in str(error.value)


def test_unusable_images_are_left_out_with_their_reason(tmp_path):
    write_nuclei(tmp_path, "good")
    write_nuclei(tmp_path, "bare", mask=False)
    write_nuclei(tmp_path, "other", mask_size=(40, 29))
    write_nuclei(tmp_path, "torn")
    (tmp_path / "torn_image.png").write_bytes(b"\x89PNG")
    write_nuclei(tmp_path, "pages", mask=False)
    tifffile.imwrite(tmp_path / "pages_labels.tif", np.zeros((5, 30, 40), np.uint8))
    write_nuclei(tmp_path, "wide", mask=False)
    tifffile.imwrite(tmp_path / "wide_labels.tif", np.ones((30, 40), np.int64))
    images = annotated(read_folder(tmp_path), 40.0)
    assert names(images) == ["good_image.png", "wide_image.png"]
    assert count_reasons(images.skipped) == {
        "no annotation": 1,
        "mask of another size": 1,
        "unreadable image": 2,
    }
    other = next(one for one in images.skipped if one.name == "other_image.png")
    assert "(40, 29), the image is (40, 30)" in other.detail


def test_nothing_annotated(tmp_path):
    write_nuclei(tmp_path, "one")
    with pytest.raises(ValueError, match=r"unknown magnification 1.*config\.magnification"):
        annotated(read_folder(tmp_path))
    with pytest.raises(ValueError, match="magnification is -1"):
        annotated(read_folder(tmp_path), -1.0)
    (tmp_path / "one_mask.png").unlink()
    with pytest.raises(ValueError, match=r"no annotation 1"):
        annotated(read_folder(tmp_path), 40.0)


def test_shared_nuclei(shared):
    stated = annotated(read_folder(shared / "data" / "nuclei"))
    assert len(stated) == 17
    assert count_reasons(stated.skipped) == {"unknown magnification": 43}
    assert stated.table["group"].nunique() == 17
    everything = annotated(read_folder(shared / "data" / "nuclei"), 40.0)
    assert len(everything) == 60
    of_tcga = everything.table["name"].str.startswith("tcga_lgg")
    assert everything.table["group"][of_tcga].nunique() == 1
    one = everything[names(everything).index("gbm40/01_image.png")]
    mask = decode_image(shared / "data/nuclei/gbm40/01_mask.png")[..., 0] > 127
    np.testing.assert_array_equal(one.mask > 0, mask)


# Groups, classes and labels


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("TCGA-DB-5270-R01_image.png", "TCGA-DB-5270"),
        ("12750_500_f00019_original.tif", "12750"),
        ("10_left.jpeg", "10"),
        ("10_OD.png", "10"),
        ("p7-right_2.png", "p7"),
        ("slide 3 [x=512,y=0,w=512,h=512].tif", "slide 3"),
        ("s1_x512_y0.png", "s1"),
        ("2021_05_holiday.jpg", ""),
        ("000012.jpg", ""),
        ("leftover.png", ""),
    ],
)
def test_patients_and_slides_from_names(tmp_path, name, group):
    assert group_of(tmp_path / name) == group


def test_sides():
    assert [side_of(text) for text in ("OS", "Right", "10_od.png", "l", "fundus")] == [
        "left",
        "right",
        "right",
        "left",
        "",
    ]


def test_groups_and_values_of_a_table_elsewhere(tmp_path):
    for number in range(12):
        write(tmp_path / f"{number:02d}.png")
    rows = [f"{number:02d},{'' if number % 2 else 'p' + str(number // 4)},{number}" for number in range(11)]
    (tmp_path / "t.csv").write_text("image,patient,age\n" + "\n".join(rows))
    images = open_images(str(tmp_path))
    groups = regroup(images, f"csv:{tmp_path}/t.csv:patient").column("group")
    assert [*groups[:4]] == ["p0", "01.png", "p0", "03.png"]
    assert len({*groups}) == 9
    assert groups[11] == "11.png"
    known = with_values(images, str(tmp_path / "t.csv"), "age")
    assert (len(known), [one.name for one in known.skipped]) == (11, ["11.png"])


def test_a_folder_per_class_and_in_it_one_per_patient(tmp_path):
    for name in ("b/p1/1.png", "b/p1/2.png", "a/p1/1.png", "a/x.png"):
        write(tmp_path / name)
    images = class_folders(read_folder(tmp_path))
    assert [*images.table[["label", "group"]].itertuples(index=False, name=None)] == [
        ("a", "p1"),
        ("a", "a/x.png"),
        ("b", "p1"),
        ("b", "p1"),
    ]
    write(tmp_path / "c/3.png")
    with pytest.raises(ValueError, match=r"3 subfolders \(a; b; c\); expected two"):
        class_folders(read_folder(tmp_path))


def test_labels_of_a_table(tmp_path):
    write(tmp_path / "images/b.png", (5, 7))
    write(tmp_path / "a.png", (6, 4))
    for name in ("images/forgotten.JPG", "blank.png"):
        write(tmp_path / name)
    (tmp_path / "torn.png").write_bytes(b"no image")
    lines = ["file,class_index", "b.png, 8", "a.png,tench", "gone.png,4", "blank.png,", "torn.png,3"]
    (tmp_path / "index.csv").write_text("\n".join(lines))
    images = with_sizes(read_folder(tmp_path, needs="label"))
    known = images.table[["name", "label", "width", "height"]]
    assert [*known.itertuples(index=False, name=None)] == [
        ("a.png", "tench", 6, 4),
        ("images/b.png", "8", 5, 7),
    ]
    assert {one.name: one.reason for one in images.skipped} == {
        "gone.png": "no such image file",
        "blank.png": "no label",
        "images/forgotten.JPG": "no label",
        "torn.png": "unreadable image",
    }
    (tmp_path / "index.csv").write_text("file,breed\na.png,tench\n")
    with pytest.raises(ValueError, match="0 of 1 CSV files have a column of a label"):
        read_folder(tmp_path, needs="label")
