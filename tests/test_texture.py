"""GLCM measures against scikit-image, loops over pairs of pixels, and sums over pairs that need no matrix."""

import math

import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.color import rgb2gray
from skimage.feature import graycomatrix, graycoprops
from skimage.util import img_as_ubyte

from scalecov_jax.concepts.measure import get_measure
from scalecov_jax.concepts.texture import ANGLES, PROPERTIES, cooccurrence, glcm_property, grey_levels
from scalecov_jax.imaging.image_set import Example

STEPS = {0: (0, 1), 45: (1, 1), 90: (1, 0), 135: (1, -1)}
TINY = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 2, 2], [2, 2, 3, 3]], np.uint8)
RNG = np.random.default_rng(0)


def example(grey, mask=None):
    return Example(np.repeat(grey[..., None], 3, axis=2), None, None, mask, "", "a.png")


def measured(name, grey, mask=None):
    return get_measure(name).measure(example(grey, mask))


def pairs(grey, distance, angle, mask=None):
    """Levels of all pairs in both orders, those inside the mask, and the number of all."""
    step = distance if angle in (0, 90) else round(distance / math.sqrt(2))
    rows, columns = step * STEPS[angle][0], step * STEPS[angle][1]
    inside, count = [], 0
    for y in range(grey.shape[0]):
        for x in range(grey.shape[1]):
            v, u = y + rows, x + columns
            if 0 <= v < grey.shape[0] and 0 <= u < grey.shape[1]:
                count += 2
                if mask is None or (mask[y, x] and mask[v, u]):
                    inside += [(int(grey[y, x]), int(grey[v, u])), (int(grey[v, u]), int(grey[y, x]))]
    return np.array(inside, float).reshape(-1, 2), count


def from_pairs(name, both, share=1.0):
    """A property from the list of pairs; `share` is what p sums to."""
    i, j = both.T
    counts = np.unique(both, axis=0, return_counts=True)[1] * share / len(both)
    if name == "correlation":
        mean = share * i.mean()
        return ((i - mean) * (j - mean)).mean() / ((i - mean) ** 2).mean()
    return {
        "contrast": share * ((i - j) ** 2).mean(),
        "dissimilarity": share * np.abs(i - j).mean(),
        "homogeneity": share * (1 / (1 + (i - j) ** 2)).mean(),
        "asm": (counts**2).sum(),
        "energy": math.sqrt((counts**2).sum()),
    }[name]


def test_by_hand():
    # Twelve pairs to the right: (0,1) twice, (2,3) once, (0,2) once, equal eight times.
    assert measured("glcm_contrast", TINY) == pytest.approx((2 + 1 + 4) / 12, rel=1e-12)
    assert measured("glcm_dissimilarity", TINY) == pytest.approx((2 + 1 + 2) / 12, rel=1e-12)
    assert measured("glcm_homogeneity", TINY) == pytest.approx((8 + 3 / 2 + 1 / 5) / 12, rel=1e-12)
    # Of 24 ordered pairs: 00 four, 11 four, 22 six, 33 two, 01 10 two each, 02 20 23 32 one each.
    assert measured("glcm_asm", TINY) == pytest.approx((16 + 16 + 36 + 4 + 4 + 4 + 4) / 576, rel=1e-12)


@pytest.mark.parametrize("name", PROPERTIES)
def test_equals_scikit_image(name):
    for image in (data.astronaut()[:90, :70], RNG.integers(0, 256, (30, 41, 3), dtype=np.uint8)):
        grey = img_as_ubyte(rgb2gray(image))
        np.testing.assert_array_equal(grey_levels(image), grey)
        matrix = graycomatrix(grey, [1, 5], np.deg2rad(ANGLES), symmetric=True, normed=True)
        expected = graycoprops(matrix, "ASM" if name == "asm" else name)
        one = Example(image, None, None, None, "", "a.png")
        assert get_measure(f"glcm_{name}").measure(one) == pytest.approx(expected[0, 0], rel=1e-10)
        mean = get_measure(f"glcm_{name}:distance=1-5:angle=0-45-90-135").measure(one)
        assert mean == pytest.approx(expected.mean(), rel=1e-10)


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("distance", [1, 3, 5])
def test_equals_loops_over_pairs_with_and_without_mask(distance, angle):
    grey = RNG.integers(0, 256, (13, 11), dtype=np.uint8)
    mask = RNG.random((13, 11)) < 0.7
    both, _ = pairs(grey, distance, angle)
    inside, count = pairs(grey, distance, angle, mask)
    assert 0 < len(inside) < count
    for name in PROPERTIES:
        at = f":distance={distance}:angle={angle}"
        assert measured(f"glcm_{name}{at}", grey) == pytest.approx(from_pairs(name, both), rel=1e-10)
        masked = measured(f"glcm_{name}_masked{at}", grey, mask)
        assert masked == pytest.approx(from_pairs(name, inside), rel=1e-10)
        published = measured(f"glcm_{name}_masked{at}:published=1", grey, mask)
        assert published == pytest.approx(from_pairs(name, inside, len(inside) / count), rel=1e-10)


