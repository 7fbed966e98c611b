"""Measuring a source: order, threads, the cache, what cannot be decoded or measured."""

import csv
import threading

import numpy as np
import pytest
from PIL import Image

from scalecov_jax.cache import content_hash
from scalecov_jax.concepts import compute, scale
from scalecov_jax.concepts.compute import check_measures, measure_all
from scalecov_jax.concepts.measure import MEASURES, ConceptMeasure, get_measures
from scalecov_jax.imaging import voc
from scalecov_jax.imaging.image_set import Box, Example, ImageError, Skipped
from scalecov_jax.imaging.labelled import open_labelled, squared
from scalecov_jax.imaging.voc import read_boxes

RNG = np.random.default_rng(0)


def examples(count=7):
    return [
        Example(RNG.integers(0, 256, (9 + index, 8, 3), dtype=np.uint8), None, None, None, "", f"{index}.png")
        for index in range(count)
    ]


class Broken(list):
    """A source in which images cannot be decoded."""

    def __init__(self, items, *broken):
        super().__init__(items)
        self.broken = broken

    def __getitem__(self, index, /):
        if index in self.broken:
            raise ImageError(f"{index}.png", "truncated")
        return super().__getitem__(index)


class Counted:
    """A measure that knows which images it was asked for."""

    def __init__(self, function=lambda example: example.image.mean()):
        self.function = function
        self.asked = []

    def __call__(self, example):
        self.asked.append(example.name)
        return self.function(example)


def counted(name="mine", function=lambda example: example.image.mean()):
    function = Counted(function)
    return ConceptMeasure(name, function), function


def write_boxes(folder, count=11):
    for part in ("Annotations", "JPEGImages"):
        (folder / part).mkdir()
    for index in range(count):
        Image.new("RGB", (20 + index, 30), (index, 0, 0)).save(folder / "JPEGImages" / f"{index:02}.png")
        (folder / "Annotations" / f"{index:02}.xml").write_text(
            f"<annotation><filename>{index:02}.png</filename><object><name>car</name><bndbox><xmin>3</xmin>"
            f"<ymin>1</ymin><xmax>{9 + index}</xmax><ymax>9</ymax></bndbox></object></annotation>"
        )
    return read_boxes(folder, "car")


# Values


@pytest.mark.parametrize("workers", [1, 2, 5, None])
def test_values_in_order_whatever_the_number_of_threads(workers):
    source = examples()
    measures = get_measures(["mean_red", "glcm_contrast", "image_height"])
    found = measure_all(measures, source, workers=workers)
    expected = [[one.measure(example) for one in measures] for example in source]
    np.testing.assert_array_equal(found.values, expected)
    assert found.values.dtype == np.float64
    assert found.names == tuple(one.name for one in source)
    assert found.indices.tolist() == list(range(7))
    assert found.skipped == ()


def test_no_image():
    found = measure_all([MEASURES["mean_red"]], [])
    assert found.values.shape == (0, 1)


def test_what_cannot_be_decoded_is_left_out(tmp_path):
    mean = MEASURES["mean_red"]
    source = Broken(examples(), 2, 5)
    found = measure_all([mean], source, cache=tmp_path / "c.csv", workers=3)
    assert found.indices.tolist() == [0, 1, 3, 4, 6]
    assert found.names == ("0.png", "1.png", "3.png", "4.png", "6.png")
    np.testing.assert_array_equal(found.values[:, 0], [mean.measure(source[i]) for i in (0, 1, 3, 4, 6)])
    assert found.skipped == (
        Skipped("2.png", "unreadable image", "truncated"),
        Skipped("5.png", "unreadable image", "truncated"),
    )


def test_boxes_are_measured_without_decoding(tmp_path, monkeypatch):
    source = write_boxes(tmp_path)
    whole = [source[index] for index in range(len(source))]
    names = ["scale", "sqrt_scale", "log_scale", "box_centre_x", "box_centre_y", "image_width", "image_area"]
    expected = measure_all(get_measures([*names, "mean_red"]), source).values
    np.testing.assert_array_equal(expected, measure_all(get_measures([*names, "mean_red"]), whole).values)
    monkeypatch.setattr(voc, "decode_image", lambda *_: pytest.fail("decoded"))
    found = measure_all(get_measures(names), source, cache=tmp_path / "c.csv")
    np.testing.assert_array_equal(found.values, expected[:, :-1])
    ratios = [scale.scale_ratio(one.box, *one.image.shape[:2]) for one in whole]
    np.testing.assert_array_equal(found.values[:, 0], ratios)
    assert found.names == tuple(source.table["name"])
    assert not (tmp_path / "c.csv").exists()


