"""Decoding of every kind of image file, and boxes from VOC-layout folders, ImageNet's and tfds."""

import io
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scalecov_jax.concepts.scale import scale_ratio
from scalecov_jax.imaging.decoding import (
    FILTERS,
    decode_image,
    image_size,
    orientation,
    resize_image,
    turn_box,
)
from scalecov_jax.imaging.folder import turned
from scalecov_jax.imaging.image_set import Box, ImageError, boxes_of, count_reasons
from scalecov_jax.imaging.voc import read_boxes, tfds_boxes

WIDTH, HEIGHT = 40, 30
GRADIENT = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def write_image(path: Path, image: Image.Image | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(GRADIENT)).save(path, **options)
    return path


def png(width: int, height: int, depth: int, colour: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


def test_rgb_is_unchanged_from_path_and_from_bytes(tmp_path):
    path = write_image(tmp_path / "a.png")
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(decode_image(source), GRADIENT)
        assert image_size(source) == (WIDTH, HEIGHT)
    assert decode_image(path).flags.writeable


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb(tmp_path, mode):
    white = Image.new("RGBA", (WIDTH, HEIGHT), "white")
    grey = Image.fromarray(np.full((HEIGHT, WIDTH), 65535, np.uint16))
    image = grey if mode == "I;16" else white.convert(mode)
    decoded = decode_image(write_image(tmp_path / "a.png", image))
    np.testing.assert_array_equal(decoded, np.full((HEIGHT, WIDTH, 3), 255, np.uint8))


def test_sixteen_bits_are_scaled_by_257(tmp_path):
    values = np.array([[0, 128, 129, 257 * 100, 257 * 100 + 128, 257 * 100 + 129, 65535]], np.uint16)
    expected = np.array([0, 0, 1, 100, 100, 101, 255])
    for name in ("a.png", "a.tif"):
        decoded = decode_image(write_image(tmp_path / name, Image.fromarray(values)))
        np.testing.assert_array_equal(decoded[0], np.repeat(expected[:, None], 3, axis=1))
    decoded = decode_image(write_image(tmp_path / "i.tif", Image.fromarray(values.astype(np.int32))))
    np.testing.assert_array_equal(decoded[0, :, 0], expected)


def test_sixteen_bit_colour_keeps_its_upper_byte():
    decoded = decode_image(png(1, 1, 16, 2, b"\0" + np.array([65535, 0x1234, 0], ">u2").tobytes()))
    np.testing.assert_array_equal(decoded, [[[255, 0x12, 0]]])


@pytest.mark.parametrize("values", [np.int32([[0, 70000]]), np.float32([[0.5, 1]])])
def test_values_without_a_known_range_are_refused(tmp_path, values):
    with pytest.raises(ValueError, match=r"a\.tif.*16 bits"):
        decode_image(write_image(tmp_path / "a.tif", Image.fromarray(values)))


def test_transparency_lies_over_white(tmp_path):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    expected = [255, 127, 0]
    rgba = Image.fromarray(pixels)
    for image in (rgba, rgba.convert("LA")):
        np.testing.assert_array_equal(decode_image(write_image(tmp_path / "a.png", image))[0, :, 0], expected)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    decoded = decode_image(write_image(tmp_path / "p.png", palette, transparency=0))
    np.testing.assert_array_equal(decoded[0], [[255, 255, 255], [0, 0, 255]])


def test_cmyk_and_greyscale_jpeg(tmp_path):
    cmyk = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))
    red = decode_image(write_image(tmp_path / "cmyk.jpg", cmyk))
    assert red.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(red[0, 0], [255, 0, 0], atol=3)
    grey = decode_image(write_image(tmp_path / "grey.jpg", Image.new("L", (WIDTH, HEIGHT), 77)))
    np.testing.assert_array_equal(grey, np.full((HEIGHT, WIDTH, 3), 77))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_images_boxes_and_masks_are_turned_as_exif_says(tmp_path, turn, suffix):
    exif, box = Image.Exif(), Box(3, 5, 20, 10)
    exif[0x0112] = turn
    painted = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    painted[box.y_min - 1 : box.y_max, box.x_min - 1 : box.x_max] = 255
    path = write_image(tmp_path / f"a.{suffix}", Image.fromarray(painted), exif=exif)
    shown = decode_image(path)[..., 0] > 127
    assert image_size(path) == shown.shape[::-1] == ((WIDTH, HEIGHT) if turn < 5 else (HEIGHT, WIDTH))
    if suffix != "tif":  # which Pillow turns itself
        assert orientation(path) == turn
        rows, columns = np.nonzero(shown)
        corners = (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
        assert turn_box(box, WIDTH, HEIGHT, turn) == corners
        np.testing.assert_array_equal(turned(painted[..., 0] > 0, turn), shown)


@pytest.mark.parametrize(
    ("drawn_on", "expected"),
    [((WIDTH, HEIGHT), (HEIGHT - 7, 1, HEIGHT - 1, 4)), ((HEIGHT, WIDTH), (1, 2, 4, 8))],
)
def test_a_box_is_turned_if_it_was_drawn_on_the_stored_pixels(folder, drawn_on, expected):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(folder / "JPEGImages" / "x.jpg", exif=exif)
    add(folder, "x", annotation_xml("x.jpg", object_xml(box=(1, 2, 4, 8)), size=drawn_on), image=False)
    example = read_boxes(folder, "car")[-1]
    assert (example.image.shape, example.box) == ((WIDTH, HEIGHT, 3), expected)


def test_unreadable_files_are_named(tmp_path):
    contents = {
        "truncated.jpg": write_image(tmp_path / "whole.jpg").read_bytes()[:-200],
        "text.jpg": b"not an image",
        "empty.png": b"",
        "vector.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for path in (*(tmp_path / name for name in contents), tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(ImageError, match=path.name) as caught:
            decode_image(path)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        assert caught.value.name == str(path)
    for content, name, message in (
        (b"no image", "record 7", "record 7: not an"),
        (b"12345", "", "image of 5 bytes"),
    ):
        with pytest.raises(ImageError, match=message):
            decode_image(content, name)


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_decompression_bombs_are_refused_by_their_header(side):
    bomb = png(side, side, 8, 0, b"0")
    for function in (decode_image, image_size):
        with pytest.raises(ImageError, match=r"bomb: .*pixels"):
            function(bomb, "bomb")


@pytest.mark.parametrize("filter", FILTERS)
def test_resize_is_pillows(filter):
    resized = resize_image(GRADIENT, 17, filter)
    assert resized.dtype == np.uint8
    expected = Image.fromarray(GRADIENT).resize((17, 17), getattr(Image.Resampling, filter.upper()))
    np.testing.assert_array_equal(resized, np.asarray(expected))
    if filter == "lanczos":
        np.testing.assert_array_equal(resized, resize_image(GRADIENT, 17))


def object_xml(label="car", box=(1, 1, 20, 15)):
    corners = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>".format(*box)
    return f"<object><name>{label}</name><bndbox>{corners}</bndbox></object>"


def annotation_xml(filename, *objects, size=(WIDTH, HEIGHT), database="VOC"):
    return (
        f"<annotation><filename>{filename}</filename><source><database>{database}</database></source>"
        f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        f"{''.join(objects or [object_xml()])}</annotation>"
    )


def add(folder, name, xml=None, image=True):
    """Add the annotation `name`.xml and its image."""
    path = folder / "Annotations" / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(annotation_xml(f"{path.stem}.jpg") if xml is None else xml)
    if image:
        write_image(folder / "JPEGImages" / f"{name}.jpg")


@pytest.fixture
def folder(tmp_path):
    """Ten good images of cars, their boxes all different."""
    for index in range(10):
        name = f"{index:02d}"
        add(tmp_path, name, annotation_xml(f"{name}.jpg", object_xml(box=(1, 1, 11 + index, 30))))
    return tmp_path


def test_a_folder_is_a_sequence_of_examples(folder):
    source = read_boxes(str(folder), "car")
    assert [example.name for example in source] == [f"{index:02d}.jpg" for index in range(10)]
    assert len(source) == 10
    example = source[3]
    assert example.box == Box(1, 1, 14, 30)
    assert (example.label, example.group, example.mask) == ("car", "03.jpg", None)
    np.testing.assert_array_equal(example.image, decode_image(folder / "JPEGImages" / "03.jpg"))
    np.testing.assert_array_equal(source[-1].image, source[9].image)
    assert source.skipped == ()
    assert scale_ratio(source.outline(9).box, *source.outline(9).image.shape[:2]) == 20 / 40
    with pytest.raises(IndexError):
        source[10]


def test_fractional_corners_and_the_whole_image_are_fine(folder):
    add(folder, "fraction", annotation_xml("fraction.jpg", object_xml(box=(1.5, 2.25, 20.5, 15))))
    add(folder, "whole", annotation_xml("whole.jpg", object_xml(box=(1, 1, WIDTH, HEIGHT))))
    source = read_boxes(folder, "car")
    assert source.skipped == ()
    assert source[len(source) - 2].box == Box(1.5, 2.25, 20.5, 15)
    assert scale_ratio(source[-1].box, *source[-1].image.shape[:2]) == 1


LAUGHS = "".join(f'<!ENTITY {a} "{f"&{b};" * 10}">' for a, b in pairwise("ihgfedcba"))
BILLION_LAUGHS = f'<!DOCTYPE i [<!ENTITY a "ha">{LAUGHS}]><annotation><filename>&i;</filename></annotation>'
EXTERNAL_ENTITY = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation>&b;</annotation>'
BAD_BOXES = {
    "inverted box": [(20, 1, 10, 15), (1, 15, 20, 2)],
    "zero-area box": [(5, 1, 5, 15), (1, 7, 20, 7)],
    "box outside the image": [
        (0, 1, 20, 15),
        (1, -3, 20, 15),
        (1, 1, WIDTH + 1, 15),
        (1, 1, 20, HEIGHT + 0.5),
    ],
    "not a number": [("nan", 1, 20, 15), (1, 1, "inf", 15), (1, 1, "twenty", 15)],
    "missing field": [(1, 1, 20, "")],
}
BAD = {
    "forbidden XML": [BILLION_LAUGHS, EXTERNAL_ENTITY, "<!DOCTYPE annotation><annotation></annotation>"],
    "malformed XML": [
        "<annotation><object>",
        "",
        "\x00\x01",
        '<?xml version="1.0" encoding="nonsense"?><annotation/>',
        "<html></html>",
    ],
    "no object": ["<annotation></annotation>"],
    "missing field": [
        "<annotation><object></object></annotation>",
        "<annotation><object><name>car</name></object></annotation>",
    ],
    "several objects": [
        annotation_xml("bad.jpg", object_xml(), object_xml()),
        annotation_xml("bad.jpg", object_xml(), object_xml("cat")),
    ],
    "another class": [annotation_xml("bad.jpg", object_xml("cat"), object_xml("cat"))],
    "missing image file": [annotation_xml("ghost.jpg"), annotation_xml("../Annotations/00.xml")],
    "size differs": [annotation_xml("bad.jpg", size=(WIDTH, HEIGHT + 1))],
    "not a number": [annotation_xml("bad.jpg", size=("wide", HEIGHT))],
    "image annotated twice": [annotation_xml("00.jpg")],
    "unreadable image": [annotation_xml("text.jpg")],
}


SKIPS = [
    (xml, reason, ["text.jpg"] * (reason == "unreadable image")) for reason in BAD for xml in BAD[reason]
] + [
    (annotation_xml("bad.jpg", object_xml(box=box)), reason, [f"{x}" for x in box if x not in (1, 2, 15, 20)])
    for reason in BAD_BOXES
    for box in BAD_BOXES[reason]
]


@pytest.mark.parametrize(("xml", "reason", "given"), SKIPS)
def test_bad_annotations_are_skipped_and_named(folder, xml, reason, given):
    add(folder, "bad", xml)
    (folder / "JPEGImages" / "text.jpg").write_text("not an image")
    source = read_boxes(folder, "car")
    (skip,) = source.skipped
    assert (len(source), skip.name, skip.reason) == (10, "bad.xml", reason)
    assert skip.detail
    assert all(value in skip.detail for value in given)


@pytest.mark.parametrize("size", ["<size><width>0</width><height>0</height></size>", "<size/>", ""])
def test_size_is_read_from_the_image_when_the_xml_has_none(folder, size):
    own = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    xml = annotation_xml("x.jpg").replace(own, size)
    add(folder, "x", xml)
    row = read_boxes(folder, "car").table.iloc[-1]
    assert (row["name"], row["width"], row["height"]) == ("x.jpg", WIDTH, HEIGHT)


def test_nothing_is_lost(folder):
    add(folder, "crowd", annotation_xml("crowd.jpg", object_xml(), object_xml()))
    add(folder, "cat", annotation_xml("cat.jpg", object_xml("cat")))
    add(folder, "ghost", image=False)
    source = read_boxes(folder, "car")
    assert len(source) + len(source.skipped) == len(list((folder / "Annotations").iterdir()))
    reasons = {"another class": 1, "several objects": 1, "missing image file": 1}
    assert count_reasons(source.skipped) == reasons


@pytest.mark.parametrize(("suffix", "filename"), [(".JPEG", "{}"), (".png", "%s"), (".jpg", "{}.jpg")])
def test_imagenet_layout_by_synset_and_its_zero_based_corners(tmp_path, suffix, filename):
    synset = "n04037443"
    for index in range(10):
        name = f"{synset}_{index}"
        one = object_xml(synset, (0, 0, WIDTH, HEIGHT - 1 - index))
        xml = annotation_xml(filename.format(name), one, database="ILSVRC_2012")
        add(tmp_path, f"{synset}/{name}", xml, image=False)
        write_image(tmp_path / "Images" / synset / f"{name}{suffix}")
    source = read_boxes(tmp_path, synset)
    assert source.skipped == ()
    assert source[0].name == f"{synset}/{synset}_0{suffix}"
    assert (source[0].box, source[0].image.shape) == (Box(1, 1, WIDTH, HEIGHT - 1), (HEIGHT, WIDTH, 3))


def test_same_file_name_in_two_synsets(tmp_path):
    for index in range(10):
        for label in ("car", "cat"):
            add(tmp_path, f"{label}/{index}", annotation_xml(f"{index}.jpg", object_xml(label)))
    source = read_boxes(tmp_path, "cat")
    assert [*source.table["name"]] == [f"cat/{index}.jpg" for index in range(10)]
    add(tmp_path, "elsewhere", annotation_xml("3", object_xml("cat")), image=False)
    (skip,) = [skip for skip in read_boxes(tmp_path, "cat").skipped if skip.reason != "another class"]
    assert skip[:2] == ("elsewhere.xml", "several image files")
    assert "car/3.jpg" in skip.detail


def test_no_image_of_the_class_names_what_is_there(folder):
    add(folder, "cat", annotation_xml("cat.jpg", object_xml("cat"), object_xml("cat")))
    for asked in ("Car", "cars", "carr"):
        with pytest.raises(ValueError, match=rf"'{asked}'; did you mean 'car'\?.*car 10, cat 2"):
            read_boxes(folder, asked)
    with pytest.raises(ValueError, match=r"'zebra'\. Objects present: car 10, cat 2"):
        read_boxes(folder, "zebra")


def test_too_few_images_says_how_many_and_why(folder):
    add(folder, "08", "<annotation>", image=False)
    add(folder, "09", annotation_xml("09.jpg", object_xml(), object_xml()), image=False)
    reasons = r"(?=.*malformed XML 1)(?=.*several objects 1)"
    with pytest.raises(ValueError, match=rf"{reasons}.*8 usable images.*at least 10.*08.xml"):
        read_boxes(folder, "car")


def test_folders_without_the_layout(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_boxes(tmp_path / "missing", "car")
    messages = r"Annotations.*JPEGImages", "JPEGImages", "Objects present: none"
    for folder, message in zip(("", "Annotations", "JPEGImages"), messages, strict=True):
        (tmp_path / folder).mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=message):
            read_boxes(tmp_path, "car")


def test_real_photographs(shared):
    source = read_boxes(shared / "data" / "voc_single", "cat")
    assert len(source) == 133
    assert count_reasons(source.skipped) == {"another class": 437}
    assert source[0].image.shape == source.outline(0).image.shape


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tfds dataset with the features of `voc`, prepared in array_record, with its images' boxes."""
    import tensorflow_datasets as tfds

    heights = np.random.default_rng(0).integers(10, 30, 10).tolist()
    boxes = {f"{at:06d}.jpg": Box(1 + at, 2, 21 + at, y_max) for at, y_max in enumerate(heights)}

    class TinyVoc(tfds.core.GeneratorBasedBuilder):
        """Ten cars and three that must be skipped."""

        VERSION = tfds.core.Version("5.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=("aeroplane", "car", "cat"))
            objects = {"label": label, "bbox": tfds.features.BBoxFeature(), "is_difficult": np.bool_}
            features = {
                "image": tfds.features.Image(),
                "image/filename": tfds.features.Text(),
                "objects": tfds.features.Sequence(objects),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            file, small, scale = io.BytesIO(), Box(1, 1, 9, 9), (HEIGHT, WIDTH, HEIGHT, WIDTH)
            Image.fromarray(GRADIENT).save(file, "JPEG")
            objects = {name: [("car", box)] for name, box in boxes.items()}
            objects |= {"cat.jpg": [("cat", small)], "crowd.jpg": [("car", small), ("cat", small)]}
            for name, listed in (objects | {"flat.jpg": [("car", Box(3, 1, 3, 9))]}).items():
                items = {"label": [label for label, _ in listed], "is_difficult": [False] * len(listed)}
                corners = [np.divide((box[1], box[0], box[3], box[2]), scale) for _, box in listed]
                items["bbox"] = [tfds.features.BBox(*of) for of in corners]
                yield name, {"image": file.getvalue(), "image/filename": name, "objects": items}

    data_dir = tmp_path_factory.mktemp("tfds")
    TinyVoc(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir, boxes


def test_tfds_gives_the_corners_back(prepared):
    data_dir, boxes = prepared
    source = tfds_boxes(data_dir, "test", "car", name="tiny_voc")
    assert dict(zip(source.table["name"], boxes_of(source), strict=True)) == boxes
    assert [*source.table["name"]] == sorted(boxes)
    reasons = ("cat.jpg", "another class"), ("crowd.jpg", "several objects"), ("flat.jpg", "zero-area box")
    assert {skip[:2] for skip in source.skipped} == {*reasons}
    example = source[4]
    assert (example.name, example.box, example.label) == ("000004.jpg", boxes["000004.jpg"], "car")
    assert example.image.shape == (HEIGHT, WIDTH, 3)


def test_tfds_errors_say_what_to_do(prepared, tmp_path):
    data_dir, _ = prepared
    interrupted = tmp_path / "voc" / "2007" / "5.0.0.incompleteABC"
    interrupted.mkdir(parents=True)
    (interrupted / "dataset_info.json").touch()
    with pytest.raises(ValueError, match=r"no prepared dataset.*array_record.*download_and_prepare"):
        tfds_boxes(tmp_path, "test", "car")
    for split, label, message in (
        ("validation", "car", "splits: test"),
        ("test", "cars", "did you mean 'car'"),
    ):
        with pytest.raises(ValueError, match=message):
            tfds_boxes(data_dir, split, label, name="tiny_voc")


def test_tfds_in_another_format_is_refused(prepared, tmp_path):
    version = Path("tiny_voc", "5.0.0")
    (tmp_path / version).mkdir(parents=True)
    for path in (prepared[0] / version).iterdir():
        text = path.read_bytes().replace(b"array_record", b"tfrecord")
        (tmp_path / version / path.name.replace("array_record", "tfrecord")).write_bytes(text)
    with pytest.raises(ValueError, match="another format than array_record"):
        tfds_boxes(tmp_path, "test", "car", name="tiny_voc")
