"""Batches: order, padding, and images that cannot be decoded."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from scalecov_jax.images.batching import batches
from scalecov_jax.images.boxes import read_boxes
from scalecov_jax.images.example import Example, ImageError, Skipped, resize_image


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
    found = list(batches(Fake(length), 4, 4, skipped, workers=3))
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


def test_batch_size_and_workers_change_nothing():
    def rows(batch_size, workers):
        found = list(batches(Fake(7), 6, batch_size, [], workers=workers))
        return np.concatenate([batch.images[batch.valid] for batch in found])

    expected = np.stack(
        [resize_image(example.image, 6) for example in (Fake(7)[index] for index in range(7))]
    )
    for batch_size, workers in ((1, 1), (3, 2), (7, 4), (50, None)):
        np.testing.assert_array_equal(rows(batch_size, workers), expected)


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
    stream = batches(source, 4, 5, [], workers=2)
    next(stream)
    stream.close()
    assert 5 <= len(source.read) <= 15
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize(("size", "batch_size", "workers"), [(0, 1, 1), (4, 0, 1), (4, 1, 0), (4, -2, 1)])
def test_sizes_below_one_are_refused_at_the_call(size, batch_size, workers):
    with pytest.raises(ValueError, match="at least 1"):
        batches(Fake(3), size, batch_size, [], workers=workers)