# The cache


def test_a_second_run_measures_nothing(tmp_path):
    source, cache = examples(), tmp_path / "deep" / "cache.csv"
    one, calls = counted()
    first = measure_all([one], source, cache=cache)
    assert len(calls.asked) == 7
    second = measure_all([one], source, cache=cache, workers=1)
    assert len(calls.asked) == 7
    np.testing.assert_array_equal(first.values, second.values)
    with cache.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "content", "measure", "value"]
    assert [row[0] for row in rows] == sorted(one.name for one in source)
    assert [float(row[3]) for row in rows] == first.values[:, 0].tolist()
    assert not list(cache.parent.glob("*.partial*"))
    other, calls_of_other = counted("other")
    both = measure_all([other, one], source[:4], cache=cache)
    assert (len(calls.asked), len(calls_of_other.asked)) == (7, 4)
    np.testing.assert_array_equal(both.values, np.repeat(first.values[:4], 2, axis=1))
    assert len(cache.read_text().splitlines()) == 1 + 7 + 4


@pytest.mark.parametrize(
    "change",
    [
        {"image": np.full((9, 8, 3), 7, np.uint8)},
        {"box": Box(1, 1, 2, 2)},
        {"mask": np.ones((9, 8), bool)},
        {"file_bytes": 5},
        {"name": "other.png"},
    ],
)
def test_what_changed_is_measured_anew(tmp_path, change):
    source = examples()
    one, calls = counted()
    measure_all([one], source, cache=tmp_path / "c.csv")
    source[0] = source[0]._replace(**change)
    found = measure_all([one], source, cache=tmp_path / "c.csv")
    assert calls.asked[7:] == [source[0].name]
    assert found.values[0] == source[0].image.mean()


def test_a_changed_pixel_changes_the_hash_and_the_layout_does_not():
    one = examples(1)[0]
    changed = one.image.copy()
    changed[3, 4, 1] ^= 1
    assert content_hash(one._replace(image=changed)) != content_hash(one)
    assert content_hash(one._replace(image=np.asfortranarray(one.image))) == content_hash(one)
    flat = one._replace(image=one.image.reshape(8, 9, 3))
    masks = [None, np.zeros((9, 8), bool), np.zeros((9, 8), np.uint8), np.zeros((8, 9), bool)]
    hashes = {content_hash(one._replace(mask=mask)) for mask in masks}
    assert len(hashes | {content_hash(flat)}) == 5
    box = one._replace(box=Box(1, 2, 3, 4))
    assert content_hash(box) == content_hash(one._replace(box=Box(1.0, 2.0, 3.0, 4.0)))


def test_an_interruption_loses_nothing_measured(tmp_path):
    source, cache = examples(), tmp_path / "c.csv"
    cache.with_suffix(".partial.csv").write_text("image,content,mea")  # a run that was killed while it wrote

    def interrupted(example):
        if example.name == "4.png":
            raise KeyboardInterrupt
        return example.image.mean()

    one, calls = counted(function=interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_all([one], source, cache=cache, workers=1)
    calls.asked.clear()
    calls.function = lambda example: example.image.mean()
    found = measure_all([one], source, cache=cache, workers=1)
    assert set(calls.asked) <= {"4.png", "5.png", "6.png"}
    assert "4.png" in calls.asked
    np.testing.assert_array_equal(found.values[:, 0], [example.image.mean() for example in source])


def test_the_table_is_written_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "_WRITE_EVERY", 0.0)
    cache, seen = tmp_path / "c.csv", []

    def look(example):
        seen.append(len(cache.read_text().splitlines()) if cache.exists() else 0)
        return 1.0

    measure_all([counted(function=look)[0]], examples(), cache=cache, workers=1)
    assert seen[0] == 0
    assert seen[-1] >= 5  # the header, and all but the two images ahead


