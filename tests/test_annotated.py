"""Folders of images with annotated nuclei: by index.csv, by name, the Janowczyk set, and everything that can be wrong."""

import numpy as np
import pytest
from PIL import Image

from scalecov_jax.images.annotated import read_annotated
from scalecov_jax.images.example import count_reasons


def write(folder, stem, *, size=(40, 30), image="image.png", mask=True, labels=False, mask_size=None):
    """An image of random pixels and its annotation: one bright square, numbered 300."""
    rng = np.random.default_rng(len(stem))
    folder.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{stem}_{image}")
    truth = np.zeros((mask_size or size)[::-1], np.uint16)
    truth[5:15, 5:15] = 300
    if mask:
        Image.fromarray((truth > 0).astype(np.uint8) * 255).save(folder / f"{stem}_mask.png")
    if labels:
        Image.fromarray(truth).save(folder / f"{stem}_labels.png")
    return pixels


def test_pairs_by_name_at_any_depth(tmp_path):
    pixels = write(tmp_path / "a", "one", labels=True)
    write(tmp_path, "two")
    folder = read_annotated(tmp_path, 40.0)
    assert [one.name for one in folder.files] == ["a/one", "two"]
    one, two = folder
    np.testing.assert_array_equal(one.image, pixels)
    assert set(np.unique(one.labels)) == {0, 300}
    assert set(np.unique(one.mask)) == {0, 255}
    assert (one.magnification, one.group) == (40.0, "one")
    assert two.labels is None


def test_janowczyk_names_are_paired_and_grouped_by_patient(tmp_path):
    for stem in ("12750_500_f00003", "12750_500_f00019", "8863_500_f00003"):
        write(tmp_path, stem, image="original.tif")
    folder = read_annotated(tmp_path, 40.0)
    assert [one.group for one in folder.files] == ["12750", "12750", "8863"]
    assert all(one.image.name.endswith("_original.tif") for one in folder.files)


def test_tcga_names_are_grouped_by_patient(tmp_path):
    for stem in ("TCGA-DB-5270-R01", "TCGA-DB-5270-R02", "TCGA-AB-1234-01Z"):
        write(tmp_path, stem)
    groups = [one.group for one in read_annotated(tmp_path, 40.0).files]
    assert groups == ["TCGA-AB-1234", "TCGA-DB-5270", "TCGA-DB-5270"]


def test_index_states_magnification_and_group(tmp_path):
    for stem in ("a", "b", "c"):
        write(tmp_path, stem, labels=stem == "b")
    (tmp_path / "index.csv").write_text(
        "image,mask,labels,magnification,group\na_image.png,a_mask.png,,40x,p1\nb_image.png,b_mask.png,b_labels.png,20,p2\n"
        "c_image.png,c_mask.png,,unstated,p3\n"
    )
    folder = read_annotated(tmp_path)
    assert [(one.magnification, one.group) for one in folder.files] == [(40.0, "p1"), (20.0, "p2")]
    assert count_reasons(folder.skipped) == {"unknown magnification": 1}
    assert len(read_annotated(tmp_path, 10.0)) == 3


def test_every_problem_of_an_index_is_told_at_once(tmp_path):
    write(tmp_path, "a")
    (tmp_path / "index.csv").write_text(
        "image,mask\na_mask.png,a_mask.png\nnone_image.png,a_mask.png\na_image.png,../a_mask.png\n,a_mask.png\n"
    )
    with pytest.raises(
        ValueError, match=r"line 2: a mask as image: a_mask\.png; line 3: no file none_image"
    ) as error:
        read_annotated(tmp_path, 40.0)
    assert "line 4: " in str(error.value)
    assert "line 5: no image" in str(error.value)
    (tmp_path / "index.csv").write_text("picture,mask\n")
    with pytest.raises(ValueError, match="columns picture, mask; expected image"):
        read_annotated(tmp_path, 40.0)


def test_unusable_images_are_left_out_with_their_reason(tmp_path):
    write(tmp_path, "good")
    write(tmp_path, "bare", mask=False)
    write(tmp_path, "other", mask_size=(40, 29))
    write(tmp_path, "torn")
    (tmp_path / "torn_image.png").write_bytes(b"\x89PNG")
    folder = read_annotated(tmp_path, 40.0)
    assert [one.name for one in folder.files] == ["good"]
    assert count_reasons(folder.skipped) == {
        "no annotation": 1,
        "annotation of another size": 1,
        "unreadable image": 1,
    }
    assert "(40, 29), the image is (40, 30)" in next(s for s in folder.skipped if s.name == "other").detail


def test_nothing_usable_says_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match=r"no file is called X_image\.png"):
        read_annotated(tmp_path, 40.0)
    write(tmp_path, "one")
    with pytest.raises(ValueError, match=r"unknown magnification 1.*config\.magnification"):
        read_annotated(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        read_annotated(tmp_path / "none")
    with pytest.raises(ValueError, match="magnification is -1"):
        read_annotated(tmp_path, -1.0)


def test_shared_nuclei(shared):
    folder = read_annotated(shared / "data" / "nuclei")
    assert len(folder) == 17
    assert count_reasons(folder.skipped) == {"unknown magnification": 43}
    assert len({one.group for one in folder.files}) == 17
    everything = read_annotated(shared / "data" / "nuclei", 40.0)
    assert len(everything) == 60
    assert len({one.group for one in everything.files if one.name.startswith("tcga_lgg")}) == 1
    one = next(one for one in folder if one.name == "gbm40/01")
    np.testing.assert_array_equal(one.labels > 0, one.mask > 0)
