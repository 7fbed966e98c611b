"""Copies, byte for byte and to the eye, are of one group; different images are not."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from scalecov_jax.imaging.copies import with_copies_together
from scalecov_jax.imaging.folder import read_folder

SAVED_AGAIN = {
    "quality": lambda image: (image, 60),
    "smaller": lambda image: (image.resize((image.width * 9 // 10, image.height * 9 // 10)), 90),
    "brighter": lambda image: (ImageEnhance.Brightness(image).enhance(1.1), 90),
}


def groups_of(folder):
    images = read_folder(folder)
    return dict(zip(images.table["name"], with_copies_together(images).column("group"), strict=True))


def test_photographs_saved_again(shared, tmp_path):
    photographs = sorted((shared / "data/voc_single/JPEGImages").iterdir())[::11][:50]
    for path in photographs:
        shutil.copy(path, tmp_path)
        for name, change in SAVED_AGAIN.items():
            image, quality = change(Image.open(path))
            image.save(tmp_path / f"{path.stem}_{name}.jpg", quality=quality)
    groups = groups_of(tmp_path)
    assert len(groups) == 200
    assert {name: group[:6] for name, group in groups.items()} == {name: name[:6] for name in groups}
    assert len({*groups.values()}) == 50


@pytest.mark.parametrize("folder", ["voc_single/JPEGImages", "fundus", "nuclei"])
def test_different_photographs_are_no_copies(shared, folder):
    images = read_folder(shared / "data" / folder)
    assert with_copies_together(images).table.equals(images.table)


def test_groups_of_copies_are_joined(tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    for copy, original in ((7, 1), (8, 7)):
        shutil.copy(tmp_path / f"{original}.png", tmp_path / f"{copy}.png")
    Image.fromarray(pixels[4]).save(tmp_path / "9.tif")
    images = read_folder(tmp_path).assign(group=[*"abcdefghi"])
    with caplog.at_level(logging.WARNING):
        assert "".join(with_copies_together(images).column("group")) == "abcdefbbe"
    assert "3 of 9 images are copies of others (2 byte for byte, 1 to the eye)" in caplog.text
    assert with_copies_together(images.take(range(6))).table.equals(images.take(range(6)).table)


def test_images_of_one_colour_and_torn_files_are_no_copies(tmp_path):
    for number in range(4):
        Image.new("RGB", (20 + number, 20), (200, 200, 200)).save(tmp_path / f"{number}.png")
        (tmp_path / f"torn_{number}.png").write_bytes(b"no image" * (number + 1))
    images = read_folder(tmp_path)
    assert with_copies_together(images).table.equals(images.table)
