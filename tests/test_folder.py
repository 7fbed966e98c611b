"""Folders of images, their masks by an index, and what is prepared when it is read."""

import numpy as np
import pytest
from PIL import Image

from scalecov_jax.images.example import ImageError, decode_image
from scalecov_jax.images.folder import Prepared, Subset, evenly, read_folder


def write(path, value=200):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(path)


def test_masks_of_an_index_are_no_images(tmp_path):
    for name in ("eyes/1.tif", "eyes/2.tif", "eyes/1_vessels.png", "eyes/2_vessels.png", "eyes/3.png"):
        write(tmp_path / name, 0 if name == "eyes/2_vessels.png" else 200)
    assert len(read_folder(tmp_path / "eyes")) == 5
    lines = ["file,grade,mask", "eyes/1.tif,,eyes/1_vessels.png", "eyes/2.tif,,eyes/2_vessels.png"]
    (tmp_path / "index.csv").write_text("\n".join([*lines, "eyes/3.png,,", "../out.png,,../mask.png", ""]))
    source = read_folder(tmp_path / "eyes")
    assert [example.name for example in source] == ["1.tif", "2.tif", "3.png"]
    assert [None if one.mask is None else bool(one.mask.all()) for one in source] == [True, False, None]
    assert [path.name for path in read_folder(tmp_path).paths] == ["1.tif", "2.tif", "3.png"]
    (tmp_path / "eyes/1_vessels.png").unlink()
    with pytest.raises(ValueError, match=r"names masks that are not there: 1_vessels\.png"):
        read_folder(tmp_path / "eyes")


def test_an_index_of_other_things_changes_nothing(tmp_path):
    write(tmp_path / "1.png")
    (tmp_path / "index.csv").write_text("image,mask\n1.png,1.png\n")
    assert len(read_folder(tmp_path)) == 1
    for folder, problem in ((tmp_path / "none", "no such folder"), (tmp_path.parent / "empty", "no image")):
        if problem == "no image":
            folder.mkdir()
        with pytest.raises(ValueError, match=problem):
            read_folder(folder)


def test_examples_are_prepared_when_read(tmp_path):
    for number in range(4):
        write(tmp_path / f"{number}.png", number)

    def halve(example):
        if example.name == "3.png":
            raise ValueError("no disc")
        return example._replace(image=example.image[:2])

    source = Prepared(evenly(read_folder(tmp_path), 2), halve)
    assert isinstance(source.source, Subset)
    assert len(source) == 2
    assert source[0].image.shape == (2, 5, 3)
    with pytest.raises(ImageError, match=r"3\.png: no disc"):
        source[1]


def test_fundus_photographs_are_read_with_their_vessels(shared):
    source = read_folder(shared / "data/fundus/drive")
    assert len(source) == 8
    example = source[0]
    assert example.image.shape == (584, 565, 3)
    assert example.mask is not None
    assert example.mask.shape == example.image.shape[:2]
    assert 0.02 < example.mask.mean() < 0.2
    vessels = decode_image(shared / "data/fundus/drive/21_vessels.png")
    np.testing.assert_array_equal(example.mask, vessels[..., 0] > 127)


def test_a_mask_of_another_size_is_refused(tmp_path):
    for name, side in (("1.png", 8), ("1_lesions.png", 4)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "index.csv").write_text("file,mask\n1.png,1_lesions.png\n")
    with pytest.raises(ImageError, match=r"1_lesions\.png has 4 x 4 pixels, the image 8 x 8"):
        read_folder(tmp_path)[0]
