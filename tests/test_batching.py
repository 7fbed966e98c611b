"""Batches: order, padding, images that cannot be decoded, and processes that decode."""

import os
import shutil
import signal
import threading
import time
from contextlib import closing

import numpy as np
import psutil
import pytest
from PIL import Image

from scalecov_jax.imaging.batching import Reordered, batches
from scalecov_jax.imaging.decoding import resize_image
from scalecov_jax.imaging.image_set import Example, ImageError, Skipped
from scalecov_jax.imaging.voc import read_boxes


class Fake:
    """Images of different sizes whose value is their index; the even ones are slow."""

    def __init__(self, length, broken=()):
        self.length = length
        self.broken = broken
        self.read = []

    def __len__(self):
        return self.length

    def __getitem__(self, index, /):
        self.read.append(index)
        if index % 2 == 0:
            time.sleep(0.002)
        if index in self.broken:
            raise ImageError(f"image {index}", "broken")
        return Example(np.full((5 + index, 9, 3), index, np.uint8), None, None, None, "", f"image {index}")


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 11])
def test_order_and_padding(length):
    skipped = []
    found = list(batches(Fake(length), 4, 4, skipped))
    assert len(found) == -(-length // 4)
    for batch in found:
        assert batch.images.shape == (4, 4, 4, 3)
        assert batch.images.dtype == np.uint8
        assert batch.valid.shape == batch.indices.shape == (4,)
        np.testing.assert_array_equal(batch.images[~batch.valid], 0)
        np.testing.assert_array_equal(batch.indices[~batch.valid], -1)
        np.testing.assert_array_equal(batch.images[batch.valid, 0, 0, 0], batch.indices[batch.valid])
    indices = [index for batch in found for index in batch.indices[batch.valid]]
    assert indices == list(range(length))
    assert skipped == []


def test_batch_size_changes_nothing():
    def rows(batch_size):
        found = list(batches(Fake(7), 6, batch_size, []))
        return np.concatenate([batch.images[batch.valid] for batch in found])

    expected = np.stack(
        [resize_image(example.image, 6) for example in (Fake(7)[index] for index in range(7))]
    )
    for batch_size in (1, 3, 7, 50):
        np.testing.assert_array_equal(rows(batch_size), expected)


def test_a_broken_image_costs_only_its_row():
    skipped = []
    found = list(batches(Fake(7, broken=(5, 2)), 4, 3, skipped))
    valid = np.concatenate([batch.valid for batch in found])
    indices = np.concatenate([batch.indices for batch in found])
    np.testing.assert_array_equal(indices, [0, 1, 2, 3, 4, 5, 6, -1, -1])
    np.testing.assert_array_equal(np.flatnonzero(~valid), [2, 5, 7, 8])
    assert not np.concatenate([batch.images for batch in found])[~valid].any()
    assert skipped == [
        Skipped("image 2", "unreadable image", "broken"),
        Skipped("image 5", "unreadable image", "broken"),
    ]


def test_truncated_file_in_a_folder(tmp_path):
    for part in ("Annotations", "JPEGImages"):
        (tmp_path / part).mkdir()
    for index in range(10):
        Image.new("RGB", (20, 20), (index, 0, 0)).save(tmp_path / "JPEGImages" / f"{index}.png")
        (tmp_path / "Annotations" / f"{index}.xml").write_text(
            f"<annotation><filename>{index}.png</filename><object><name>car</name><bndbox><xmin>1</xmin>"
            "<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
        )
    path = tmp_path / "JPEGImages" / "3.png"
    path.write_bytes(path.read_bytes()[:45])
    skipped = []
    (batch,) = batches(read_boxes(tmp_path, "car"), 8, 10, skipped)
    assert [(skip.name, skip.reason) for skip in skipped] == [("3.png", "unreadable image")]
    np.testing.assert_array_equal(np.flatnonzero(~batch.valid), [3])
    np.testing.assert_array_equal(batch.images[batch.valid, 0, 0, 0], [0, 1, 2, 4, 5, 6, 7, 8, 9])


def test_errors_that_are_no_bad_image_are_not_swallowed():
    class Wrong(Fake):
        def __getitem__(self, index, /):
            raise KeyError("a mistake in a source")

    with pytest.raises(KeyError, match="a mistake"):
        list(batches(Wrong(3), 4, 2, []))


def test_reads_ahead_but_not_far_and_stops_when_left():
    source = Fake(100)
    stream = batches(source, 4, 5, [])
    next(stream)
    stream.close()
    assert 5 <= len(source.read) <= 15
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize(("size", "batch_size", "workers"), [(0, 1, 1), (4, 0, 1), (4, 1, -1), (4, -2, 1)])
def test_sizes_below_one_are_refused_at_the_call(size, batch_size, workers):
    with pytest.raises(ValueError, match="at least 1"):
        batches(Fake(3), size, batch_size, [], workers=workers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs in VOC layout, of noise; number 6 is cut short."""
    folder = tmp_path_factory.mktemp("voc")
    for part in ("Annotations", "JPEGImages"):
        (folder / part).mkdir()
    for index in range(13):
        pixels = np.random.default_rng(index).integers(0, 256, (24 + index, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{index:02}.jpg")
        (folder / "Annotations" / f"{index:02}.xml").write_text(
            f"<annotation><filename>{index:02}.jpg</filename><object><name>car</name><bndbox><xmin>1</xmin>"
            "<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
        )
    cut = folder / "JPEGImages" / "06.jpg"
    cut.write_bytes(cut.read_bytes()[:-100])
    return folder


def children():
    return {one.pid for one in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("hosts", [1, 2])
def test_processes_change_no_bit(folder, hosts):
    """Of two hosts each takes every second half of a batch, as `stream_sums` has it; -1 is padding."""
    source = read_boxes(folder, "car")
    order = np.concatenate([np.random.default_rng(0).permutation(13), [-1] * 3]).reshape(-1, 4)
    found = []
    for workers in (0, 1, 3):
        before = children()
        skipped, parts = [], []
        for mine in np.split(order, hosts, axis=1):
            ordered = Reordered(source, mine.reshape(-1))
            parts.append(list(batches(ordered, 8, 4 // hosts, skipped, workers=workers)))
        assert children() == before
        assert skipped == [Skipped("06.jpg", "unreadable image", skipped[0].detail)]
        assert "truncated" in skipped[0].detail
        found.append([np.concatenate([one[k].images for one in parts]) for k in range(len(order))])
        rows = np.concatenate([order_of.reshape(-1) for order_of in np.split(order, hosts, axis=1)])
        valid = np.concatenate([batch.valid for part in parts for batch in part])
        assert rows[~valid].tolist() == [6]
        assert sorted(rows[valid & (rows >= 0)].tolist()) == [n for n in range(13) if n != 6]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_a_file_that_vanishes_during_a_pass_is_named(folder, tmp_path):
    copy = tmp_path / "voc"
    shutil.copytree(folder, copy)
    source, skipped = read_boxes(copy, "car"), []
    stream = batches(source, 8, 1, skipped, workers=1)
    next(stream)
    (copy / "JPEGImages" / "11.jpg").unlink()
    valid = [bool(batch.valid[0]) for batch in stream]
    assert [n for n, one in enumerate(valid, start=1) if not one] == [6, 11]
    assert skipped[1] == Skipped("11.jpg", "unreadable image", "no such file")


def test_a_process_that_is_killed_ends_the_pass_with_one_message_and_leaves_none(folder):
    before = children()
    stream = batches(read_boxes(folder, "car"), 8, 1, [], workers=2)
    next(stream)
    for pid in children() - before:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ValueError, match=r"decodes images ended \(signal SIGKILL\).*pass --resume"):
        list(stream)
    assert children() == before


def test_a_pass_that_is_left_leaves_no_process(folder):
    before = children()
    stream = batches(read_boxes(folder, "car"), 8, 2, [], workers=1)
    with closing(stream):
        next(stream)
        assert len(children() - before) == 1
    assert children() == before


def test_a_source_that_cannot_be_handed_over_is_refused():
    source = Fake(3)
    source.read = lambda: None
    with pytest.raises(ValueError, match=r"cannot be decoded in other processes .*--config\.workers=0"):
        list(batches(source, 8, 2, [], workers=1))
