"""Masks in every way that programs write them: the same instances, or the same foreground, whatever the file."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from scalecov_jax.imaging.decoding import decode_mask
from scalecov_jax.imaging.image_set import ImageError

LABELS = np.zeros((40, 50), np.uint16)
for number, (row, column, side) in enumerate([(2, 3, 8), (15, 20, 10), (30, 5, 6), (5, 35, 9)], start=1):
    LABELS[row : row + side, column : column + side] = number
FOREGROUND = LABELS > 0


def image(array, mode=None):
    made = Image.fromarray(array, mode) if mode else Image.fromarray(array)
    if mode == "P":
        made.putpalette([*np.random.default_rng(0).integers(1, 255, 768)])
    return made


def rgba(colour):
    out = np.zeros((*LABELS.shape, 4), np.uint8)
    out[FOREGROUND] = colour
    return image(out)


def opaque():
    out = np.full((*LABELS.shape, 4), 255, np.uint8)
    out[~FOREGROUND, :3] = 0
    return image(out)


def swapped_palette():
    """Index 0 is white and the foreground, index 1 black."""
    made = Image.fromarray((~FOREGROUND).astype(np.uint8), "P")
    made.putpalette([255, 255, 255, 0, 0, 0])
    return made


FOREGROUNDS = {
    "0 and 1": lambda: image(FOREGROUND.astype(np.uint8)),
    "0 and 100": lambda: image(100 * FOREGROUND.astype(np.uint8)),
    "0 and 255": lambda: image(255 * FOREGROUND.astype(np.uint8)),
    "1 bit": lambda: image(FOREGROUND),
    "16 bits": lambda: image(65535 * FOREGROUND.astype(np.uint16)),
    "16 bits from 0 to 1": lambda: image(FOREGROUND.astype(np.uint16)),
    "palette": lambda: image(FOREGROUND.astype(np.uint8), "P"),
    "palette, black second": swapped_palette,
    "white over nothing": lambda: rgba((255, 255, 255, 255)),
    "red over nothing": lambda: rgba((255, 0, 0, 255)),
    "black over nothing": lambda: rgba((0, 0, 0, 255)),
    "grey over nothing": lambda: rgba((255, 255, 255, 255)).convert("LA"),
    "opaque": opaque,
    "blue on black": lambda: image(FOREGROUND[..., None] * np.array([0, 0, 200], np.uint8)),
    "white RGB": lambda: image(np.repeat(255 * FOREGROUND.astype(np.uint8)[..., None], 3, -1)),
}


@pytest.mark.parametrize("kind", FOREGROUNDS)
def test_one_value_beside_the_background_is_the_foreground(tmp_path, kind):
    FOREGROUNDS[kind]().save(tmp_path / "mask.png")
    mask = decode_mask(tmp_path / "mask.png")
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, FOREGROUND)


def test_blurred_and_compressed_masks_are_cut_at_half(tmp_path):
    """Discs whose edges are drawn as shares of a pixel."""
    y, x = np.mgrid[:320, :400]
    discs = sum((y - 40 * i) ** 2 + (x - 50 * i) ** 2 < (18 + 5 * i) ** 2 for i in range(1, 6))
    soft = image(255 * (discs > 0).astype(np.uint8)).reduce(4)
    expected = np.asarray(soft) > 127.5
    soft.save(tmp_path / "soft.png")
    soft.save(tmp_path / "mask.jpg", quality=80)
    np.testing.assert_array_equal(decode_mask(tmp_path / "soft.png"), expected)
    assert (decode_mask(tmp_path / "mask.jpg") != expected).mean() < 0.005


def coloured():
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 0)], np.uint8)
    return image(colours[LABELS])


def void():
    """As in PASCAL VOC: contours of 255."""
    ring = np.zeros_like(FOREGROUND)
    ring[:, 1:] |= FOREGROUND[:, :-1]
    return np.where(ring & ~FOREGROUND, 255, LABELS).astype(np.uint8)


INSTANCES = {
    "labels.png": lambda path: image(LABELS.astype(np.uint8)).save(path),
    "labels16.png": lambda path: image(LABELS * 300).save(path),
    "palette.png": lambda path: image(LABELS.astype(np.uint8), "P").save(path),
    "void.png": lambda path: image(void(), "P").save(path),
    "colours.png": lambda path: coloured().save(path),
    "grey.png": lambda path: image(np.repeat(LABELS.astype(np.uint8)[..., None], 3, -1)).save(path),
    "labels.npy": lambda path: np.save(path, LABELS),
} | {
    f"{name}.tif": lambda path, make=make, options=options: tifffile.imwrite(path, make(LABELS), **options)
    for name, make, options in [
        ("uint16", lambda x: x, {}),
        ("int16", lambda x: x.astype(np.int16), {}),
        ("int32", lambda x: x.astype(np.int32), {}),
        ("int64", lambda x: x.astype(np.int64), {}),
        ("float32", lambda x: x.astype(np.float32), {}),
        ("large", lambda x: np.where(x > 0, x + np.uint32(3_000_000_000), 0).astype(np.uint32), {}),
        ("channel", lambda x: x[..., None], {}),
        ("zlib", lambda x: x, {"compression": "zlib"}),
        ("bigtiff", lambda x: x, {"bigtiff": True}),
        ("imagej", lambda x: x, {"imagej": True}),
        ("ome", lambda x: x, {"ome": True}),
    ]
}


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", INSTANCES)
def test_instances_keep_their_pixels(tmp_path, name, labels):
    INSTANCES[name](tmp_path / name)
    mask = decode_mask(tmp_path / name, labels=labels)
    assert mask.dtype == np.int32
    np.testing.assert_array_equal(mask > 0, FOREGROUND)
    pairs = {*zip(mask.ravel().tolist(), LABELS.ravel().tolist(), strict=True)}
    assert len(pairs) == 5


def test_boolean_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", FOREGROUND)
    np.testing.assert_array_equal(decode_mask(tmp_path / "m.tif"), FOREGROUND)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: np.stack([LABELS, LABELS, LABELS + 1, LABELS, LABELS]), "5 pages"),
        (lambda: LABELS.astype(np.float32) + 0.5, "not whole"),
        (lambda: -LABELS.astype(np.int32), "negative"),
        (lambda: np.where(FOREGROUND, np.nan, 0).astype(np.float32), "not finite"),
    ],
)
def test_what_are_no_instance_numbers(tmp_path, make, message):
    tifffile.imwrite(tmp_path / "m_labels.tif", make())
    with pytest.raises(ImageError, match=message) as error:
        decode_mask(tmp_path / "m_labels.tif")
    assert "m_labels.tif" in str(error.value)


def test_damage_is_seen_by_the_checksum(tmp_path):
    path = tmp_path / "mask.png"
    image(LABELS.astype(np.uint8)).save(path, compress_level=0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ImageError):
        decode_mask(path)