def test_probabilities_sum_to_one_but_for_the_published_ones():
    grey = RNG.integers(0, 256, (20, 20), dtype=np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[:, :10] = True
    for one in (cooccurrence(grey, 5, 0), cooccurrence(grey, 5, 0, mask)):
        assert one.sum() == pytest.approx(1, abs=1e-12)
        np.testing.assert_array_equal(one, one.T)
    # Of 15 pairs a row 5 lie inside.
    assert cooccurrence(grey, 5, 0, mask, published=True).sum() == pytest.approx(1 / 3, abs=1e-12)


def test_a_full_mask_changes_nothing_and_what_lies_outside_counts_not():
    grey = RNG.integers(0, 256, (16, 18), dtype=np.uint8)
    mask = np.zeros((16, 18), np.int32)
    mask[3:12, 4:15] = 7
    other = np.where(mask > 0, grey, 255 - grey)
    for name in PROPERTIES:
        whole = measured(f"glcm_{name}:distance=5", grey)
        assert measured(f"glcm_{name}_masked", grey, np.ones_like(mask)) == whole
        inside = measured(f"glcm_{name}_masked", grey, mask)
        assert inside == measured(f"glcm_{name}_masked", other, mask)
        assert inside == measured(f"glcm_{name}_masked", grey, mask > 0)
        assert inside == measured(f"glcm_{name}:distance=5", np.ascontiguousarray(grey[3:12, 4:15]))


def test_rotation_turns_the_angle():
    grey = RNG.integers(0, 256, (15, 12), dtype=np.uint8)
    turned = np.rot90(grey).copy()
    for name in PROPERTIES:
        for first, second in ((0, 90), (45, 135), (90, 0), (135, 45)):
            before = measured(f"glcm_{name}:angle={first}:distance=2", grey)
            after = measured(f"glcm_{name}:angle={second}:distance=2", turned)
            assert before == pytest.approx(after, rel=1e-12)
        over_all = f"glcm_{name}:angle=0-45-90-135"
        assert measured(over_all, grey) == pytest.approx(measured(over_all, turned), rel=1e-12)
    horizontal, vertical = (measured(f"glcm_contrast:angle={angle}", np.sort(grey)) for angle in (0, 90))
    assert horizontal < vertical


def test_grey_levels_that_are_shifted_or_doubled():
    grey = RNG.integers(0, 100, (12, 12), dtype=np.uint8)
    factors = {"contrast": 4, "dissimilarity": 2, "asm": 1, "energy": 1, "correlation": 1}
    for name in PROPERTIES:
        plain = measured(f"glcm_{name}", grey)
        assert measured(f"glcm_{name}", grey + 50) == pytest.approx(plain, rel=1e-10)
        if name in factors:
            assert measured(f"glcm_{name}", grey * 2) == pytest.approx(factors[name] * plain, rel=1e-10)


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_constant_image(level):
    grey = np.full((9, 9), level, np.uint8)
    values = {name: measured(f"glcm_{name}", grey) for name in PROPERTIES}
    assert values == dict(zip(PROPERTIES, (0, 0, 1, 1, 1, 1), strict=True))
    matrix = graycomatrix(grey, [1], [0], symmetric=True, normed=True)
    assert graycoprops(matrix, "correlation")[0, 0] == 1


def test_where_there_is_no_pair_or_no_mask():
    grey = RNG.integers(0, 256, (8, 4), dtype=np.uint8)
    with pytest.raises(
        ValueError, match=r"a\.png: no two pixels lie 5 px apart at 0 degrees inside the 4 x 8"
    ):
        measured("glcm_asm:distance=5", grey)
    assert measured("glcm_asm:distance=5:angle=90", grey) > 0
    with pytest.raises(ValueError, match=r"a\.png: no two pixels .* inside the mask"):
        measured("glcm_asm_masked:distance=1", grey, np.eye(8, 4, dtype=bool))
    with pytest.raises(ValueError, match=r"a\.png: no two pixels .* inside the mask"):
        measured("glcm_correlation_masked:distance=1:published=1", grey, np.zeros((8, 4), bool))
    with pytest.raises(ValueError, match=r"a\.png: needs a mask"):
        measured("glcm_asm_masked", grey)
    with pytest.raises(ValueError, match=r"a\.png: the mask has 4 x 4 pixels, the image 4 x 8"):
        measured("glcm_asm_masked", grey, np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="There is no GLCM property 'entropy'; expected one of contrast"):
        glcm_property(cooccurrence(grey, 1, 0), "entropy")


def test_real_nuclei(shared):
    paths = sorted((shared / "data" / "nuclei" / "dsb2018").glob("*_labels.png"))[:3]
    assert len(paths) == 3
    for path in paths:
        labels = np.array(Image.open(path)).astype(np.int32)
        name = path.name.replace("labels", "image")
        image = np.array(Image.open(path.with_name(name)).convert("RGB"))
        grey = grey_levels(image).astype(float)
        inside = (labels[:, 5:] > 0) & (labels[:, :-5] > 0)
        left, right = grey[:, :-5][inside], grey[:, 5:][inside]
        both = np.stack([np.concatenate([left, right]), np.concatenate([right, left])], axis=1)
        share = inside.mean()
        assert 0.01 < share < 0.6
        one = Example(image, None, None, labels, "", path.name)
        for name in PROPERTIES:
            fixed = get_measure(f"glcm_{name}_masked").measure(one)
            assert fixed == pytest.approx(from_pairs(name, both), rel=1e-9)
            published = get_measure(f"glcm_{name}_masked:published=1").measure(one)
            assert published == pytest.approx(from_pairs(name, both, share), rel=1e-9)
