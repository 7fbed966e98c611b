"""Tissue: pure in its keys, true to its labels at every magnification, and nothing but nuclei tells of their area."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from scipy import ndimage, stats

from scalecov_jax.imaging import tissue

FINE, COARSE = (128, 20.0), (128, 10.0)  # the only shapes compiled, 64 and 128 um wide
PATIENTS, PLACES = 24, 2


def render(patient, region, shape=COARSE):
    image, labels = tissue.render(jax.random.key(patient), jax.random.key(region), *shape)
    return np.asarray(image).astype(float), np.asarray(labels)


def whole_areas(labels):
    """Areas in pixels of the nuclei that do not touch the frame, by number; 0 for all others."""
    areas = np.bincount(labels.ravel())
    areas[np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1], [0]]))] = 0
    return areas


class Sample(NamedTuple):
    images: list
    labels: list
    patients: list  # of each image
    area: np.ndarray  # drawn, um^2
    measured: np.ndarray  # mean of a patient's whole nuclei, um^2


@pytest.fixture(scope="module")
def drawn():
    """The traits of the first 4000 patients."""
    return jax.jit(jax.vmap(tissue.traits))(jax.vmap(jax.random.key)(np.arange(4000)))


@pytest.fixture(scope="module")
def sample(drawn):
    patients = np.repeat(np.arange(PATIENTS), PLACES).tolist()
    images, labels = zip(*(render(p, 100 + k) for k, p in enumerate(patients)), strict=True)
    areas = [whole_areas(one) for one in labels]
    measured = [
        np.mean(np.concatenate([a[a > 0] for a, owner in zip(areas, patients, strict=True) if owner == p]))
        for p in range(PATIENTS)
    ]
    return Sample(list(images), list(labels), patients, np.asarray(drawn.area)[:PATIENTS], np.array(measured))


def test_same_keys_same_bits():
    image, labels = render(1, 2)
    again, labels_again = render(1, 2)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, labels_again)
    for other, other_labels in (render(1, 3), render(2, 2)):
        assert np.abs(image - other).mean() > 5
        assert (labels != other_labels).mean() > 0.1


def test_nothing_is_missing(sample):
    """A NaN would become a black pixel, and an empty field no labels."""
    for image, labels in zip(sample.images, sample.labels, strict=True):
        assert image.any(-1).all()
        assert image.std() > 10
        assert labels.min() == 0
        assert 0.02 < (labels > 0).mean() < 0.7
        assert (whole_areas(labels) > 0).sum() >= 8


def test_labels_lie_on_what_is_dark(sample):
    """Red passes eosin and not haematoxylin: nuclei are darker than the ground and than the ring around each of them."""
    for image, labels in zip(sample.images, sample.labels, strict=True):
        red = image[..., 0]
        assert red[labels == 0].mean() - red[labels > 0].mean() > 15
        near = ndimage.binary_dilation(labels > 0, iterations=3) & ~ndimage.binary_dilation(labels > 0)
        numbers = np.flatnonzero(whole_areas(labels) > 15)
        inside = ndimage.mean(red, labels, numbers)
        assert (inside < red[near].mean()).mean() > 0.9


def test_labels_end_where_nuclei_end(sample):
    """A mask a pixel smaller, a pixel larger or two pixels off explains the image worse."""
    gains = []
    for image, labels in zip(sample.images, sample.labels, strict=True):
        red, mask = image[..., 0], labels > 0
        fits = [
            np.corrcoef(red.ravel(), m.ravel())[0, 1]
            for m in (mask, ndimage.binary_erosion(mask), ndimage.binary_dilation(mask), np.roll(mask, 2, 0))
        ]
        gains.append(np.array(fits[1:]) - fits[0])
    assert (np.mean(gains, axis=0) > 0.01).all()


def test_most_nuclei_are_separate(sample):
    pieces = sum(ndimage.label(labels > 0)[1] for labels in sample.labels)
    numbers = sum(len(np.unique(labels)) - 1 for labels in sample.labels)
    assert 0.6 < pieces / numbers <= 1.02
    in_one = [ndimage.label(labels == k)[1] for labels in sample.labels[:4] for k in np.unique(labels)[1:]]
    assert np.mean(np.array(in_one) == 1) > 0.98


def test_half_the_magnification_shows_the_same_tissue():
    """The middle of the coarse field is the fine field at half its size: same pixels, and nuclei of a quarter of the area."""
    ratios = []
    for patient in range(8):
        fine, fine_labels = render(patient, 7, FINE)
        coarse, coarse_labels = (pixels[32:-32, 32:-32] for pixels in render(patient, 7, COARSE))
        fine = fine.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(fine - coarse).mean() < 8  # light falls off towards the corners of each field
        assert np.corrcoef(fine.ravel(), coarse.ravel())[0, 1] > 0.95
        quarters = np.bincount(coarse_labels.ravel())
        areas = whole_areas(fine_labels)
        for number in np.flatnonzero(areas > 60):
            here = coarse_labels[(fine_labels == number).reshape(64, 2, 64, 2).sum((1, 3)) >= 2]
            ratios.append(quarters[np.bincount(here).argmax()] / areas[number])
    assert len(ratios) > 50
    np.testing.assert_allclose(ratios, 0.25, atol=0.06)
    np.testing.assert_allclose(np.mean(ratios), 0.25, rtol=0.02)


def test_patients_have_the_area_that_was_drawn(sample):
    ratio = sample.measured / sample.area
    np.testing.assert_allclose(ratio, 1, atol=0.15)  # of some 100 nuclei each
    np.testing.assert_allclose(ratio.mean(), 1, atol=0.04)  # overlaps and the frame take large ones first
    assert np.corrcoef(np.log(sample.measured), np.log(sample.area))[0, 1] > 0.95
    assert sample.measured.max() / sample.measured.min() > 1.8


def test_colour_does_not_tell_the_area(sample):
    images = np.stack(sample.images).reshape(PATIENTS, -1, 3)
    for colour in (*images.mean(1).T, images.mean((1, 2)), images.std((1, 2))):
        assert abs(np.corrcoef(np.log(sample.measured), colour)[0, 1]) < 3 / np.sqrt(PATIENTS)


def test_area_is_log_normal_and_independent_of_all_other_traits(drawn):
    count = len(drawn.area)
    columns = [np.asarray(c, float).reshape(count, -1) for c in drawn]
    assert all(np.isfinite(c).all() for c in columns)
    log = np.log(columns[0][:, 0])
    low, high = np.log([tissue.SMALLEST, tissue.LARGEST])
    assert low <= log.min() < low + 0.05
    assert high - 0.05 < log.max() <= high
    normal = stats.truncnorm(-2, 2, loc=(low + high) / 2, scale=(high - low) / 4)
    assert stats.kstest(log, normal.cdf).pvalue > 0.01
    for column in np.concatenate(columns[1:], axis=1).T:
        assert abs(np.corrcoef(log, column)[0, 1]) < 4 / np.sqrt(count)


def test_regions_are_rendered_when_indexed(monkeypatch):
    rendered = []
    original = tissue.render
    monkeypatch.setattr(tissue, "render", lambda *args: rendered.append(args) or original(*args))
    size, magnification = COARSE
    few = tissue.regions(5, 3, size=size, magnification=magnification, per_patient=2)
    many = tissue.regions(10**4, 3, size=size, magnification=magnification, per_patient=2)
    assert len(few) == 5
    assert len(many) == 10**4
    assert not rendered

    one, same, next_one = few[3], many[3], few[4]
    assert len(rendered) == 3
    np.testing.assert_array_equal(one.image, same.image)
    np.testing.assert_array_equal(one.mask, same.mask)
    assert one[4:] == same[4:]
    assert (one.group, one.name) == ("patient_001", "tissue_001_1")
    assert (next_one.group, next_one.name) == ("patient_002", "tissue_002_0")
    assert {*few.column("magnification")} == {magnification}
    assert one.image.shape == (size, size, 3)
    assert one.mask.max() > 1
    assert (one.image != next_one.image).any()
    assert few[-1].name == next_one.name
    other = tissue.regions(5, 4, size=size, magnification=magnification, per_patient=2)[3]
    assert (one.image != other.image).mean() > 0.5


def test_regions_share_the_patient_and_not_the_place():
    size, magnification = COARSE
    first, second = tissue.regions(2, 3, size=size, magnification=magnification, per_patient=2)
    assert first.group == second.group
    assert first.name != second.name
    assert (first.mask != second.mask).mean() > 0.1


@pytest.mark.parametrize("index", [5, -6])
def test_no_region_beyond_the_end(index):
    with pytest.raises(IndexError):
        tissue.regions(5, 0)[index]


def test_contact_sheet_has_a_row_a_patient(monkeypatch):
    size, magnification = COARSE
    monkeypatch.setattr(tissue, "MAGNIFICATIONS", (magnification,))
    sheet = tissue.contact_sheet(2, patients=2, size=size)
    rows = tissue.regions(2, 2, size=size, magnification=magnification)
    np.testing.assert_array_equal(sheet, np.concatenate([row.image for row in rows]))
    assert sheet.dtype == np.uint8
