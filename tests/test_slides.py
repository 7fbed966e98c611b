"""Tiles of a small pyramidal slide, drawn here."""

import builtins
import json
import pickle

import numpy as np
import pytest
import tifffile

import scalecov_jax as sc
from scalecov_jax.imaging import slides
from scalecov_jax.imaging.annotations import read_geojson
from scalecov_jax.imaging.image_set import count_reasons
from scalecov_jax.imaging.slides import tiles, tissue_of
from scalecov_jax.imaging.sources import open_images

HEIGHT, WIDTH, MPP = 1024, 1536, 0.25
TOP, LEFT, BOTTOM, RIGHT = 256, 512, 768, 1280  # of the tissue


def write(path, mpp=MPP, tissue=True, unit=3):
    """A slide in three levels: tissue whose colours say where it is, on grey glass."""
    image = np.full((HEIGHT, WIDTH, 3), 240, np.uint8)
    if tissue:
        y, x = np.mgrid[TOP:BOTTOM, LEFT:RIGHT]
        image[TOP:BOTTOM, LEFT:RIGHT] = np.stack([170 + x // 32, 20 + y // 32, 130 + (x + y) // 64], -1)
    with tifffile.TiffWriter(path) as file:
        for level in (1, 2, 4):
            per_cm = 1e4 / mpp / level
            parts = image.reshape(HEIGHT // level, level, WIDTH // level, level, 3)
            file.write(
                parts.mean((1, 3)).astype(np.uint8),
                tile=(256, 256),
                photometric="rgb",
                resolution=(per_cm, per_cm),
                resolutionunit=unit,
                **({"subifds": 2} if level == 1 else {"subfiletype": 1}),
            )
    return image


def test_tiles_lie_on_tissue_and_show_its_pixels(tmp_path):
    image = write(tmp_path / "TCGA-AA-0001-01Z.tif")
    write(tmp_path / "b.tif")
    found = pickle.loads(pickle.dumps(open_images(f"slides:{tmp_path}", patch=128)))
    corners = [(x, y) for y in range(TOP, BOTTOM, 128) for x in range(LEFT, RIGHT, 128)]
    assert [*zip(found.column("x"), found.column("y"), strict=True)] == 2 * corners
    assert {*found.column("mpp")} == {MPP}
    assert {*found.column("group")} == {"TCGA-AA-0001", "b.tif"}
    assert {*found.column("slide")} == {"TCGA-AA-0001-01Z.tif", "b.tif"}
    for at in (0, 7, 30):
        (x, y), example = corners[at % 24], found[at]
        assert example.name.endswith(f"[x={x},y={y}]")
        np.testing.assert_array_equal(example.image, image[y : y + 128, x : x + 128])


@pytest.mark.parametrize(("mpp", "side"), [(0.5, 256), (0.75, 384), (1.0, 512)])
def test_tiles_are_brought_to_one_resolution(tmp_path, mpp, side):
    image = write(tmp_path / "a.tif")
    found = tiles(tmp_path / "a.tif", 128, mpp, tissue=0.4)
    np.testing.assert_allclose(found.column("mpp"), mpp)
    example, x, y = found[0], found.column("x")[0], found.column("y")[0]
    square = image[y : y + side, x : x + side].reshape(128, side // 128, 128, side // 128, 3)
    # But for the border of the tissue, which is drawn from a smaller level.
    assert np.quantile(np.abs(example.image - square.mean((1, 3))), 0.99) <= 2
    assert abs(example.image.mean() - square.mean()) < 1


def test_what_was_read_is_drawn_where_the_tiles_lie(tmp_path):
    for name in ("one.tif", "deep/two.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name)
    found = tiles(tmp_path, 128, 0.75, tissue=0.3)  # 384 pixels of the slide
    found = found.take(np.arange(len(found))[::-1])
    values = np.arange(len(found)) / 3
    files = sc.write_geojson(tmp_path / "out", found, {"grade": values, "log area": -values})
    assert len({*files}) == 2
    for file, slide in zip(files, found.table["slide"].drop_duplicates(), strict=True):
        of_slide = found.table["slide"] == slide
        labels = read_geojson(file).draw(HEIGHT, WIDTH)
        for number, (x, y) in enumerate(found.table.loc[of_slide, ["x", "y"]].to_numpy(), start=1):
            assert (labels[y : y + 384, x : x + 384] == number).all()
        assert np.count_nonzero(labels) == of_slide.sum() * 384**2
        read = [one["properties"]["measurements"] for one in json.loads(file.read_text())["features"]]
        np.testing.assert_array_equal([one["grade"] for one in read], values[of_slide])
        np.testing.assert_array_equal([one["log area"] for one in read], -values[of_slide])


def test_values_that_fit_no_tile_are_named_at_once(tmp_path):
    write(tmp_path / "a.tif")
    found = tiles(tmp_path, 256)
    bad = {"few": np.zeros(2), "many": np.full(len(found), np.nan)}
    with pytest.raises(
        ValueError, match=rf"few has the shape \[2\].*many has {len(found)} values that are not"
    ):
        sc.write_geojson(tmp_path / "out", found, bad)
    with pytest.raises(ValueError, match="no tiles of slides"):
        sc.write_geojson(tmp_path / "out", sc.images([np.zeros((8, 8, 3), np.uint8)]), {"a": [1.0]})
    assert not (tmp_path / "out").exists()


def test_slides_that_cannot_be_used_are_named_at_once(tmp_path, monkeypatch):
    write(tmp_path / "a.tif", mpp=1.0)
    write(tmp_path / "b.tif", unit=1)
    (tmp_path / "c.svs").write_bytes(b"II*\0")
    with pytest.raises(ValueError, match="3 of 3 slides cannot be used") as error:
        tiles(tmp_path, 64, 0.5)
    for part in (
        "a.tif: it has 1 microns",
        "b.tif: microns per pixel are not stated",
        "c.svs: not a readable slide",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="no slide; expected"):
        tiles(tmp_path / "none")
    for name in ("a.tif", "b.tif", "c.svs"):
        (tmp_path / name).unlink()
    monkeypatch.setattr(slides, "MAX_PIXELS", 500_000)
    write(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: no level of at most 500000 pixels"):
        tiles(tmp_path)
    monkeypatch.undo()
    (tmp_path / "a.tif").unlink()
    write(tmp_path / "glass.tif", tissue=False)
    with pytest.raises(ValueError, match="no tile with tissue in 1 slides"):
        tiles(tmp_path)
    write(tmp_path / "a.tif")
    assert count_reasons(tiles(tmp_path, 64).skipped) == {"no tissue": 1}


def test_without_the_extra_it_is_told_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "a.tif")
    real = builtins.__import__

    def absent(name, *rest):
        if name == "tiffslide":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install 'scalecov-jax\[slides\]'"):
        tiles(tmp_path)


def test_tissue_is_what_is_saturated():
    image = np.full((20, 30, 3), 230, np.uint8)
    image[:, 10:] = (200, 80, 160)
    expected = np.zeros((20, 30), bool)
    expected[:, 10:] = True
    np.testing.assert_array_equal(tissue_of(image), expected)
    assert not tissue_of(np.full((20, 30, 3), 230, np.uint8)).any()