def test_a_damaged_cache_is_made_again(tmp_path, caplog):
    source, cache = examples(), tmp_path / "c.csv"
    expected = measure_all([counted()[0]], source, cache=cache).values
    whole = cache.read_text()
    for text in ("", whole[:-5], whole.replace(",", ";"), whole.replace("1", "2")):
        cache.write_text(text)
        caplog.clear()
        np.testing.assert_array_equal(measure_all([counted()[0]], source, cache=cache).values, expected)
        assert "c.csv is damaged" in caplog.text
        assert cache.read_text() == whole


# What cannot be measured


def test_all_failures_in_one_message_after_everything_else_was_measured(tmp_path):
    source, cache = examples(14), tmp_path / "c.csv"
    source[1] = source[1]._replace(box=Box(1, 1, 2, 2))
    good, calls = counted()
    odd = ConceptMeasure("odd", lambda example: np.nan if example.name in ("3.png", "5.png") else 2.0)
    lookup = ConceptMeasure("lookup", lambda example: {f"{i}.png": 1.0 for i in range(13)}[example.name])
    with pytest.raises(ValueError, match="Leave out these images") as caught:
        measure_all([good, odd, lookup, MEASURES["scale"]], source, cache=cache)
    message = str(caught.value)
    assert "odd cannot be measured on 2 of 14 images (3.png, 5.png: the value is nan)" in message
    assert "lookup cannot be measured on 1 of 14 images (13.png: KeyError('13.png'))" in message
    assert "scale cannot be measured on 13 of 14 images (0.png, 2.png, 3.png" in message
    assert "10.png: scale is measured on a box, and this example has none; and 3 more)" in message
    assert "mine" not in message
    assert len(calls.asked) == 14
    assert len(cache.read_text().splitlines()) == 1 + 14 + 12 + 13
    measure_all([good], source, cache=cache)
    assert len(calls.asked) == 14


def test_arguments():
    one = counted()[0]
    for measures, workers in (([], 1), ([one, one], 1), ([one], 0)):
        with pytest.raises(ValueError, match="Expected at least one worker and measures of different names"):
            measure_all(measures, examples(), workers=workers)


def test_threads_are_used_and_end():
    seen = set()
    together = threading.Barrier(2, timeout=30)

    def meet(example):
        together.wait()
        seen.add(threading.current_thread().name)
        return 0.0

    measure_all([ConceptMeasure("meet", meet)], examples(6), workers=2)
    assert len(seen) == 2
    assert not seen & {thread.name for thread in threading.enumerate()}


def test_the_bar_tells_images(capsys):
    measure_all([counted()[0]], examples(), progress="texture")
    assert "texture: 100%" in capsys.readouterr().err
    measure_all([counted()[0]], examples())
    assert capsys.readouterr().err == ""


# The size of files


def test_sources_know_the_size_of_their_files(tmp_path):
    source = write_boxes(tmp_path)
    sizes = [(tmp_path / "JPEGImages" / name).stat().st_size for name in source.table["name"]]
    assert [source[index].file_bytes for index in range(len(source))] == sizes
    found = measure_all([MEASURES["file_size"]], source).values[:, 0]
    areas = source.column("width") * source.column("height")
    np.testing.assert_allclose(found, np.array(sizes) / areas, rtol=1e-12)


def test_cropped_images_have_no_file(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "index.csv").write_text("file,class_index\na.png,0\n")
    images = open_labelled(str(tmp_path))
    assert images[0].file_bytes == (tmp_path / "a.png").stat().st_size
    assert squared(images, "stretch")[0].file_bytes == images[0].file_bytes
    with pytest.raises(
        ValueError, match=r"file_size cannot .* on 1 of 1 images \(a\.png: the size of its file"
    ):
        measure_all([MEASURES["file_size"]], squared(images, "crop"))


# Values that nothing can be regressed on


def test_measures_that_cannot_be_regressed():
    names = [f"image {index}" for index in range(12)]
    good = np.linspace(0.1, 0.9, 12)
    check_measures(good, names)
    bad = good.copy()
    bad[[3, 7]] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 images: image 3, image 7"):
        check_measures(bad, names)
    for constant in (0.0, 0.3):
        with pytest.raises(ValueError, match="nothing can be regressed"):
            check_measures(np.full(12, constant), names)
    with pytest.raises(ValueError, match="9 images; at least 10"):
        check_measures(good[:9], names[:9])
    with pytest.raises(ValueError, match="0 images"):
        check_measures(good[:0], [])
    with pytest.raises(ValueError, match=r"12 values.*11 images"):
        check_measures(good, names[:11])
