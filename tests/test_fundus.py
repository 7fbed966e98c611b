"""The visible disc of real photographs, whole and cut off, and of drawn discs; what is no fundus is refused."""

import numpy as np
import pytest
from skimage.draw import disk

from scalecov_jax.imaging import fundus
from scalecov_jax.imaging.decoding import decode_image
from scalecov_jax.imaging.image_set import Example


def drawn(centre, radius, shape=(200, 260), colour=(200, 90, 40), surround=6):
    """A disc before noise, x first in `centre`."""
    image = np.full((*shape, 3), surround, np.uint8)
    image[disk((centre[1] - 0.5, centre[0] - 0.5), radius, shape=shape)] = colour
    return image + np.random.default_rng(0).integers(0, 5, image.shape, np.uint8)


@pytest.mark.parametrize(
    ("centre", "radius"), [((130, 100), 90), ((120, 95), 60), ((130, 100), 115), ((100, 100), 99), ((130, 90), 30)]
)  # fmt: skip
def test_a_drawn_disc_is_found_to_a_pixel(centre, radius):
    """The third is cut off above and below, the fourth touches three edges."""
    assert np.abs(np.subtract(fundus.visible_disc(drawn(centre, radius)), (*centre, radius))).max() < 1


def test_drive_is_found_alike_however_it_is_cut_off_or_dark(shared):
    """The field of view of DRIVE is about 540 pixels wide (Staal et al. 2004)."""
    paths = sorted((shared / "data" / "fundus" / "drive").glob("*.tif"))
    assert len(paths) == 8
    for number, path in enumerate(paths):
        image = decode_image(path)
        disc = fundus.visible_disc(image)
        assert 2 * disc.radius == pytest.approx(539, abs=3)
        trimmed = fundus.trim(image, 64)
        assert trimmed.shape == (64, 64, 3)
        across = trimmed.max(-1) > 40
        assert across[32].sum() >= 62
        assert across[:, 32].sum() >= 61
        if number == 0:
            wide = fundus.visible_disc(image[80:-80])
            np.testing.assert_allclose(wide, (disc.centre_x, disc.centre_y - 80, disc.radius), atol=1)
            dark = fundus.visible_disc((0.3 * image).astype(np.uint8))
            np.testing.assert_allclose(dark, disc, atol=1)
            spoilt = image.copy()
            spoilt[:220, :200] //= 12  # a shadow over a quarter
            spoilt[5:25, 5:120] = 255  # a label
            np.testing.assert_allclose(fundus.visible_disc(spoilt), disc, atol=1)
            both = fundus.trim(image[80:-80], 64)
            assert both[:4].max() <= 2
            same = np.abs(both[8:56].astype(int) - trimmed[8:56])
            assert same.mean() < 4


def test_a_mask_is_trimmed_with_its_photograph():
    image = drawn((130, 100), 115)
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[90:110, 50:60] = 7
    image[mask > 0] = (20, 220, 20)
    trimmed = fundus.trim_example(Example(image, None, None, mask, "a", "a"), 115)
    np.testing.assert_array_equal(trimmed.image, fundus.trim(image, 115))
    assert set(np.unique(trimmed.mask)) == {0, 7}
    green = trimmed.image[..., 1] > 150
    assert (green & (trimmed.mask > 0)).sum() / (green | (trimmed.mask > 0)).sum() > 0.7
    assert trimmed.mask.sum() / 7 == pytest.approx(200 / 4, rel=0.2)
    foreground = fundus.trim_example(Example(image, None, None, mask > 0, "a", "a"), 115).mask
    np.testing.assert_array_equal(foreground, trimmed.mask > 0)


def test_what_is_no_fundus_photograph_is_refused():
    rng = np.random.default_rng(1)
    square = drawn((130, 100), 1)
    square[40:160, 70:190] = (200, 90, 40)
    for image, problem in (
        (np.full((50, 60, 3), 90, np.uint8), "corners have a light of 90 of 255, the lightest parts 90"),
        (rng.integers(0, 256, (90, 90, 3), np.uint8), "no visible disc"),
        (square, "no circle"),
        (255 - drawn((130, 100), 90), "no visible disc"),
        (drawn((130, 100), 18), "18% of the photograph's shorter side wide; expected at least 25%"),
        (np.repeat(drawn((130, 100), 90)[..., :1], 3, 2), "grey image"),
        (np.zeros((1, 1, 3), np.uint8), "no visible disc"),
    ):
        with pytest.raises(ValueError, match=problem):
            fundus.visible_disc(image)


def test_photographs_of_other_things_are_refused(shared):
    for path in sorted((shared / "data" / "voc_single" / "JPEGImages").glob("*.jpg"))[:20]:
        with pytest.raises(ValueError, match="disc"):
            fundus.trim(decode_image(path), 64)
