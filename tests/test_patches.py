"""Patches: geometry, labels, what is left out, and the dataset on disk."""

import shutil

import numpy as np
import pytest

from scalecov_jax.concepts import nuclei
from scalecov_jax.imaging.folder import annotated as annotated_images
from scalecov_jax.imaging.folder import read_folder
from scalecov_jax.imaging.image_set import Example, count_reasons, image_set
from scalecov_jax.imaging.patches import MAGNIFICATIONS, cut_patches, open_patches, prepare_patches


def annotated(size=256, *, group="p", name="one", seed=0, dots=True):
    """Discs of radius 6 on a grid of 32 pixels, on noise."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, size, 3), np.uint8)
    y, x = np.mgrid[:size, :size]
    near = (y % 32 - 16) ** 2 + (x % 32 - 16) ** 2 <= 36
    labels = np.where(near & dots, 1 + (y // 32) * 100 + x // 32, 0).astype(np.int32)
    return Example(image, None, None, labels, group, name)


def source_of(*examples, magnification=40.0):
    return image_set(examples).assign(magnification=magnification)


def test_side_is_size_times_the_ratio_of_magnifications():
    skipped = []
    patches = list(cut_patches(annotated(), 40.0, 64, skipped))
    counts = {m: sum(p.magnification == m for p in patches) for m in MAGNIFICATIONS}
    assert counts == {5: 0, 8: 0, 10: 1, 15: 1, 20: 4, 30: 9, 40: 16}
    assert count_reasons(skipped) == {"image smaller than a patch": 2}
    assert all(patch.image.shape == (64, 64, 3) for patch in patches)
    assert {(p.x, p.y) for p in patches if p.magnification == 20} == {(0, 0), (128, 0), (0, 128), (128, 128)}


def test_the_patch_at_the_own_magnification_is_the_image_itself():
    one = annotated()
    patch = next(p for p in cut_patches(one, 40.0, 64, [], magnifications=(40.0,)) if (p.x, p.y) == (64, 128))
    np.testing.assert_array_equal(patch.image, one.image[128:192, 64:128])


@pytest.mark.parametrize("labels", ["mask", "instances"])
def test_area_falls_with_the_square_of_the_magnification(labels):
    disc = int((annotated().mask == 1).sum())
    for magnification, tolerance in ((40.0, 0.0), (20.0, 0.15), (10.0, 0.5)):
        for patch in cut_patches(annotated(), 40.0, 64, [], magnifications=(magnification,), labels=labels):
            assert patch.area == pytest.approx(disc * (magnification / 40) ** 2, rel=tolerance + 1e-9)
    assert {p.nuclei for p in cut_patches(annotated(), 40.0, 64, [], magnifications=(40.0,))} == {4}


def test_what_cannot_be_cut_is_counted():
    skipped = []
    assert not list(cut_patches(annotated(dots=False), 40.0, 64, skipped, magnifications=(40.0, 20.0)))
    assert count_reasons(skipped) == {"no whole nucleus": 20}
    skipped = []
    list(cut_patches(annotated(), 20.0, 64, skipped, magnifications=(40.0,)))
    assert count_reasons(skipped) == {"above the magnification of the image": 1}


def test_overlap_and_limit():
    assert len(list(cut_patches(annotated(), 40.0, 64, [], magnifications=(40.0,), stride=0.5))) == 49
    few = list(cut_patches(annotated(), 40.0, 64, [], magnifications=(40.0,), limit=3))
    assert [(p.x, p.y) for p in few] == [(0, 0), (0, 128), (192, 192)]


def test_no_mask_is_ever_an_input():
    one = annotated()
    mask = np.repeat(255 * (one.mask > 0).astype(np.uint8)[..., None], 3, axis=2)
    with pytest.raises(ValueError, match="is a mask, not an image"):
        list(cut_patches(one._replace(image=mask), 40.0, 64, []))


def test_annotations_that_do_not_fit():
    one = annotated()
    with pytest.raises(ValueError, match=r"annotation is \(256, 255\), the image \(256, 256\)"):
        list(cut_patches(one._replace(mask=one.mask[:, 1:]), 40.0, 64, []))
    with pytest.raises(ValueError, match=r"no instances; set config\.labels"):
        list(cut_patches(one._replace(mask=one.mask > 0), 40.0, 64, [], labels="instances"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "patches"
    source = [annotated(group=f"p{i}", name=f"image, {i}", seed=i) for i in range(3)]
    prepare_patches(source_of(*source), folder, size=64, magnifications=(20.0, 40.0, 5.0), limit=5)
    return folder, source


def test_what_is_written_is_read_back(prepared):
    folder, source = prepared
    patches = open_patches(folder)
    assert len(patches) == 27
    assert sorted({*patches.column("group")}) == ["p0", "p1", "p2"]
    assert count_reasons(patches.skipped) == {"image smaller than a patch": 3}
    cut = [p for one in source for p in cut_patches(one, 40.0, 64, [], magnifications=(20.0, 40.0), limit=5)]
    expected = {p.image.tobytes(): (p.area, p.magnification, p.group, p.source) for p in cut}
    for index in range(len(patches)):
        example = patches[index]
        area, *rest = expected.pop(example.image.tobytes())
        assert patches.column("area")[index] == pytest.approx(area, rel=1e-6)
        assert [
            patches.column("magnification")[index],
            patches.column("group")[index],
            patches.column("source")[index],
        ] == rest
        assert example.group == patches.column("group")[index]
        assert example.mask is None
    assert not expected
    with pytest.raises(IndexError):
        patches[27]


def test_an_unfinished_set_is_cut_anew(prepared, tmp_path):
    _, source = prepared
    folder = tmp_path / "patches"
    (tmp_path / "patches.partial").mkdir()
    (tmp_path / "patches.partial" / "patches.csv").write_text("half")
    prepare_patches(source_of(*source[:1]), folder, size=64, magnifications=(40.0,))
    assert len(open_patches(folder)) == 16
    table = (folder / "patches.csv").read_bytes()
    (folder / "patches.csv").write_bytes(table[: table.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(ValueError, match=r"its digest is not that.*delete it"):
        open_patches(folder)
    (folder / "patches.csv").write_bytes(table)
    shutil.rmtree(folder / "part_0000")
    with pytest.raises(ValueError, match=r"16 rows, the dataset 0 patches.*delete it"):
        open_patches(folder)
    with pytest.raises(ValueError, match="no complete set of patches"):
        open_patches(tmp_path)


def test_nothing_to_cut_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no patch to cut .*no whole nucleus 16"):
        prepare_patches(source_of(annotated(dots=False)), tmp_path / "p", size=64, magnifications=(40.0,))
    assert not (tmp_path / "p").exists()


def test_labels_of_real_patches_are_those_of_the_whole_region(shared):
    """At the magnification of the image a patch is a plain crop: its label is that of the crop of the mask."""
    images = annotated_images(read_folder(shared / "data" / "nuclei"))
    assert len(images) == 17
    one = images[0]
    for patch in cut_patches(one, 40.0, 224, [], magnifications=(40.0,)):
        crop = 255 * (one.mask > 0).astype(np.uint8)[patch.y : patch.y + 224, patch.x : patch.x + 224]
        assert (patch.nuclei, patch.area) == tuple(nuclei.mean_area(np.ascontiguousarray(crop)))
